"""Embeddings in a folder that outlives the workers: a byte budget, least recently used out first, never a damaged or a strange file.

Several workers share one folder, on one machine or over NFS. Readers need no lock. Writers keep one ledger, the bytes that are spoken
for, under a lock; a file is paid for before it is written, and nobody waits for the lock while one is written. Where a process died the
ledger says too much, never too little, and the next count of the files puts it right.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sam2_backend import shelves
from sam2_backend.embedding_name import MOST_BYTES, place_of, preface_of
from sam2_backend.file_lock import lock

ABANDONED_AFTER_S = 3600.0
"""A part that is older was left behind by a process that died."""
KEPT_SHARE = 15 / 16
"""How full the folder is left when files had to go: looking at every file of a large folder takes longer than encoding an image."""
LEDGER = ".ledger"


class EmbeddingFolder:
    """One folder; whatever else lies in it is left alone. Safe to use from several threads and processes.

    Args:
        folder: Made when the first file is written; may itself be a symbolic link.
        budget_bytes: Most bytes of all files, unfinished ones included, at any time.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder, self._budget_bytes = folder, budget_bytes

    def get(self, key: str) -> bytes | None:
        """The embedding, which counts as used now; None: it is not here, or not as it was written, and thrown away.

        Raises:
            OSError: the folder cannot be read.
        """
        shelf_name, name = place_of(key)
        with shelves.open_shelf(self._folder, shelf_name) as shelf:
            if shelf is None:
                return None
            return shelves.read_file(shelf, name, preface_of(key), MOST_BYTES)

    def has(self, key: str) -> bool:
        """Whether there is a file for this key, which counts as used now.

        Raises:
            OSError: the folder cannot be read.
        """
        shelf_name, name = place_of(key)
        with shelves.open_shelf(self._folder, shelf_name) as shelf:
            return shelf is not None and shelves.touch_file(shelf, name)

    def put(self, key: str, data: bytes) -> None:
        """Keep an embedding, putting others out first; one that has no room in the budget is not kept.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        (shelf_name, name), preface = place_of(key), preface_of(key)
        n_bytes = len(preface) + len(data)
        if n_bytes > self._budget_bytes:
            return
        shelves.make_shelf(self._folder, shelf_name)
        with shelves.open_shelf(self._folder, shelf_name) as shelf:
            if shelf is None or (reserved := self._reserve(shelf, name, n_bytes)) is None:
                return
            descriptor, part = reserved
            try:
                shelves.write_part(descriptor, preface, data)
                with self._locked():  # whoever counts files meanwhile could miss both names
                    os.replace(part, name, src_dir_fd=shelf, dst_dir_fd=shelf)
            except BaseException:
                self._give_back(shelf, part, n_bytes)
                raise

    def forget(self, key: str) -> None:
        """Throw the file of this key away, if there is one.

        Raises:
            OSError: the folder cannot be written to.
        """
        shelf_name, name = place_of(key)
        with shelves.open_shelf(self._folder, shelf_name) as shelf:
            if shelf is not None:
                shelves.unlink(shelf, name)

    def count(self) -> tuple[int, int]:
        """How many files there are, and their bytes.

        Raises:
            OSError: the folder cannot be read.
        """
        found = [file.n_bytes for file in shelves.files(self._folder)]
        return len(found), sum(found)

    def trim(self) -> None:
        """Put out what is beyond the budget, as after it was lowered.

        Raises:
            OSError: the folder cannot be written to.
        """
        if self._folder.is_dir():
            with self._locked() as ledger:
                _book(ledger, self._make_room(0, ledger))

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        """Hold the ledger: one at a time among all processes.

        Raises:
            OSError: somebody holds it for seconds on end, as a process that was stopped does; or the folder cannot be written to.
        """
        descriptor = os.open(self._folder / LEDGER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with io.FileIO(descriptor, "r+") as ledger:
            lock(ledger)
            yield ledger

    def _reserve(self, shelf: int, name: str, n_bytes: int) -> tuple[int, str] | None:
        """Pay for a part and make it; None: there is no room beside the parts of others."""
        with self._locked() as ledger:
            spoken_for = self._make_room(n_bytes, ledger) + n_bytes
            if spoken_for > self._budget_bytes:
                return None
            _book(ledger, spoken_for)
            return shelves.make_part(shelf, name, n_bytes)

    def _give_back(self, shelf: int, part: str, n_bytes: int) -> None:
        """Undo `_reserve`, as far as the disk lets us."""
        try:
            with self._locked() as ledger:
                os.unlink(part, dir_fd=shelf)
                used_bytes = _booked(ledger)
                if used_bytes is not None:
                    _book(ledger, used_bytes - n_bytes)
        except OSError:
            with suppress(OSError):
                os.unlink(part, dir_fd=shelf)

    def _make_room(self, n_bytes: int, ledger: io.FileIO) -> int:
        """The bytes that are spoken for, once so many more have room beside them."""
        used_bytes = _booked(ledger)
        return self._put_out(n_bytes) if used_bytes is None or used_bytes + n_bytes > self._budget_bytes else used_bytes

    def _put_out(self, n_bytes: int) -> int:
        """Count the files; if they leave no room for so many bytes, delete the least recently used. Returns the bytes that stay."""
        found = sorted(shelves.files(self._folder))
        used_bytes = sum(file.n_bytes for file in found)
        aim_bytes = self._budget_bytes if used_bytes + n_bytes <= self._budget_bytes else self._budget_bytes * KEPT_SHARE
        abandoned_ns = time.time_ns() - int(ABANDONED_AFTER_S * 1e9)
        for file in found:
            has_to_go = file.used_at_ns < abandoned_ns if file.is_part else used_bytes + n_bytes > aim_bytes
            if has_to_go:
                with shelves.open_shelf(self._folder, file.shelf) as shelf:
                    if shelf is not None:
                        shelves.unlink(shelf, file.name)
                used_bytes -= file.n_bytes
        return used_bytes


def _booked(ledger: io.FileIO) -> int | None:
    ledger.seek(0)
    text = ledger.read(32)
    return int(text) if text.isdigit() else None


def _book(ledger: io.FileIO, n_bytes: int) -> None:
    # A process that dies in between leaves an empty ledger, and the next one counts.
    ledger.seek(0)
    ledger.truncate()
    ledger.write(b"%d" % n_bytes)
