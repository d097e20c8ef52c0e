"""Where an image is (a MediaRef) to its verified bytes and their hash, each fetched once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import redis

from sam2_backend.credentials import OriginCredentials
from sam2_backend.download import Downloader
from sam2_backend.errors import MediaRefusedError, MediaTooLargeError, MediaUnreachableError
from sam2_backend.images import ImageInfo, inspect
from sam2_backend.local_files import open_local_file, unreadable
from sam2_backend.media_files import HeldFile, LargeFiles
from sam2_backend.media_folder import MediaFolder, image_hash
from sam2_backend.media_index import MediaIndex
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings
from sam2_backend.ssrf import HostPolicy, shown_url

BLOB_PREFIX = "sam2:blob:"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MediaFile:
    """An image file, its header read, its bytes in hand: whatever happens to the copy on disk, they stay.

    Attributes:
        image_hash: 40 hex digits of blake2b over the bytes.
        path: The copy on disk; None where it was not kept (larger than the budget, disk full).
        data: The bytes.
        info: What the header says.
    """

    image_hash: str
    path: Path | None
    data: bytes
    info: ImageInfo


class MediaStore:
    """Fetches images and remembers them. Safe to share between threads.

    Args:
        settings: The media settings, Label Studio's address and key, the data folder.
        connection: Redis, answering bytes (no `decode_responses`), for the shared index and for blobs; None: without both.

    Raises:
        SettingsError: the allow-list or Label Studio's address or key is malformed.
    """

    def __init__(self, settings: Settings, connection: redis.Redis | None) -> None:
        self._settings = settings
        self._redis = connection
        self._index = MediaIndex(connection, settings.media_index_ttl_s)
        self._folder = MediaFolder(settings.data_dir / "media", settings.media_cache_bytes)
        policy = HostPolicy(settings.media_allow_hosts, settings.label_studio_url)
        credentials = OriginCredentials(settings.label_studio_url, settings.label_studio_api_key)
        self._downloader = Downloader(policy, credentials, max_bytes=settings.media_max_bytes, deadline_s=settings.media_deadline_s)
        self._large_files = LargeFiles(settings, connection, policy, credentials)
        self._flights: dict[str, Future[MediaFile]] = {}
        self._lock = threading.Lock()

    def lookup(self, ref: MediaRef) -> tuple[str, ImageInfo] | None:
        """The image that a reference was last seen to name: (image_hash, info), from memory or by one GET; never over the network."""
        entry = self._index.get(ref.uri)
        return (entry.image_hash, entry.info) if entry else None

    def forget(self, ref: MediaRef) -> None:
        """Make the next `lookup` find nothing and the next `fetch` ask the source: the image behind a reference was seen to have changed."""
        self._index.forget(ref.uri)

    def fetch(self, ref: MediaRef) -> MediaFile:
        """The image itself: from disk where the index knows it, else from its source; once, however many ask at a time.

        Its hash may differ from what `lookup` said a moment ago: the source may have changed. Take the one given here.

        Raises:
            MediaRefusedError, MediaUnreachableError, MediaTooLargeError, MediaUnreadableError: see errors.py.
        """
        with self._lock:
            flight = self._flights.get(ref.uri)
            is_mine = flight is None
            if flight is None:
                flight = self._flights[ref.uri] = Future()
        if is_mine:
            try:
                flight.set_result(self._fetch(ref))
            except BaseException as error:
                flight.set_exception(error)
            finally:
                with self._lock:
                    del self._flights[ref.uri]
        return flight.result()

    def open_file(self, ref: MediaRef, check: Callable[[HeldFile], None]) -> HeldFile:
        """A video or volume, as an open file on disk that stays readable until it is closed, whatever becomes of the copy kept here.

        Args:
            check: Raises a MediaError where the file is not what was asked for; such a file is not kept.

        Raises:
            MediaRefusedError, MediaUnreachableError, MediaTooLargeError: see errors.py; and what `check` raises.
        """
        if ref.uri.partition(":")[0].lower() == "blob":
            return self._large_files.hold(self._blob_bytes(ref.uri), shown_uri(ref.uri), check)
        return self._large_files.open(ref.uri, shown_uri(ref.uri), check)

    def _fetch(self, ref: MediaRef) -> MediaFile:
        known = self._index.get(ref.uri)
        data = self._folder.read(known.image_hash) if known else None
        if known and data is not None:
            return MediaFile(known.image_hash, self._folder.path(known.image_hash), data, known.info)
        started_at = time.monotonic()
        data = self._source_bytes(ref.uri)
        info = inspect(data, self._settings.media_max_pixels, name=shown_uri(ref.uri))
        name = image_hash(data)
        file = MediaFile(name, self._keep(name, data), data, info)
        self._index.put(ref.uri, name, info)
        duration_ms = (time.monotonic() - started_at) * 1e3
        logger.debug("media %s: %d bytes in %.0f ms, image %s", shown_uri(ref.uri), len(data), duration_ms, name[:12])
        return file

    def _keep(self, name: str, data: bytes) -> Path | None:
        try:
            return self._folder.write(name, data)
        except OSError as error:
            logger.warning("media: cannot write below SAM2_DATA_DIR (%s); going on without the copy on disk", error.strerror)
            return None

    def _source_bytes(self, uri: str) -> bytes:
        scheme = uri.partition(":")[0].lower()
        if scheme in {"http", "https"}:
            return self._downloader.download(uri)
        if scheme == "file":
            return self._local_bytes(uri)
        if scheme == "blob":
            return self._blob_bytes(uri)
        raise MediaRefusedError(f"{shown_uri(uri)} is neither http, https, a local file nor a blob. Check the address in the task.")

    def _blob_bytes(self, uri: str) -> bytes:
        try:
            data = self._redis.get(BLOB_PREFIX + uri.partition(":")[2]) if self._redis else None
        except redis.RedisError:
            raise MediaUnreachableError("Redis does not answer, and it holds the image that came with the request. Try again.") from None
        if not isinstance(data, bytes):
            raise MediaUnreachableError("The image that came with the request is no longer kept. Send the request again.")
        self._check_size(len(data), uri)
        return data

    def _local_bytes(self, uri: str) -> bytes:
        name = shown_uri(uri)
        with open_local_file(uri, self._settings.local_files_root, name) as file:
            try:
                self._check_size(os.fstat(file.fileno()).st_size, uri)
                data = file.read(self._settings.media_max_bytes + 1)
            except OSError as error:
                raise unreadable(name, error) from None
        self._check_size(len(data), uri)
        return data

    def _check_size(self, n_bytes: int, uri: str) -> None:
        limit = self._settings.media_max_bytes
        if n_bytes > limit:
            raise MediaTooLargeError(f"{shown_uri(uri)} is larger than {limit} bytes. Use a smaller file, or raise SAM2_MEDIA_MAX_BYTES.")


def shown_uri(uri: str) -> str:
    """A reference as messages and logs may name it."""
    scheme = uri.partition(":")[0].lower()
    if scheme == "blob":
        return "The image that came with the request"
    if scheme == "file":
        return "".join(filter(str.isprintable, uri.partition("?")[0].partition("#")[0]))[:200]
    return shown_url(uri)
