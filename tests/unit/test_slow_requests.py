"""A request that takes long is told of once, while it lasts."""

from __future__ import annotations

import threading
import time

import pytest

from backend import slow_requests
from backend.slow_requests import SlowRequests


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(slow_requests, "_LOOK_EVERY_S", 0.005)


def until(is_true) -> bool:
    deadline = time.monotonic() + 30
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_true()


def test_a_slow_request_is_told_of_once_and_a_quick_one_not_at_all():
    told = []
    requests, looks = SlowRequests(told.append, told_after_s=0.0), threading.Event()
    with requests.request("3.1", "17"):
        assert until(lambda: told)
        looks.wait(0.1)
    assert [(event.project, event.task, event.outcome) for event in told] == [("3.1", "17", "slow")]
    patient = SlowRequests(told.append, told_after_s=60.0)
    with patient.request("3.1", "18"):
        looks.wait(0.1)
    assert len(told) == 1


def test_a_request_that_fails_is_no_longer_in_hand():
    told = []
    requests = SlowRequests(told.append, told_after_s=60.0)
    with pytest.raises(ValueError, match="x"), requests.request("3.1", "17"):
        raise ValueError("x")
    assert not requests._in_hand


def test_the_thread_ends_when_nothing_comes_and_begins_again(monkeypatch):
    monkeypatch.setattr(slow_requests, "_IDLE_LOOKS", 1)
    told = []
    requests = SlowRequests(told.append, told_after_s=0.0)
    with requests.request("3.1", "17"):
        assert until(lambda: len(told) == 1)
    assert until(lambda: requests._thread is None)
    with requests.request("3.1", "18"):
        assert until(lambda: len(told) == 2)
