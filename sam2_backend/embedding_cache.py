"""Embeddings in three tiers: device, host memory, Redis. Each has a byte budget and forgets the least recently used first.

A key names the content (image hash) and everything that changes the numbers (weights, preprocessing, orientation), never anything
that a client chose: a changed checkpoint is a miss. Whoever asks for an embedding that is being made waits for it, in this process
(a lock per key) and in others (a short-lived Redis lock that its maker renews), so an image is encoded once however many ask.
Redis being away costs its tier and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis
import torch

from sam2_backend.engine import ImageEmbedding
from sam2_backend.errors import GpuMemoryError
from sam2_backend.messages import CacheTier

T = TypeVar("T")
V = TypeVar("V")
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


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """What an embedding depends on, besides the precision it was computed in, which the cache adds."""

    image_hash: str
    model_id: str
    preprocessing: str
    orientation: str

    @property
    def text(self) -> str:
        return f"{self.image_hash}:{self.model_id}:{self.preprocessing}:{self.orientation}"


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Bytes held per tier of this process, and look-ups by the tier that answered (`none`: encoded)."""

    device_bytes: int
    host_bytes: int
    hits: dict[CacheTier, int]


class _Lru(Generic[V]):
    """Values by key under a byte budget; a value larger than the budget is not kept. Not thread-safe."""

    def __init__(self, budget_bytes: int, size: Callable[[V], int]) -> None:
        self.budget_bytes, self.used_bytes, self._size = budget_bytes, 0, size
        self._values: OrderedDict[str, V] = OrderedDict()

    def get(self, key: str) -> V | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        self.used_bytes -= self._size(self._values.pop(key)) if key in self._values else 0
        if self._size(value) > self.budget_bytes:
            return
        while self.used_bytes + self._size(value) > self.budget_bytes:
            self.used_bytes -= self._size(self._values.popitem(last=False)[1])
        self._values[key] = value
        self.used_bytes += self._size(value)

    def clear(self) -> None:
        self._values.clear()
        self.used_bytes = 0


class EmbeddingCache:
    """The three tiers of one worker, safe to use from several threads.

    Args:
        connection: Redis, binary replies; None: no third tier.
        device: Where embeddings are used. Where that is the CPU, the device tier is host memory already: give the host tier no budget.
        dtype: Compute precision. What one precision encoded is never handed to another.
    """

    def __init__(
        self,
        connection: redis.Redis | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        device_budget_bytes: int,
        host_budget_bytes: int,
        redis_budget_bytes: int,
    ) -> None:
        self._device, self._dtype = device, dtype
        self._on_device: _Lru[ImageEmbedding] = _Lru(device_budget_bytes, lambda embedding: embedding.nbytes)
        self._on_host: _Lru[bytes] = _Lru(host_budget_bytes, len)
        self._shared = _RedisTier(connection, redis_budget_bytes) if connection is not None and redis_budget_bytes else None
        self._hits: dict[CacheTier, int] = {"device": 0, "host": 0, "redis": 0, "none": 0}
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def get_or_make(self, key: EmbeddingKey, make: Callable[[], ImageEmbedding]) -> tuple[ImageEmbedding, CacheTier]:
        """The embedding of `key` and where it was found; `make` is called only where no tier and no other maker has it.

        Raises:
            Whatever `make` raises; nothing is kept then, and the next one who waits tries for itself.
        """
        name = f"{str(self._dtype).removeprefix('torch.')}:{key.text}"
        with self._lock:
            embedding = self._on_device.get(name)
            if embedding is not None:
                self._hits["device"] += 1
                return embedding, "device"
            making = self._making.setdefault(name, threading.Lock())
        with making:
            try:
                embedding, tier = self._find_or_make(name, make)
            finally:
                with self._lock:
                    self._making.pop(name, None)
        with self._lock:
            self._hits[tier] += 1
        return embedding, tier

    def empty_device_tier(self) -> None:
        """Free the device, as after an out-of-memory error; the other tiers keep their copies."""
        with self._lock:
            self._on_device.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def with_room(self, work: Callable[[], T]) -> T:
        """Do `work`; where the device is full, once more after its tier was emptied.

        Raises:
            GpuMemoryError: the device is full nevertheless.
        """
        try:
            return work()
        except GpuMemoryError:
            log.warning("the device is full: its embeddings are dropped and the step is tried once more")
            self.empty_device_tier()
            return work()

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(self._on_device.used_bytes, self._on_host.used_bytes, dict(self._hits))

    def _find_or_make(self, name: str, make: Callable[[], ImageEmbedding]) -> tuple[ImageEmbedding, CacheTier]:
        with self._lock:
            embedding, on_host = self._on_device.get(name), self._on_host.get(name)
        if embedding is not None:
            return embedding, "device"
        if on_host is not None:
            return self._keep(name, ImageEmbedding.from_bytes(on_host, self._device, self._dtype), on_host), "host"
        if self._shared is None:
            return self._keep(name, make(), None), "none"
        with self._shared.wait_or_lead(name) as data:
            embedding = self._revive(data)
            if embedding is not None:
                return self._keep(name, embedding, data), "redis"
            embedding = make()
            data = embedding.to_bytes()
            self._shared.put(name, data)
            return self._keep(name, embedding, data), "none"

    def _revive(self, data: bytes | None) -> ImageEmbedding | None:
        if data is None:
            return None
        try:
            return ImageEmbedding.from_bytes(data, self._device, self._dtype)
        except ValueError as error:
            log.warning("an embedding in Redis is damaged and is made again: %s", error)
            return None

    def _keep(self, name: str, embedding: ImageEmbedding, data: bytes | None) -> ImageEmbedding:
        with self._lock:
            self._on_device.put(name, embedding)
            if self._on_host.budget_bytes:
                self._on_host.put(name, data if data is not None else embedding.to_bytes())
        return embedding


class _RedisTier:
    """Blobs with a byte budget and LRU order kept by one script, so that a crash cannot leave blob and book apart for long."""

    PREFIX = "sam2:emb:blob:"
    ORDER, SIZES, TOTAL, MAKING = "sam2:emb:order", "sam2:emb:sizes", "sam2:emb:bytes", "sam2:emb:making:"

    def __init__(self, connection: redis.Redis, budget_bytes: int) -> None:
        self._redis, self._budget_bytes = connection, budget_bytes
        self._put = connection.register_script(_PUT)

    def get(self, name: str) -> bytes | None:
        data = self._redis.get(self.PREFIX + name)
        if not isinstance(data, bytes):
            return None
        self._redis.zadd(self.ORDER, {name: time.time()}, xx=True)
        return data

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

    def _blob_or_lock(self, name: str, token: str) -> tuple[bytes | None, bool]:
        while True:
            data = self.get(name)
            if data is not None:
                return data, False
            if self._redis.set(self.MAKING + name, token, nx=True, px=MAKING_TTL_MS):
                # Its maker may have put the blob and unlocked between our two questions.
                data = self.get(name)
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
