"""Boxes that overlap: intersection over union, and the best of those that show the same. Numpy alone; knows no masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""(N, 4): left, top, right, bottom, in any one unit."""


def areas(boxes: Boxes) -> NDArray[np.float64]:
    """(N, 4) → (N,); 0 where right is not beyond left, or bottom not below top."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    product: NDArray[np.float64] = sides[:, 0] * sides[:, 1]
    return product


def iou(one: NDArray[np.float64], others: Boxes) -> NDArray[np.float64]:
    """The overlap of one box (4,) with each of (N, 4) → (N,), 0 to 1; two boxes without area do not overlap."""
    low, high = np.maximum(others[:, :2], one[:2]), np.minimum(others[:, 2:], one[2:])
    shared = areas(np.concatenate([low, high], axis=1))
    union = areas(others) + areas(one[None]) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def without_duplicates(boxes: Boxes, scores: NDArray[np.float64], iou_thresh: float) -> NDArray[np.int64]:
    """Non-maximum suppression: which boxes stay, best first.

    A box goes where one with a higher score, which stays, overlaps it by more than iou_thresh. Of equal scores the earlier one stays.

    Args:
        boxes: (N, 4).
        scores: (N,).

    Source: torchvision.ops.nms.
    """
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while left.size:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        left = left[iou(boxes[best], boxes[left]) <= iou_thresh]
    return np.array(kept, dtype=np.int64)


def near_inner_edge(boxes: Boxes, crop: tuple[int, ...], image: tuple[int, ...], tolerance_px: float = 20.0) -> NDArray[np.bool_]:
    """Which boxes end where a crop does, and the image does not: of an object that is cut off there. (N, 4) → (N,) bool.

    Args:
        boxes: In pixels of the image, as are the crop and the image itself.

    Source: sam2/utils/amg.py at 2b90b9f, is_box_near_crop_edge.
    """
    near_crop, near_image = (np.abs(boxes - np.array(edges, dtype=np.float64)) <= tolerance_px for edges in (crop, image))
    return np.asarray(np.any(near_crop & ~near_image, axis=1))
