"""A propagation's tracks → the regions of Label Studio's editor, one per object, under the ids and labels that they came with.

A person's keyframes stand exactly as drawn, and between them as many of ours as linear interpolation needs. Where nothing has been tracked
yet, or the project's range does not reach, our keyframes of before stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.keyframe_thinning import needed
from backend.keyframes import DECIMALS, SequenceKeyframe, our_keyframe
from backend.video_prompts import VideoDrawing, VideoObject
from sam2_backend.video_messages import Track

_ROUNDING_PCT = 2 * 10.0**-DECIMALS
"""What rounding may move an edge by; the thinning leaves room for it."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Boxes of one object on some frames.

    Attributes:
        ls_frames: int64 (n,), from 1, ascending.
        boxes_xywh_pct: float64 (n, 4); NaN where the object is not seen.
        scores: float64 (n,), 0 to 1.
    """

    ls_frames: NDArray[np.int64]
    boxes_xywh_pct: NDArray[np.float64]
    scores: NDArray[np.float64]


def video_regions(drawing: VideoDrawing, tracks: Sequence[Track], tolerance_pct: float) -> list[dict[str, Any]]:
    """The regions with what is tracked so far.

    Args:
        drawing: What the propagation was started with.
        tracks: By object, as many as there are.
        tolerance_pct: How far an edge of the interpolated box may be from the tracked one, in per cent of the frame.

    Returns:
        JSON-ready regions in the order of the drawing, every key as it came but `sequence`. An object without a track is unchanged.
    """
    by_object = {track.object_id: track for track in tracks}
    return [_region(drawn, by_object.get(drawn.object_id), drawing.framerate, tolerance_pct) for drawn in drawing.objects]


def mean_score(tracks: Sequence[Track]) -> float:
    """The mean score where objects are seen; 0: nowhere."""
    seen = [samples.scores[~np.isnan(samples.boxes_xywh_pct[:, 0])] for samples in map(samples_of, tracks)]
    scores = np.concatenate(seen) if seen else np.zeros(0)
    return float(scores.mean()) if scores.size else 0.0


def samples_of(track: Track) -> Samples:
    """Unpack a track: shares of the frame become per cent, edges become sides."""
    boxes = np.frombuffer(track.boxes, dtype="<f4").reshape(-1, 4).astype(np.float64) * 100
    xywh = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    scores = np.frombuffer(track.scores, dtype="<f4").astype(np.float64)
    return Samples(np.frombuffer(track.grid_idx, dtype="<i4").astype(np.int64) + 1, xywh, scores)


def _region(drawn: VideoObject, track: Track | None, framerate: float, tolerance_pct: float) -> dict[str, Any]:
    if track is None or not track.grid_idx:
        return dict(drawn.region)
    samples = samples_of(track)
    ours_before = [kf for kf in drawn.keyframes if kf.is_ours]
    is_tracked = np.isin([kf.ls_frame for kf in ours_before], samples.ls_frames)
    before = {kf.ls_frame: dict(kf.raw) for kf, is_replaced in zip(ours_before, is_tracked, strict=True) if not is_replaced}
    ours = _keyframes(_with_drawn(samples, drawn.drawn), drawn.drawn, sorted(before), framerate, tolerance_pct)
    by_hand = {kf.ls_frame: dict(kf.raw) for kf in drawn.drawn}
    sequence = before | {int(kf["frame"]): kf for kf in ours} | by_hand
    return {**drawn.region, "value": {**drawn.region["value"], "sequence": [sequence[frame] for frame in sorted(sequence)]}}


def _with_drawn(samples: Samples, drawn: Sequence[SequenceKeyframe]) -> Samples:
    """The samples with a person's boxes in the place of the tracked ones, or beside them."""
    by_hand = np.array([keyframe.ls_frame for keyframe in drawn], dtype=np.int64)
    frames = np.union1d(samples.ls_frames, by_hand)
    boxes, scores = np.full((len(frames), 4), np.nan), np.ones(len(frames))
    at = np.searchsorted(frames, samples.ls_frames)
    boxes[at], scores[at] = samples.boxes_xywh_pct, samples.scores
    boxes[np.searchsorted(frames, by_hand)] = np.array([keyframe.box_xywh_pct for keyframe in drawn]).reshape(-1, 4)
    return Samples(frames, boxes, scores)


def _keyframes(
    samples: Samples, drawn: Sequence[SequenceKeyframe], kept_before: Sequence[int], framerate: float, tolerance_pct: float
) -> Iterator[dict[str, Any]]:
    """Our keyframes, those on a person's frames among them (the caller puts the person's in their place).

    `kept_before` are frames of keyframes that stay between the samples: the samples beside them are kept, so that they bend nothing.
    """
    frames = samples.ls_frames
    by_hand = {keyframe.ls_frame: keyframe for keyframe in drawn}
    forced = np.isin(frames, list(by_hand))
    beside = np.searchsorted(frames, np.array(kept_before, dtype=np.int64))
    forced[np.clip(np.concatenate([beside - 1, beside]), 0, len(frames) - 1)] |= bool(kept_before)
    for first, last in _runs(samples):
        run = slice(first, last + 1)
        kept = first + np.flatnonzero(
            needed(frames[run], samples.boxes_xywh_pct[run], max(tolerance_pct - _ROUNDING_PCT, 0.0), forced[run])
        )
        ends = last + 1 < len(frames)
        for index in kept.tolist():
            yield _ours(samples, index, int(frames[index]), framerate, is_enabled=not (ends and index == last))
        person = by_hand.get(int(frames[last]))
        if ends and person and person.is_enabled:  # it stays as drawn: the frame after it ends the lifespan
            yield _ours(samples, last, person.ls_frame + 1, framerate, is_enabled=False)


def _ours(samples: Samples, index: int, ls_frame: int, framerate: float, *, is_enabled: bool) -> dict[str, Any]:
    x, y, width, height = samples.boxes_xywh_pct[index].tolist()
    return our_keyframe(ls_frame, (x, y, width, height), is_enabled=is_enabled, score=float(samples.scores[index]), framerate=framerate)


def _runs(samples: Samples) -> list[tuple[int, int]]:
    """First and last index of every stretch on which the object is seen."""
    is_seen = np.isfinite(samples.boxes_xywh_pct[:, 0]).astype(np.int8)
    changes = np.diff(np.concatenate([[0], is_seen, [0]]))
    return list(zip(np.flatnonzero(changes == 1).tolist(), (np.flatnonzero(changes == -1) - 1).tolist(), strict=True))
