"""The tier of embeddings that all workers share through Redis, and who of them makes the next one."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import redis

log = logging.getLogger(__name__)

#: A maker that dies is noticed after this long; it renews three times as often.
MAKING_TTL_MS = 3000
_POLL_S = 0.02

# KEYS: blob, order (zset by time), sizes (hash), total. ARGV: data, now, member, budget, prefix of blobs.
_PUT = """
local function forget(member, blob)
  local size = tonumber(redis.call('HGET', KEYS[3], member) or '0')
  redis.call('DEL', blob); redis.call('ZREM', KEYS[2], member); redis.call('HDEL', KEYS[3], member)
  redis.call('DECRBY', KEYS[4], size)
end
forget(ARGV[3], KEYS[1])
local size, budget = #ARGV[1], tonumber(ARGV[4])
if size > budget then return 0 end
while tonumber(redis.call('GET', KEYS[4]) or '0') + size > budget do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then redis.call('SET', KEYS[4], 0); break end
  forget(oldest, ARGV[5] .. oldest)
end
redis.call('SET', KEYS[1], ARGV[1]); redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3]); redis.call('HSET', KEYS[3], ARGV[3], size)
redis.call('INCRBY', KEYS[4], size)
return 1
"""


class RedisTier:
    """Blobs with a byte budget and LRU order kept by one script, so that a crash cannot leave blob and book apart for long."""

    PREFIX = "sam2:emb:blob:"
    ORDER, SIZES, TOTAL, MAKING = "sam2:emb:order", "sam2:emb:sizes", "sam2:emb:bytes", "sam2:emb:making:"

    def __init__(self, connection: redis.Redis, budget_bytes: int) -> None:
        self._redis, self._budget_bytes = connection, budget_bytes
        self._put = connection.register_script(_PUT)

    def holds(self, name: str) -> bool:
        """Whether it is here; a Redis that is away is not asked for more, and counts as having it."""
        try:
            return bool(self._redis.exists(self.PREFIX + name))
        except redis.RedisError:
            return True

    def put(self, name: str, data: bytes) -> None:
        try:
            self._put(
                keys=[self.PREFIX + name, self.ORDER, self.SIZES, self.TOTAL],
                args=[data, time.time(), name, self._budget_bytes, self.PREFIX],
            )
        except redis.RedisError as error:
            log.warning("an embedding was not shared through Redis: %s", error)

    @contextmanager
    def wait_or_lead(self, name: str) -> Iterator[bytes | None]:
        """Yields the blob, once somebody has it; or None, with the lock held if Redis answers, when it is this caller's to make."""
        token = uuid.uuid4().hex
        stop = threading.Event()
        try:
            data, leads = self._blob_or_lock(name, token)
        except redis.RedisError as error:
            log.warning("the Redis tier of the embedding cache does not answer: %s", error)
            data, leads = None, False
        renewer = threading.Thread(target=self._renew, args=(name, stop), daemon=True) if leads else None
        if renewer:
            renewer.start()
        try:
            yield data
        finally:
            stop.set()
            if renewer:
                renewer.join()
                self._unlock(name, token)

    def _get(self, name: str) -> bytes | None:
        data = self._redis.get(self.PREFIX + name)
        if not isinstance(data, bytes):
            return None
        self._redis.zadd(self.ORDER, {name: time.time()}, xx=True)
        return data

    def _blob_or_lock(self, name: str, token: str) -> tuple[bytes | None, bool]:
        while True:
            data = self._get(name)
            if data is not None:
                return data, False
            if self._redis.set(self.MAKING + name, token, nx=True, px=MAKING_TTL_MS):
                # Its maker may have put the blob and unlocked between our two questions.
                data = self._get(name)
                if data is None:
                    return None, True
                self._unlock(name, token)
                return data, False
            time.sleep(_POLL_S)

    def _renew(self, name: str, stop: threading.Event) -> None:
        while not stop.wait(MAKING_TTL_MS / 3000):
            try:
                self._redis.pexpire(self.MAKING + name, MAKING_TTL_MS)
            except redis.RedisError:
                log.debug("the lock of %s was not renewed", name)

    def _unlock(self, name: str, token: str) -> None:
        try:
            if self._redis.get(self.MAKING + name) == token.encode():
                self._redis.delete(self.MAKING + name)
        except redis.RedisError:
            log.debug("the lock of %s ends by itself", name)
