"""The real Label Studio's order of tasks is the one that is embedded ahead, and whoever gets to the next task finds it ready."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from rest_clicks import login_header

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import data_manager
from data_manager import like

from backend import config_generator
from backend.label_studio import LabelStudio
from backend.supervisor import Stack
from backend.task_orders import PROJECT_FIELDS, orders_of
from benchmarks.warm_ratio import annotator, first_tiers, pictures

N_TASKS = 8
BY_SCORE = ["-tasks:data.score"]
EITHER = [like("data.kind", "equal", "a"), like("data.score", "less", 4, "Number")]


@pytest.fixture(scope="module")
def project(client: LabelStudio, stack: Stack) -> Iterator[int]:
    """Twelve tasks, some labelled, and tabs; it would ask its backend about whatever is listed."""
    config = config_generator.generate(["Object"])
    project_id = client.create_project("Orders", config, evaluate_predictions_automatically=True)["id"]
    client.import_tasks(project_id, [{"image": f"http://images.test/{n}.png", "score": 7 * n % 10, "kind": "ab"[n % 2]} for n in range(12)])
    yield project_id
    client.delete_project(project_id)


def _send(client: LabelStudio, label_studio: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = requests.post(client.base_url + path, json=body, headers=login_header(label_studio), timeout=60)
    answer.raise_for_status()
    return dict(answer.json())


def test_what_is_asked_for_is_what_label_studio_gives_next(client, label_studio, stack, project):
    listed, _ = client.first_tasks(project, {}, 100)
    ids = [row["id"] for row in listed]
    for task_id in (ids[0], ids[4]):
        _send(client, label_studio, f"/api/tasks/{task_id}/annotations", {"result": []})
    tab = lambda data: _send(client, label_studio, "/api/dm/views/", {"project": project, "data": {"title": "tab"} | data})
    tab({"ordering": BY_SCORE})
    tab({"filters": {"conjunction": "and", "items": [EITHER[0]]}})
    tab({"ordering": ["tasks:data.score"], "filters": {"conjunction": "or", "items": EITHER}})
    client.connect_ml_backend(project, stack.url, "SAM 2")

    orders = orders_of(client.project_fields(project, *PROJECT_FIELDS), client.tabs(project))
    assert [(order.group == "stream", order.walk) for order in orders] == [
        (True, "by_id"), (False, "listed"), (False, "by_id"), (False, "listed"),
    ]  # fmt: skip
    rows, total = client.first_tasks(project, {}, 100)
    assert total == 12
    assert all(row["total_predictions"] == 0 for row in rows), "no backend was asked about what was listed"
    for order in orders:
        for after_id in (0, ids[6]):
            found, total = client.first_tasks(project, order.query(after_id), 100)
            expected = data_manager.found([row | {"predictions_score": None} for row in rows], order.query(after_id))
            assert [row["id"] for row in found] == [row["id"] for row in expected]
            assert total == len(expected) > 0
        as_displayed = {} if order.group == "stream" else {key: order.query()[key] for key in ("filters", "ordering")}
        given = _send(client, label_studio, f"/api/dm/actions?id=next_task&project={project}", {"project": project} | as_displayed)
        assert given["id"] == client.first_tasks(project, order.query(), 1)[0][0]["id"]


def test_annotating_in_order_every_first_click_finds_its_image_ready(label_studio, stack, tmp_path):
    """In a project where opening a task asks no backend: what is next is known from the clicks alone."""
    before = _embedded(stack)
    with annotator(label_studio, stack, pictures(tmp_path, N_TASKS), show_collab_predictions=False) as person:
        task_ids: list[int] = []
        _until_embedded(stack, before + 2)  # the project was connected
        while task_id := person.next_task():
            person.click(task_id)
            task_ids.append(task_id)
            _until_embedded(stack, before + min(N_TASKS, len(task_ids) + 2))
            person.submit(task_id)
    assert task_ids == sorted(task_ids)
    assert len(task_ids) == N_TASKS
    tiers = first_tiers(stack.settings.data_dir / "logs" / "web.log", task_ids)
    assert "none" not in tiers
    assert _embedded(stack) - before == N_TASKS, "each image once"


def _embedded(stack: Stack) -> int:
    """Images that the workers have embedded; they say so every few seconds."""
    counts = re.findall(
        r'sam2_embedding_lookups_total\{tier="none",worker="[^"]*"\} (\S+)', requests.get(f"{stack.url}/metrics", timeout=10).text
    )
    return sum(int(float(count)) for count in counts)


def _until_embedded(stack: Stack, count: int) -> None:
    deadline = time.monotonic() + 60
    while _embedded(stack) < count:
        assert time.monotonic() < deadline, f"{_embedded(stack)} of {count} images are embedded"
        time.sleep(0.1)
