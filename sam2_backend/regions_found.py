"""What the modes of pre-annotation hand over: a mask with all that a region needs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sam2_backend import masks
from sam2_backend.dataset_messages import DatasetMask
from sam2_backend.engine import Sam2Engine
from sam2_backend.messages import MaskOptions, RunLengths


def region(runs: RunLengths, score: float, label: str = "", source: str = "") -> DatasetMask | None:
    """A mask with its box and area; None where it is empty."""
    box = masks.box_xyxy_px(runs)
    if box is None:
        return None
    (height, width), (left, top, right, bottom) = runs.size_hw, box
    shares = (left / width, top / height, right / width, bottom / height)
    return DatasetMask(label, runs, float(score), shares, masks.area_px(runs), source)


def full_size_runs(engine: Sam2Engine, logits: Tensor, size_hw: tuple[int, int], options: MaskOptions) -> RunLengths:
    """Logits (S/4, S/4) → the mask of an image as the project wants it: holes filled, islands removed."""
    runs = engine.runs(logits, size_hw, options.mask_threshold)
    if options.fill_holes_px <= 0 and options.remove_sprinkles_px <= 0:
        return runs
    return masks.runs_from_mask(masks.clean(masks.mask_from_runs(runs), options.fill_holes_px, options.remove_sprinkles_px))


def best(found: Sequence[DatasetMask], min_score: float, limit: int) -> tuple[DatasetMask, ...]:
    """Those of at least min_score, in their order; where there are more than limit (0: no limit), those with the highest scores."""
    good = [mask for mask in found if mask.score >= min_score]
    if 0 < limit < len(good):
        ranks = sorted(range(len(good)), key=lambda i: -good[i].score)[:limit]
        good = [good[i] for i in sorted(ranks)]
    return tuple(good)
