"""Reads the masks of an annotation as Label Studio stores it, without this project's own codecs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from label_studio_converter.brush import decode_rle
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_FINER = 8


def mask_of(regions: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """The union (H, W) bool of regions on one image."""
    first = regions[0]
    mask = np.zeros((first["original_height"], first["original_width"]), dtype=bool)
    for region in regions:
        mask |= _mask(region["value"], mask.shape)
    return mask


def _mask(value: dict[str, Any], size_hw: tuple[int, ...]) -> NDArray[np.bool_]:
    height, width = size_hw
    if "rle" in value:
        return np.asarray(decode_rle(value["rle"])).reshape(height, width, 4)[:, :, 3] > 0
    if "imageDataURL" in value:
        with Image.open(io.BytesIO(base64.b64decode(value["imageDataURL"].partition(",")[2]))) as png:
            return np.asarray(png.convert("RGBA"))[:, :, 3] > 0
    if "points" in value:
        return _polygon([(x / 100 * width, y / 100 * height) for x, y in value["points"]], width, height)
    left, top = value["x"] / 100 * width, value["y"] / 100 * height
    right, bottom = left + value["width"] / 100 * width, top + value["height"] / 100 * height
    mask = np.zeros((height, width), dtype=bool)
    mask[round(top) : round(bottom), round(left) : round(right)] = True
    return mask


def _polygon(points_xy: list[tuple[float, float]], width: int, height: int) -> NDArray[np.bool_]:
    """Drawn finer, then read at the centres of the pixels."""
    canvas = Image.new("1", (width * _FINER, height * _FINER))
    ImageDraw.Draw(canvas).polygon([(x * _FINER, y * _FINER) for x, y in points_xy], fill=1)
    return np.asarray(canvas)[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]
