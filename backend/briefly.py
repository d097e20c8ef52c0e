"""Calls that an answer must not wait for: a Redis that hangs answers nobody, and /setup and an opened task are answered all the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from backend import logs

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 0.5
"""Label Studio allows 1 s for /health and webhooks, 3 s for /setup; a Redis in order needs a millisecond."""


def briefly(call: Callable[[], T], otherwise: T, wait_s: float = PATIENCE_S) -> T:
    """The call's result, or `otherwise` where it fails or takes longer than `wait_s`; it then goes on in its own thread.

    A failure is written to the log, with its traceback: the call is expected to know its own errors.
    """
    results: list[T] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception:
            logs.event(log, "error", {"where": "beside a request", "message": "See the traceback."}, level=logging.ERROR, exc_info=True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(wait_s)
    return results[0] if results else otherwise
