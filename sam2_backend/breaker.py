"""Remembers that something does not work, so that only the first who tries finds out the slow way."""

from __future__ import annotations

import logging
import threading
import time

log = logging.getLogger(__name__)

REST_S = 30.0
"""How long something that failed is left alone before it is tried again."""


class Breaker:
    """Closed while all is well; open from a failure until a success. While it is open one try is let through every `rest_s`.

    Safe to use from several threads. Logs when it opens and when it closes, and nothing in between.

    Args:
        what: The thing, as a log line names it.
    """

    def __init__(self, what: str, rest_s: float = REST_S) -> None:
        self._what, self._rest_s = what, rest_s
        self._lock = threading.Lock()
        self._is_open = False
        self._next_try_at = 0.0

    @property
    def is_closed(self) -> bool:
        return not self._is_open

    def may_try(self) -> bool:
        """Whether to try now; where it is open and it says yes, everybody else is sent away until another rest is over."""
        with self._lock:
            if not self._is_open:
                return True
            if time.monotonic() < self._next_try_at:
                return False
            self._next_try_at = time.monotonic() + self._rest_s
            return True

    def failed(self, error: Exception) -> None:
        with self._lock:
            was_open, self._is_open = self._is_open, True
            self._next_try_at = time.monotonic() + self._rest_s
        if not was_open:
            log.warning("%s failed and is tried again every %g s: %s", self._what, self._rest_s, _in_words(error))

    def succeeded(self) -> None:
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            log.info("%s works again", self._what)


def _in_words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
