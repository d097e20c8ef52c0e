"""Which processes of a stack are still there, whoever their parent is by now."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


def processes_of(data_dir: Path) -> set[int]:
    """Living processes whose data folder is this one."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SAM2_DATA_DIR") == str(data_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found
