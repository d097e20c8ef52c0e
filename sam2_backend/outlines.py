"""The outlines of a mask as polygons, along the edges of its pixels (OpenCV's contours run through their centres)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from sam2_backend.masks import Mask

#: Removes the pixel staircase and keeps what an annotator can see: a pixel, or this part of the root of the island's area.
DEFAULT_EPSILON_PX = 1.0
DEFAULT_EPSILON = 1 / 500
#: More vertices than an annotator can handle, and than the editor draws fluently.
MAX_VERTICES = 400
#: A mask of thousands of specks must not become thousands of regions.
MAX_RINGS = 50

_FINEST_EPSILON_PX = 0.25
_AREA_TOLERANCE = 0.1

# Directions count counter-clockwise on the screen, in steps of 45 degrees, 0 = to the right; indexed [dy + 1][dx + 1].
_DIRECTIONS = np.array([[3, 2, 1], [4, -1, 0], [5, 6, 7]])
# The corner of a pixel at which its right, upper, left and lower side ends, walking around it counter-clockwise.
_SIDE_ENDS_XY: NDArray[np.int32] = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], dtype=np.int32)


def polygons_xy_px(
    mask: Mask,
    epsilon_px: float | None = None,
    *,
    min_area_px: int = 0,
    max_vertices: int = MAX_VERTICES,
    max_rings: int = MAX_RINGS,
) -> list[NDArray[np.float64]]:
    """The outer rings of a mask, one per island, along the pixels' edges. Holes are not told: a ring has none.

    Args:
        mask: (H, W) bool. Pixels that touch at a corner hang together.
        epsilon_px: How far a simplified ring may stray from the exact one, in pixels (Douglas-Peucker); 0: exact;
            None: 1 pixel, more for islands of more than 500 x 500 pixels.
            Taken smaller where the island would shrink or grow by a tenth, so that thin and tiny islands survive.
        min_area_px: Islands of fewer pixels, their holes counted in, are left out.
        max_vertices: Rings above it are simplified further until they fit; at least 4.
        max_rings: Only so many of the largest islands.

    Returns:
        Rings (n, 2) float64, x and y, not closed (the first point is not repeated), largest island first.
    """
    image = np.ascontiguousarray(mask).view(np.uint8)
    chains = [c[:, 0] for c in cv2.findContours(image, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]]
    chains = [chain for chain in chains if _filled_area_px(chain) >= min_area_px]
    chains = sorted(chains, key=_filled_area_px, reverse=True)[:max_rings]
    return [_simplified(_edge_ring(chain), epsilon_px, max_vertices).astype(np.float64) for chain in chains]


def _filled_area_px(chain: NDArray[np.int32]) -> float:
    """Pixels on and inside a closed chain (n, 2) of pixel centres: Pick's theorem."""
    n_steps = len(chain) if len(chain) > 1 else 0
    return float(cv2.contourArea(chain)) + n_steps / 2 + 1


def _edge_ring(chain: NDArray[np.int32]) -> NDArray[np.int32]:
    """From the chain of border pixels (n, 2) that OpenCV walks, counter-clockwise, to the corners (m, 2) of the line around them.

    At each pixel the walk looks around, counter-clockwise from where it came, until it meets the next pixel. The pixel's sides that it
    looks past are the ones that face the background.
    """
    if len(chain) == 1:
        return chain + _SIDE_ENDS_XY
    steps = np.roll(chain, -1, axis=0) - chain
    ahead = _DIRECTIONS[steps[:, 1] + 1, steps[:, 0] + 1]
    back = np.roll(ahead, 1) + 4
    looked_past = back[:, None] + np.arange(1, 8)
    is_side = (looked_past % 2 == 0) & (np.arange(1, 8) <= ((ahead - back - 1) % 8)[:, None])
    pixel, turn = np.nonzero(is_side)
    side = looked_past[pixel, turn] % 8 // 2
    turns = side != np.roll(side, -1)
    ring: NDArray[np.int32] = chain[pixel[turns]] + _SIDE_ENDS_XY[side[turns]]
    return ring


def _simplified(ring: NDArray[np.int32], epsilon_px: float | None, max_vertices: int) -> NDArray[np.generic]:
    simple: NDArray[np.generic] = ring
    if epsilon_px is None:
        epsilon_px = max(DEFAULT_EPSILON_PX, DEFAULT_EPSILON * math.sqrt(cv2.contourArea(ring)))
    while epsilon_px >= _FINEST_EPSILON_PX:
        simple = cv2.approxPolyDP(ring, epsilon_px, closed=True)[:, 0]
        if _keeps_area(simple, ring):
            break
        simple, epsilon_px = ring, epsilon_px / 2
    epsilon_px = max(epsilon_px, _FINEST_EPSILON_PX)
    while len(simple) > max_vertices:
        epsilon_px *= 1.25
        simple = cv2.approxPolyDP(ring, epsilon_px, closed=True)[:, 0]
    return simple if len(simple) >= 3 else cv2.boxPoints(cv2.minAreaRect(ring))


def _keeps_area(simple: NDArray[np.generic], ring: NDArray[np.int32]) -> bool:
    area = cv2.contourArea(ring)
    return len(simple) >= 3 and abs(cv2.contourArea(simple) - area) <= _AREA_TOLERANCE * area
