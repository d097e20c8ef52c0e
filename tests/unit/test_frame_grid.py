"""Places on the grid to frames, against going through every frame one by one."""

from __future__ import annotations

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sam2_backend.errors import VideoFrameError, VideoFramerateError
from sam2_backend.frame_grid import FrameGrid, checked_framerate

RATES = st.sampled_from([1.0, 12.5, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0, 1000.0, 0.1])


def slow_frame(timestamps: list[int], time_base: Fraction, zero: Fraction, framerate: float, grid_idx: int) -> int:
    """The frame with the greatest time at or before the place's moment, 2 ms later; the first where none is."""
    moment_s = Fraction(grid_idx) / Fraction(framerate) + Fraction(2, 1000)
    begun = [i for i, timestamp in enumerate(timestamps) if (timestamp - zero) * time_base <= moment_s]
    return begun[-1] if begun else 0


@st.composite
def videos(draw):
    timestamps = sorted(draw(st.sets(st.integers(-50, 400), min_size=1, max_size=30)))
    time_base = draw(st.sampled_from([Fraction(1, 25), Fraction(1, 1000), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 12)]))
    zero = draw(st.sampled_from([Fraction(0), Fraction(timestamps[0]), Fraction(1, 3)]))
    return timestamps, time_base, zero, draw(RATES), draw(st.integers(1, 60))


def grid_of(timestamps, time_base, zero, framerate, n_grid) -> FrameGrid:
    return FrameGrid(np.array(timestamps, np.int64), time_base=time_base, zero=zero, framerate=checked_framerate(framerate), n_grid=n_grid)


@given(videos())
def test_a_place_shows_the_frame_that_a_search_one_by_one_finds(video):
    grid = grid_of(*video)
    *media, n_grid = video
    assert [grid.frame_of_grid(g) for g in range(n_grid)] == [slow_frame(*media, g) for g in range(n_grid)]


@given(videos())
def test_the_places_of_a_frame_are_those_that_show_it(video):
    grid = grid_of(*video)
    shown = [grid.frame_of_grid(g) for g in range(grid.n_grid)]
    for frame_idx in range(grid.n_frames):
        assert list(grid.grid_of_frame(frame_idx)) == [g for g, frame in enumerate(shown) if frame == frame_idx]


@pytest.mark.parametrize(
    ("file_rate", "framerate", "expected"),
    [
        (Fraction(25), 25.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Fraction(24000, 1001), 23.976, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Fraction(30000, 1001), 29.97, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Fraction(25), 12.5, [0, 2, 4, 6, 8]),
        (Fraction(25, 2), 25.0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (Fraction(30), 24.0, [0, 1, 2, 3, 5, 6, 7, 8]),
    ],
)
def test_known_rates_give_known_frames(file_rate, framerate, expected):
    grid = grid_of(range(10), 1 / file_rate, Fraction(0), framerate, len(expected))
    assert [grid.frame_of_grid(g) for g in range(len(expected))] == expected


def test_a_long_video_stays_exact_to_its_last_frame():
    n = 500_000
    grid = grid_of(np.arange(n) * 1001, Fraction(1, 24000), Fraction(0), 24000 / 1001, n)
    assert [grid.frame_of_grid(g) for g in (1, 1000, n - 1)] == [1, 1000, n - 1]


def test_timestamps_at_the_ends_of_what_files_can_hold_are_taken():
    grid = grid_of([-(2**63), 2**63 - 1], Fraction(1, 1000), Fraction(0), 25.0, 3)
    assert [grid.frame_of_grid(g) for g in range(3)] == [0, 0, 0]
    assert grid.grid_of_frame(0) == range(3)
    assert list(grid.grid_of_frame(1)) == []


def test_places_and_frames_outside_the_video_are_refused():
    grid = grid_of(range(3), Fraction(1, 25), Fraction(0), 25.0, 4)
    for outside in (-1, 4, 10**30):
        with pytest.raises(VideoFrameError, match="the video has 4"):
            grid.frame_of_grid(outside)
    for outside in (-1, 3):
        with pytest.raises(VideoFrameError, match="the file has 3"):
            grid.grid_of_frame(outside)


@pytest.mark.parametrize("framerate", [0.0, -1.0, math.nan, math.inf, -math.inf, 1000.1, None, "24"])
def test_an_absurd_framerate_is_refused_in_words(framerate):
    with pytest.raises(VideoFramerateError, match=r"framerate .* at most 1000"):
        checked_framerate(framerate)
