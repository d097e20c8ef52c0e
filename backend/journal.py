"""What happened to the last requests: kept in Redis for all web processes, in this process's memory while Redis is away.

`record` returns at once: a thread writes what has gathered, a few times a second, and ends when nothing more comes. While Redis is away up to
`MOST_UNWRITTEN` events wait for it; beyond that the oldest are dropped, and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from backend import logs
from backend.events import Event, tidy
from sam2_backend.errors import QueueError

log = logging.getLogger(__name__)

MOST_REMEMBERED = 100
MOST_UNWRITTEN = 1000
MOST_AT_ONCE = 250
GATHER_S = 0.2
"""How long events gather before they are written together."""

_RETRY_S = 1.0
_IDLE_S = 10.0


class Store(Protocol):
    """What is asked of `journal_store.JournalStore`."""

    def write(self, events: Sequence[Event]) -> None: ...


@dataclass(frozen=True, slots=True)
class Backlog:
    """What this process could not write yet.

    Attributes:
        waiting: Events that wait for Redis.
        dropped: Events that were dropped since the process started.
        since: Unix seconds of the process's start.
    """

    waiting: int
    dropped: int
    since: float


class Journal:
    """The journal as one web process writes it; safe to use from all threads.

    Args:
        scrub: Hides secrets in a text.
    """

    def __init__(self, store: Store, scrub: Callable[[str], str]) -> None:
        self._store, self._scrub = store, scrub
        self._remembered: deque[Event] = deque(maxlen=MOST_REMEMBERED)
        self._unwritten: deque[Event] = deque()
        self._in_hand: list[Event] = []
        self._dropped, self._since = 0, time.time()
        self._is_hurried = self._is_failing = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self.listeners: list[Callable[[Event], None]] = []
        """Called with every event, in the thread that it happened in."""

    def record(self, event: Event) -> None:
        """Keep an event. Returns at once, and never fails."""
        event = tidy(event, self._scrub)
        for listener in self.listeners:
            listener(event)
        with self._changed:
            self._remembered.append(event)
            if len(self._unwritten) >= MOST_UNWRITTEN:
                self._unwritten.popleft()
                self._dropped += 1
            self._unwritten.append(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
                self._thread.start()
            if len(self._unwritten) in {1, MOST_AT_ONCE}:  # for nothing else is waited
                self._changed.notify_all()

    def note(self, words: str) -> None:
        """Keep good news of the background."""
        self.record(Event("note", "noted", words))

    def warn(self, words: str) -> None:
        """Keep bad news of the background."""
        self.record(Event("note", "failed", words))

    def remembered(self) -> list[Event]:
        """The last events of this process, newest first."""
        with self._changed:
            return list(reversed(self._remembered))

    def backlog(self) -> Backlog:
        with self._changed:
            return Backlog(len(self._unwritten) + len(self._in_hand), self._dropped, self._since)

    def flush(self, wait_s: float) -> bool:
        """Wait until all is written, for so long at most; False: it is not."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_failing or not (self._unwritten or self._in_hand), wait_s)
            return not (self._unwritten or self._in_hand)

    def _write_all(self) -> None:
        while batch := self._next_batch():
            try:
                self._store.write(batch)
            except QueueError as error:
                self._failed(error.message)
                continue
            except Exception:
                log.exception("journal")
                with self._changed:
                    self._dropped += len(batch)
            with self._changed:
                self._in_hand, self._is_failing = [], False
                self._changed.notify_all()

    def _next_batch(self) -> list[Event]:
        """What is to be written next, once something has gathered; empty: nothing came for a while, and this thread is done."""
        with self._changed:
            if self._in_hand:
                return self._in_hand
            if not self._changed.wait_for(lambda: self._unwritten, _IDLE_S):
                self._thread = None
                return []
            self._changed.wait_for(lambda: self._is_hurried or len(self._unwritten) >= MOST_AT_ONCE, GATHER_S)
            self._is_hurried = False
            self._in_hand = [self._unwritten.popleft() for _ in range(min(MOST_AT_ONCE, len(self._unwritten)))]
            return self._in_hand

    def _failed(self, reason: str) -> None:
        with self._changed:
            is_news, self._is_failing = not self._is_failing, True
            self._changed.notify_all()
        if is_news:
            logs.event(log, "journal_waits", {"reason": reason}, level=logging.WARNING)
        time.sleep(_RETRY_S)
