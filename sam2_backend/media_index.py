"""Which image a URI was last seen to name: so that a warm click fetches and hashes nothing.

Held in this process, and in Redis for the other workers, under a digest of the URI: presigned ones hold signatures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import redis

from sam2_backend.images import ImageInfo

KEY_PREFIX = "sam2:media:"
MAX_ENTRIES = 16384

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """The image that a URI names, trusted until `fresh_until` (Unix seconds)."""

    image_hash: str
    info: ImageInfo
    fresh_until: float


class MediaIndex:
    """Entries live `ttl_s`; at most `max_entries` in this process, the least recently used out first.

    Args:
        connection: Redis, answering bytes; None: only this process remembers. Where it fails, the index goes on without it.
        ttl_s: How long an entry is trusted; 0: never.
    """

    def __init__(self, connection: redis.Redis | None, ttl_s: int, max_entries: int = MAX_ENTRIES) -> None:
        self._redis = connection
        self._ttl_s = ttl_s
        self._max_entries = max_entries
        self._entries: OrderedDict[str, IndexEntry] = OrderedDict()
        self._lock = threading.Lock()
        self._redis_works = True

    def get(self, uri: str) -> IndexEntry | None:
        """The entry of a URI: from memory, else by one GET."""
        key = index_key(uri)
        with self._lock:
            entry = self._entries.get(key)
            if entry and entry.fresh_until > time.time():
                self._entries.move_to_end(key)
                return entry
        entry = _read_entry(self._ask_redis("get", key))
        if entry is not None:
            self._remember(key, entry)
        return entry

    def put(self, uri: str, image_hash: str, info: ImageInfo) -> None:
        """Trust from now on that the URI names this image."""
        if self._ttl_s <= 0:
            return
        key, entry = index_key(uri), IndexEntry(image_hash, info, time.time() + self._ttl_s)
        self._remember(key, entry)
        wire = {"image_hash": image_hash, "info": info.to_json(), "fresh_until": entry.fresh_until}
        self._ask_redis("set", key, json.dumps(wire), ex=self._ttl_s)

    def forget(self, uri: str) -> None:
        """Trust nothing about a URI any longer, in this process and in those that have not asked yet."""
        key = index_key(uri)
        with self._lock:
            self._entries.pop(key, None)
        self._ask_redis("delete", key)

    def __len__(self) -> int:
        return len(self._entries)

    def _remember(self, key: str, entry: IndexEntry) -> None:
        with self._lock:
            while len(self._entries) >= self._max_entries and key not in self._entries:
                self._entries.popitem(last=False)
            self._entries[key] = entry
            self._entries.move_to_end(key)

    def _ask_redis(self, command: str, *args: Any, **kwargs: Any) -> Any:
        if self._redis is None:
            return None
        try:
            answer = getattr(self._redis, command)(*args, **kwargs)
        except redis.RedisError as error:
            if self._redis_works:
                logger.warning("media index: Redis does not answer (%s); going on without the shared index", type(error).__name__)
            self._redis_works = False
            return None
        self._redis_works = True
        return answer


def index_key(uri: str) -> str:
    """The Redis key of a URI."""
    return KEY_PREFIX + hashlib.blake2b(uri.encode(errors="surrogatepass"), digest_size=20).hexdigest()


def _read_entry(wire: Any) -> IndexEntry | None:
    """An entry out of Redis; None where it is absent, stale, or not what this version writes."""
    try:
        value = json.loads(wire)
        entry = IndexEntry(str(value["image_hash"]), ImageInfo.from_json(value["info"]), float(value["fresh_until"]))
    except (ValueError, TypeError, KeyError):
        return None
    is_hash = len(entry.image_hash) == 40 and not entry.image_hash.strip("0123456789abcdef")
    return entry if is_hash and entry.fresh_until > time.time() else None
