"""A drawn outline must show the mask that it was made of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays

from sam2_backend.masks import clean, fill_polygon
from sam2_backend.outlines import polygons_xy_px

MANY = 10**9


def drawn(rings: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    for ring in rings:
        mask |= fill_polygon(ring, size_hw)
    return mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def blob(height: int, width: int, lobes: int = 7, depth: float = 0.1) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5 - np.array([height / 2, width / 2])[:, None, None]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    return radius < min(height, width) * 0.35 * (1 + depth * np.sin(lobes * angle) + depth / 4 * np.sin(31 * angle))


def line(points: list[tuple[int, int]], size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        steps = max(abs(x1 - x0), abs(y1 - y0))
        mask[np.linspace(y0, y1, steps + 1).round().astype(int), np.linspace(x0, x1, steps + 1).round().astype(int)] = True
    return mask


THIN_AND_TINY = {
    "one pixel": line([(7, 4), (7, 4)], (9, 20)),
    "two pixels": line([(7, 4), (8, 4)], (9, 20)),
    "two pixels over a corner": line([(7, 4), (8, 5)], (9, 20)),
    "a row": line([(3, 4), (17, 4)], (9, 20)),
    "a column": line([(3, 0), (3, 8)], (9, 20)),
    "a diagonal": line([(2, 3), (60, 61)], (70, 90)),
    "a slope": line([(2, 3), (80, 40)], (70, 90)),
    "a hook": line([(2, 3), (40, 3), (40, 30), (20, 10)], (70, 90)),
    "the whole image": np.ones((9, 20), bool),
}


@settings(max_examples=200)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_exact_rings_give_the_mask_back_with_its_holes_filled(mask):
    rings = polygons_xy_px(mask, 0, max_vertices=MANY, max_rings=MANY)
    assert np.array_equal(drawn(rings, mask.shape), clean(mask, MANY, 0))


@pytest.mark.parametrize("size_hw", [(40, 60), (480, 640), (1080, 1920)])
def test_a_blob_is_drawn_as_it_is_at_epsilon_0_and_nearly_so_by_default(size_hw):
    mask = blob(*size_hw)
    assert iou(drawn(polygons_xy_px(mask, 0, max_vertices=MANY), size_hw), mask) == 1.0
    (ring,) = polygons_xy_px(mask)
    assert iou(drawn([ring], size_hw), mask) >= (0.98 if size_hw[0] > 100 else 0.93)
    assert 8 <= len(ring) <= 250


@pytest.mark.parametrize("mask", THIN_AND_TINY.values(), ids=THIN_AND_TINY.keys())
def test_thin_and_tiny_masks_keep_their_shape(mask):
    assert iou(drawn(polygons_xy_px(mask, 0, max_vertices=MANY), mask.shape), mask) == 1.0
    assert iou(drawn(polygons_xy_px(mask), mask.shape), mask) >= 0.98


def test_a_ring_runs_along_pixel_edges_not_through_pixel_centres():
    mask = np.zeros((50, 100), bool)
    mask[10:20, 30:60] = True
    (ring,) = polygons_xy_px(mask)
    assert sorted(map(tuple, ring.tolist())) == [(30, 10), (30, 20), (60, 10), (60, 20)]
    assert ring.dtype == np.float64


def test_no_ring_has_more_vertices_than_asked_for_and_few_are_lost_in_the_drawing():
    mask = blob(1500, 1500, lobes=60, depth=0.3)
    (ring,) = polygons_xy_px(mask, 0.5, max_vertices=400)
    assert 100 < len(ring) <= 400
    assert iou(drawn([ring], mask.shape), mask) >= 0.97


def test_a_smaller_epsilon_strays_less():
    mask = blob(600, 800)
    overlaps = [iou(drawn(polygons_xy_px(mask, epsilon), mask.shape), mask) for epsilon in (0.5, 2, 8, 20)]
    assert overlaps == sorted(overlaps, reverse=True)
    assert overlaps[0] > 0.99 > overlaps[-1]


@pytest.mark.parametrize("epsilon", [None, 0.5, 5.0, 100.0])
@pytest.mark.parametrize("max_vertices", [4, 40])
def test_every_island_survives_as_a_ring_of_three_or_more_corners(epsilon, max_vertices):
    noise = np.random.default_rng(7).random((60, 80)) < 0.35
    rings = polygons_xy_px(noise, epsilon, max_vertices=max_vertices, max_rings=MANY)
    assert len(rings) == len(polygons_xy_px(noise, 0, max_vertices=MANY, max_rings=MANY)) > 20
    assert all(3 <= len(ring) <= max_vertices for ring in rings)


def test_rings_come_largest_first_and_the_smallest_are_left_out():
    mask = np.zeros((40, 90), bool)
    mask[2:5, 2:5], mask[10:30, 10:30], mask[10:20, 60:70] = True, True, True
    mask[35, 80] = True
    areas = [drawn([ring], mask.shape).sum() for ring in polygons_xy_px(mask)]
    assert areas == [400, 100, 9, 1]
    assert len(polygons_xy_px(mask, min_area_px=9)) == 3
    assert len(polygons_xy_px(mask, min_area_px=10)) == 2
    assert len(polygons_xy_px(mask, max_rings=1)) == 1


def test_a_mask_of_specks_does_not_become_thousands_of_rings():
    specks = np.zeros((300, 300), bool)
    specks[::2, ::2] = True
    assert len(polygons_xy_px(specks)) == 50


def test_an_empty_mask_has_no_ring():
    assert polygons_xy_px(np.zeros((5, 7), bool)) == []
