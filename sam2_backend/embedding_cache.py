"""Embeddings in tiers: device, host memory, Redis, and below it a folder and a bucket. Each knows its bound.

A key names the content (image hash) and everything that changes the numbers (weights, preprocessing, orientation), never anything
that a client chose: a changed checkpoint is a miss. Whoever asks for an embedding that is being made waits for it, in this process
(a lock per key) and in others (a short-lived Redis lock that its maker renews), so an image is encoded once however many ask.
What is found in one tier is kept in the others as well. A tier that is away costs itself and nothing else.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import redis
import torch

from sam2_backend.devices import device_errors
from sam2_backend.embedding import FORMAT
from sam2_backend.embedding_redis import RedisTier, Turn
from sam2_backend.embedding_tier import LowerTier
from sam2_backend.engine import ImageEmbedding
from sam2_backend.errors import GpuMemoryError
from sam2_backend.messages import CacheTier

T = TypeVar("T")
V = TypeVar("V")
log = logging.getLogger(__name__)


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

    def __contains__(self, key: str) -> bool:
        return key in self._values

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
    """The tiers of one worker, safe to use from several threads.

    Args:
        connection: Redis, binary replies; None: no such tier.
        device: Where embeddings are used. Where that is the CPU, the device tier is host memory already: give the host tier no budget.
        dtype: Compute precision. What one precision encoded is never handed to another.
        below: The tiers below Redis, in the order in which they are asked.
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
        below: Sequence[LowerTier] = (),
    ) -> None:
        self._device, self._dtype = device, dtype
        self._on_device: _Lru[ImageEmbedding] = _Lru(device_budget_bytes, lambda embedding: embedding.nbytes)
        self._on_host: _Lru[bytes] = _Lru(host_budget_bytes, len)
        self._in_redis = RedisTier(connection, redis_budget_bytes) if connection is not None and redis_budget_bytes else None
        self._below = tuple(below)
        self._hits: dict[CacheTier, int] = {"device": 0, "host": 0, "redis": 0, "disk": 0, "bucket": 0, "none": 0}
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def get_or_make(self, key: EmbeddingKey, make: Callable[[], ImageEmbedding]) -> tuple[ImageEmbedding, CacheTier]:
        """The embedding of `key` and where it was found; `make` is called only where no tier and no other maker has it.

        Raises:
            Whatever `make` raises; nothing is kept then, and the next one who waits tries for itself.
        """
        name = self._name(key.text)
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

    def is_at_hand(self, key: EmbeddingKey) -> bool:
        """Whether this process holds it in memory, so that using it waits for nobody. Does not count as use."""
        name = self._name(key.text)
        with self._lock:
            return name in self._on_device or name in self._on_host

    def share(self, key_text: str) -> None:
        """Give the tiers of others what this process holds in memory of a key, where they lack it. Waits for none below Redis."""
        name = self._name(key_text)
        with self._lock:
            data, embedding = self._on_host.get(name), self._on_device.get(name)
        redis_lacks = self._in_redis is not None and not self._in_redis.holds(name)
        lacking = [tier for tier in self._below if not tier.holds(name)]
        if data is None and embedding is not None and (redis_lacks or lacking):
            data = embedding.to_bytes()
        if data is None:
            return
        if self._in_redis is not None and redis_lacks:
            self._in_redis.put(name, data)
        for tier in lacking:
            tier.offer(name, data)

    def empty_device_tier(self) -> None:
        """Free the device, as after an out-of-memory error; the other tiers keep their copies."""
        with self._lock:
            self._on_device.clear()
        gc.collect()  # errors and the frames that they went through, with all their tensors, may hold each other
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
        # Not in the handler: the error's traceback holds all that the step had allocated.
        self.empty_device_tier()
        return work()

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(self._on_device.used_bytes, self._on_host.used_bytes, dict(self._hits))

    def close(self, wait_s: float = 10.0) -> None:
        """Let the tiers of others write what waits, each for so long at most. The last call."""
        if self._in_redis:
            self._in_redis.settle()
        for tier in self._below:
            tier.close(wait_s)

    def _name(self, key_text: str) -> str:
        return f"{FORMAT}:{str(self._dtype).removeprefix('torch.')}:{key_text}"

    def _find_or_make(self, name: str, make: Callable[[], ImageEmbedding]) -> tuple[ImageEmbedding, CacheTier]:
        with self._lock:
            embedding, data = self._on_device.get(name), self._on_host.get(name)
        if embedding is not None:
            return embedding, "device"
        if data is not None:
            return self._keep(name, self._loaded(data), data), "host"
        with self._in_redis.turn(name) if self._in_redis else nullcontext(Turn(None)) as turn:
            embedding = self._revive(turn.found, "redis")
            if embedding is not None and turn.found is not None:
                self._offer_below(name, turn.found)
                return self._keep(name, embedding, turn.found), "redis"
            embedding, turn.made, tier = self._find_below_or_make(name, make)
            return self._keep(name, embedding, turn.made), tier

    def _find_below_or_make(self, name: str, make: Callable[[], ImageEmbedding]) -> tuple[ImageEmbedding, bytes | None, CacheTier]:
        """The embedding, its bytes if a tier of others wants them, and where it was found."""
        for tier in self._below:
            data = tier.get(name)
            embedding = self._revive(data, tier.name)
            if embedding is not None and data is not None:
                self._offer_below(name, data)
                return embedding, data, tier.name
            if data is not None:
                tier.forget(name)
        embedding = make()
        if self._in_redis is None and not self._below:
            return embedding, None, "none"
        data = embedding.to_bytes()
        for tier in self._below:
            tier.put(name, data)
        return embedding, data, "none"

    def _offer_below(self, name: str, data: bytes) -> None:
        for tier in self._below:
            tier.offer(name, data)

    def _revive(self, data: bytes | None, tier: CacheTier) -> ImageEmbedding | None:
        if data is None:
            return None
        try:
            return self._loaded(data)
        except ValueError as error:
            log.warning("an embedding in the %s tier is damaged and is made again: %s", tier, error)
            return None

    def _loaded(self, data: bytes) -> ImageEmbedding:
        def load() -> ImageEmbedding:
            with device_errors():
                return ImageEmbedding.from_bytes(data, self._device, self._dtype)

        return self.with_room(load)

    def _keep(self, name: str, embedding: ImageEmbedding, data: bytes | None) -> ImageEmbedding:
        with self._lock:
            self._on_device.put(name, embedding)
            if self._on_host.budget_bytes:
                self._on_host.put(name, data if data is not None else embedding.to_bytes())
        return embedding
