"""Percentiles from bucketed times, and their picture."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.latency_histogram import LAST_BUCKET, bucket_of, middle_ms, quantiles_ms
from backend.latency_plots import Series, duration_text, gathered, plot
from backend.tallies import Times

HALF_A_BUCKET = 2 ** (1 / 8)
times_ms = st.lists(st.floats(0.1, 2e5), min_size=1, max_size=200)


def times(*values_ms: float) -> Times:
    return Times(Counter(map(bucket_of, values_ms)))


@given(times_ms, st.floats(0.01, 1))
def test_a_quantile_is_at_most_half_a_bucket_off(values_ms, share):
    exact_ms = sorted(values_ms)[max(0, math.ceil(share * len(values_ms) - 1e-9) - 1)]
    (found_ms,) = quantiles_ms(Counter(map(bucket_of, values_ms)), [share])
    assert 1 / 1.0001 / HALF_A_BUCKET <= found_ms / exact_ms <= HALF_A_BUCKET * 1.0001


@given(times_ms, times_ms)
def test_counts_of_two_processes_added_are_the_counts_of_both(first_ms, second_ms):
    assert times(*first_ms).counts + times(*second_ms).counts == times(*first_ms, *second_ms).counts


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_has_a_bucket(spent_ms):
    assert 0 <= bucket_of(spent_ms) <= LAST_BUCKET


def test_longer_times_are_in_higher_buckets_and_every_middle_is_in_its_own():
    assert [bucket_of(middle_ms(bucket)) for bucket in range(LAST_BUCKET + 1)] == list(range(LAST_BUCKET + 1))


def test_of_nothing_there_is_no_quantile():
    assert quantiles_ms({}, [0.5, 0.99]) == [None, None]


def test_times_are_written_with_two_digits_or_so():
    written = [duration_text(ms) for ms in (None, 0.14, 9.4, 9.6, 84.4, 999.4, 999.6, 2345, 9940, 31_000)]
    assert written == ["–", "0.1 ms", "9.4 ms", "10 ms", "84 ms", "999 ms", "1.0 s", "2.3 s", "9.9 s", "31 s"]


def _lines(picture: str, css: str) -> list[list[tuple[float, float]]]:
    lines = [line for line in ET.fromstring(picture).iter("polyline") if line.get("class") == css]
    return [[tuple(map(float, point.split(","))) for point in line.get("points").split()] for line in lines]


def test_slower_is_higher_and_a_gap_is_a_gap():
    series = Series("x", [times(20), times(200), Times(), times(20), times(20)], [])
    before, after = _lines(plot(series), "p50")
    assert before[1][1] < before[0][1]
    assert len(before) == len(after) == 2
    assert before[1][0] < after[0][0]


def test_a_step_alone_is_a_dot_and_stands_within_the_picture():
    picture = ET.fromstring(plot(Series("x", [Times(), times(0.2, 180_000), Times()], [])))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in picture.iter("circle")]
    assert len(dots) == 3
    assert all(0 < x < 360 and 0 < y < 150 for x, y in dots)


def test_the_picture_says_in_words_what_it_shows():
    picture = ET.fromstring(plot(Series("Last <hour>", [times(*[10] * 98, 100, 1000)], [])))
    assert picture.get("aria-label") == "Last <hour>. 100 clicks: half within 10 ms, 95 % within 10 ms, 99 % within 94 ms."
    assert ET.fromstring(plot(Series("Last hour", [Times()] * 3, []))).get("aria-label") == "Last hour. No clicks."


@pytest.mark.parametrize("size", [1, 2, 3])
def test_steps_are_gathered_without_losing_any(size):
    steps = [times(10), times(20, 30), Times(), times(40)]
    assert sum(step.n for step in gathered(steps, size)) == 4
    assert [step.n for step in steps] == [1, 2, 0, 1]
