"""Locks in a real Redis: one at a time, for as long as it takes, and no longer than its holder lives."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import alone
from backend.alone import KEY, Locks, Stopped
from backend.dispatch import Dispatcher
from sam2_backend.queue_format import digest

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import Background, until

NEVER = threading.Event()


@pytest.fixture
def dispatchers(settings) -> Iterator[list[Dispatcher]]:
    opened = [Dispatcher(settings) for _ in range(2)]
    yield opened
    for dispatcher in opened:
        dispatcher.close()


def test_whoever_comes_second_waits_however_long_the_first_takes(dispatchers, monkeypatch):
    monkeypatch.setattr(alone, "HELD_S", 1)
    monkeypatch.setattr(alone, "_RENEW_S", 0.1)
    first, second = (Locks(dispatcher.redis) for dispatcher in dispatchers)
    at_it: list[str] = []

    def come() -> None:
        with second.alone("task 7", NEVER):
            at_it.append("second")

    with first.alone("task 7", NEVER):
        coming = Background(come)
        time.sleep(2.5)
        at_it.append("first")
    coming.result()
    assert at_it == ["first", "second"]
    with first.alone("task 7", NEVER), second.alone("task 8", NEVER):
        pass


def test_a_lock_whose_holder_died_ends(dispatchers, monkeypatch):
    monkeypatch.setattr(alone, "HELD_S", 1)
    dispatchers[0].redis().set(KEY + digest("task 7"), "somebody", px=500)
    with Locks(dispatchers[1].redis).alone("task 7", NEVER):
        pass


def test_a_lock_that_redis_lost_is_taken_again_and_anothers_is_left_alone(dispatchers, monkeypatch):
    monkeypatch.setattr(alone, "_RENEW_S", 0.05)
    client, key = dispatchers[0].redis(), KEY + digest("task 7")
    with Locks(dispatchers[1].redis).alone("task 7", NEVER):
        client.flushall()
        until(lambda: client.exists(key))
        client.set(key, "somebody")
        time.sleep(0.2)
    assert client.get(key) == b"somebody"


def test_whoever_waits_can_be_stopped(dispatchers):
    stopped = threading.Event()
    stopped.set()
    with (
        Locks(dispatchers[0].redis).alone("task 7", NEVER),
        pytest.raises(Stopped),
        Locks(dispatchers[1].redis).alone("task 7", stopped),
    ):
        pytest.fail("two at it")
