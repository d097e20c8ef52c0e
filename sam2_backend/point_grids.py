"""Where to ask: grids of points, and the overlapping crops of an image that they are laid over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam2_backend.dataset_messages import EverythingOptions
from sam2_backend.errors import PromptError

_MAX_POINTS_PER_SIDE = 256
_MAX_LAYERS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """A part of the image that is looked at by itself.

    Attributes:
        box_xyxy_px: Left, top, right, bottom in pixels of the image.
        points_xy_px: (N, 2) float64, pixels of the crop.
    """

    box_xyxy_px: tuple[int, int, int, int]
    points_xy_px: NDArray[np.float64]

    @property
    def size_hw(self) -> tuple[int, int]:
        left, top, right, bottom = self.box_xyxy_px
        return bottom - top, right - left

    @property
    def area_px(self) -> int:
        return math.prod(self.size_hw)


def crops_of(size_hw: tuple[int, int], options: EverythingOptions) -> list[Crop]:
    """The image as a whole, then its crops, layer by layer.

    Raises:
        PromptError: an option is out of its range.

    Source: sam2/utils/amg.py at 2b90b9f, generate_crop_boxes and build_all_layer_point_grids.
    """
    _check(options)
    height, width = size_hw
    boxes = [(0, (0, 0, width, height))]
    for layer in range(1, options.crop_n_layers + 1):
        boxes += [(layer, box) for box in _layer(size_hw, 2**layer, options.crop_overlap_ratio)]
    grids = [
        point_grid(max(1, int(options.points_per_side / options.crop_n_points_downscale_factor**layer)))
        for layer in range(options.crop_n_layers + 1)
    ]
    return [Crop(box, grids[layer] * (box[2] - box[0], box[3] - box[1])) for layer, box in boxes]


def point_grid(n_per_side: int) -> NDArray[np.float64]:
    """Points (n², 2) in shares of the image, x and y, evenly spaced, row by row."""
    one_side = (np.arange(n_per_side) + 0.5) / n_per_side
    x, y = np.meshgrid(one_side, one_side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def _layer(size_hw: tuple[int, int], n_per_side: int, overlap_ratio: float) -> list[tuple[int, int, int, int]]:
    height, width = size_hw
    overlap = int(overlap_ratio * min(size_hw) * 2 / n_per_side)
    crop_height, crop_width = (math.ceil((overlap * (n_per_side - 1) + side) / n_per_side) for side in size_hw)
    starts = range(n_per_side)
    corners = [((crop_width - overlap) * column, (crop_height - overlap) * row) for column in starts for row in starts]
    return [
        (left, top, min(left + crop_width, width), min(top + crop_height, height))
        for left, top in corners
        if left < width and top < height  # fewer pixels than crops
    ]


def _check(options: EverythingOptions) -> None:
    for name, value, low, high in (
        ("points_per_side", options.points_per_side, 1, _MAX_POINTS_PER_SIDE),
        ("points_per_batch", options.points_per_batch, 1, _MAX_POINTS_PER_SIDE**2),
        ("crop_n_layers", options.crop_n_layers, 0, _MAX_LAYERS),
        ("crop_n_points_downscale_factor", options.crop_n_points_downscale_factor, 1, _MAX_POINTS_PER_SIDE),
        ("crop_overlap_ratio", options.crop_overlap_ratio, 0, 1),
        ("stability_score_offset", options.stability_score_offset, 0, math.inf),
    ):
        if not low <= value <= high:
            raise PromptError(f"{name}={value} must lie between {low} and {high}.")
