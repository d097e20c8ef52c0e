"""One process at a time, on one machine: a lock on an open file, for which nobody waits for ever."""

from __future__ import annotations

import fcntl
import time
from typing import IO

LOCK_WAIT_S = 3.0
"""What is done under such a lock takes milliseconds; a process that was stopped in the middle of it may hold it for hours."""
_POLL_S = 0.005


def lock(file: IO[bytes]) -> None:
    """Held until the file is closed, or its process has ended.

    Raises:
        BlockingIOError: another process has held it for seconds.
    """
    gives_up_at = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > gives_up_at:
                raise
            time.sleep(_POLL_S)
