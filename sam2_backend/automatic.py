"""Every object of an image, without a prompt: a grid of points is asked about, and of the masks those stay that are good and distinct.

Source: SAM (arXiv 2304.02643), appendix B; sam2/automatic_mask_generator.py at 2b90b9f. What differs is the order, not the outcome: the
estimated IoU is looked at before a mask is made at full size, and masks are kept as run lengths from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sam2_backend import masks
from sam2_backend.box_overlap import near_inner_edge, without_duplicates
from sam2_backend.candidate_masks import FullSizeMask, Upsampler
from sam2_backend.dataset_messages import EverythingOptions
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.engine import Candidates, ObjectPrompt, Sam2Engine
from sam2_backend.messages import RunLengths
from sam2_backend.point_grids import Crop, crops_of, point_grid

#: Logits are cut to ± this before they are a prompt, as the reference does.
_PROMPT_LOGIT_MAX = 32.0
_ONE_POINT = np.array([True])
_COARSE_SIDE = 6


@dataclass(frozen=True, slots=True)
class AutomaticMask:
    """One mask.

    Attributes:
        runs: At the size of the image.
        score: The estimated IoU, 0 to 1.
        box_xyxy_px: First and last columns and rows of the mask, all included.
        crop_area_px: Of the crop that it was found in.
    """

    runs: RunLengths
    score: float
    box_xyxy_px: tuple[int, int, int, int]
    crop_area_px: int


def everything(
    engine: Sam2Engine,
    image: NDArray[np.uint8],
    options: EverythingOptions,
    embedding: ImageEmbedding | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> list[AutomaticMask]:
    """Masks of all that there is in an image, best first. Memory is that of one batch and of the run lengths, however large the image.

    Args:
        engine: Decodes `points_per_batch` points at a time as is fastest on its device; masks may differ in their last bits from a click's.
        image: (H, W, 3) uint8 RGB, upright.
        options: See there; `min_mask_region_area` is that of SAM: in pixels of the image, holes being enclosed background.
        embedding: Of the image, where it is known.
        between_batches: Called after each batch, when the device is free for others.

    Raises:
        PromptError: an option is out of its range.
        GpuMemoryError: the device is full.
    """
    size_hw = (image.shape[0], image.shape[1])
    crops = crops_of(size_hw, options)
    found: list[AutomaticMask] = []
    for crop in crops:
        left, top, right, bottom = crop.box_xyxy_px
        known = embedding if crop is crops[0] else None
        in_crop = known or engine.embed(np.ascontiguousarray(image[top:bottom, left:right]))
        of_crop = list(_masks_of_crop(engine, in_crop, crop, size_hw, options, between_batches))
        found += _distinct(of_crop, [mask.score for mask in of_crop], options.box_nms_thresh)
    if len(crops) > 1:
        found = _distinct(found, [1 / mask.crop_area_px for mask in found], options.crop_nms_thresh)
    if options.min_mask_region_area > 1:
        found = _without_small_parts(found, options)
    return sorted(found, key=lambda mask: mask.score, reverse=True)


def why_nothing(engine: Sam2Engine, embedding: ImageEmbedding, size_hw: tuple[int, int], options: EverythingOptions) -> str:
    """Why `everything` finds nothing, for people: how near to the limits the masks of a coarse grid come. A small model's stay below."""
    side = engine.image_size // 4
    upsampler = Upsampler((side, side), (0, 0, size_hw[1], size_hw[0]), size_hw)
    points = point_grid(min(options.points_per_side, _COARSE_SIDE)) * size_hw[::-1]
    unfiltered = replace(options, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    masks_and_scores = [
        pair for found in _candidates(engine, embedding, points, size_hw, options) for pair in _good_masks(found, upsampler, unfiltered)
    ]
    if not masks_and_scores:
        return "No point of the grid has a mask."
    best_score = max(score for _, score in masks_and_scores)
    best_stability = max((mask.stability for mask, _ in masks_and_scores if not math.isnan(mask.stability)), default=0.0)
    return (
        f"No mask passes: of a coarse grid the best estimated IoU is {best_score:.2f} (pred_iou_thresh {options.pred_iou_thresh:g}), the best "
        f"stability {best_stability:.2f} (stability_score_thresh {options.stability_score_thresh:g} at stability_score_offset "
        f"{options.stability_score_offset:g}). Lower these for this model, or take a larger one."
    )


def _masks_of_crop(
    engine: Sam2Engine,
    embedding: ImageEmbedding,
    crop: Crop,
    image_size_hw: tuple[int, int],
    options: EverythingOptions,
    between_batches: Callable[[], None],
) -> Iterator[AutomaticMask]:
    side = engine.image_size // 4
    upsampler = Upsampler((side, side), crop.box_xyxy_px, image_size_hw)
    edges = (0, 0, image_size_hw[1], image_size_hw[0])
    for start in range(0, len(crop.points_xy_px), options.points_per_batch):
        points = crop.points_xy_px[start : start + options.points_per_batch]
        made: list[tuple[FullSizeMask, float]] = []
        for candidates in _candidates(engine, embedding, points, crop.size_hw, options):
            made += _good_masks(candidates, upsampler, options)
        if made:
            boxes = np.array([mask.box_xyxy_px for mask, _ in made], dtype=np.float64)
            for (mask, score), is_cut in zip(made, near_inner_edge(boxes, crop.box_xyxy_px, edges), strict=True):
                if not is_cut:
                    yield AutomaticMask(mask.runs, score, mask.box_xyxy_px, crop.area_px)
        between_batches()


def _candidates(
    engine: Sam2Engine, embedding: ImageEmbedding, points_xy_px: NDArray[np.float64], size_hw: tuple[int, int], options: EverythingOptions
) -> list[Candidates]:
    asked = [ObjectPrompt(point[None], _ONE_POINT, size_hw, options.multimask_output) for point in points_xy_px]
    found = engine.decode_many([(embedding, prompt) for prompt in asked], exact=False)
    if not options.use_m2m:
        return found
    again = [
        replace(prompt, multimask=False, mask_logits=logits.clamp(-_PROMPT_LOGIT_MAX, _PROMPT_LOGIT_MAX))
        for prompt, candidates in zip(asked, found, strict=True)
        for logits in candidates.logits
    ]
    return engine.decode_many([(embedding, prompt) for prompt in again], exact=False)


def _good_masks(candidates: Candidates, upsampler: Upsampler, options: EverythingOptions) -> Iterator[tuple[FullSizeMask, float]]:
    """Masks at full size, made only where the score is high enough; stable and not empty."""
    scores = candidates.scores.float().cpu()
    if options.pred_iou_thresh > 0:
        good = scores > options.pred_iou_thresh
        scores, logits = scores[good], candidates.logits[good.to(candidates.logits.device)]
    else:
        logits = candidates.logits
    for score, small in zip(scores.tolist(), logits.float().cpu().numpy(), strict=True):
        mask = upsampler.mask(small, options.mask_threshold, options.stability_score_offset, options.stability_score_thresh)
        if mask is not None and masks.area_px(mask.runs):
            yield mask, score


def _distinct(found: list[AutomaticMask], order: list[float], iou_thresh: float) -> list[AutomaticMask]:
    boxes = np.array([mask.box_xyxy_px for mask in found], dtype=np.float64).reshape(-1, 4)
    return [found[i] for i in without_duplicates(boxes, np.array(order), iou_thresh)]


def _without_small_parts(found: list[AutomaticMask], options: EverythingOptions) -> list[AutomaticMask]:
    """Fill small holes, remove small islands, then drop what became alike; masks that did not change are preferred."""
    limit_px = options.min_mask_region_area - 1
    cleaned, is_same = [], []
    for mask in found:
        runs = masks.runs_from_mask(masks.clean(masks.mask_from_runs(mask.runs), limit_px, limit_px))
        is_same.append(float(runs == mask.runs))
        left, top, right, bottom = masks.box_xyxy_px(runs) or (0, 0, 1, 1)
        cleaned.append(replace(mask, runs=runs, box_xyxy_px=(left, top, right - 1, bottom - 1)))
    return _distinct(cleaned, is_same, max(options.box_nms_thresh, options.crop_nms_thresh))
