"""`demo`: a real Label Studio with two small projects whose backend is connected, beside the whole stack, until Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backend import config_generator
from backend.child_process import stop_event
from backend.demo_video import FRAMERATE, make_clip
from backend.label_studio import LabelStudio
from backend.label_studio_install import label_studio_command
from backend.label_studio_process import LabelStudioProcess, free_port
from backend.supervisor import Stack
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings

PROJECT_TITLE = "SAM 2 demo"
VIDEO_TITLE = "SAM 2 demo: video"
BACKEND_TITLE = "SAM 2"
_LABELS = ("Object", "Person", "Animal")
_FIRST_LABEL_STUDIO_PORT = 8080
_IMAGES = Path(__file__).with_name("demo_images")

_VIDEO_STEPS = (
    "  1. Switch on Auto-Annotation, pick a label and draw a box around the saucer.\n"
    "  2. Click into the box, then click its label off and on: its track appears in the timeline.\n"
    "  3. Correct the box on any frame, and click the label off and on again.\n\n"
)

Echo = Callable[[str], None]


def run_demo(settings: Settings, echo: Echo = print) -> int:
    """Serve until Ctrl-C or SIGTERM, at whatever point these come; then leave no process, socket or lock behind.

    Raises:
        SettingsError: another demo runs on the same folder, or the installation failed.
        LabelStudioError: Label Studio does not start, or refuses the backend.
    """
    stopping = stop_event()
    folder = settings.data_dir.absolute() / "demo"
    with _only_one(folder):
        command = label_studio_command(settings, stopping, echo)
        if command is None:
            return 0
        label_studio = LabelStudioProcess(command, folder, free_port(_FIRST_LABEL_STUDIO_PORT))
        settings = dataclasses.replace(
            settings,
            port=free_port(settings.port),
            label_studio_url=label_studio.url,
            label_studio_api_key=label_studio.login.token,
        )
        with label_studio, Stack(settings, echo) as stack:
            _serve(label_studio, stack, stopping, echo)
            echo("stopping: requests and jobs in hand are finished first")
    return 0


def _serve(label_studio: LabelStudioProcess, stack: Stack, stopping: threading.Event, echo: Echo) -> None:
    started = time.monotonic()

    def say(text: str) -> None:
        echo(f"[{time.monotonic() - started:5.1f} s] {text}")

    say("starting Label Studio (the first time takes most of a minute)")
    stack.wait_until_ready(stopping=stopping)
    if stopping.is_set():
        return
    say("the backend is ready; waiting for Label Studio")
    if not label_studio.wait_until_ready(stopping):
        return
    say("Label Studio is ready; preparing the projects")
    client = label_studio.client()
    try:
        project_id = set_up_project(client, stack)
        video_project_id = set_up_video_project(client, stack)
    finally:
        client.close()
    say("ready")
    echo(_instructions(label_studio, project_id, video_project_id, stack))
    while not stopping.wait(0.2):
        stack.mend()
        if label_studio.mend():
            echo(f"Label Studio ended and was started again; see {label_studio.log}")


def set_up_project(client: LabelStudio, stack: Stack) -> int:
    """Make the demo's project, or find it, with its photographs and its backend connected. Returns its id."""
    config = config_generator.generate(_LABELS, output="brush", separated=True)  # one row, and the label stays picked
    project = _project(client, PROJECT_TITLE, config, "Click on an object: SAM 2 draws its mask.")
    if not project.get("task_number"):
        client.upload_files(project["id"], sorted(_IMAGES.glob("*.jpg")))
    _connect(client, project["id"], stack)
    return int(project["id"])


def set_up_video_project(client: LabelStudio, stack: Stack) -> int | None:
    """The same with a clip, which is made here. None: it cannot be made."""
    clip = stack.settings.data_dir / "demo" / "flying-saucer.mp4"
    if not clip.exists() and not make_clip(clip):
        return None
    config = config_generator.generate_video(["Saucer", "Rocket"], framerate=str(FRAMERATE))
    project = _project(client, VIDEO_TITLE, config, "Draw a box on any frame, then click its label off and on: SAM 2 tracks it.")
    if not project.get("task_number"):
        client.upload_files(project["id"], [clip])
    _connect(client, project["id"], stack)
    return int(project["id"])


def _project(client: LabelStudio, title: str, label_config: str, description: str) -> dict[str, Any]:
    found = next((project for project in client.projects() if project["title"] == title), None)
    # Shown predictions: opening a task tells the backend to embed its image.
    return found or client.create_project(title, label_config, description=description, show_collab_predictions=True)


def _connect(client: LabelStudio, project_id: int, stack: Stack) -> None:
    """Connect the backend; a connection to the port of an earlier run is taken away, with its webhook."""
    backends = [backend for backend in client.ml_backends(project_id) if backend["title"] == BACKEND_TITLE]
    for old in backends:
        if old["url"] != stack.url:
            client.disconnect_ml_backend(old["id"])
            for webhook in client.webhooks(project_id):
                if webhook["url"] == f"{old['url']}/webhook":
                    client.delete_webhook(webhook["id"])
    if not any(backend["url"] == stack.url for backend in backends):
        user, password = stack.settings.basic_auth_user, stack.settings.basic_auth_password
        client.connect_ml_backend(project_id, stack.url, BACKEND_TITLE, basic_auth=(user, password) if user else None)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Two Label Studios on one database would damage it. The lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"Another demo runs in {folder}. End it, or choose another folder with SAM2_DATA_DIR.") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _instructions(label_studio: LabelStudioProcess, project_id: int, video_project_id: int | None, stack: Stack) -> str:
    login = label_studio.login
    video = f"Video     {label_studio.url}/projects/{video_project_id}/data\n" if video_project_id else ""
    return (
        f"\nOpen      {label_studio.url}/projects/{project_id}/data\n"
        f"Sign in   {login.email}   password {login.password}\n\n"
        "  1. Open a photograph and switch on Auto-Annotation below it; leave Auto-Accept Suggestions off.\n"
        "  2. Pick the purple Auto-Detect tool in the toolbar (a keypoint, or a rectangle for a box), then a label.\n"
        "  3. Click an object: its mask appears. Click again to add, Alt+click to take away; the tick accepts.\n\n"
        f"{video}{_VIDEO_STEPS if video else ''}"
        f"Backend status: {stack.url}   Label Studio's log: {label_studio.log}\n"
        "Ctrl-C stops everything; the project is kept for the next time.\n"
    )
