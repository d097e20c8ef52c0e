"""Whether a queue takes another job. Knows no rq.

A length read a second ago and what this process has sent since are an upper bound but for other processes, so that almost no click pays for a
look. Near the limit every job is preceded by one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from sam2_backend.errors import OverloadedError

_AGE_S = 1.0
_RETRY_AFTER_S = 5.0
_MOST_QUEUES = 1000


class QueueRoom:
    """The lengths of the queues of one Redis, as one process knows them; safe to use from all threads.

    Args:
        lengths: Reads them: jobs that wait, by queue.
    """

    def __init__(self, lengths: Callable[[Sequence[str]], dict[str, int]]) -> None:
        self._lengths = lengths
        self._known: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def take(self, queues: Iterable[str], most: int) -> None:
        """Count one job for each that is named.

        Raises:
            OverloadedError: a queue holds `most` jobs already; none is counted.
        """
        wanted: dict[str, int] = {}
        for queue in queues:
            wanted[queue] = wanted.get(queue, 0) + 1
        if self._count(wanted, most):
            return
        read_at, lengths = time.monotonic(), self._lengths(list(wanted))
        for queue, length in lengths.items():
            check_length(queue, length, most)
        with self._lock:
            if len(self._known) > _MOST_QUEUES:  # of workers that are long gone
                self._known.clear()
            self._known |= {queue: (read_at, length + wanted[queue]) for queue, length in lengths.items()}

    def _count(self, wanted: dict[str, int], most: int) -> bool:
        """Whether what is known says that there is room for all."""
        now = time.monotonic()
        with self._lock:
            for queue, count in wanted.items():
                read_at, length = self._known.get(queue, (0.0, most))
                if now - read_at > _AGE_S or length + count > most:
                    return False
            for queue, count in wanted.items():
                read_at, length = self._known[queue]
                self._known[queue] = read_at, length + count
        return True


def check_length(queue: str, length: int, most: int) -> None:
    """
    Raises:
        OverloadedError: the queue is full.
    """
    if length >= most:
        raise OverloadedError(
            f"{length} jobs wait on {queue} already. Try again in {_RETRY_AFTER_S:.0f} s, or start more workers.",
            retry_after_s=_RETRY_AFTER_S,
        )
