"""IoU and boundary F against their definitions, written down plainly and slowly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.mask_agreement import boundary_f, boundary_tolerance_px, intersection_px, iou
from sam2_backend.masks import fill_ellipse, runs_from_mask


def plain_boundary(mask: np.ndarray) -> set[tuple[int, int]]:
    """Pixels that differ from the one to the right, below or below to the right; in the last row and column only along it."""
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            if y == height - 1 and x == width - 1:
                continue
            if y == height - 1:
                neighbours = [(y, x + 1)]
            elif x == width - 1:
                neighbours = [(y + 1, x)]
            else:
                neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if any(mask[y, x] != mask[other] for other in neighbours):
                found.add((y, x))
    return found


def plain_f(a: np.ndarray, b: np.ndarray, radius_px: int) -> float:
    """DAVIS's measure: dilate each outline by a disc, count the other's pixels on it."""

    def share(outline: set, other: set) -> float:
        near = [any((y - v) ** 2 + (x - u) ** 2 <= radius_px**2 for v, u in other) for y, x in outline]
        return sum(near) / len(near)

    first, second = plain_boundary(a), plain_boundary(b)
    if not first and not second:
        return 1.0
    if not first or not second:
        return 0.0
    precision, recall = share(first, second), share(second, first)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@st.composite
def two_masks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    seed, share = draw(st.integers(0, 10_000)), draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    random = np.random.default_rng(seed)
    first = random.random((height, width)) < share
    second = first ^ (random.random((height, width)) < draw(st.sampled_from([0.0, 0.05, 0.3])))
    top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
    if draw(st.booleans()):
        first[:top] = second[:, :left] = False
    return first, second


@settings(max_examples=150, deadline=None)
@given(two_masks())
def test_boundary_f_is_that_of_the_plain_definition(masks):
    radius_px = boundary_tolerance_px(masks[0].shape)
    assert boundary_f(*map(runs_from_mask, masks)) == pytest.approx(plain_f(*masks, radius_px), abs=1e-12)


@pytest.mark.parametrize("shift_px", [0, 2, 3, 4, 9])
def test_boundary_f_with_a_tolerance_of_several_pixels_is_that_of_the_plain_definition(shift_px):
    size = (210, 220)
    assert boundary_tolerance_px(size) == 3
    a = fill_ellipse((60, 70), (31, 22), 30, size)
    b = fill_ellipse((60 + shift_px, 70), (31, 24), 30, size)
    assert boundary_f(runs_from_mask(a), runs_from_mask(b)) == pytest.approx(plain_f(a, b, 3), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(two_masks())
def test_iou_of_runs_is_that_of_the_pixels(masks):
    a, b = masks
    union = (a | b).sum()
    assert intersection_px(*map(runs_from_mask, masks)) == (a & b).sum()
    assert iou(*map(runs_from_mask, masks)) == ((a & b).sum() / union if union else 1.0)


def test_the_tolerance_is_that_of_davis():
    assert boundary_tolerance_px((480, 854)) == 8  # ceil(0.008 * 979.7)
    assert boundary_tolerance_px((2, 2)) == 1
