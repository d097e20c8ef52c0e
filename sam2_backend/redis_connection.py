"""One way to reach Redis, for both tiers: bounded in time, never retried behind the caller's back, errors as ours.

redis-py's defaults (5 s, ten retries) turn a wait of 7 s into a failure after 59 s. Here whoever waits repeats short waits instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sam2_backend.errors import QueueDownError

T = TypeVar("T")

#: Longest single blocking command; it must end before the socket's own limit.
BLOCK_S = 1.0
SOCKET_TIMEOUT_S = 2.5
#: A connection that was cut is made again for so long before whoever clicked is told that Redis is away.
CUT_S = 1.0
_CUT_POLL_S = 0.05
_DISK_IS_FULL = "MISCONF"


def connect(url: str, max_connections: int) -> redis.Redis:
    """A client that connects on its first command; safe to share between threads, binary replies.

    Args:
        url: redis://, rediss:// or unix://.
        max_connections: Threads that may use it at once: a blocked command holds its connection.

    Raises:
        QueueDownError: the URL is empty or no Redis URL.
    """
    try:
        return redis.Redis.from_url(
            url,
            max_connections=max_connections,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise QueueDownError(
            "No Redis is configured, or its address is malformed. Set SAM2_REDIS_URL (redis://, rediss:// or unix://; write other characters "
            "than letters and digits of its password as %XX), or run `sam2-backend up`."
        ) from error


def through_cuts(call: Callable[[], T]) -> T:
    """Do it; where the connection is cut, as by a Redis that restarts, again for a second.

    Args:
        call: Bears being repeated: it may have been done, and only its answer was lost.

    Raises:
        redis.RedisError: it fails otherwise, or still is cut.
    """
    gives_up_at = time.monotonic() + CUT_S
    while True:
        try:
            return call()
        except redis.ConnectionError as error:
            if isinstance(error, redis.AuthenticationError) or time.monotonic() > gives_up_at:
                raise
        time.sleep(_CUT_POLL_S)


def is_away(error: redis.RedisError) -> bool:
    """Whether Redis may take the same command later: it does not answer, cannot write to its disk, or is not the master at the moment."""
    return isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError) or _DISK_IS_FULL in str(error)


def as_bytes(value: bytes | str) -> bytes:
    """What our clients return (binary replies), for redis-py's types, which allow for text."""
    return value if isinstance(value, bytes) else value.encode()


@contextmanager
def redis_errors_as_ours() -> Iterator[None]:
    """Turn any failure of Redis into one sentence; the address stays out of it, for it may hold a password.

    Raises:
        QueueDownError: Redis does not answer, or refuses.
    """
    try:
        yield
    except redis.AuthenticationError as error:  # before the connection errors, which it is one of
        raise QueueDownError("Redis refuses the user or the password of SAM2_REDIS_URL. Correct them there.") from error
    except redis.BusyLoadingError as error:
        raise QueueDownError("Redis reads its data from disk. Try again in a moment.") from error
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueDownError("Redis does not answer. Start it or correct SAM2_REDIS_URL; `sam2-backend doctor` checks it.") from error
    except redis.OutOfMemoryError as error:
        raise QueueDownError("Redis is full. Raise its `maxmemory`, or lower SAM2_REDIS_CACHE_BYTES.") from error
    except redis.ReadOnlyError as error:
        raise QueueDownError("Redis is a replica that takes nothing. Point SAM2_REDIS_URL at the one that does.") from error
    except redis.RedisError as error:
        if _DISK_IS_FULL in str(error):
            raise QueueDownError("Redis cannot write to its disk and takes nothing until it can. Free some disk where it runs.") from error
        raise QueueDownError(f"Redis refused a command ({type(error).__name__}). `sam2-backend doctor` checks it.") from error
