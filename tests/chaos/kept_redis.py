"""A Redis on a TCP port that keeps its data on disk, and may lose them when it is started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis

from backend.embedded_redis import server_command
from backend.label_studio_process import free_port


class KeptRedis:
    """Every write is in the append-only file before it is answered, so that a kill costs nothing but the connections."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port(0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder), "save": "", "appendonly": "yes"}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        with (self._folder.parent / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([*server_command(), *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        with self.connect() as connection:
            while time.monotonic() < deadline:
                try:
                    connection.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.01)
        raise AssertionError("the Redis did not start")

    def stop(self, *, kills: bool = False) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kills else signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def lose_data(self) -> None:
        """While it is stopped."""
        assert self._process is None
        shutil.rmtree(self._folder)

    def connect(self) -> redis.Redis:
        return redis.Redis(port=self.port)
