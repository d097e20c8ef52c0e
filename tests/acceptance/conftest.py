"""One real Label Studio, one real browser and one whole stack for the session; a project and a page for each test."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode leaves the helpers beside the tests out

from editor import Editor
from project import Project
from slow_path import SlowPath

from backend.label_studio import LabelStudio
from backend.label_studio_install import label_studio_command
from backend.label_studio_process import LabelStudioProcess, free_port
from backend.supervisor import Stack
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings

SCREENSHOTS = Path(__file__).with_name("screenshots")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.acceptance)
            item.add_marker(pytest.mark.timeout(600))  # the first may install Label Studio


def lacking(what: str) -> Any:
    """Skip on a laptop, fail in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label Studio's local files root."""
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory, media_folder: Path) -> Iterator[LabelStudioProcess]:
    settings = Settings(label_studio_venv=os.environ.get("SAM2_LABEL_STUDIO_VENV", ""))
    try:
        command = label_studio_command(settings, threading.Event(), print)
    except SettingsError as error:
        command = lacking(error.message)
    folder = tmp_path_factory.mktemp("label-studio")
    with LabelStudioProcess(command, folder, free_port(0), media_folder) as process:
        assert process.wait_until_ready(threading.Event())
        yield process


@pytest.fixture(scope="session")
def stack(label_studio: LabelStudioProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    settings = Settings(
        data_dir=folder,
        port=free_port(0),
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.login.token,
        torch_threads=1,
    )
    with Stack(settings, print, log_dir=folder / "logs") as running:
        running.wait_until_ready(120)
        yield running


@pytest.fixture(scope="session")
def slow_path(stack: Stack) -> SlowPath:
    return SlowPath(stack.settings)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        lacking("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def signed_in(browser: Browser, label_studio: LabelStudioProcess) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1400, "height": 1300})
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", label_studio.login.email)
    page.fill("input[name=password]", label_studio.login.password)
    page.click("button[type=submit]")
    page.wait_for_url(f"{label_studio.url}/")
    page.close()
    yield context
    context.close()


@pytest.fixture
def editor(signed_in: BrowserContext, label_studio: LabelStudioProcess, request: pytest.FixtureRequest) -> Iterator[Editor]:
    folder = SCREENSHOTS / re.sub(r"[^\w-]+", "_", request.node.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    page = signed_in.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    yield Editor(page, label_studio.url, folder)
    page.screenshot(path=folder / "end.png")
    page.close()
    assert not failures, f"the editor's page raised {failures}"


@pytest.fixture(scope="session")
def client(label_studio: LabelStudioProcess) -> Iterator[LabelStudio]:
    made = label_studio.client()
    yield made
    made.close()


@pytest.fixture
def new_project(client: LabelStudio, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Project]]:
    made: list[int] = []

    def make(label_config: str) -> Project:
        project_id = client.create_project(request.node.name[:50], label_config, show_collab_predictions=True)["id"]
        made.append(project_id)
        backend = client.connect_ml_backend(project_id, stack.url, "SAM 2")
        assert backend["readable_state"] == "Connected"
        assert backend["is_interactive"]
        return Project(client, project_id, label_config)

    yield make
    for project_id in made:
        client.delete_project(project_id)
