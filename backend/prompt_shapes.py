"""The shape of one region of a context, in pixels: a point, a box or a mask.

`rotation` is in degrees clockwise around the region's own top-left corner (a rectangle's) or centre (an ellipse's).
"""

from __future__ import annotations

import base64
import io
import math
import struct
import threading
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from backend.brush_rle import decode_runs
from backend.prompt_regions import SizeHW, number, xy_px
from sam2_backend import masks
from sam2_backend.errors import PromptError
from sam2_backend.messages import Point, RunLengths

LEAST_SIDE_PX = 1.0
LARGE_PIXELS = 1 << 24
MOST_CHANGES = 1 << 22
"""From mask to background and back, in one bitmask: noise on 16384 x 16384 pixels, a PNG of 300 kB, would have a quarter of a billion."""
_one_large_mask = threading.Lock()
BoxXYXY = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """What was drawn, in pixels: exactly one of `point`, a box alone, or `mask` with the box around it.

    Attributes:
        box_xyxy_px: The box itself, the bounding box of a rotated one, or the box around the mask; None: a point.
        clip_xy_px: Corners of a rotated box; empty: not rotated.
    """

    point: Point | None = None
    box_xyxy_px: BoxXYXY | None = None
    mask: RunLengths | None = None
    clip_xy_px: tuple[tuple[float, float], ...] = ()


def shape(region: Mapping[str, Any], kind: str, size: SizeHW) -> Shape:
    """Read what was drawn.

    Raises:
        PromptError: a number is missing or not finite, a coordinate is outside the image, a side is under a pixel, a mask does not decode.
    """
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise PromptError("it has no value. Send the region as Label Studio's editor does.")
    is_positive = region.get("is_positive")
    if not isinstance(is_positive, bool | None):
        raise PromptError("is_positive must be true or false.")
    if kind == "keypoint":
        x_px, y_px = xy_px(value.get("x"), value.get("y"), size)
        return Shape(point=Point(x_px, y_px, is_positive is not False))
    if is_positive is False:
        raise PromptError("only key points can be negative. Draw the part to leave out with negative points.")
    if kind == "rectangle":
        return _rectangle(value, size)
    with _alone_if_large(size):
        return _mask_shape(_MASK_READERS[kind](value, size))


def _alone_if_large(size: SizeHW) -> AbstractContextManager[object]:
    """Threads make large masks one after another: each takes up to 2 GB for a moment."""
    return _one_large_mask if size[0] * size[1] > LARGE_PIXELS else nullcontext()


def _rectangle(value: Mapping[str, Any], size: SizeHW) -> Shape:
    width_px, height_px = _sides_px(value, ("width", "height"), size)
    rotation_deg = _rotation_deg(value)
    if rotation_deg == 0:
        x0, y0 = xy_px(value.get("x"), value.get("y"), size)
        x_pct, y_pct = value["x"] + value["width"], value["y"] + value["height"]
        x1, y1 = xy_px(x_pct, y_pct, size)
        return Shape(box_xyxy_px=_wide_enough((x0, y0, x1, y1)))
    # A turned box may hang over the border, its top-left corner as well: only what is inside the image counts.
    x_px, y_px = (number(value.get(name), name) / 100 * side for name, side in (("x", size[1]), ("y", size[0])))
    cos, sin = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    sides = ((0.0, 0.0), (width_px, 0.0), (width_px, height_px), (0.0, height_px))
    corners = tuple((x_px + a * cos - b * sin, y_px + a * sin + b * cos) for a, b in sides)
    box = _wide_enough(_box_around(corners, size))
    return Shape(box_xyxy_px=box, clip_xy_px=() if rotation_deg % 90 == 0 else corners)


def _wide_enough(box: BoxXYXY) -> BoxXYXY:
    if box[2] - box[0] < LEAST_SIDE_PX or box[3] - box[1] < LEAST_SIDE_PX:
        raise PromptError("it covers less than a pixel of the image. Draw it again, larger.")
    return box


def _box_around(corners: Sequence[tuple[float, float]], size: SizeHW) -> BoxXYXY:
    """Bounding box of some corners, cut to the image."""
    xs, ys = ([min(max(corner[axis], 0.0), float(size[1 - axis])) for corner in corners] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def _ellipse(value: Mapping[str, Any], size: SizeHW) -> RunLengths:
    center_xy_px = xy_px(value.get("x"), value.get("y"), size)
    radii_xy_px = _sides_px(value, ("radiusX", "radiusY"), size)
    return masks.runs_from_mask(masks.fill_ellipse(center_xy_px, radii_xy_px, _rotation_deg(value), size))


def _polygon(value: Mapping[str, Any], size: SizeHW) -> RunLengths:
    points = value.get("points")
    if not isinstance(points, list) or len(points) < 3 or not all(isinstance(p, list | tuple) and len(p) == 2 for p in points):
        raise PromptError("value.points must be a list of at least three [x, y].")
    return masks.runs_from_mask(masks.fill_polygon([xy_px(x, y, size) for x, y in points], size))


def _brush(value: Mapping[str, Any], size: SizeHW) -> RunLengths:
    return decode_runs(value.get("rle", ""), size)


_BROKEN_PNG = (ValueError, OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def _bitmask(value: Mapping[str, Any], size: SizeHW) -> RunLengths:
    header, _, payload = str(value.get("imageDataURL")).partition(",")
    try:
        if not header.startswith("data:image/png"):
            raise ValueError("another format")
        with Image.open(io.BytesIO(base64.b64decode(payload, validate=True)), formats=("PNG",)) as image:
            if image.size != size[::-1]:
                raise ValueError("another size")
            alpha = image if "A" in image.getbands() else image.convert("RGBA")
            mask = np.asarray(alpha.getchannel("A")) > 0
    except _BROKEN_PNG as error:
        raise PromptError(f"value.imageDataURL is not a PNG of {size[1]} x {size[0]} pixels. Draw it again.") from error
    flat = mask.reshape(-1)
    if np.count_nonzero(flat[1:] != flat[:-1]) > MOST_CHANGES:
        raise PromptError("value.imageDataURL is noise, not a drawing. Draw it again.")
    return masks.runs_from_mask(mask)


_MASK_READERS = {"ellipse": _ellipse, "polygon": _polygon, "brush": _brush, "bitmask": _bitmask}


def _mask_shape(runs: RunLengths) -> Shape:
    box = masks.box_xyxy_px(runs)
    if box is None:
        raise PromptError("it covers no pixel of the image. Draw it again, larger.")
    x0, y0, x1, y1 = (float(edge) for edge in box)
    return Shape(box_xyxy_px=(x0, y0, x1, y1), mask=runs)


def _sides_px(value: Mapping[str, Any], names: tuple[str, str], size: SizeHW) -> tuple[float, float]:
    """Two lengths along x and y, per cent to pixels; each at most twice the image."""
    x_pct, y_pct = (number(value.get(name), f"value.{name}") for name in names)
    if not (0 <= x_pct <= 200 and 0 <= y_pct <= 200):
        raise PromptError(f"value.{names[0]} and value.{names[1]} must be per cent of the image, from 0 to 100.")
    x_px, y_px = x_pct / 100 * size[1], y_pct / 100 * size[0]
    if min(x_px, y_px) < LEAST_SIDE_PX:
        raise PromptError("it is less than a pixel wide or high. Draw it again, larger.")
    return x_px, y_px


def _rotation_deg(value: Mapping[str, Any]) -> float:
    return number(value.get("rotation") or 0, "value.rotation") % 360
