"""How far two masks agree: by area (IoU) and by outline (boundary F, as DAVIS measures it). Knows no Label Studio.

IoU is taken from run lengths without making a pixel; outlines are looked at within the box around both masks alone.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from sam2_backend.masks import Mask, area_px, box_xyxy_px, mask_from_runs, run_counts
from sam2_backend.messages import RunLengths

BOUNDARY_TOLERANCE = 0.008
"""How far apart two outlines may be and still agree, as a share of the image's diagonal."""

Window = tuple[slice, slice]


def iou(a: RunLengths, b: RunLengths) -> float:
    """Intersection over union of two masks of one size; 1 where both are empty.

    Raises:
        JobRefusedError: runs do not add up to their size.
    """
    shared = intersection_px(a, b)
    union = area_px(a) + area_px(b) - shared
    return shared / union if union else 1.0


def intersection_px(a: RunLengths, b: RunLengths) -> int:
    """How many pixels both masks cover."""
    edges = np.cumsum(run_counts(a))
    starts, ends = edges[:-1:2], edges[1::2]
    lengths = run_counts(b)
    edges_b = np.concatenate([[0], np.cumsum(lengths)])
    covered = np.concatenate([[0], np.cumsum(np.where(np.arange(lengths.size) % 2 == 1, lengths, 0))])
    # Pixels of b before any place: it grows by one a pixel, or not at all, between two edges.
    before_starts, before_ends = (np.interp(places, edges_b, covered) for places in (starts, ends))
    return int((before_ends - before_starts).sum())


def boundary_f(prediction: RunLengths, annotation: RunLengths) -> float:
    """The harmonic mean of precision and recall of a mask's outline, 0 to 1; both masks of one size.

    A pixel of an outline is right where the other outline is within `boundary_tolerance_px` of it. Two masks without an outline (empty,
    or the whole image) agree.

    Source: Perazzi et al. 2016, section 4.1; davis2017-evaluation, metrics.py, `f_measure`.
    """
    window = _window(prediction, annotation)
    if window is None:
        return 1.0
    outlines = [boundary(np.ascontiguousarray(mask_from_runs(runs)[window])) for runs in (prediction, annotation)]
    radius_px = boundary_tolerance_px(prediction.size_hw)
    precision, recall = _share_near(outlines[0], outlines[1], radius_px), _share_near(outlines[1], outlines[0], radius_px)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_tolerance_px(size_hw: tuple[int, int]) -> int:
    """How many pixels apart two outlines may be on an image of that size."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(*size_hw))


def boundary(mask: Mask) -> Mask:
    """The outline (H, W) bool of a mask: pixels that differ from the one to the right, below, or below to the right.

    Where a mask meets the border of the image it has no outline.
    """
    right, below, corner = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    corner[:-1, :-1] = mask[1:, 1:]
    corner[-1, :-1], corner[:-1, -1] = right[-1, :-1], below[:-1, -1]
    found: Mask = (mask ^ right) | (mask ^ below) | (mask ^ corner)
    return found


def _window(a: RunLengths, b: RunLengths) -> Window | None:
    """The part of the image that holds both masks and a pixel around them, which all outlines lie in; None: both are empty."""
    boxes = np.array([box for box in (box_xyxy_px(a), box_xyxy_px(b)) if box])
    if not boxes.size:
        return None
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    return slice(max(int(top) - 1, 0), int(bottom) + 1), slice(max(int(left) - 1, 0), int(right) + 1)


def _share_near(outline: Mask, other: Mask, radius_px: int) -> float:
    """Which share of an outline's pixels has a pixel of the other's within the radius; of no pixels, all."""
    n_pixels = int(outline.sum())
    if not n_pixels:
        return 1.0
    if not other.any():
        return 0.0
    distance_px: NDArray[np.float32] = cv2.distanceTransform((~other).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares of distances are whole numbers: half of one lies between the radius and the next distance.
    return int((distance_px[outline] ** 2 < radius_px**2 + 0.5).sum()) / n_pixels
