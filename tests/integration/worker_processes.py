"""Starts and ends real worker processes for the tests of the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam2_backend.liveness import live_workers
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MediaRef
from sam2_backend.redis_connection import connect
from sam2_backend.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
#: Short for the tests' sake, long enough for a busy machine: dead after five of these.
HEARTBEAT_S = 0.4


def until(is_true: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """What `is_true` returned once it was true; the test fails if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = is_true()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s")


def job(*wishes: str, uri: str = "http://images.test/1.png", drawing: str = "") -> ImageJob:
    return ImageJob(MediaRef(uri), (2, 2), tuple(ImagePrompt(wish) for wish in wishes or ("plain",)), drawing=drawing)


def names_in(answers: list) -> list[str]:
    """Who answered; anything but a reply fails the test."""
    assert all(isinstance(answer, ImageReply) for answer in answers), answers
    return [answer.worker for answer in answers]


class Background:
    """A call in a thread; `result` waits for it and raises what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._value = call()
        except BaseException as error:
            self._error = error

    def result(self, timeout_s: float = 60.0) -> Any:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "still running"
        if self._error:
            raise self._error
        return self._value


class Workers:
    """Worker processes of one test; all are gone after it."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.connection = connect(settings.redis_url, 4)
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *, serving: bool = True, **environ: str) -> subprocess.Popen[bytes]:
        process = self.start_unawaited(name, **environ)
        states = {"idle", "busy"} if serving else {"loading"}
        until(lambda: any(w.pid == process.pid and w.state in states for w in live_workers(self.connection)))
        return process

    def start_unawaited(self, name: str, **environ: str) -> subprocess.Popen[bytes]:
        env = os.environ | replace(self.settings, worker_name=name).to_env() | {"PYTHONPATH": str(ROOT)} | environ
        with self.log_of(name).open("ab") as log:
            process = subprocess.Popen([sys.executable, str(ROOT / "tests/integration/worker_without_model.py")], env=env, stderr=log)
        self._processes.append(process)
        return process

    def log_of(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def started(self, count: int = 1) -> list[str]:
        """Who began a sleeping job, in order; waits for `count` of them."""
        return until(
            lambda: (
                [name.decode() for name in self.connection.lrange("sam2:test:started", 0, -1)]
                if self.connection.llen("sam2:test:started") >= count
                else None
            )
        )

    def waiting(self, queue: str) -> list[bytes]:
        return self.connection.lrange(f"rq:queue:{queue}", 0, -1)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.connection.close()
