"""Label Studio in a virtual environment of its own: its pins conflict with ours. Made once, then reused."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backend.child_process import Child
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings

VERSION = "1.23.2"
#: Written last: an environment without it was interrupted.
_MARKER = f"label-studio-{VERSION}-installed"
_LOG = "install.log"
#: Lines of pip that do not tell how far it is.
_NO_PROGRESS = ("WARNING", "Attempting uninstall", "Found existing", "Uninstalling", "Successfully uninstalled")
_SAY_EVERY_S = 10.0

Echo = Callable[[str], None]


def label_studio_command(settings: Settings, stopping: threading.Event, echo: Echo) -> list[str] | None:
    """The command that starts Label Studio, installed first where it is not yet; None: told to stop meanwhile.

    An interrupted installation is made anew: pip takes what it had downloaded from its cache.

    Raises:
        SettingsError: the installation failed (its log is named), or `label_studio_venv` holds no Label Studio.
    """
    if settings.label_studio_venv:
        venv = Path(settings.label_studio_venv).expanduser()
        if not _script(venv).exists():
            raise SettingsError(f"SAM2_LABEL_STUDIO_VENV={venv} holds no bin/label-studio. Leave it empty to have one made.")
        return [str(_script(venv))]
    folder = settings.data_dir.absolute() / f"label-studio-{VERSION}"
    if not (folder / _MARKER).exists() and not _install(folder, stopping, echo):
        return None
    return [str(_script(folder / "venv"))]


def _script(venv: Path) -> Path:
    return venv / "bin" / "label-studio"


def _install(folder: Path, stopping: threading.Event, echo: Echo) -> bool:
    venv, started = folder / "venv", time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LOG).unlink(missing_ok=True)
    echo(f"Installing Label Studio {VERSION} into {venv} (once; about 1 GB and some minutes)")

    def say(text: str) -> None:
        echo(f"[{time.monotonic() - started:5.1f} s] {text}")

    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--progress-bar", "off", f"label-studio=={VERSION}"]
    for what, command in (
        ("making the virtual environment", [sys.executable, "-m", "venv", "--clear", str(venv)]),
        (f"pip install label-studio=={VERSION}", pip),
    ):
        say(what)
        if not _run(what, command, folder, stopping, say):
            return False
    (folder / _MARKER).touch()
    return True


def _run(what: str, command: Sequence[str], folder: Path, stopping: threading.Event, say: Echo) -> bool:
    """Run a step to its end, saying now and then how far it is. False: told to stop, and the step was ended."""
    log, temporary = folder / _LOG, folder / "tmp"
    temporary.mkdir(exist_ok=True)
    child = Child(what, command, {**os.environ, "TMPDIR": str(temporary)}, log)
    child.start()
    said_at = time.monotonic()
    try:
        while child.exit_code is None:
            if stopping.wait(0.1):
                return False
            if time.monotonic() - said_at > _SAY_EVERY_S:
                said_at = time.monotonic()
                say(_last_line(log))
    finally:
        _end_with_its_children(child)
        shutil.rmtree(temporary, ignore_errors=True)
    if child.exit_code != 0:
        raise SettingsError(f"{what} failed: {_last_line(log)} The whole story is in {log}; `sam2-backend up` works without Label Studio.")
    return True


def _end_with_its_children(child: Child) -> None:
    """Venv and pip run children of their own, in the process group of the first."""
    child.terminate()
    child.wait(5)
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    written = log.read_text(errors="replace").splitlines() if log.exists() else []
    lines = [line.strip() for line in written if line.strip() and not line.strip().startswith(_NO_PROGRESS)]
    errors = [line for line in lines if line.startswith("ERROR")]
    last = (errors or lines or ["no output yet"])[-1]
    return last if len(last) < 120 else last[:117] + "..."
