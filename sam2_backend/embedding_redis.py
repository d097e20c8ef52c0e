"""The tier of embeddings that all workers share through Redis, and whose turn it is to make one.

Writing 8 MiB takes Redis longer than reading them from a disk, so whoever made an embedding goes on with it; a thread writes it meanwhile and
gives up the turn afterwards, and whoever waits for the turn finds it.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import redis

log = logging.getLogger(__name__)

#: A maker that dies is noticed after this long; it renews three times as often.
MAKING_TTL_MS = 3000
_POLL_S = 0.02
#: Each takes a connection of the worker's pool, and holds its bytes; whoever makes more waits.
_PUTS_AT_A_TIME = 2

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


@dataclass(slots=True)
class Turn:
    """One caller's turn at an image.

    Attributes:
        found: What somebody has put; None: it is this caller's to make.
        made: Set by the caller within the turn: what to put.
    """

    found: bytes | None
    made: bytes | None = None
    is_over: threading.Event = field(default_factory=threading.Event)


class RedisTier:
    """Blobs with a byte budget and LRU order kept by one script, so that a crash cannot leave blob and book apart for long."""

    PREFIX = "sam2:emb:blob:"
    ORDER, SIZES, TOTAL, MAKING = "sam2:emb:order", "sam2:emb:sizes", "sam2:emb:bytes", "sam2:emb:making:"

    def __init__(self, connection: redis.Redis, budget_bytes: int) -> None:
        self._redis, self._budget_bytes = connection, budget_bytes
        self._put = connection.register_script(_PUT)
        self._puts = threading.Semaphore(_PUTS_AT_A_TIME)
        self._keepers: set[threading.Thread] = set()

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
    def turn(self, name: str) -> Iterator[Turn]:
        """Waits until somebody has put it, or it is this caller's to make; or, where Redis does not answer, for nothing."""
        token = uuid.uuid4().hex
        try:
            found, leads = self._blob_or_lock(name, token)
        except redis.RedisError as error:
            log.warning("the Redis tier of the embedding cache does not answer: %s", error)
            yield Turn(None)
            return
        turn = Turn(found)
        if leads:
            with self._kept(name, token, turn):
                yield turn
        else:
            yield turn
            if turn.made is not None:  # what was found is damaged
                self.put(name, turn.made)

    def settle(self) -> None:
        """Returns when what was made so far is put, or Redis did not take it."""
        for keeper in tuple(self._keepers):
            keeper.join()

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

    @contextmanager
    def _kept(self, name: str, token: str, turn: Turn) -> Iterator[None]:
        """The lock is held from here until the turn is over and what was made is written, for which nobody waits here."""
        keeper = threading.Thread(target=self._keep, args=(name, token, turn), name="redis-keeper", daemon=True)
        self._keepers.add(keeper)
        keeper.start()
        try:
            yield
            if turn.made is not None:
                self._puts.acquire()
        except BaseException:
            turn.made = None
            raise
        finally:
            turn.is_over.set()

    def _keep(self, name: str, token: str, turn: Turn) -> None:
        """Hold the lock as long as the turn lasts and what was made is on its way."""
        while not turn.is_over.wait(MAKING_TTL_MS / 3000):
            self._renew(name)
        if turn.made is not None:
            self._renew(name)
            try:
                self.put(name, turn.made)
            finally:
                self._puts.release()
        self._unlock(name, token)
        self._keepers.discard(threading.current_thread())

    def _renew(self, name: str) -> None:
        with suppress(redis.RedisError):
            self._redis.pexpire(self.MAKING + name, MAKING_TTL_MS)

    def _unlock(self, name: str, token: str) -> None:
        with suppress(redis.RedisError):  # it ends by itself
            if self._redis.get(self.MAKING + name) == token.encode():
                self._redis.delete(self.MAKING + name)
