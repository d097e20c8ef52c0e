"""A store below Redis (a folder, a bucket) as a tier of the embedding cache: it may help, and can do no harm.

Nothing is written while somebody waits: a bounded queue and a thread of its own do that, and what does not fit is not kept. A look-up is
waited for a bounded time, and once one failed nobody waits for the store until a look-up has succeeded in the background.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from sam2_backend.breaker import REST_S, Breaker
from sam2_backend.embedding_bucket import EmbeddingBucket
from sam2_backend.embedding_disk import EmbeddingFolder
from sam2_backend.messages import CacheTier
from sam2_backend.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)

MOST_WAITING = 32
"""Embeddings that wait to be written, 8 MiB each with a published model."""
_MOST_KNOWN = 10_000
KNOWN_S = 600.0
"""So long what was seen in a store is taken to be there; others put out what we saw."""
#: Longest waits for a look-up: about what encoding takes where there is no GPU.
_DISK_WAIT_S, _BUCKET_WAIT_S = 2.0, 3.0
_UPLOADS = 2


class Store(Protocol):
    """Bytes by name. Every method may raise whatever it likes, and take its time."""

    def get(self, key: str) -> bytes | None: ...
    def has(self, key: str) -> bool: ...
    def put(self, key: str, data: bytes) -> None: ...
    def forget(self, key: str) -> None: ...


class LowerTier:
    """One store. Its methods never raise; safe to use from several threads.

    Args:
        name: What it is called in counts and log lines.
        wait_s: Longest time that a look-up is waited for.
        writers: How many embeddings are written at a time.
        rest_s: How long a store that failed is left alone.
    """

    def __init__(self, name: CacheTier, store: Store, *, wait_s: float, writers: int = 1, rest_s: float = REST_S) -> None:
        self.name: CacheTier = name
        self._store, self._wait_s = store, wait_s
        self._reading = Breaker(f"the {name} tier of the embedding cache", rest_s)
        self._writing = Breaker(f"writing to the {name} tier of the embedding cache", rest_s)
        self._lock = threading.Lock()
        self._waiting: dict[str, bytes] = {}
        self._known_until: OrderedDict[str, float] = OrderedDict()
        self._said_full_at = -REST_S
        self._work: queue.Queue[Callable[[], object] | None] = queue.Queue(MOST_WAITING)
        self._writers = [threading.Thread(target=self._write_on, name=f"{name}-writer", daemon=True) for _ in range(writers)]
        for writer in self._writers:
            writer.start()

    def get(self, key: str) -> bytes | None:
        """The embedding, also one that still waits to be written; None: it is not there, or the store does not answer."""
        with self._lock:
            waiting = self._waiting.get(key)
        if waiting is not None:
            return waiting
        if self._reading.is_closed:
            return self._within_time(partial(self._look_up, key))
        if self._reading.may_try():
            self._enqueue(partial(self._look_up, key))
        return None

    def put(self, key: str, data: bytes) -> None:
        """Write it soon, whatever is there."""
        self._write_soon(key, data, self._store.put)

    def offer(self, key: str, data: bytes) -> None:
        """Write it soon, unless it is there."""
        if not self.holds(key):
            self._write_soon(key, data, self._put_if_missing)

    def holds(self, key: str) -> bool:
        """Whether it was seen there lately, or waits to be written."""
        with self._lock:
            return key in self._waiting or self._known_until.get(key, 0.0) > time.monotonic()

    def forget(self, key: str) -> None:
        """Throw away what turned out to be damaged."""
        with self._lock:
            self._known_until.pop(key, None)
        self._within_time(lambda: self._attempt(self._writing, lambda: self._store.forget(key)))

    def soon(self, work: Callable[[], None]) -> None:
        """Do something with the store in the background."""
        self._enqueue(lambda: self._attempt(self._writing, work))

    def close(self, wait_s: float) -> None:
        """Write what waits, for so long at most; nothing may be asked for afterwards."""
        ends_at = time.monotonic() + wait_s
        try:
            for _ in self._writers:
                self._work.put(None, timeout=max(ends_at - time.monotonic(), 0))
        except queue.Full:
            pass
        for writer in self._writers:
            writer.join(max(ends_at - time.monotonic(), 0))
        if self._waiting:
            log.warning("%d embeddings were not written to the %s tier before the end", len(self._waiting), self.name)

    def _look_up(self, key: str) -> bytes | None:
        data = self._attempt(self._reading, lambda: self._store.get(key), self._wait_s)
        if data is not None:
            self._remember(key)
        return data

    def _within_time(self, ask: Callable[[], T]) -> T | None:
        """What `ask` returns, or None once the time is over; the thread that asks is then left to itself."""
        answer: queue.SimpleQueue[T] = queue.SimpleQueue()
        threading.Thread(target=lambda: answer.put(ask()), name=f"{self.name}-reader", daemon=True).start()
        try:
            return answer.get(timeout=self._wait_s)
        except queue.Empty:
            self._reading.failed(TimeoutError(f"no answer within {self._wait_s:g} s"))
            return None

    def _write_soon(self, key: str, data: bytes, write: Callable[[str, bytes], None]) -> None:
        with self._lock:
            if key in self._waiting:
                return
            self._waiting[key] = data
        if not self._enqueue(partial(self._write, key, data, write)):
            with self._lock:
                del self._waiting[key]

    def _write(self, key: str, data: bytes, write: Callable[[str, bytes], None]) -> None:
        def write_and_remember() -> None:
            write(key, data)
            self._remember(key)

        if self._writing.may_try():
            self._attempt(self._writing, write_and_remember)
        with self._lock:
            del self._waiting[key]

    def _put_if_missing(self, key: str, data: bytes) -> None:
        if not self._store.has(key):
            self._store.put(key, data)

    def _attempt(self, breaker: Breaker, work: Callable[[], T], most_s: float = float("inf")) -> T | None:
        """What `work` returns; None where it fails, of which the breaker hears, as of success that comes too late."""
        started = time.monotonic()
        try:
            result = work()
        except Exception as error:  # whatever a store's failure looks like, it costs its tier and nothing else
            breaker.failed(error)
            return None
        if time.monotonic() - started > most_s:
            breaker.failed(TimeoutError(f"it took more than {most_s:g} s"))
        else:
            breaker.succeeded()
        return result

    def _enqueue(self, work: Callable[[], object]) -> bool:
        try:
            self._work.put_nowait(work)
            return True
        except queue.Full:
            if time.monotonic() - self._said_full_at > REST_S:
                self._said_full_at = time.monotonic()
                log.warning("%d embeddings wait for the %s tier; others that come meanwhile are not kept there", MOST_WAITING, self.name)
            return False

    def _write_on(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _remember(self, key: str) -> None:
        with self._lock:
            self._known_until[key] = time.monotonic() + KNOWN_S
            self._known_until.move_to_end(key)
            while len(self._known_until) > _MOST_KNOWN:
                self._known_until.popitem(last=False)


def lower_tiers(settings: Settings) -> tuple[LowerTier, ...]:
    """The tiers below Redis that the settings ask for, nearest first.

    Raises:
        SettingsError: the bucket is no bucket, or boto3 is missing.
    """
    tiers = []
    if settings.disk_cache_bytes:
        folder = EmbeddingFolder(settings.embedding_folder, settings.disk_cache_bytes)
        tiers.append(LowerTier("disk", folder, wait_s=_DISK_WAIT_S))
        tiers[0].soon(folder.trim)
    if settings.embedding_bucket:
        tiers.append(LowerTier("bucket", EmbeddingBucket(settings.embedding_bucket), wait_s=_BUCKET_WAIT_S, writers=_UPLOADS))
    return tuple(tiers)
