"""Whether a queue takes another job, and how seldom that is asked of Redis."""

from __future__ import annotations

import pytest

from backend import queue_room
from backend.queue_room import QueueRoom
from sam2_backend.errors import OverloadedError


class Queues:
    """Jobs that wait, by queue; counts the looks."""

    def __init__(self) -> None:
        self.waiting: dict[str, int] = {}
        self.looks = 0

    def lengths(self, names):
        self.looks += 1
        return {name: self.waiting.get(name, 0) for name in names}

    def sent(self, room: QueueRoom, *names: str, most: int = 10) -> bool:
        try:
            room.take(names, most)
        except OverloadedError as error:
            assert error.retry_after_s > 0
            return False
        for name in names:
            self.waiting[name] = self.waiting.get(name, 0) + 1
        return True


@pytest.fixture
def queues() -> Queues:
    return Queues()


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(queue_room.time, "monotonic", lambda: now[0])
    return now


def test_a_queue_is_never_filled_beyond_its_bound_by_one_process(queues, clock):
    room = QueueRoom(queues.lengths)
    assert [queues.sent(room, "a") for _ in range(12)] == [True] * 10 + [False] * 2
    queues.waiting["a"] = 3
    assert [queues.sent(room, "a") for _ in range(8)] == [True] * 7 + [False]


def test_far_from_the_bound_redis_is_asked_once_a_second(queues, clock):
    room = QueueRoom(queues.lengths)
    for _ in range(50):
        assert queues.sent(room, "a", "b", most=1000)
    assert queues.looks == 1
    clock[0] += 1.5
    assert queues.sent(room, "a", most=1000)
    assert queues.looks == 2


def test_what_other_processes_sent_is_seen_within_a_second(queues, clock):
    room = QueueRoom(queues.lengths)
    assert queues.sent(room, "a")
    queues.waiting["a"] = 10
    clock[0] += 1.5
    assert not queues.sent(room, "a")


def test_one_full_queue_of_several_refuses_all_and_counts_none(queues, clock):
    room = QueueRoom(queues.lengths)
    queues.waiting["b"] = 10
    assert not queues.sent(room, "a", "b")
    assert [queues.sent(room, "a") for _ in range(11)] == [True] * 10 + [False]


def test_queues_of_workers_that_are_gone_are_not_remembered_for_ever(queues, clock):
    room = QueueRoom(queues.lengths)
    for number in range(3000):
        queues.sent(room, f"interactive@{number}")
    assert len(room._known) <= 1001
