"""Bool masks: as run lengths and back, without holes and sprinkles, and drawn from polygons and ellipses.

A mask is (H, W) bool. Coordinates are float pixels with the top-left corner of the top-left pixel at (0, 0); a pixel belongs to a
shape when its centre lies inside.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam2_backend.errors import JobRefusedError, PromptError
from sam2_backend.messages import RunLengths

Mask = NDArray[np.bool_]

_NEVER_SMALL = np.iinfo(np.int64).max
_MAX_COORDINATE_PX = 1e9
_MAX_CROSSINGS = 20_000_000  # of polygon edges and pixel rows: bounds time and memory


def runs_from_mask(mask: Mask) -> RunLengths:
    """The run lengths of a mask (H, W) bool. Equal masks give equal bytes: the first run counts False, the others are never empty."""
    flat = np.ascontiguousarray(mask).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat.size and flat[0]:
        changes = np.concatenate([[0], changes])
    return RunLengths((mask.shape[0], mask.shape[1]), np.diff(changes, prepend=0, append=flat.size).astype("<u4").tobytes())


def mask_from_runs(runs: RunLengths) -> Mask:
    """The mask (H, W) bool that `runs_from_mask` made the runs of.

    Raises:
        JobRefusedError: the runs do not add up to the size.
    """
    counts = run_counts(runs)
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(runs.size_hw)


def run_counts(runs: RunLengths) -> NDArray[np.int64]:
    """The lengths (n,) int64 in pixels, in turn of False and True, the first one False.

    Raises:
        JobRefusedError: the runs do not add up to the size, or one after the first is empty.
    """
    height, width = runs.size_hw
    if len(runs.counts) % 4 == 0 and height >= 0 and width >= 0:
        counts = np.frombuffer(runs.counts, "<u4").astype(np.int64)
        if counts.sum() == height * width and counts[1:].all():
            return counts
    raise JobRefusedError(f"The run lengths of a mask do not fit its size of {width} x {height} pixels. Send the whole mask again.")


def area_px(runs: RunLengths) -> int:
    """How many pixels are True."""
    return int(run_counts(runs)[1::2].sum())


def box_xyxy_px(runs: RunLengths) -> tuple[int, int, int, int] | None:
    """The tightest box around the True pixels: left, top, right, bottom, as edges (right and bottom exclusive); None: no such pixel."""
    width = runs.size_hw[1]
    edges = np.cumsum(run_counts(runs))
    if edges.size < 2:
        return None
    starts, ends = edges[:-1:2], edges[1::2]
    first_rows, last_rows = starts // width, (ends - 1) // width
    wraps = bool((first_rows != last_rows).any())  # such a run touches both sides of the image
    left = 0 if wraps else int((starts % width).min())
    right = width if wraps else int(((ends - 1) % width).max()) + 1
    return left, int(first_rows[0]), right, int(last_rows[-1]) + 1


def clean(mask: Mask, fill_holes_px: int, remove_sprinkles_px: int) -> Mask:
    """Fill small holes, then remove small islands.

    A hole is enclosed: background that reaches the image's border is none. Islands hang together over corners, holes do not.

    Args:
        mask: (H, W) bool, left as it is.
        fill_holes_px: Holes of up to this many pixels are filled; 0: none.
        remove_sprinkles_px: Islands of up to this many pixels are removed, except the largest one; 0: none.

    Returns:
        (H, W) bool, the same array where nothing was to be done.
    """
    box = box_xyxy_px(runs_from_mask(mask)) if fill_holes_px > 0 or remove_sprinkles_px > 0 else None
    if box is None:
        return mask
    left, top, right, bottom = box
    inside = np.ascontiguousarray(mask[top:bottom, left:right])
    if len(cv2.findContours(inside.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]) == 1:
        return mask  # one island without a hole, found 50 times faster than by its components
    cleaned = np.pad(inside, 1)  # the margin joins all background outside into one component
    if fill_holes_px > 0:
        labels, areas_px = _components(~cleaned, connectivity=4)
        areas_px[labels[0, 0]] = _NEVER_SMALL
        cleaned = _flip_small(cleaned, labels, areas_px, fill_holes_px)
    if remove_sprinkles_px > 0:
        labels, areas_px = _components(cleaned, connectivity=8)
        areas_px[1 + areas_px[1:].argmax()] = _NEVER_SMALL
        cleaned = _flip_small(cleaned, labels, areas_px, remove_sprinkles_px)
    whole = mask.copy()
    whole[top:bottom, left:right] = cleaned[1:-1, 1:-1]
    return whole


def _components(mask: Mask, connectivity: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Labels (H, W) int32 and the area of each label in pixels; label 0 is what is False."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=connectivity)
    return labels, stats[:, cv2.CC_STAT_AREA].astype(np.int64)


def _flip_small(mask: Mask, labels: NDArray[np.int32], areas_px: NDArray[np.int64], limit_px: int) -> Mask:
    is_small = areas_px <= limit_px
    is_small[0] = False
    return mask ^ is_small[labels] if is_small.any() else mask


def fill_polygon(points_xy_px: ArrayLike, size_hw: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside a polygon, by the nonzero winding rule, as a browser fills a path.

    Args:
        points_xy_px: Corners (n, 2), x and y; the last is joined to the first. Parts outside the image are cut off.
        size_hw: Height and width of the mask.

    Returns:
        (H, W) bool; empty below three corners.

    Raises:
        PromptError: a coordinate is not a number or absurdly far away, or the polygon has too many long edges.
    """
    start = _checked(points_xy_px, "polygon").reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    first_row = _first_centre(np.minimum(start, end)[:, 1], size_hw[0])
    n_rows = _first_centre(np.maximum(start, end)[:, 1], size_hw[0]) - first_row
    if n_rows.sum() > _MAX_CROSSINGS:
        raise PromptError(f"A polygon of {len(start)} corners is too intricate. Draw it with fewer corners, or use a brush.")
    edge = np.repeat(np.arange(len(start)), n_rows)
    row = np.arange(edge.size) + np.repeat(first_row - np.cumsum(n_rows) + n_rows, n_rows)
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    column = _first_centre(x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0), size_hw[1])
    pixel = row * size_hw[1] + column
    order = np.argsort(row * (size_hw[1] + 1) + column, kind="stable")
    winding = np.cumsum(np.where(y1 > y0, 1, -1)[order])
    is_change = (winding != 0) != (np.roll(winding, 1) != 0)
    return _between(pixel[order][is_change], size_hw)


