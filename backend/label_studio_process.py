"""A real Label Studio as a child process: on loopback, without telemetry, with a login of its own, able to reach a backend on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from backend.child_process import Child
from backend.label_studio import LabelStudio, LabelStudioError
from sam2_backend.errors import SettingsError

_HOST = "127.0.0.1"
_STOP_S = 10.0

#: Label Studio reads dozens of names from the environment, HOST and DEBUG among them: it gets only these.
_INHERITED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_ENVIRONMENT = {
    "LABEL_STUDIO_SENTRY_DSN": "",
    "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "USE_DEFAULT_BANNED_SUBNETS": "false",  # otherwise it refuses a backend on loopback
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
}


@dataclass(frozen=True, slots=True)
class Login:
    """The one user of this Label Studio. Made at random, and kept as long as its database."""

    email: str
    password: str
    token: str

    @classmethod
    def load_or_make(cls, path: Path) -> Login:
        """Read the login from `path`, or make one and keep it there, readable by its owner alone.

        Raises:
            SettingsError: the file is damaged.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            login = cls("demo@example.com", secrets.token_urlsafe(9), secrets.token_hex(20))
        except (ValueError, TypeError) as error:
            raise SettingsError(f"{path} is damaged. Delete {path.parent} to start afresh.") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(dataclasses.asdict(login), file)
        return login


class LabelStudioProcess:
    """Label Studio on loopback, as a context manager.

    Attributes:
        url: Where it answers.
        login: Its user.
        log: What it writes.
        command: How it is started.
        environment: All that it is told.
    """

    def __init__(self, command: Sequence[str], folder: Path, port: int, local_files_root: Path | None = None) -> None:
        """Starts nothing yet.

        Args:
            command: What `label_studio_install.label_studio_command` returned.
            folder: Its database, its uploads, its log and its login.
            port: A free one.
            local_files_root: Files below it may be served as /data/local-files/.
        """
        folder = folder.absolute()
        self.url, self.log, self.login = f"http://{_HOST}:{port}", folder / "label-studio.log", Login.load_or_make(folder / "login.json")
        self._data = folder / "data"
        self.command = [*command, "start", "--no-browser", "--internal-host", _HOST, "--port", str(port), "--data-dir", str(self._data)]
        self.environment = self._environment(local_files_root)
        self._child = Child("label-studio", self.command, self.environment, self.log)

    def __enter__(self) -> Self:
        self._data.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        self._child.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._child.terminate()
        self._child.wait(_STOP_S)

    @property
    def pid(self) -> int | None:
        return self._child.pid

    def client(self) -> LabelStudio:
        return LabelStudio(self.url, self.login.token)

    def wait_until_ready(self, stopping: threading.Event, timeout_s: float = 300.0) -> bool:
        """Return True once the login works; False: told to stop meanwhile.

        Raises:
            LabelStudioError: it ended, does not know the login, or is not ready in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._child.exit_code is not None:
                raise LabelStudioError(f"Label Studio ended with code {self._child.exit_code}: {self._last_words()} See {self.log}.")
            if self._listens():
                self._require_login()
                return True
            if stopping.wait(0.2):
                return False
        raise LabelStudioError(f"Label Studio is not ready after {timeout_s:.0f} s. See {self.log}.")

    def mend(self) -> bool:
        """Start it again if it has died; True: it was."""
        return self._child.exit_code is not None and self._child.restart_if_due()

    def _environment(self, local_files_root: Path | None) -> dict[str, str]:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | _ENVIRONMENT
        environment |= {
            "LABEL_STUDIO_USERNAME": self.login.email,
            "LABEL_STUDIO_PASSWORD": self.login.password,
            "LABEL_STUDIO_USER_TOKEN": self.login.token,
        }
        if local_files_root is not None:
            environment["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] = "true"
            environment["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] = str(local_files_root)
        return environment

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex((_HOST, int(self.url.rpartition(":")[2]))) == 0

    def _require_login(self) -> None:
        client = self.client()
        try:
            client.whoami()
        except LabelStudioError as error:
            where = self.log.parent
            raise LabelStudioError(
                f"What answers at {self.url} does not accept Label Studio's login: another program took the port, or {where} is out of step. "
                "Start again; if that does not help, delete the folder."
            ) from error
        finally:
            client.close()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output.")


def free_port(first: int) -> int:
    """The first free port of loopback from `first` on; 0: any.

    Raises:
        SettingsError: a hundred in a row are taken.
    """
    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SettingsError(f"No port from {first} to {first + 99} is free. Choose another with SAM2_PORT.")
