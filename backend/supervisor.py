"""`up`: the embedded Valkey, the workers and the web tier as children of one process that restarts what dies and leaves nothing behind.

On Ctrl-C and SIGTERM they end in order: the web tier drains, workers finish their job, Redis goes last.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
import requests

from backend.child_process import EXIT_MISCONFIGURED, Child, stop_event
from backend.dispatch import Dispatcher
from backend.embedded_redis import server_arguments, server_command
from sam2_backend.errors import QueueError, Sam2BackendError, SettingsError
from sam2_backend.settings import PREFIX, Settings

_STOP_S = 30.0

Echo = Callable[[str], None]


class Stack:
    """Everything but Label Studio, as a context manager.

    Attributes:
        settings: As given, with `redis_url` filled in.
        url: Where the web tier answers.
    """

    def __init__(self, settings: Settings, echo: Echo = lambda _line: None, *, log_dir: Path | None = None) -> None:
        self._echo, self._log_dir = echo, log_dir
        self._socket_dir: Path | None = None
        self._redis: Child | None = None
        self._workers: list[Child] = []
        self._web: Child | None = None
        self.settings = settings

    @property
    def url(self) -> str:
        host = "127.0.0.1" if self.settings.host in {"0.0.0.0", "::", ""} else self.settings.host
        return f"http://{host}:{self.settings.port}"

    def __enter__(self) -> Self:
        require_free_port(self.settings.host, self.settings.port)
        try:
            if not self.settings.redis_url:
                self._start_redis()
            env = child_environment(self.settings)
            self._web = self._child("web", [sys.executable, "-m", "backend.cli", "web"], env)
            for index in range(self.settings.workers):
                name = f"{self.settings.worker_name or socket.gethostname()}-{index}"
                worker_env = env | {"SAM2_WORKER_NAME": name, "SAM2_WORKERS": str(self.settings.workers)}
                self._workers.append(self._child(f"worker-{index}", [sys.executable, "-m", "backend.cli", "worker"], worker_env))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End the children in order: nobody new, jobs in hand finished, then the queue. Safe to call twice."""
        for group in ([self._web], self._workers, [self._redis]):
            children = [child for child in group if child is not None]
            for child in children:
                child.terminate()
            for child in children:
                child.wait(_STOP_S)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def wait_until_ready(self, timeout_s: float = 600.0, stopping: threading.Event | None = None) -> None:
        """Return once the web tier answers and a worker has loaded its model; say what is being waited for.

        Raises:
            SettingsError: a child ended because of what it was told.
            QueueError: not ready in time.
        """
        dispatcher = Dispatcher(self.settings)
        started, said = time.monotonic(), ""
        try:
            while time.monotonic() - started < timeout_s and not (stopping and stopping.is_set()):
                self.mend()
                state = self._missing(dispatcher)
                if not state:
                    return
                if state != said:
                    self._echo(f"[{time.monotonic() - started:5.1f} s] {state}")
                    said = state
                time.sleep(0.1)
        finally:
            dispatcher.close()
        if not (stopping and stopping.is_set()):
            raise QueueError(f"Not ready after {timeout_s:.0f} s: {said} The log of the worker tells more.")

    def mend(self) -> None:
        """Start again what has died; to be called now and then.

        Raises:
            SettingsError: a child ended because of what it was told.
        """
        for child in [self._redis, self._web, *self._workers]:
            if child is None or child.exit_code is None:
                continue
            if child.exit_code == EXIT_MISCONFIGURED:
                raise SettingsError(f"The {child.name} process cannot run with these settings; its message stands above.")
            code = child.exit_code
            if child.restart_if_due():
                self._echo(f"{child.name} ended with code {code} and was started again")

    def watch(self, stopping: threading.Event) -> None:
        """Mend until told to stop."""
        while not stopping.wait(0.2):
            self.mend()

    def pids(self) -> dict[str, int]:
        """The children that run, by name."""
        children = [self._redis, self._web, *self._workers]
        return {child.name: child.pid for child in children if child is not None and child.pid is not None and child.exit_code is None}

    def _missing(self, dispatcher: Dispatcher) -> str:
        if not _answers(self.settings.host, self.settings.port):
            return "starting the web tier"
        own = set(self.pids().values())
        try:
            workers = [worker for worker in dispatcher.workers() if worker.pid in own]
        except Sam2BackendError:
            return "waiting for Redis"
        if not workers:
            return "starting the worker (importing torch)"
        if all(worker.state == "loading" for worker in workers):
            return f"loading the model {self.settings.model}"
        return "" if self._says_ready() else "waiting for the web tier to see the worker"

    def _says_ready(self) -> bool:
        auth = (self.settings.basic_auth_user, self.settings.basic_auth_password) if self.settings.basic_auth_user else None
        try:
            return requests.get(f"{self.url}/ready", auth=auth, headers={"X-API-Key": self.settings.api_key}, timeout=10).ok
        except requests.RequestException:
            return False

    def _start_redis(self) -> None:
        # A folder of its own and short: a socket's path has at most 107 characters.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="sam2-"))
        socket_path = self._socket_dir / "redis.sock"
        self._redis = self._child("redis", [*server_command(), *server_arguments(socket_path)], None, log=self._socket_dir / "redis.log")
        self.settings = dataclasses.replace(self.settings, redis_url=f"unix://{socket_path}")
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.settings.redis_url) as connection:
            while time.monotonic() < deadline:
                try:
                    connection.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.02)
        raise QueueError("The embedded Redis did not start. Set SAM2_REDIS_URL to one that runs.")

    def _child(self, name: str, command: Sequence[str], env: Mapping[str, str] | None, log: Path | None = None) -> Child:
        if log is None and self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
            log = self._log_dir / f"{name}.log"
        child = Child(name, command, env, log)
        child.start()
        return child


def child_environment(settings: Settings) -> dict[str, str]:
    """The environment of this process with exactly these settings in it."""
    settings_env = settings.to_env()
    names = {name for name, _value, _help in settings.describe()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX) and name not in names}
    return inherited | settings_env


def require_free_port(host: str, port: int) -> None:
    """Raise SettingsError where something else listens already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(f"{host}:{port} cannot be used ({error.strerror}). Choose another with SAM2_HOST and SAM2_PORT.") from error


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1" if host in {"0.0.0.0", ""} else host, port), timeout=0.5):
            return True
    except OSError:
        return False


def run_up(settings: Settings, echo: Echo = print) -> int:
    """`sam2-backend up`: serve until Ctrl-C."""
    stopping = stop_event()
    with Stack(settings, echo) as stack:
        stack.wait_until_ready(stopping=stopping)
        if not stopping.is_set():
            echo(_how_to_connect(stack))
        stack.watch(stopping)
        echo("stopping: requests and jobs in hand are finished first")
    return 0


def _how_to_connect(stack: Stack) -> str:
    auth = "basic authentication with SAM2_BASIC_AUTH_USER" if stack.settings.basic_auth_user else "no authentication"
    return (
        f"\nReady at {stack.url} (status page there; Ctrl-C stops everything).\n\n"
        f"In Label Studio: Settings > Model > Connect Model: backend URL {stack.url}, {auth}, interactive pre-annotations on.\n"
        "  Label Studio refuses private addresses by default: start it with USE_DEFAULT_BANNED_SUBNETS=false.\n"
        "  For its uploads, this backend needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.\n"
        "  A labeling config: sam2-backend config --labels Cat Dog.   What is wrong? sam2-backend doctor.\n"
    )
