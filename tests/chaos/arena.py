"""The whole service on loopback, every part a process that may be killed, stopped or cut off: Redis behind two loose cables, the web tier,
two workers without a model, and a Label Studio."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import requests
from clicking import CONFIG
from fake_label_studio import TOKEN, Studio
from kept_redis import KeptRedis
from left_over import processes_of
from loose_cable import LooseCable
from rules import environment
from small_disk import SmallDisk
from worker_processes import until

from backend.label_studio_process import free_port
from sam2_backend.settings import MIB, Settings

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT_S = 0.4
DEAD_AFTER_S = 5 * HEARTBEAT_S
WORKERS = ("w0", "w1")

#: Keys without an end of life: how many members each may have, with two workers.
_PERMANENT = {
    r"sam2:workers": len(WORKERS),
    r"sam2:model_version": 1,
    r"rq:workers": len(WORKERS),
    r"rq:workers:(interactive|warm|preannotate)": len(WORKERS),
    r"rq:workers:(interactive|warm)@w\d": 1,
    r"rq:queues": 3 + 2 * len(WORKERS),
    r"sam2:propagation:used": 10_000,
    r"sam2:projects": 10,
    r"sam2:test:.*": 1_000_000,
}
_HELD_FOR_A_WHILE = ("sam2:alone:", "sam2:push-lock:", "sam2:emb:making:")
_OWED = ("sam2:pushes", "sam2:preannotations", "sam2:propagation:waiting", "sam2:propagation:running")


@dataclass
class Arena:
    """Started by `open`, ended by `close`; what runs is in `processes` by name."""

    folder: Path
    disk: SmallDisk = field(init=False)
    redis: KeptRedis = field(init=False)
    studio: Studio = field(init=False)
    web_cable: LooseCable = field(init=False)
    worker_cable: LooseCable = field(init=False)
    settings: Settings = field(init=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def open(self) -> None:
        self.disk = SmallDisk(self.folder / "disk", 128 * MIB, list)
        self.disk.mount()
        self.redis, self.studio = KeptRedis(self.disk.folder / "redis"), Studio(CONFIG)
        self.redis.start()
        self.studio.start()
        self.web_cable, self.worker_cable = LooseCable(self.redis.port), LooseCable(self.redis.port)
        for cable in (self.web_cable, self.worker_cable):
            cable.start()
        self.settings = Settings(
            redis_url=f"redis://127.0.0.1:{self.web_cable.port}",
            data_dir=self.folder,
            port=free_port(0),
            heartbeat_s=HEARTBEAT_S,
            preannotate_wait_s=0.05,
            propagate_wait_s=0.2,
            propagate_checkpoint_s=0.2,
            label_studio_url=self.studio.url,
            label_studio_api_key=TOKEN,
        )
        self.settle()

    def close(self) -> None:
        for process in self.processes.values():
            for each in _family(process):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()
        for part in (self.web_cable, self.worker_cable, self.studio, self.redis):
            part.stop()
        self.disk.unmount()

    def start(self, name: str) -> None:
        """As a supervisor would."""
        settings, command = self.settings, [sys.executable, "-m", "backend.cli", "web"]
        if name != "web":
            settings = replace(settings, worker_name=name, redis_url=f"redis://127.0.0.1:{self.worker_cable.port}")
            command = [sys.executable, str(ROOT / "tests/chaos/worker_by_rule.py")]
        env = os.environ | settings.to_env() | environment() | {"PYTHONPATH": str(ROOT)}
        with self.log_of(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """A signal to a process; SIGKILL takes its children with it, as the kernel does when a container dies."""
        process = self.processes[name]
        for each in _family(process) if number == signal.SIGKILL else [psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def restart(self, name: str) -> None:
        self.processes[name].wait(120)
        self.start(name)

    def log_of(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def told(self) -> str:
        """The end of every log: where a test fails, it tells why."""

        def lines(name: str) -> list[str]:
            return [line for line in self.log_of(name).read_text().splitlines() if " click " not in line]

        return "\n".join(f"--- {name}\n" + "\n".join(lines(name)[-100:]) for name in self.processes)

    def settle(self) -> None:
        """Start what has ended, and wait until the web tier sees both workers."""
        for name in ("web", *WORKERS):
            if name not in self.processes or self.processes[name].poll() is not None:
                self.start(name)

        def is_ready() -> bool:
            with suppress(requests.RequestException):
                state = requests.get(f"{self.url}/ready", timeout=10)
                names = {worker["name"] for worker in state.json().get("workers", [])}
                return state.ok and names >= set(WORKERS)
            return False

        until(is_ready, 60)

    def check_clean(self) -> None:
        """No queue holds anything, no lock is held, nothing is owed, no key stays that has no end, no process is left over."""
        with self.redis.connect() as connection:
            wait_for(30, lambda: not _left_over(connection))
            assert not _left_over(connection), _left_over(connection)
        own = {each.pid for process in self.processes.values() for each in _family(process)}
        running = processes_of(self.settings.data_dir)
        assert self.processes["web"].pid in running
        assert running <= own, f"processes are left over: {running - own}"


def _left_over(connection) -> list[str]:
    found = []
    for raw in connection.scan_iter("*", count=1000):
        key = raw.decode()
        kind = connection.type(raw).decode()
        size = {"set": connection.scard, "zset": connection.zcard, "list": connection.llen, "hash": connection.hlen}.get(
            kind, lambda _k: 1
        )(raw)
        bound = next((bound for pattern, bound in _PERMANENT.items() if re.fullmatch(pattern, key)), None)
        if key.startswith("rq:queue:") or key in _OWED or key.startswith(_HELD_FOR_A_WHILE):
            found += [f"{key} holds {size}"] if size else []
        elif connection.ttl(raw) == -1 and (bound is None or size > bound):
            found.append(f"{key} ({size}) has no end")
    return found


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and its children."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    return []


def wait_for(seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
    """Let a fault last."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not is_over():
        time.sleep(0.02)
