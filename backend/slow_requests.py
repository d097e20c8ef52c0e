"""Requests that take long are told of while they last: whoever looks up their task then sees that it was heard.

A thread looks every half second while requests are in hand, and ends when none came for a while.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from backend.events import Event

TOLD_AFTER_S = 4.0
_LOOK_EVERY_S = 0.5
_IDLE_LOOKS = 60


@dataclass(slots=True)
class _Request:
    project: str
    task: str
    began_at: float = field(default_factory=time.monotonic)
    is_told: bool = False


class SlowRequests:
    """The requests of one web process that are being answered.

    Args:
        record: Keeps an event.
        told_after_s: How long a request may take before it is told of.
    """

    def __init__(self, record: Callable[[Event], None], told_after_s: float = TOLD_AFTER_S) -> None:
        self._record, self._told_after_s = record, told_after_s
        self._in_hand: dict[int, _Request] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    @contextmanager
    def request(self, project: str, task: str) -> Iterator[None]:
        """A request about a task is in hand for as long as this lasts."""
        number = next(self._numbers)
        self._in_hand[number] = _Request(project, task)
        if self._thread is None:
            self._start()
        try:
            yield
        finally:
            del self._in_hand[number]

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="slow-requests", daemon=True)
                self._thread.start()

    def _watch(self) -> None:
        idle_looks = 0
        while True:
            time.sleep(_LOOK_EVERY_S)
            self._look()
            idle_looks = 0 if self._in_hand else idle_looks + 1
            if idle_looks >= _IDLE_LOOKS:
                with self._starting:
                    self._thread = None
                if self._in_hand:  # one came between the look and now, and started nobody
                    self._start()
                return

    def _look(self) -> None:
        now = time.monotonic()
        for request in list(self._in_hand.values()):
            age_s = now - request.began_at
            if age_s >= self._told_after_s and not request.is_told:
                request.is_told = True
                words = (
                    f"Asked, and not answered after {age_s:.0f} s: it waits for a worker, or the image is still being fetched or embedded. "
                    "Reload this page to see what came of it."
                )
                self._record(Event("click", "slow", words, request.project, request.task))
