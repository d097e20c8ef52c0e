"""Background work outlasts a Redis that restarts, and a queue that is full: what cannot be said to it now is said again later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from backend.alone import Stopped
from sam2_backend.errors import OverloadedError, QueueDownError

T = TypeVar("T")

PATIENCE_S = 600.0
"""How long a Redis that does not answer is waited for."""
_PAUSE_S = 1.0
#: A call that fails later than this was answered before.
_ANSWERED_S = 10.0


def while_redis_is_away(call: Callable[[], T], stopped: threading.Event, patience_s: float = PATIENCE_S) -> T:
    """What `call` returns, as soon as Redis answers it from start to end.

    Args:
        call: Bears being repeated from its start: what it has stored already it finds.
        stopped: Ends the wait.

    Raises:
        Stopped: the event was set.
        QueueDownError, OverloadedError: Redis was away, or its queue full, for too long.
    """
    gives_up_at = time.monotonic() + patience_s
    while True:
        called_at = time.monotonic()
        try:
            return call()
        except (QueueDownError, OverloadedError):
            now = time.monotonic()
            if now - called_at > _ANSWERED_S:
                gives_up_at = now + patience_s
            if now > gives_up_at:
                raise
        if stopped.wait(_PAUSE_S):
            raise Stopped
