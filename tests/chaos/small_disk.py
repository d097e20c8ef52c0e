"""A disk that can be full: a file system of a few MiB where this user may mount one, else a limit on what the processes may write."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_CHUNK = 1 << 16


class SmallDisk:
    """Mounted from `mount` to `unmount`.

    Args:
        folder: Where; it is made.
        writers: The processes that are limited where nothing can be mounted.
    """

    def __init__(self, folder: Path, size_bytes: int, writers: Callable[[], Iterable[int]]) -> None:
        self.folder, self._size_bytes, self._writers = folder, size_bytes, writers
        self._filling = folder / "filling"
        self.is_mounted = False

    def mount(self) -> None:
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "tmpfs", str(self.folder)]
        with suppress(OSError):
            self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """To the last byte."""
        if not self.is_mounted:
            self._limit(0)
            return
        with suppress(OSError), self._filling.open("wb", buffering=0) as file:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.folder).free)
            file.seek(0, os.SEEK_END)
            for size in (_CHUNK, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def free(self) -> None:
        self._filling.unlink(missing_ok=True)
        if not self.is_mounted:
            self._limit(resource.RLIM_INFINITY)

    def _limit(self, size_bytes: int) -> None:
        for pid in self._writers():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))
