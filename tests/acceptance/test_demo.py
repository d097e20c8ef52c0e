"""`sam2-backend demo`, as a person runs it: start, click in the browser, Ctrl-C, nothing left; then start again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from editor import Editor
from stored import mask_of


class Demo:
    """One run of the command, with a home of its own."""

    def __init__(self, home: Path, **environ: str) -> None:
        (home / "tmp").mkdir(exist_ok=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("SAM2_")}
        env |= {"SAM2_DATA_DIR": str(home / "data"), "TMPDIR": str(home / "tmp"), "PYTHONUNBUFFERED": "1"} | environ
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "backend.cli", "demo"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._home = home

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            self.lines.extend(output)

    def wait_for(self, text: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            assert self._process.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.05)

    def said(self, pattern: str) -> re.Match[str]:
        found = re.search(pattern, "".join(self.lines))
        assert found, "".join(self.lines)
        return found

    def stop(self, with_signal: signal.Signals) -> None:
        """Stop it; nothing of it may be left: no process, no temporary folder with its socket, no lock."""
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(with_signal)
        try:
            assert self._process.wait(60) == 0, "".join(self.lines)
            self._reader.join()
            assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
            left = [path.name for path in (self._home / "tmp").iterdir()]
            assert [name for name in left if not name.startswith("torchinductor_")] == [], "torch's own cache may stay"
            assert not (self._home / "data" / "demo" / "lock").exists()
        finally:
            self.end()

    def end(self) -> None:
        """The way out of a failed test."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._reader.join()


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="demo-"))  # short: a socket's path has at most 107 characters
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def venv(label_studio) -> str:
    """The environment that the session's Label Studio runs from."""
    return str(Path(psutil.Process(label_studio.pid).cmdline()[1]).parent.parent)


def test_demo_is_ready_to_click_and_leaves_nothing_and_starts_again_quickly(home, venv, browser, tmp_path) -> None:
    for run in range(2):
        demo, started = Demo(home, SAM2_LABEL_STUDIO_VENV=venv), time.monotonic()
        try:
            demo.wait_for("Ctrl-C stops everything", 180)
            print(f"demo ready after {time.monotonic() - started:.1f} s")
            if run == 0:
                _click_on_a_photograph(demo, browser, tmp_path)
                first_project = demo.said(r"/projects/\d+/data").group()
            assert demo.said(r"/projects/\d+/data").group() == first_project
            assert demo.said(r"Video\s+http\S+(/projects/\d+/data)").group(1) != first_project
            demo.stop(signal.SIGINT)
        finally:
            demo.end()


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_demo_stopped_while_it_starts_leaves_nothing(home, venv, with_signal) -> None:
    demo = Demo(home, SAM2_LABEL_STUDIO_VENV=venv)
    try:
        demo.wait_for("starting Label Studio", 60)
        time.sleep(2)
        demo.stop(with_signal)
    finally:
        demo.end()


def test_demo_stopped_while_it_installs_leaves_no_process_and_is_not_taken_for_installed(home) -> None:
    demo = Demo(home)
    try:
        demo.wait_for("making the virtual environment", 60)
        time.sleep(1)
        demo.stop(signal.SIGINT)
    finally:
        demo.end()
    assert not list((home / "data").glob("label-studio-*/label-studio-*-installed"))


def _click_on_a_photograph(demo: Demo, browser, tmp_path: Path) -> None:
    url, project_id = demo.said(r"(http://\S+)/projects/(\d+)/data").groups()
    email, password = demo.said(r"Sign in\s+(\S+)\s+password (\S+)").groups()
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(f"{url}/user/login/")
    page.fill("input[name=email]", email)
    page.fill("input[name=password]", password)
    page.click("button[type=submit]")
    page.wait_for_url(f"{url}/")
    tasks = page.request.get(f"{url}/api/tasks?project={project_id}&fields=all").json()["tasks"]
    coffee = next(task["id"] for task in tasks if "coffee" in task["data"]["image"])
    folder = tmp_path / "shots"
    folder.mkdir()
    editor = Editor(page, url, folder)
    editor.open(int(project_id), coffee)
    editor.pick("keypoint")
    editor.choose_label(0, "Object")
    answer = editor.click(300, 130)
    assert "errors" not in answer, answer
    for region in answer["data"]["result"][::2]:  # each comes with its label as a second result
        assert mask_of([region]).shape == (400, 600)
    context.close()
