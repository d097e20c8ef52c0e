"""A box on every frame → the few that linear interpolation needs. Numbers only; knows no Label Studio but its kind of interpolation.

Ramer–Douglas–Peucker over time: a frame is kept where the straight line between its kept neighbours would miss one of the box's four edges
by more than the tolerance.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

_APART = 2
"""Neighbours have nothing between them."""


def needed(
    frames: NDArray[np.int64], boxes_xywh: NDArray[np.float64], tolerance: float, forced: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Which samples to keep.

    Args:
        frames: (n,) ascending, gaps allowed.
        boxes_xywh: (n, 4) left, top, width, height.
        tolerance: Greatest distance of an edge from where it was, in the boxes' unit.
        forced: (n,) samples to keep whatever the tolerance; None: no others than the ends.

    Returns:
        (n,) True at the kept ones, the first and the last always among them.
    """
    kept = np.zeros(len(frames), dtype=bool) if forced is None else forced.copy()
    if not len(frames):
        return kept
    kept[[0, -1]] = True
    edges = np.hstack([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]])
    knots = np.flatnonzero(kept)
    spans = list(itertools.pairwise(knots.tolist()))
    while spans:
        first, last = spans.pop()
        if last - first < _APART:
            continue
        worst = _worst(frames[first : last + 1], edges[first : last + 1], tolerance)
        if worst:
            kept[first + worst] = True
            spans += [(first, first + worst), (first + worst, last)]
    return kept


def interpolated(frames: NDArray[np.int64], knots: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` (k, m) at `knots` (k,), drawn out linearly to `frames` (n,) as the editor does; beyond the ends they stay. (n, m)."""
    return np.stack([np.interp(frames, knots, values[:, column]) for column in range(values.shape[1])], axis=1)


def _worst(frames: NDArray[np.int64], edges: NDArray[np.float64], tolerance: float) -> int:
    """The sample that a straight line from the first to the last misses most; 0: none is missed by more than the tolerance."""
    share = ((frames - frames[0]) / (frames[-1] - frames[0]))[:, None]
    miss = np.abs(edges - (edges[0] + share * (edges[-1] - edges[0]))).max(axis=1)
    worst = int(miss.argmax())
    return worst if miss[worst] > tolerance else 0
