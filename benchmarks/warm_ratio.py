"""Is the image of the next task ready when an annotator gets there? A project is annotated in order through the real Label Studio.

`python -m benchmarks.warm_ratio`, with Label Studio's environment in SAM2_LABEL_STUDIO_VENV or, where that is empty, one made in a temporary
folder. Each task is taken from the label stream as the editor does, clicked in at once, looked at for a while, and submitted; the first
click's cache tier is read from the backend's log. Once as it comes, once with SAM2_WARM_NEXT_TASKS=0. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image

from backend import config_generator
from backend.label_studio_install import label_studio_command
from backend.label_studio_process import LabelStudioProcess, free_port
from backend.supervisor import Stack
from sam2_backend.settings import Settings

SIZE_HW = (400, 600)


@dataclass(frozen=True, slots=True)
class Annotator:
    """Works in one project as the editor's label stream does."""

    label_studio: LabelStudioProcess
    project_id: int
    backend_id: int

    def next_task(self) -> int:
        """Label Studio's next task, by "Label All Tasks"; 0: none is left."""
        answer = self._post(f"/api/dm/actions?id=next_task&project={self.project_id}", {"project": self.project_id})
        return int(answer.get("id") or 0)

    def open(self, task_id: int) -> None:
        """Open a task by its row."""
        requests.get(f"{self.label_studio.url}/api/tasks/{task_id}", headers=self._headers(), timeout=60).raise_for_status()

    def click(self, task_id: int) -> None:
        value = {"x": 40.0, "y": 55.0, "width": 0.3, "keypointlabels": ["Object"]}
        region = {"id": f"c{task_id}", "from_name": "point", "to_name": "image", "type": "keypointlabels", "value": value}
        region |= {
            "original_width": SIZE_HW[1],
            "original_height": SIZE_HW[0],
            "image_rotation": 0,
            "is_positive": True,
            "origin": "manual",
        }
        body = {"task": task_id, "context": {"result": [region]}}
        answer = self._post(f"/api/ml/{self.backend_id}/interactive-annotating", body)
        if "data" not in answer:
            raise RuntimeError(answer)

    def submit(self, task_id: int) -> None:
        self._post(f"/api/tasks/{task_id}/annotations?project={self.project_id}", {"result": [], "lead_time": 1.0})

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        answer = requests.post(self.label_studio.url + path, json=body, headers=self._headers(), timeout=120)
        if answer.status_code == 404:  # no task is left
            return {}
        answer.raise_for_status()
        return dict(answer.json())

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Token {self.label_studio.login.token}"}


@contextmanager
def annotator(label_studio: LabelStudioProcess, stack: Stack, pictures: list[Path], **fields: Any) -> Iterator[Annotator]:
    """In a new project of one task a picture, with the backend connected; it goes at the end."""
    client = label_studio.client()
    project_id = client.create_project("In order", config_generator.generate(["Object"]), **fields)["id"]
    try:
        client.upload_files(project_id, pictures)
        yield Annotator(label_studio, project_id, client.connect_ml_backend(project_id, stack.url, "SAM 2")["id"])
    finally:
        client.delete_project(project_id)
        client.close()


def pictures(folder: Path, count: int) -> list[Path]:
    """Pictures that no two are alike: the cache knows an image by its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(count)]
    rng = np.random.default_rng(count)
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 255, (8, 12, 3), dtype=np.uint8))
        coarse.resize(SIZE_HW[::-1], Image.Resampling.BICUBIC).save(path)
    return paths


def first_tiers(log: Path, task_ids: list[int]) -> list[str]:
    """Where the embedding came from at the first click in each task, by the web tier's log."""
    found: dict[int, str] = {}
    for match in re.finditer(r"\bclick task=(\d+) .*?cache=(\S+)", log.read_text()):
        found.setdefault(int(match[1]), match[2])
    return [found[task_id] for task_id in task_ids]


def measure(label_studio: LabelStudioProcess, folder: Path, arguments: argparse.Namespace, n_ahead: int) -> dict[str, Any]:
    settings = Settings(
        data_dir=folder / "data",
        port=free_port(0),
        model=arguments.model,
        workers=arguments.workers,
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.login.token,
        warm_next_tasks=n_ahead,
    )
    with Stack(settings, log_dir=folder / "logs") as stack:
        stack.wait_until_ready(300)
        fields = {"show_collab_predictions": not arguments.unasked}
        with annotator(label_studio, stack, pictures(folder / "pictures", arguments.tasks), **fields) as person:
            task_ids, waits_ms = _annotate(person, arguments)
    tiers = first_tiers(folder / "logs" / "web.log", task_ids)
    n_warm = sum(tier != "none" for tier in tiers)
    return {
        "tasks": len(tiers),
        "warm": n_warm,
        "warm_ratio": round(n_warm / len(tiers), 3),
        "tiers": dict(Counter(tiers)),
        "first_click_ms_median": round(float(np.median(waits_ms)), 1),
    }


def _annotate(person: Annotator, arguments: argparse.Namespace) -> tuple[list[int], list[float]]:
    """The tasks in the order in which they came, and how long the first click took as the browser sees it."""
    time.sleep(arguments.think_s)  # between connecting a project and labelling it
    task_ids: list[int] = []
    waits_ms: list[float] = []
    while task_id := person.next_task():
        time.sleep(arguments.look_s)
        started = time.perf_counter()
        person.click(task_id)
        waits_ms.append((time.perf_counter() - started) * 1e3)
        task_ids.append(task_id)
        time.sleep(arguments.think_s)
        person.submit(task_id)
    return task_ids, waits_ms


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--look-s", type=float, default=0.0, help="between opening a task and the first click")
    parser.add_argument("--think-s", type=float, default=3.0, help="between the click and the submission")
    parser.add_argument("--unasked", action="store_true", help="the project does not show predictions: opening a task asks no backend")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        folder = Path(name)
        venv = os.environ.pop("SAM2_LABEL_STUDIO_VENV", "")
        command = label_studio_command(Settings(label_studio_venv=venv, data_dir=folder), threading.Event(), print)
        with LabelStudioProcess(command, folder / "label-studio", free_port(0)) as label_studio:
            label_studio.wait_until_ready(threading.Event())
            figures = {f"ahead_{n}": measure(label_studio, folder / str(n), arguments, n) for n in (Settings().warm_next_tasks, 0)}
    print(json.dumps({"benchmark": "warm_ratio", **vars(arguments), **figures}))


if __name__ == "__main__":
    main()
