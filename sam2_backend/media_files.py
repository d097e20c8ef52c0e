"""Videos and volumes: files too large for memory, fetched to disk as they arrive, verified, and handed out open."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

import redis

from sam2_backend.credentials import OriginCredentials
from sam2_backend.download import Downloader
from sam2_backend.errors import MediaRefusedError, MediaTooLargeError, MediaUnreachableError
from sam2_backend.local_files import open_local_file, unreadable
from sam2_backend.media_folder import MediaFolder, hash_of, new_digest
from sam2_backend.settings import Settings
from sam2_backend.ssrf import HostPolicy

KEY_PREFIX = "sam2:file:"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldFile:
    """An open file that stays readable until `close`. A context manager.

    Attributes:
        file: Binary, for reading; its position belongs to whoever holds this.
        file_hash: 40 hex digits of blake2b over the bytes.
        name: What messages call it.
    """

    file: BinaryIO
    file_hash: str
    name: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()


class LargeFiles:
    """Opens files by URI, keeping what was downloaded in a folder of its own. Safe to share between threads and processes.

    Args:
        settings: The video settings, the local files root, the data folder.
        connection: Redis, answering bytes, which remembers for a while which file a URI named; None: each opening downloads.
        policy, credentials: As for images.
    """

    def __init__(self, settings: Settings, connection: redis.Redis | None, policy: HostPolicy, credentials: OriginCredentials) -> None:
        self._settings = settings
        self._redis = connection
        self._folder = MediaFolder(settings.data_dir / "videos", settings.video_cache_bytes)
        self._downloader = Downloader(
            policy, credentials, max_bytes=settings.video_max_bytes, deadline_s=settings.video_deadline_s, kind="VIDEO"
        )
        self._flights: dict[str, _Flight] = {}
        self._lock = threading.Lock()

    def open(self, uri: str, name: str, check: Callable[[HeldFile], None]) -> HeldFile:
        """Open what a URI names: a local file where it is, a download from disk where it is known, else from its source.

        Raises:
            MediaError: see `MediaStore.open_file`.
        """
        scheme = uri.partition(":")[0].lower()
        if scheme == "file":
            return self._checked(self._local(uri, name), check)
        if scheme not in {"http", "https"}:
            raise MediaRefusedError(f"{name} is neither http, https, a local file nor a blob. Check the address in the task.")
        with self._one_at_a_time(uri):
            held = self._known(uri, name)
            if held is not None:
                return held
            held = self._written(lambda write: self._downloader.download_to(uri, write), name, check)
            self._remember(uri, held.file_hash)
        return held

    def hold(self, data: bytes, name: str, check: Callable[[HeldFile], None]) -> HeldFile:
        """Open bytes in memory as a file on disk.

        Raises:
            MediaError: see `MediaStore.open_file`.
        """
        return self._written(lambda write: write(data), name, check)

    def _local(self, uri: str, name: str) -> HeldFile:
        file = open_local_file(uri, self._settings.local_files_root, name)
        try:
            limit = self._settings.video_max_bytes
            if os.fstat(file.fileno()).st_size > limit:
                raise MediaTooLargeError(f"{name} is larger than {limit} bytes. Use a smaller file, or raise SAM2_VIDEO_MAX_BYTES.")
            return HeldFile(file, hash_of(file), name)
        except OSError as error:
            file.close()
            raise unreadable(name, error) from None
        except BaseException:
            file.close()
            raise

    def _known(self, uri: str, name: str) -> HeldFile | None:
        known = self._remembered(uri)
        file = self._folder.open(known) if known else None
        return HeldFile(file, known, name) if file and known else None

    def _written(self, fill: Callable[[Callable[[bytes], object]], object], name: str, check: Callable[[HeldFile], None]) -> HeldFile:
        try:
            with self._folder.part() as part:
                digest = new_digest()

                def write(data: bytes) -> None:
                    part.write(data)
                    digest.update(data)

                fill(write)
                part.flush()
                # A handle of its own: it outlives the part's, and the file's name, whatever becomes of that.
                file = open(part.name, "rb")  # noqa: SIM115, PTH123
                held = self._checked(HeldFile(file, digest.hexdigest(), name), check)
                self._keep(part, held)
                return held
        except OSError as error:
            raise MediaUnreachableError(
                f"{name} cannot be written below SAM2_DATA_DIR ({error.strerror}). Free some disk, or lower SAM2_VIDEO_CACHE_BYTES."
            ) from None

    def _keep(self, part: BinaryIO, held: HeldFile) -> None:
        try:
            self._folder.keep(part, held.file_hash)
        except OSError as error:
            logger.warning("%s is not kept below SAM2_DATA_DIR (%s); it is fetched again next time", held.name, error.strerror)

    def _checked(self, held: HeldFile, check: Callable[[HeldFile], None]) -> HeldFile:
        try:
            check(held)
        except BaseException:
            held.close()
            raise
        return held

    @contextmanager
    def _one_at_a_time(self, uri: str) -> Iterator[None]:
        """Whoever asks for a URI that is being fetched waits, and then finds it."""
        with self._lock:
            flight = self._flights.setdefault(uri, _Flight(threading.Lock()))
            flight.n_waiting += 1
        try:
            with flight.lock:
                yield
        finally:
            with self._lock:
                flight.n_waiting -= 1
                if not flight.n_waiting:
                    del self._flights[uri]

    def _remembered(self, uri: str) -> str | None:
        if self._redis is None:
            return None
        with suppress(redis.RedisError):
            known = self._redis.get(_index_key(uri))
            if isinstance(known, bytes) and len(known) == 40 and not known.strip(b"0123456789abcdef"):
                return known.decode()
        return None

    def _remember(self, uri: str, name: str) -> None:
        if self._redis is not None and self._settings.media_index_ttl_s > 0:
            try:
                self._redis.set(_index_key(uri), name, ex=self._settings.media_index_ttl_s)
            except redis.RedisError as error:
                logger.warning("videos: Redis does not answer (%s); this one is fetched again next time", type(error).__name__)


@dataclass(slots=True)
class _Flight:
    lock: threading.Lock
    n_waiting: int = 0


def _index_key(uri: str) -> str:
    return KEY_PREFIX + hashlib.blake2b(uri.encode(errors="surrogatepass"), digest_size=20).hexdigest()
