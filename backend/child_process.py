"""A child process of `up` or `demo`: dies with its parent, and is started again with growing pauses."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: A process that ends with this code was told something wrong (a setting, a checkpoint): starting it again cannot help.
EXIT_MISCONFIGURED = 78
_PR_SET_PDEATHSIG = 1
_LONGEST_BACKOFF_S = 30.0


def die_with_parent() -> None:
    """In a child, before exec: an own process group (Ctrl-C reaches the parent alone), and SIGTERM when the parent dies."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One supervised process: how it is started, and when it may be started again."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None, log: Path | None = None) -> None:
        self.name, self._command, self._env, self._log = name, list(command), env, log
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at, self._backoff_s = 0.0, 1.0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        self._started_at = time.monotonic()
        output = self._log.open("ab") if self._log else None
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,  # noqa: PLW1509  the one thread that forks is the main one
            )
        finally:
            if output:
                output.close()

    def restart_if_due(self) -> bool:
        """Start again after a pause that doubles while it keeps dying young."""
        alive_s = time.monotonic() - self._started_at
        if alive_s < self._backoff_s:
            return False
        self._backoff_s = 1.0 if alive_s > _LONGEST_BACKOFF_S else min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        self.start()
        return True

    def terminate(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end; kill it if that takes longer."""
        if self._process is None:
            return
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def stop_event() -> threading.Event:
    """Set by SIGINT and SIGTERM; a second Ctrl-C ends the process at once (its children die with it)."""
    stopping = threading.Event()

    def stop(signal_number: int, _frame: object) -> None:
        if stopping.is_set() and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        stopping.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return stopping
