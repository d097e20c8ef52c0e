"""The servers that are put under load, each with the processor time of its processes."""

from __future__ import annotations

import dataclasses
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import requests

from backend.child_process import Child
from backend.embedded_redis import server_arguments, server_command
from backend.supervisor import child_environment
from sam2_backend.settings import Settings

_START_S = 180
OURS_FAKE = "benchmarks.load_fake_worker"


class Server:
    """Processes and the address that answers, as a context manager.

    Args:
        name: In the table.
        n_workers: Of ours; 0: the single-lock server.
        worker_module: What each worker runs; empty: `sam2-backend worker`.
    """

    def __init__(self, name: str, model: str, n_workers: int, worker_module: str = "") -> None:
        self.name, self._n_workers, self._worker_module = name, n_workers, worker_module
        self._cleanup = ExitStack()
        folder = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="sam2-load-")))
        self.port = _free_port()
        self._folder, self._children = folder, dict[str, Child]()
        self._settings = dataclasses.replace(
            Settings(),
            model=model,
            port=self.port,
            data_dir=folder,
            redis_url=f"unix://{folder}/redis.sock",
            workers=max(1, n_workers),
            media_allow_hosts="127.0.0.1",
            device="cpu",
        )
        self.next_task = [1]

    def __enter__(self) -> Self:
        if self._n_workers:
            self._start("redis", [*server_command(), *server_arguments(self._folder / "redis.sock")])
            self._start("web", [sys.executable, "-m", "backend.cli", "web"])
            command = [sys.executable, "-m", *([self._worker_module] if self._worker_module else ["backend.cli", "worker"])]
            for index in range(self._n_workers):
                self._start(f"worker-{index}", command, SAM2_WORKER_NAME=f"w{index}")
        else:
            self._start("server", [sys.executable, "-m", "benchmarks.single_lock", str(self.port)])
        self._await()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        for child in reversed(self._children.values()):
            child.terminate()
            child.wait(20)
        self._cleanup.close()

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far, by the kind of process."""
        spent: dict[str, float] = {}
        for name, child in self._children.items():
            family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
            times = [process.cpu_times() for process in family]
            kind = name.partition("-")[0]
            spent[kind] = spent.get(kind, 0.0) + sum(each.user + each.system for each in times)
        return spent

    def _start(self, name: str, command: Sequence[str], **environ: str) -> None:
        env = child_environment(self._settings) | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])} | environ
        self._children[name] = Child(name, command, env, self._folder / f"{name}.log")
        self._children[name].start()

    def _await(self) -> None:
        path = "/ready" if self._n_workers else "/health"
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                answer = requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=5)
                if answer.ok and (not self._n_workers or self._serving(answer.json()) == self._n_workers):
                    return
            except requests.RequestException:
                pass
            time.sleep(0.2)
        logs = {name: (self._folder / f"{name}.log").read_text()[-500:] for name in self._children}
        raise TimeoutError(f"{self.name} did not start: {logs}")

    def _serving(self, ready: dict) -> int:
        return sum(worker["state"] != "loading" for worker in ready["workers"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
