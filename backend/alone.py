"""One at a time, on whatever machine: locks in Redis that end soon after their holder does.

Owner of `sam2:alone:<digest>`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import redis

from sam2_backend.queue_format import digest
from sam2_backend.redis_connection import redis_errors_as_ours, through_cuts

KEY = "sam2:alone:"
HELD_S = 15
"""A lock whose holder died ends after this."""
_RENEW_S, _PAUSE_S = 4.0, 0.1

# Take it, or keep it. KEYS: the lock. ARGV: whose it is, milliseconds.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Stopped(Exception):  # noqa: N818  not an error: somebody asked for it
    """Whoever waited was told to stop."""


class Locks:
    """The locks that a process holds, renewed by one thread for as long as there are any. Safe to share between threads."""

    def __init__(self, client: Callable[[], redis.Redis]) -> None:
        self._client = client
        self._held: dict[str, str] = {}
        self._changing = threading.Lock()
        self._is_renewing = False

    @contextmanager
    def alone(self, name: str, stopped: threading.Event) -> Iterator[None]:
        """Keep others who come with the same name waiting until this ends.

        Raises:
            Stopped: the event was set while others were at it.
            QueueDownError: Redis does not answer.
        """
        key, token = KEY + digest(name), secrets.token_hex(8)
        with redis_errors_as_ours():
            while not through_cuts(lambda: self._take(key, token)):
                if stopped.wait(_PAUSE_S):
                    raise Stopped
        self._hold(key, token)
        try:
            yield
        finally:
            with self._changing:
                del self._held[key]
            with suppress(redis.RedisError):  # it ends by itself
                through_cuts(lambda: self._client().eval(_RELEASE, 1, key, token))

    def _hold(self, key: str, token: str) -> None:
        with self._changing:
            self._held[key] = token
            if not self._is_renewing:
                self._is_renewing = True
                threading.Thread(target=self._renew, name="locks", daemon=True).start()

    def _renew(self) -> None:
        while True:
            time.sleep(_RENEW_S)
            with self._changing:
                held = list(self._held.items())
                if not held:
                    self._is_renewing = False
                    return
            with suppress(redis.RedisError):
                for key, token in held:
                    self._take(key, token)

    def _take(self, key: str, token: str) -> bool:
        return bool(self._client().eval(_TAKE, 1, key, token, str(1000 * HELD_S)))
