"""Shared by every tier: a clean environment, a real Redis, and a header that says what ran."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backend.embedded_redis import server_arguments, server_command
from sam2_backend.settings import Settings

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a worker, before torch is imported
for _name in [name for name in os.environ if name.startswith(("SAM2_", "LABEL_STUDIO_")) and name != "SAM2_LABEL_STUDIO_VENV"]:
    del os.environ[_name]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "acceptance: the real Label Studio in a real browser")


def pytest_report_header() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"torch {torch.__version__} on {device}, redis-py {redis.__version__}, server {server_command()[0]}"


def needs(condition: bool, what: str) -> None:
    """Skip on a laptop that lacks `what`; fail in CI, where it must be there."""
    if not condition:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {what}")


class RedisServer:
    """A real server on a Unix socket, which a test may stop and start again (empty)."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [*server_command(), *server_arguments(self.socket)],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) == 0:
                    return
            time.sleep(0.01)
        pytest.fail("the Redis server did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.socket.unlink(missing_ok=True)

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


@pytest.fixture(scope="session")
def _session_redis() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="sam2-test-"))  # short: a socket's path has at most 107 characters
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def redis_server(_session_redis: RedisServer) -> RedisServer:
    """The session's server, emptied."""
    with _session_redis.connect() as connection:
        connection.flushall()
    return _session_redis


@pytest.fixture
def own_redis_server() -> Iterator[RedisServer]:
    """A server that the test may stop and start."""
    folder = Path(tempfile.mkdtemp(prefix="sam2-test-"))
    server = RedisServer(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    """Settings of a test: the session's Redis, a data folder of its own, the default model."""
    return Settings(redis_url=redis_server.url, data_dir=tmp_path, torch_threads=1)
