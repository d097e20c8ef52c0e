"""Media files on disk by the hash of their bytes: a byte budget, least recently used out first, never a damaged one handed out.

Several workers of one machine share the folder; a file lock keeps their evictions apart.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sam2_backend.file_lock import lock

ABANDONED_AFTER_S = 3600.0
KEPT_SHARE = 15 / 16
"""How full the folder is left when files had to go: going through thousands of them takes longer than fetching an image."""
PART_SUFFIX = ".part"
LEDGER = ".lock"
READ_BYTES = 1 << 20


def new_digest() -> hashlib.blake2b:
    """What names a file, to be fed with its bytes."""
    return hashlib.blake2b(digest_size=20)


def image_hash(data: bytes) -> str:
    """The name of an image: 40 hex digits of blake2b over its bytes."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def hash_of(file: BinaryIO) -> str:
    """The name of a file: `image_hash` of its bytes, read piece by piece; its position is at the start then."""
    digest = new_digest()
    file.seek(0)
    while data := file.read(READ_BYTES):
        digest.update(data)
    file.seek(0)
    return digest.hexdigest()


class MediaFolder:
    """Owns a folder; other files must not be put into it.

    Args:
        folder: Made when the first file is written.
        budget_bytes: Most bytes of complete files at any time; 0 keeps nothing.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder = folder
        self._budget_bytes = budget_bytes

    def path(self, name: str) -> Path:
        """Where the file of this hash is, if it is."""
        return self._folder / name

    def read(self, name: str) -> bytes | None:
        """The bytes of this hash, and the file counts as used now; None: absent, or found damaged and thrown away."""
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            if image_hash(data) != name:
                path.unlink()
                return None
            _touch(path)
        return data

    def open(self, name: str) -> BinaryIO | None:
        """The file of this hash, open for reading, and it counts as used now; None: absent, or found damaged and thrown away."""
        path = self.path(name)
        file: BinaryIO | None = None
        try:
            file = path.open("rb")
            if hash_of(file) == name:
                _touch(path)
                return file
            path.unlink()
        except OSError:
            pass
        if file is not None:
            file.close()
        return None

    def write(self, name: str, data: bytes) -> Path | None:
        """Keep bytes under their hash, putting older files out first; None: they are more than the whole budget.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        if len(data) > self._budget_bytes:
            return None
        with self.part() as file:
            file.write(data)
            return self.keep(file, name)

    @contextmanager
    def part(self) -> Iterator[BinaryIO]:
        """A new file to write and read, which is thrown away at the end of the block unless `keep` took it over.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(suffix=PART_SUFFIX, dir=self._folder)
        os.close(descriptor)
        try:
            with Path(name).open("r+b") as file:
                yield file
        finally:
            Path(name).unlink(missing_ok=True)

    def keep(self, part: BinaryIO, name: str) -> Path | None:
        """Keep what was written to a part under the hash of its bytes; None: it is more than the whole budget.

        Raises:
            OSError: the disk is full, the folder cannot be written, or another process holds its lock for seconds.
        """
        part.flush()
        n_bytes = os.fstat(part.fileno()).st_size
        if n_bytes > self._budget_bytes:
            return None
        _touch(Path(part.name))
        with self._locked() as ledger:
            self._make_room(n_bytes, name, ledger)
            Path(part.name).replace(self.path(name))
        return self.path(name)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Hold the folder's lock file, which is also its ledger: the bytes held, or more where a file went unbooked, never less."""
        with (self._folder / LEDGER).open("a+b") as ledger:
            lock(ledger)
            yield ledger

    def _make_room(self, n_bytes: int, name: str, ledger: BinaryIO) -> None:
        ledger.seek(0)
        booked = ledger.read()
        used_bytes = int(booked) if booked.isdigit() else self._budget_bytes
        if used_bytes + n_bytes > self._budget_bytes:
            used_bytes = self._put_out(n_bytes, name)
        ledger.truncate(0)
        ledger.write(b"%d" % (used_bytes + n_bytes))
        ledger.flush()

    def _put_out(self, n_bytes: int, name: str) -> int:
        """Count what lies here beside `name`; if it leaves no room for `n_bytes`, delete the oldest. Returns the bytes that stay."""
        kept = [(stat, path) for stat, path in self._files() if path.name != name]
        used_bytes = sum(stat.st_size for stat, _ in kept)
        if used_bytes + n_bytes <= self._budget_bytes:
            return used_bytes
        for stat, path in sorted(kept, key=lambda pair: pair[0].st_mtime_ns):
            if used_bytes + n_bytes <= self._budget_bytes * KEPT_SHARE:
                break
            path.unlink(missing_ok=True)
            used_bytes -= stat.st_size
        return used_bytes

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        """Complete files; the parts that a killed process left behind are thrown away on the way."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    if entry.name == LEDGER:
                        continue
                    if not entry.name.endswith(PART_SUFFIX):
                        yield stat, Path(entry.path)
                    elif time.time() - stat.st_mtime > ABANDONED_AFTER_S:
                        os.unlink(entry.path)  # noqa: PTH108  a path string from scandir


def _touch(path: Path) -> None:
    # The time is given: the kernel's own is several milliseconds coarse, which would blur the order of use.
    now_ns = time.time_ns()
    os.utime(path, ns=(now_ns, now_ns))
