"""How often an encoder run gives way, and for how long."""

from __future__ import annotations

import pytest

from sam2_backend import courtesy
from sam2_backend.courtesy import Courtesy


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(courtesy.time, "monotonic", lambda: now[0])
    return now


def run(clock: list[float], own_s: float, others_s: float, *, is_waited_for: bool) -> tuple[float, int]:
    """An encoder run of steps of 10 ms while clicks of `others_s` wait without end, up to a hundred at each look: seconds it lasts, and looks."""
    begun_at, gives, n_looks = clock[0], Courtesy(is_waited_for=is_waited_for), 0
    for _ in range(round(own_s / 0.01)):
        if gives.is_due:
            n_looks += 1
            for _ in range(100):
                if not gives.has_time:
                    break
                with gives.giving():
                    clock[0] += others_s
        clock[0] += 0.01
    return clock[0] - begun_at, n_looks


def test_a_first_click_takes_no_longer_than_twice_its_own_time_and_one_click_of_another(clock):
    lasted_s, _ = run(clock, 1.0, 0.05, is_waited_for=True)
    assert 1.5 < lasted_s <= 2 * 1.0 + 0.05 + 1e-6


def test_an_image_that_is_embedded_ahead_gives_all_that_is_wanted(clock):
    assert run(clock, 1.0, 0.05, is_waited_for=False)[0] > 10


def test_it_looks_no_more_often_than_every_twenty_milliseconds(clock):
    assert run(clock, 1.0, 0.0, is_waited_for=True)[1] == 50
