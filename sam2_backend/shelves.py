"""A folder with 256 directories of files: opened one by one and never through a symbolic link.

So nothing outside of the folder is read, written or deleted, whatever somebody put into it. Files whose names are not of the form that
`embedding_name` gives are left alone. A file is written under another name until it is whole: a *part*.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_SHELF = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{40}\.emb(?P<part>\.[0-9a-f]{16}\.part)?")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK a planted pipe would be waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_THERE = {errno.ENOENT, errno.ESTALE}
_LINK = {errno.ELOOP, errno.ENOTDIR}


@dataclass(frozen=True, slots=True, order=True)
class ShelvedFile:
    """A file of ours. Ordered by the time of its last use (Unix ns)."""

    used_at_ns: int
    n_bytes: int
    shelf: str
    name: str
    is_part: bool


@contextmanager
def open_shelf(folder: Path, name: str) -> Iterator[int | None]:
    """A descriptor of one of the directories; None: there is none, or something else in its place.

    Raises:
        OSError: the folder cannot be read.
    """
    root = _open(folder, _DIRECTORY)
    if root is None:
        yield None
        return
    try:
        shelf = _open(name, _DIRECTORY | os.O_NOFOLLOW, root)
    finally:
        os.close(root)
    try:
        yield shelf
    finally:
        if shelf is not None:
            os.close(shelf)


def make_shelf(folder: Path, name: str) -> None:
    """Make one of the directories, and the folder, where they are not there yet; what lies in its place is taken away.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = os.open(folder, _DIRECTORY)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=root)
        if not stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=root)
            os.mkdir(name, 0o700, dir_fd=root)
    finally:
        os.close(root)


def read_file(shelf: int, name: str, preface: bytes, most_bytes: int) -> bytes | None:
    """What follows the preface, and the file counts as used now; None: it is absent, or it was not ours and is thrown away.

    Raises:
        OSError: it cannot be read.
    """
    try:
        descriptor = os.open(name, _READ, dir_fd=shelf)
    except OSError as error:
        if error.errno in _LINK:
            unlink(shelf, name)
        elif error.errno not in _NOT_THERE:
            raise
        return None
    try:
        data = _read_after(descriptor, preface, most_bytes)
    finally:
        os.close(descriptor)
    if data is None:
        unlink(shelf, name)
    return data


def touch_file(shelf: int, name: str) -> bool:
    """Whether a file of this name is there; it counts as used now.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        is_there = stat.S_ISREG(os.stat(name, dir_fd=shelf, follow_symlinks=False).st_mode)
        with suppress(PermissionError):
            os.utime(name, ns=(now_ns := time.time_ns(), now_ns), dir_fd=shelf, follow_symlinks=False)
        return is_there
    except FileNotFoundError:
        return False


def make_part(shelf: int, name: str, n_bytes: int) -> tuple[int, str]:
    """A new part for a file, in its full length, so that whoever counts files counts it: its descriptor and name.

    Raises:
        OSError: the folder cannot be written to.
    """
    part = f"{name}.{secrets.token_hex(8)}.part"
    descriptor = os.open(part, _CREATE, 0o600, dir_fd=shelf)
    os.ftruncate(descriptor, n_bytes)
    return descriptor, part


def write_part(descriptor: int, *pieces: bytes) -> None:
    """Fill a part, and close it.

    Raises:
        OSError: the disk is full.
    """
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]
        _touch(descriptor)


def unlink(shelf: int, name: str) -> None:
    """Delete a file, or a link of that name, if it is there; a directory stays.

    Raises:
        OSError: the folder cannot be written to.
    """
    with suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=shelf)


def files(folder: Path) -> Iterator[ShelvedFile]:
    """Every file of ours.

    Raises:
        OSError: the folder cannot be read.
    """
    for shelf_name in filter(_SHELF.fullmatch, os.listdir(folder)):  # noqa: PTH208  names are all that is wanted
        with open_shelf(folder, shelf_name) as shelf:
            if shelf is None:
                continue
            for name in os.listdir(shelf):  # noqa: PTH208  of a descriptor
                form = _FILE.fullmatch(name)
                with suppress(FileNotFoundError):
                    if form and stat.S_ISREG((found := os.stat(name, dir_fd=shelf, follow_symlinks=False)).st_mode):
                        yield ShelvedFile(found.st_mtime_ns, found.st_size, shelf_name, name, form["part"] is not None)


def _open(path: Path | str, flags: int, folder: int | None = None) -> int | None:
    try:
        return os.open(path, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in _NOT_THERE or (flags & os.O_NOFOLLOW and error.errno in _LINK):
            return None
        raise


def _read_after(descriptor: int, preface: bytes, most_bytes: int) -> bytes | None:
    found = os.fstat(descriptor)
    n_bytes = found.st_size - len(preface)
    if not stat.S_ISREG(found.st_mode) or not 0 < n_bytes <= most_bytes:
        return None
    with open(descriptor, "rb", closefd=False) as file:
        if file.read(len(preface)) != preface:
            return None
        with suppress(PermissionError):  # somebody else's file, which may be read
            _touch(descriptor)
        return file.read(n_bytes)


def _touch(descriptor: int) -> None:
    # The time is given: the kernel's own is several milliseconds coarse, which would blur the order of use.
    now_ns = time.time_ns()
    os.utime(descriptor, ns=(now_ns, now_ns))
