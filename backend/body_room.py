"""How many bytes of request bodies are in memory at a time: fifty callers with half a gigabyte each are told to come back, one is served."""

from __future__ import annotations

import threading

from flask import Request

from sam2_backend.errors import OverloadedError

#: Bodies up to this are not counted: there are no more of them than threads.
SMALL_BYTES = 1 << 20
#: What a body that does not tell its length is counted as, and may have at most. Label Studio tells.
UNTOLD_BYTES = 64 << 20
_RETRY_AFTER_S = 2.0


class BodyRoom:
    """Counts the bodies in hand; used by all threads.

    Args:
        most_bytes: Of all together. A single one is admitted whatever its length, which has a limit of its own.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._lock = threading.Lock()

    def enter(self, request: Request) -> int:
        """Count a request's body until `leave`. Returns the bytes to let go of then.

        Raises:
            OverloadedError: there is no room beside those in hand; nothing is counted.
        """
        n_bytes = request.content_length or 0
        if request.content_length is None and request.headers.get("Transfer-Encoding"):
            n_bytes = UNTOLD_BYTES
            request.max_content_length = min(UNTOLD_BYTES, request.max_content_length or UNTOLD_BYTES)
        if n_bytes <= SMALL_BYTES:
            return 0
        with self._lock:
            if self._held_bytes and self._held_bytes + n_bytes > self._most_bytes:
                raise OverloadedError("Too many large requests come at a time. Try again in a moment.", retry_after_s=_RETRY_AFTER_S)
            self._held_bytes += n_bytes
        return n_bytes

    def leave(self, n_bytes: int) -> None:
        """Let go of what `enter` counted."""
        with self._lock:
            self._held_bytes -= n_bytes
