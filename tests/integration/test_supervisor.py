"""`sam2-backend up`, for real: ready, killed parts restarted, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests

from backend.supervisor import Stack, child_environment, require_free_port
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def up_settings(tmp_path) -> Settings:
    return Settings(port=free_port(), data_dir=tmp_path, torch_threads=1)


def gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_a_killed_worker_web_tier_and_redis_come_back(up_settings):
    with Stack(up_settings) as stack:
        stack.wait_until_ready(120)
        for name in ("worker-0", "web", "redis"):
            before = stack.pids()[name]
            os.kill(before, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and stack.pids().get(name) in {before, None}:
                stack.mend()
                time.sleep(0.1)
            stack.wait_until_ready(120)
            assert stack.pids()[name] != before
            assert requests.get(f"{stack.url}/ready", timeout=5).status_code == 200
        pids = list(stack.pids().values())
    assert gone(pids, 1)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_up_ends_no_process_and_no_socket_stays(up_settings, ending):
    process = subprocess.Popen(
        [sys.executable, "-m", "backend.cli", "up"],
        env=child_environment(up_settings) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "Ready at" in line:
            break
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(children) >= 4  # Redis, gunicorn's two, the worker
    sockets = [
        connection.laddr
        for connection in psutil.net_connections("unix")
        if connection.pid in children and "redis.sock" in str(connection.laddr)
    ]
    assert sockets
    process.send_signal(ending)
    process.communicate(timeout=60)
    assert gone(children, 20)
    require_free_port("127.0.0.1", up_settings.port)
    if ending != signal.SIGKILL:
        assert process.returncode == 0
        assert not any(Path(path).parent.exists() for path in sockets)


def test_a_taken_port_is_said_before_anything_starts(up_settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", up_settings.port))
        taken.listen()
        with pytest.raises(SettingsError, match="SAM2_PORT"), Stack(up_settings):
            pass


def test_a_wrong_checkpoint_ends_the_start_with_a_sentence(up_settings, capfd):
    environment = child_environment(up_settings) | {"SAM2_MODEL": "sam9_gigantic"}
    done = subprocess.run(
        [sys.executable, "-m", "backend.cli", "up"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 78
    assert "sam9_gigantic" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_stop_during_the_start_is_heeded(up_settings):
    stopping = threading.Event()
    with Stack(up_settings) as stack:
        pids = list(stack.pids().values())
        threading.Timer(0.3, stopping.set).start()
        stack.wait_until_ready(120, stopping)
        assert stopping.is_set()
    assert gone(pids, 1)
