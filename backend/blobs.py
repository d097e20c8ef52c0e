"""Images that come with a request (data: addresses), in Redis for the workers: an hour from their last use, all together within a budget.

Owner of `sam2:blob:<digest>` of these, and of `sam2:blobs`: which there are (`<bytes>:<digest>`), by the moment at which each ends. Beyond
the budget those unused for longest go; whoever still wants one is told to send it again.
"""

from __future__ import annotations

import time
from typing import Any

import redis

from sam2_backend.queue_format import BLOB_TTL_S, blob_key, digest

BLOBS = "sam2:blobs"
MOST_BYTES = 1 << 30
MOST_BLOBS = 2_000


def keep(client: redis.Redis, data: bytes) -> str:
    """Put bytes into Redis, once, and count them as used now. Returns their digest.

    Raises:
        redis.RedisError: Redis does not answer, or is full.
    """
    name, now = digest(data), time.time()
    with client.pipeline() as pipe:
        pipe.zremrangebyscore(BLOBS, 0, now)
        pipe.zrange(BLOBS, 0, -1)
        pipe.expire(blob_key(name), BLOB_TTL_S)
        _, held, is_there = pipe.execute()
    gone = [] if is_there else _put_out(held, len(data))
    with client.pipeline() as pipe:
        if gone:
            pipe.zrem(BLOBS, *gone)
            pipe.delete(*(blob_key(member.partition(b":")[2].decode()) for member in gone))
        if not is_there:
            pipe.set(blob_key(name), data, ex=BLOB_TTL_S)
        pipe.zadd(BLOBS, {f"{len(data)}:{name}": now + BLOB_TTL_S})
        pipe.expire(BLOBS, BLOB_TTL_S)
        pipe.execute()
    return name


def _put_out(held: Any, n_bytes: int) -> list[bytes]:
    """Which of those held, least recently used first, go to make room."""
    sizes = [int(member.partition(b":")[0]) for member in held]
    used_bytes, n_gone = sum(sizes), 0
    while n_gone < len(sizes) and (used_bytes + n_bytes > MOST_BYTES or len(sizes) - n_gone >= MOST_BLOBS):
        used_bytes -= sizes[n_gone]
        n_gone += 1
    return list(held[:n_gone])
