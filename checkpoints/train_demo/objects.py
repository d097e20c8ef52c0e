"""Things to paste: plain geometric shapes, photographs cut to blobs, and clip art. Each is (colour (S, S, 3), alpha (S, S)) on the whole canvas."""

import cv2
import numpy as np

from checkpoints.train_demo.backgrounds import Rng, gradient, noise, pattern, photo_crop, random_color

Layer = tuple[np.ndarray, np.ndarray]

_SUPERSAMPLING = 2
_SUBPIXEL_BITS = 4


def _ring(rng: Rng) -> np.ndarray:
    """(n, 2) float outline within [-1, 1]²: disc, ellipse, rectangle, rounded blob, regular or irregular polygon, star."""
    kind = rng.choice(["ellipse", "rectangle", "polygon", "irregular", "blob", "star"], p=[0.34, 0.26, 0.12, 0.1, 0.12, 0.06])
    if kind == "rectangle":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    n = {
        "ellipse": 72,
        "polygon": int(rng.integers(3, 9)),
        "irregular": int(rng.integers(4, 9)),
        "blob": 72,
        "star": 2 * int(rng.integers(4, 9)),
    }[kind]
    angles = np.arange(n) * (2 * np.pi / n)
    radii = np.ones(n)
    if kind == "irregular":
        angles = np.sort(rng.uniform(0, 2 * np.pi, n))
        radii = rng.uniform(0.5, 1, n)
    elif kind == "blob":
        for wave in range(2, 6):
            radii += rng.uniform(0, 0.28) / wave**0.5 * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        radii /= radii.max()
    elif kind == "star":
        radii[1::2] = rng.uniform(0.35, 0.8)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], 1)


def _placement(rng: Rng, side_px: int, smallest: float) -> np.ndarray:
    """A random 2×3 map from [-1, 1]² to canvas pixels; the centre stays on the canvas."""
    half_px = 0.5 * side_px * np.exp(rng.uniform(np.log(smallest), np.log(0.75)))
    stretch = np.exp(rng.normal(0, 0.25))
    angle = rng.choice([0.0, rng.uniform(0, 2 * np.pi)], p=[0.4, 0.6])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = np.diag([stretch**0.5, stretch**-0.5]) @ turn * half_px
    if rng.random() < 0.5:
        linear = linear @ np.diag([-1, 1])
    margin_px = min(0.6 * half_px, 0.45 * side_px)
    center_px = rng.uniform(margin_px, side_px - margin_px, 2)
    return np.concatenate([linear, center_px[:, None]], 1)


def _fill(rng: Rng, photos: list[np.ndarray], side_px: int) -> np.ndarray:
    kind = rng.choice(["flat", "gradient", "noise", "pattern", "photo"], p=[0.62, 0.12, 0.09, 0.05, 0.12])
    if kind == "flat":
        return np.broadcast_to(random_color(rng), (side_px, side_px, 3))
    if kind == "photo":
        return photo_crop(rng, photos, side_px)
    made: np.ndarray = {"gradient": gradient, "noise": noise, "pattern": pattern}[kind](rng, side_px)
    return made


def centered(rng: Rng, side_px: int, half_px: float) -> np.ndarray:
    """As `_placement`, in the middle of the canvas and HALF_PX large: a thing that something else will move."""
    to_canvas = _placement(rng, side_px, smallest=0.5)
    to_canvas[:, :2] *= half_px / np.sqrt(abs(np.linalg.det(to_canvas[:, :2])))
    to_canvas[:, 2] = (side_px - 1) / 2
    return to_canvas


def shape(rng: Rng, photos: list[np.ndarray], side_px: int, to_canvas: np.ndarray | None = None) -> Layer:
    """A filled outline, anywhere or where the 2×3 map says; one in twelve has a hole, one in ten a contour line in another colour."""
    if to_canvas is None:
        to_canvas = _placement(rng, side_px, smallest=0.07)
    ring = _ring(rng) @ to_canvas[:, :2].T + to_canvas[:, 2]
    hole = (ring - ring.mean(0)) * rng.uniform(0.3, 0.6) + ring.mean(0) if rng.random() < 0.08 else None
    color, alpha = _fill(rng, photos, side_px), _inside(ring, side_px, hole)
    if rng.random() < 0.1:
        color = color.copy()
        line = tuple(float(c) for c in random_color(rng))
        cv2.polylines(color, [np.round(ring).astype(np.int32)], isClosed=True, color=line, thickness=int(rng.integers(1, 5)))
    return color, alpha


def cover(rng: Rng, photos: list[np.ndarray], side_px: int, radius_px: float) -> Layer:
    """A disc or a rectangle in the middle of the canvas under which everything within the radius disappears."""
    angles = np.arange(72) * (2 * np.pi / 72) if rng.random() < 0.5 else np.arange(4) * (np.pi / 2) + rng.uniform(0, 2 * np.pi)
    reach_px = radius_px * (1.05 if len(angles) > 4 else 1.5)
    ring = np.stack([np.cos(angles), np.sin(angles)], 1) * reach_px + (side_px - 1) / 2
    return _fill(rng, photos, side_px), _inside(ring, side_px)


def _inside(ring_px: np.ndarray, side_px: int, hole_px: np.ndarray | None = None) -> np.ndarray:
    """(S, S) float32 share of each pixel that is within the outline and outside its hole."""
    canvas = np.zeros((side_px * _SUPERSAMPLING, side_px * _SUPERSAMPLING), np.uint8)
    for outline, value in ((ring_px, 255), (hole_px, 0)):
        if outline is not None:
            fixed = np.round((outline + 0.5) * _SUPERSAMPLING * 2**_SUBPIXEL_BITS).astype(np.int32)
            cv2.fillPoly(canvas, [fixed], value, shift=_SUBPIXEL_BITS)
    return cv2.resize(canvas, (side_px, side_px), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def clip_art(rng: Rng, cutouts: list[np.ndarray], side_px: int, to_canvas: np.ndarray | None = None) -> Layer:
    """One drawing, turned, scaled, mirrored and re-coloured; anywhere or where the 2×3 map says."""
    rgba = cutouts[rng.integers(len(cutouts))].astype(np.float32)
    height, width = rgba.shape[:2]
    rgba[..., :3] *= rgba[..., 3:] / 255
    if to_canvas is None:
        to_canvas = _placement(rng, side_px, smallest=0.16)
    longest = max(height, width)
    to_unit = np.array([[2 / longest, 0, -(width - 1) / longest], [0, 2 / longest, -(height - 1) / longest], [0, 0, 1]])
    matrix = to_canvas @ to_unit
    shrinking = np.sqrt(abs(np.linalg.det(matrix[:, :2]))) < 0.5
    if shrinking:
        rgba = cv2.blur(rgba, (3, 3))
    warped = cv2.warpAffine(rgba, matrix, (side_px, side_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    alpha = warped[..., 3] / 255
    color = warped[..., :3] / np.maximum(alpha, 0.02)[..., None]
    if rng.random() < 0.5:
        color = (color - 127) * rng.uniform(0.6, 1.2) + 127 + rng.normal(0, 25, 3)
    if rng.random() < 0.3:
        color = color[..., rng.permutation(3)]
    return np.clip(color, 0, 255).astype(np.float32), alpha
