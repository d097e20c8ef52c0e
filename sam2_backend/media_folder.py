"""Image files on disk by the hash of their bytes: a byte budget, least recently used out first, never a damaged one handed out.

Several workers of one machine share the folder; a file lock keeps their evictions apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ABANDONED_AFTER_S = 3600.0
KEPT_SHARE = 15 / 16
"""How full the folder is left when files had to go: going through thousands of them takes longer than fetching an image."""
PART_SUFFIX = ".part"
LEDGER = ".lock"


def image_hash(data: bytes) -> str:
    """The name of an image: 40 hex digits of blake2b over its bytes."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


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

    def write(self, name: str, data: bytes) -> Path | None:
        """Keep bytes under their hash, putting older files out first; None: they are more than the whole budget.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        if len(data) > self._budget_bytes:
            return None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(suffix=PART_SUFFIX, dir=self._folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            _touch(Path(part))
            with self._locked() as ledger:
                self._make_room(len(data), name, ledger)
                Path(part).replace(self.path(name))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        return self.path(name)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        """Hold the folder's lock file, which is also its ledger: the bytes held, or more where a file went unbooked, never less."""
        with (self._folder / LEDGER).open("a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
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
