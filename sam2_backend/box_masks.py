"""Boxes that people or a detector drew → masks, all of an image together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sam2_backend.dataset_messages import Box, DatasetMask, LabelledBox, Skipped
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.engine import ObjectPrompt, Sam2Engine
from sam2_backend.messages import MaskOptions
from sam2_backend.regions_found import full_size_runs, region

#: So many boxes are decoded before others are let in between.
_BOXES_PER_BATCH = 16
_NO_POINTS, _NO_SIGNS = np.zeros((0, 2)), np.zeros(0, dtype=np.bool_)


def masks_of_boxes(
    engine: Sam2Engine,
    embedding: ImageEmbedding,
    size_hw: tuple[int, int],
    boxes: Sequence[LabelledBox],
    options: MaskOptions = MaskOptions(),  # noqa: B008  immutable
    between_batches: Callable[[], None] = lambda: None,
) -> tuple[list[DatasetMask], list[Skipped]]:
    """One mask for each box, in their order, and the boxes that none could be made of.

    Args:
        embedding: Of the image.
        size_hw: Of the image as it is shown; the masks have it.
        between_batches: Called after each batch, when the device is free for others.

    Raises:
        GpuMemoryError: the device is full.
    """
    usable: list[tuple[LabelledBox, ObjectPrompt]] = []
    skipped: list[Skipped] = []
    for box in boxes:
        reason = why_unusable(box.box, size_hw)
        if reason:
            skipped.append(Skipped(box.box_id, reason))
        else:
            usable.append((box, ObjectPrompt(_NO_POINTS, _NO_SIGNS, size_hw, multimask=False, box_xyxy_px=pixels_of(box.box, size_hw))))
    found: list[DatasetMask] = []
    for start in range(0, len(usable), _BOXES_PER_BATCH):
        some = usable[start : start + _BOXES_PER_BATCH]
        for (box, _), candidates in zip(some, engine.decode_many([(embedding, prompt) for _, prompt in some]), strict=True):
            runs = full_size_runs(engine, candidates.logits[0], size_hw, options)
            made = region(runs, float(candidates.scores[0]), box.label, box.box_id)
            if made:
                found.append(made)
            else:
                skipped.append(Skipped(box.box_id, "The model finds nothing in this box."))
        between_batches()
    return found, skipped


def why_unusable(box: Box, size_hw: tuple[int, int]) -> str:
    """Why no mask can be made of a box, a sentence; empty where one can."""
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return "A corner of the box is not a number."
    if right <= left or bottom <= top:
        return "The box has no area."
    left, top, right, bottom = pixels_of(box, size_hw)
    if right <= left or bottom <= top:
        return "The box lies outside the image."
    return ""


def pixels_of(box: Box, size_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """Shares → pixels; what lies outside the image is cut off."""
    height, width = size_hw
    left, top, right, bottom = (min(max(share, 0.0), 1.0) for share in box)
    return left * width, top * height, right * width, bottom * height
