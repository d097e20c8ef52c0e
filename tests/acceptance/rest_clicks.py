"""Smart clicks without a browser: what the editor posts to Label Studio, and what Label Studio gives it back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend import config_generator
from backend.label_studio import LabelStudio
from backend.label_studio_process import LabelStudioProcess, free_port
from backend.supervisor import Stack
from sam2_backend.settings import Settings

_ids = itertools.count()


def click(size_hw: tuple[int, int], xy_px: tuple[float, float], item_index: int | None = None) -> dict[str, Any]:
    """The region that a positive click makes, on the page `item_index` of a task with pages."""
    (height, width), (x, y) = size_hw, xy_px
    page = {} if item_index is None else {"item_index": item_index}
    return page | {
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"x": 100 * x / width, "y": 100 * y / height, "width": 0.3, "labels": ["Object"], "keypointlabels": ["Object"]},
        "is_positive": True,
        "id": f"click{next(_ids)}",
        "from_name": "point",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    }


@dataclass(frozen=True, slots=True)
class RestProject:
    """A project with a connected backend, clicked in through Label Studio's API."""

    client: LabelStudio
    login_header: Mapping[str, str]
    project_id: int
    backend_id: int
    backend_url: str

    def add(self, data: Mapping[str, Any]) -> int:
        """Import a task; returns its id."""
        assert self.client.import_tasks(self.project_id, [data]) == 1
        return self._newest()

    def upload(self, path: Path) -> int:
        """Upload an image as a task; returns its id."""
        assert self.client.upload_files(self.project_id, [path]) == 1
        return self._newest()

    def data(self, task_id: int) -> dict[str, Any]:
        """The task's data as a backend gets it: addresses in cloud storage as they are, not as the editor gets them."""
        url = f"{self.client.base_url}/api/tasks/{task_id}"
        answer = requests.get(url, {"resolve_uri": "false"}, headers=self.login_header, timeout=30)
        answer.raise_for_status()
        return dict(answer.json()["data"])

    def click(self, task_id: int, clicks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Click as the browser does; the regions that come back."""
        answer = self.answer_through_label_studio(task_id, clicks)
        assert answer.get("data"), (answer, self.answer_of_backend(task_id, clicks).text)
        return list(answer["data"]["result"])

    def answer_through_label_studio(self, task_id: int, clicks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        url = f"{self.client.base_url}/api/ml/{self.backend_id}/interactive-annotating"
        body = {"task": task_id, "context": {"result": list(clicks)}}
        answer = requests.post(url, json=body, headers=self.login_header, timeout=60)
        answer.raise_for_status()
        return dict(answer.json())

    def answer_of_backend(self, task_id: int, clicks: Sequence[Mapping[str, Any]]) -> requests.Response:
        """What the backend says to the same click: of an error, Label Studio passes nothing on."""
        body = {
            "tasks": [{"id": task_id, "data": self.data(task_id)}],
            "project": f"{self.project_id}.1",
            "label_config": self.client.project(self.project_id)["label_config"],
            "params": {"context": {"result": list(clicks)}},
        }
        return requests.post(f"{self.backend_url}/predict", json=body, timeout=60)

    def set_interactive(self, *, is_interactive: bool) -> None:
        """The switch 'Interactive preannotations' of the connection."""
        body = {"is_interactive": is_interactive, "project": self.project_id, "url": self.backend_url, "title": "SAM 2"}
        requests.patch(
            f"{self.client.base_url}/api/ml/{self.backend_id}", json=body, headers=self.login_header, timeout=60
        ).raise_for_status()

    def _newest(self) -> int:
        return max(int(task["id"]) for task in self.client.tasks(self.project_id))


@contextlib.contextmanager
def rest_project(label_studio: LabelStudioProcess, backend_url: str, label_config: str = "") -> Iterator[RestProject]:
    """A new project with the backend connected; both go at the end."""
    client = label_studio.client()
    project_id = client.create_project("REST", label_config or config_generator.generate(["Object"]))["id"]
    try:
        backend = client.connect_ml_backend(project_id, backend_url, "SAM 2")
        yield RestProject(client, login_header(label_studio), project_id, backend["id"], backend_url)
    finally:
        client.delete_project(project_id)
        client.close()


@contextlib.contextmanager
def nano_stack(label_studio: LabelStudioProcess, folder: Path, **settings: Any) -> Iterator[Stack]:
    """A whole stack with the smallest network, its weights random: quick to start, and no two images have the same mask."""
    given: dict[str, Any] = {
        "data_dir": folder,
        "port": free_port(0),
        "model": "random:nano",
        "torch_threads": 1,
        "label_studio_url": label_studio.url,
        "label_studio_api_key": label_studio.login.token,
    }
    with Stack(Settings(**given | settings), log_dir=folder / "logs") as running:
        running.wait_until_ready(120)
        yield running


def login_header(label_studio: LabelStudioProcess) -> dict[str, str]:
    return {"Authorization": f"Token {label_studio.login.token}"}


@contextlib.contextmanager
def personal_access_token(label_studio: LabelStudioProcess) -> Iterator[str]:
    """Ended afterwards, for a user may have one at a time."""
    header = login_header(label_studio)
    answer = requests.post(f"{label_studio.url}/api/token/", headers=header, timeout=30)
    answer.raise_for_status()
    token = str(answer.json()["token"])
    try:
        yield token
    finally:
        requests.post(f"{label_studio.url}/api/token/blacklist/", json={"refresh": token}, headers=header, timeout=30).raise_for_status()
