"""How many requests may hold a thread of the web tier at a time: whoever comes beyond that is told so at once, and /health always answers.

Requests are held up by workers (clicks), by a Redis that hangs (everything but /health), and by callers that send their body slowly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sam2_backend.errors import OverloadedError

#: Threads that no request but /health may take: Label Studio allows it 1 s.
KEPT_FOR_HEALTH = 2
#: Threads that no waiting click may take: opened tasks, /setup, /webhook, /metrics and the status page want milliseconds each.
KEPT_FROM_CLICKS = 8
_RETRY_AFTER_S = 2.0


class Admission:
    """Counts the threads that are held; used by all of them.

    Args:
        n_threads: Of the web server. With few of them, some are kept for fewer purposes.
    """

    def __init__(self, n_threads: int) -> None:
        self._all = threading.BoundedSemaphore(max(1, n_threads - KEPT_FOR_HEALTH))
        self._clicks = threading.BoundedSemaphore(max(1, n_threads - KEPT_FROM_CLICKS))

    def enter(self) -> None:
        """Hold a thread until `leave`.

        Raises:
            OverloadedError: none is left; nothing is held.
        """
        if not self._all.acquire(blocking=False):
            raise OverloadedError("Every thread of the web tier is busy. Try again in a moment.", retry_after_s=_RETRY_AFTER_S)

    def leave(self) -> None:
        """Let go of what `enter` took."""
        self._all.release()

    @contextmanager
    def waiting(self) -> Iterator[bool]:
        """Whether one of the threads that may wait for a worker was free; it is held meanwhile."""
        is_free = self._clicks.acquire(blocking=False)
        try:
            yield is_free
        finally:
            if is_free:
                self._clicks.release()
