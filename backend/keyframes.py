"""Keyframes as Label Studio's editor keeps them in a region's `sequence`, and how ours are told from a person's.

The editor sends every keyframe back, tracked ones included, and keeps keys that it does not know. When a person moves a box on one of our
keyframes, or adds a keyframe before one, the new numbers come with our keys still on them (1.23.2, `updateShape`). So each of ours
carries a seal: a digest of its frame and box. Where the seal no longer fits, a person has been there.

Frames count from 1. A keyframe with `enabled: false` is the last frame on which the object is shown; between keyframes x, y, width and
height run linearly, after the last one the box stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from backend.prompt_regions import number
from sam2_backend.errors import PromptError

AUTO, SCORE, SEAL = "auto", "score", "seal"
OUR_KEYS = (AUTO, SCORE, SEAL)

DECIMALS = 4
"""Of a per cent; the seal does not look further."""

MOST_FRAMES = 10_000_000
"""Greatest frame number; at 60 frames a second, two days."""

_FURTHEST_PCT = 10_000.0

BoxXYWH = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class SequenceKeyframe:
    """One keyframe of a region's sequence.

    Attributes:
        ls_frame: From 1.
        box_xywh_pct: Left, top, width, height in per cent of the frame; it may hang over the border.
        rotation_deg: Clockwise, around the top-left corner; 0 to 360.
        is_enabled: False: the object is gone after this frame, until the next keyframe.
        is_ours: Written by this backend and not touched since.
        raw: As the editor sent it; a person's comes without our keys.
    """

    ls_frame: int
    box_xywh_pct: BoxXYWH
    rotation_deg: float
    is_enabled: bool
    is_ours: bool
    raw: Mapping[str, Any]


def read_keyframe(value: Any) -> SequenceKeyframe:
    """Read one keyframe.

    Raises:
        PromptError: it is no object, or a number in it is missing, not finite or absurd.
    """
    if not isinstance(value, Mapping):
        raise PromptError("every keyframe of value.sequence must be an object with frame, x, y, width and height.")
    ls_frame = number(value.get("frame"), "frame of a keyframe")
    if not (ls_frame.is_integer() and 1 <= ls_frame <= MOST_FRAMES):
        raise PromptError(f"frame {ls_frame:g} of a keyframe cannot be: frames are whole numbers from 1 to {MOST_FRAMES}.")
    where = f"on frame {ls_frame:.0f}"
    x, y, width, height = (_pct(value, name, where) for name in ("x", "y", "width", "height"))
    rotation = number(value.get("rotation") or 0, f"rotation {where}") % 360
    is_enabled = value.get("enabled", True)
    if not isinstance(is_enabled, bool):
        raise PromptError(f"enabled {where} must be true or false.")
    is_ours = bool(value.get(AUTO)) and value.get(SEAL, ...) in {..., seal(int(ls_frame), (x, y, width, height), rotation, is_enabled)}
    raw = dict(value) if is_ours else {key: item for key, item in value.items() if not (key in OUR_KEYS and value.get(AUTO))}
    return SequenceKeyframe(int(ls_frame), (x, y, width, height), rotation, is_enabled, is_ours, raw)


def our_keyframe(ls_frame: int, box_xywh_pct: BoxXYWH, *, is_enabled: bool, score: float, framerate: float) -> dict[str, Any]:
    """A keyframe as Label Studio writes it, with our mark; `time` is frame / framerate, as the editor's."""
    x, y, width, height = (round(float(side), DECIMALS) for side in box_xywh_pct)
    return {
        "frame": ls_frame,
        "enabled": is_enabled,
        "rotation": 0,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "time": ls_frame / framerate,
        AUTO: True,
        SCORE: round(float(score), DECIMALS),
        SEAL: seal(ls_frame, (x, y, width, height), 0.0, is_enabled),
    }


def seal(ls_frame: int, box_xywh_pct: BoxXYWH, rotation_deg: float, is_enabled: bool) -> str:
    """A digest of what a person can change in a keyframe, to `DECIMALS` of a per cent."""
    numbers = ":".join(f"{round(side, DECIMALS) + 0.0:.{DECIMALS}f}" for side in (*box_xywh_pct, rotation_deg))
    return hashlib.blake2b(f"{ls_frame}:{numbers}:{is_enabled}".encode(), digest_size=6).hexdigest()


def one_per_frame(keyframes: Iterable[SequenceKeyframe]) -> tuple[SequenceKeyframe, ...]:
    """By frame, ascending. Of several on one frame a person's wins over ours, then the first, which is the one that the editor draws."""
    kept: dict[int, SequenceKeyframe] = {}
    for keyframe in keyframes:
        before = kept.get(keyframe.ls_frame)
        if before is None or (before.is_ours and not keyframe.is_ours):
            kept[keyframe.ls_frame] = keyframe
    return tuple(kept[ls_frame] for ls_frame in sorted(kept))


def _pct(value: Mapping[str, Any], name: str, where: str) -> float:
    pct = number(value.get(name), f"{name} {where}")
    if abs(pct) > _FURTHEST_PCT or (name in {"width", "height"} and pct < 0):
        raise PromptError(f"{name} {where} is {pct:g}: boxes are in per cent of the frame. Draw it again.")
    return pct
