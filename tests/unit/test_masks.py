"""Masks against slow loops over pixels that anyone can read."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sam2_backend.errors import JobRefusedError, PromptError
from sam2_backend.masks import area_px, box_xyxy_px, clean, fill_ellipse, fill_polygon, mask_from_runs, run_counts, runs_from_mask
from sam2_backend.messages import RunLengths, from_wire, to_wire

some_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=14))


def as_mask(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def counts_of(*counts: int) -> bytes:
    return np.array(counts, "<u4").tobytes()


def slow_counts(mask: np.ndarray) -> list[int]:
    pixels = mask.ravel().tolist()
    counts = [len(list(group)) for _, group in itertools.groupby(pixels)]
    return [0, *counts] if pixels[0] else counts


@settings(max_examples=150)
@given(some_masks)
def test_runs_equal_a_loop_over_the_pixels_and_give_the_mask_back(mask):
    runs = runs_from_mask(mask)
    assert run_counts(runs).tolist() == slow_counts(mask)
    assert np.array_equal(mask_from_runs(runs), mask)
    assert from_wire(RunLengths, to_wire(runs)) == runs


def test_runs_do_not_depend_on_how_the_array_lies_in_memory():
    mask = np.zeros((9, 14), bool)
    mask[2:5, 3:11] = True
    assert runs_from_mask(mask.T) == runs_from_mask(np.ascontiguousarray(mask.T))
    assert runs_from_mask(mask[::2, ::-1]) == runs_from_mask(mask[::2, ::-1].copy())


@given(some_masks)
def test_area_and_box_equal_those_of_the_pixels(mask):
    runs = runs_from_mask(mask)
    rows, columns = np.nonzero(mask)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if rows.size else None
    assert area_px(runs) == mask.sum()
    assert box_xyxy_px(runs) == box


@pytest.mark.parametrize(
    "runs",
    [
        RunLengths((4, 5), counts_of(19)),
        RunLengths((4, 5), counts_of(0xFFFFFFFF, 21)),
        RunLengths((4, 5), counts_of(10, 0, 10)),
        RunLengths((4, 5), counts_of(20)[:-1]),
        RunLengths((4, 5), b""),
        RunLengths((-4, -5), counts_of(20)),
    ],
    ids=["too few", "more than fits", "an empty run", "half a number", "nothing", "a negative size"],
)
def test_runs_that_do_not_fit_the_size_are_refused_before_anything_is_allocated(runs):
    with pytest.raises(JobRefusedError, match="do not fit"):
        mask_from_runs(runs)


def slow_components(mask: np.ndarray, steps: list[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    left, found = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        component = {min(left)}
        frontier = set(component)
        while frontier:
            frontier = {(y + dy, x + dx) for y, x in frontier for dy, dx in steps} & left - component
            component |= frontier
        left -= component
        found.append(component)
    return found


FOUR = [(0, 1), (1, 0), (0, -1), (-1, 0)]
EIGHT = [*FOUR, (1, 1), (1, -1), (-1, 1), (-1, -1)]


def slow_clean(mask: np.ndarray, fill_holes_px: int, remove_sprinkles_px: int) -> np.ndarray:
    height, width = mask.shape
    cleaned = mask.copy()
    for hole in slow_components(~mask, FOUR):
        touches_border = any(y in {0, height - 1} or x in {0, width - 1} for y, x in hole)
        if not touches_border and len(hole) <= fill_holes_px:
            cleaned[tuple(zip(*hole, strict=True))] = True
    islands = slow_components(cleaned, EIGHT)
    largest = max(map(len, islands), default=0)
    for island in islands:
        if len(island) <= remove_sprinkles_px and len(island) < largest:
            cleaned[tuple(zip(*island, strict=True))] = False
    return cleaned


@settings(max_examples=150)
@given(some_masks, st.integers(0, 5), st.integers(0, 5))
def test_clean_equals_a_flood_fill_by_hand(mask, fill_holes_px, remove_sprinkles_px):
    before = mask.copy()
    cleaned, expected = clean(mask, fill_holes_px, remove_sprinkles_px), slow_clean(mask, fill_holes_px, remove_sprinkles_px)
    islands = slow_components(expected, EIGHT)
    if sorted(map(len, islands))[-2:-1] == [max(map(len, islands), default=0)] and remove_sprinkles_px:
        assert cleaned.sum() <= expected.sum()  # of several largest islands, which one stays is open
        assert cleaned.any() == mask.any()
    else:
        assert np.array_equal(cleaned, expected)
    assert np.array_equal(mask, before)


def test_small_holes_are_filled_and_larger_ones_and_bays_at_the_border_stay():
    mask = as_mask(
        "#.######",
        "##.#..##",
        "########",
    )
    expected = as_mask(
        "#.######",
        "####..##",
        "########",
    )
    assert np.array_equal(clean(mask, 1, 0), expected)
    assert clean(mask, 2, 0)[1, 4:6].all()
    assert not clean(mask, 99, 0)[0, 1]


def test_sprinkles_go_and_the_largest_island_stays_however_small():
    mask = as_mask(
        "#....",
        ".#..#",
        ".....",
    )
    assert np.array_equal(clean(mask, 0, 1), as_mask("#....", ".#...", "....."))
    assert np.array_equal(clean(mask, 0, 10**9), as_mask("#....", ".#...", "....."))


def test_an_empty_and_a_full_mask_stay_as_they_are():
    for mask in (np.zeros((5, 7), bool), np.ones((5, 7), bool)):
        assert np.array_equal(clean(mask, 100, 100), mask)


def slow_polygon(points: list[tuple[float, float]], size_hw: tuple[int, int]) -> np.ndarray:
    """Winding number of every pixel centre."""
    mask = np.zeros(size_hw, bool)
    for row, column in np.ndindex(size_hw):
        winding = 0
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if (y0 <= row + 0.5) != (y1 <= row + 0.5):
                x = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                winding += (1 if y1 > y0 else -1) * (x <= column + 0.5)
        mask[row, column] = winding != 0
    return mask


@settings(max_examples=150)
@given(st.lists(st.tuples(*[st.integers(-8, 40).map(lambda n: n / 2.7)] * 2), min_size=0, max_size=8), array_shapes(min_dims=2, max_dims=2))
def test_a_polygon_covers_the_pixels_whose_centres_it_winds_around(points, size_hw):
    assert np.array_equal(fill_polygon(points, size_hw), slow_polygon(points, size_hw))


def test_a_polygon_on_pixel_edges_covers_exactly_the_pixels_between_them():
    mask = fill_polygon([(2, 1), (6, 1), (6, 4), (2, 4)], (10, 20))
    assert mask.sum() == 12
    assert mask[1:4, 2:6].all()


def test_a_star_that_crosses_itself_has_no_hole_in_its_middle():
    corners = [(50 + 40 * np.sin(turn), 50 - 40 * np.cos(turn)) for turn in np.arange(5) * 4 * np.pi / 5]
    assert fill_polygon(corners, (100, 100))[50, 50]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e12])
def test_a_coordinate_that_is_no_usable_number_is_the_annotators_error(number):
    with pytest.raises(PromptError, match="not a usable number"):
        fill_polygon([(0, 0), (10, number), (10, 10)], (20, 20))
    with pytest.raises(PromptError, match="not a usable number"):
        fill_ellipse((5, 5), (number, 3), 0, (20, 20))


def test_a_polygon_of_endlessly_many_long_edges_is_refused_before_it_takes_memory():
    zigzag = np.tile([[0.0, 0.0], [5.0, 3000.0]], (20_000, 1))
    tracemalloc.start()
    with pytest.raises(PromptError, match="fewer corners"):
        fill_polygon(zigzag, (3000, 4000))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@settings(max_examples=100)
@given(
    st.tuples(st.floats(-5, 25), st.floats(-5, 25)), st.tuples(st.floats(0.5, 15), st.floats(0.5, 15)), st.floats(0, 360, exclude_max=True)
)
def test_an_ellipse_covers_the_pixels_whose_centres_lie_inside_it(center, radii, rotation_deg):
    size_hw, angle = (17, 23), np.deg2rad(rotation_deg)
    dy, dx = (np.mgrid[: size_hw[0], : size_hw[1]] + 0.5) - np.array(center)[::-1, None, None]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    distance = (along / radii[0]) ** 2 + (across / radii[1]) ** 2
    mask = fill_ellipse(center, radii, rotation_deg, size_hw)
    assert mask[distance < 1 - 1e-9].all()
    assert not mask[distance > 1 + 1e-9].any()


def test_an_ellipse_turns_clockwise():
    mask = fill_ellipse((20, 20), (15, 3), 45, (40, 40))
    assert mask[28, 28]
    assert not mask[12, 28]


def test_an_ellipse_without_extent_covers_nothing():
    assert not fill_ellipse((5, 5), (0, 3), 0, (10, 10)).any()