def fill_ellipse(
    center_xy_px: tuple[float, float], radii_xy_px: tuple[float, float], rotation_deg: float, size_hw: tuple[int, int]
) -> Mask:
    """The pixels whose centres lie inside an ellipse.

    Args:
        center_xy_px: Its middle; may lie outside the image.
        radii_xy_px: Half its extent along its own x and y axis.
        rotation_deg: Turns it clockwise around its middle.
        size_hw: Height and width of the mask.

    Returns:
        (H, W) bool; empty where a radius is not positive.

    Raises:
        PromptError: a number is not one, or absurdly large.
    """
    x, y, radius_x, radius_y, angle = _checked([*center_xy_px, *radii_xy_px, np.deg2rad(rotation_deg)], "ellipse").tolist()
    if radius_x <= 0 or radius_y <= 0:
        return np.zeros(size_hw, dtype=np.bool_)
    # With p = (cos / rx)² + (sin / ry)² and so on, a pixel at (dx, dy) lies inside where p dx² + 2 q dx dy + r dy² <= 1.
    cos, sin = np.cos(angle), np.sin(angle)
    p, r = (cos / radius_x) ** 2 + (sin / radius_y) ** 2, (sin / radius_x) ** 2 + (cos / radius_y) ** 2
    q = cos * sin * (radius_x**-2 - radius_y**-2)
    dy = np.arange(size_hw[0]) + 0.5 - y
    discriminant = (q * dy) ** 2 - p * (r * dy**2 - 1)
    row = np.flatnonzero(discriminant >= 0)
    middle, half = x - q * dy[row] / p, np.sqrt(discriminant[row]) / p
    columns = np.stack([_first_centre(middle - half, size_hw[1]), _first_centre(middle + half, size_hw[1])], axis=1)
    return _between((row[:, None] * size_hw[1] + columns).reshape(-1), size_hw)


def _checked(numbers: ArrayLike, shape: str) -> NDArray[np.float64]:
    array = np.asarray(numbers, dtype=np.float64)
    if not (np.abs(array) < _MAX_COORDINATE_PX).all():  # also False for NaN
        raise PromptError(f"A coordinate of the {shape} is not a usable number. Draw it again.")
    return array


def _first_centre(coordinate_px: NDArray[np.float64], n_pixels: int) -> NDArray[np.int64]:
    """The first pixel whose centre lies at or after a coordinate, within 0..n_pixels."""
    return np.clip(np.ceil(coordinate_px - 0.5), 0, n_pixels).astype(np.int64)


def _between(changes: NDArray[np.int64], size_hw: tuple[int, int]) -> Mask:
    """The mask that flips at each of these row-major pixel positions, in order, starting with False."""
    counts = np.diff(changes, prepend=0, append=size_hw[0] * size_hw[1])
    return np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(size_hw)
