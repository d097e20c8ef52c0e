"""What every region of a context says beside its shape: id, labels, page, image size; and its numbers, per cent to pixels.

Errors here say what is wrong with a region; `prompts` puts its name before them.

Label Studio speaks per cent of the image as the browser shows it, x to the right and y down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sam2_backend.errors import PromptError

KINDS = ("keypoint", "rectangle", "ellipse", "polygon", "brush", "bitmask")
"""Region types that are prompts, each also with `labels` behind."""

MOST_PIXELS = 1 << 28
"""Largest image that a prompt may claim to be on; the worker's own limit is `SAM2_MEDIA_MAX_PIXELS`."""

SLACK_PCT = 0.5
"""How far outside the image a coordinate may lie: the editor rounds. It is moved onto the border."""

MOST_ID_CHARACTERS = 200
SizeHW = tuple[int, int]


def shape_kind(region: Mapping[str, Any]) -> str:
    """Which of `KINDS` a region is; "": none of them."""
    kind = region.get("type")
    kind = kind.lower().removesuffix("labels") if isinstance(kind, str) else ""
    return kind if kind in KINDS else ""


def region_id(region: Mapping[str, Any]) -> str:
    """The region's id; where it has none, one made of what was drawn, so that the same drawing has the same id again.

    Raises:
        PromptError: it is no text or number, or too long.
    """
    own = region.get("id")
    if own is None or own == "":
        value = region.get("value")
        drawn = {k: v for k, v in value.items() if not k.endswith("labels")} if isinstance(value, Mapping) else value
        try:
            return digest("drawn", json.dumps([drawn, region.get("is_positive")], sort_keys=True, default=str))
        except RecursionError as error:
            raise PromptError("its value is nested too deeply. Send the region as Label Studio's editor does.") from error
    if isinstance(own, bool) or not isinstance(own, str | int) or len(f"{own}") > MOST_ID_CHARACTERS:
        raise PromptError(f"its id is not a text of at most {MOST_ID_CHARACTERS} characters. Send the region's own id.")
    return str(own)


def digest(*parts: object) -> str:
    """A short id of some values."""
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=5).hexdigest()


def label_names(region: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The labels a region carries, under `labels` or the labels key of its kind.

    Raises:
        PromptError: they are not a list of texts.
    """
    value = region.get("value")
    found: list[str] = []
    for key in ("labels", f"{kind}labels"):
        names = value.get(key) if isinstance(value, Mapping) else None
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise PromptError(f"value.{key} must be a list of texts.")
        found += names or []
    return tuple(dict.fromkeys(found))


def size_hw(region: Mapping[str, Any]) -> SizeHW:
    """Height and width of the image as the browser shows it.

    Raises:
        PromptError: missing, not whole, not positive, or beyond any image.
    """
    height, width = (number(region.get(name), name) for name in ("original_height", "original_width"))
    if not (height >= 1 and width >= 1 and height * width <= MOST_PIXELS and height.is_integer() and width.is_integer()):
        raise PromptError(f"an image of {width:g} x {height:g} pixels cannot be. Send original_width and original_height.")
    return int(height), int(width)


def item_index(region: Mapping[str, Any]) -> int | None:
    """The page, from 0; None: not said.

    Raises:
        PromptError: it is no whole number from 0 up.
    """
    index = region.get("item_index")
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 1 << 31):
        raise PromptError("item_index must be a whole number from 0 up.")
    return index


def xy_px(x: Any, y: Any, size: SizeHW) -> tuple[float, float]:
    """A place, per cent to pixels.

    Raises:
        PromptError: no numbers, or outside the image by more than `SLACK_PCT`.
    """
    x_pct, y_pct = number(x, "value.x"), number(y, "value.y")
    if not all(-SLACK_PCT <= pct <= 100 + SLACK_PCT for pct in (x_pct, y_pct)):
        raise PromptError(f"({x_pct:.4g} %, {y_pct:.4g} %) is outside the image, which ends at 0 and 100 %. Draw it again.")
    return min(max(x_pct, 0.0), 100.0) / 100 * size[1], min(max(y_pct, 0.0), 100.0) / 100 * size[0]


def number(value: Any, name: str) -> float:
    """A JSON number that is finite and of a size that images have; else PromptError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return float(value)
    raise PromptError(f"{name} must be a number.")


def named(region: Mapping[str, Any]) -> str:
    """How an error names a region."""
    own, kind = region.get("id"), region.get("type")
    of_kind = f" ({kind[:40]})" if isinstance(kind, str) else ""
    return (f"Prompt {str(own)[:40]!r}" if isinstance(own, str | int) else "A prompt") + of_kind
