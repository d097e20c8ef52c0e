"""What Label Studio is answered when a task is opened or predictions are retrieved, and what comes later; over a real Redis and workers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flask
import pytest

from backend import config_generator
from backend.app import create_app
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from fake_label_studio import TOKEN, Studio
from worker_processes import HEARTBEAT_S, Workers, until

CONFIG = config_generator.generate(["Cat"], options={"model_preannotate": "everything"})
BOXES = config_generator.generate(["Cat"], options={"model_preannotate": "boxes"})
PROJECT = "1.1700000000"


@pytest.fixture
def workers(settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(replace(settings, heartbeat_s=HEARTBEAT_S, preannotate_wait_s=2.0), tmp_path)
    yield started
    started.close()


@pytest.fixture
def studio() -> Iterator[Studio]:
    started = Studio(CONFIG)
    started.start()
    yield started
    started.stop()


class Tier:
    """A web process, and Label Studio's way of asking it and storing what it answers."""

    def __init__(self, app: flask.Flask, studio: Studio) -> None:
        self.app, self.studio = app, studio
        self.client = app.test_client()

    def setup(self) -> str:
        body = {"project": PROJECT, "schema": self.studio.project["label_config"], "extra_params": None}
        return self.client.post("/setup", json=body).json["model_version"]

    def retrieve(self, *task_ids: int) -> list[dict[str, Any]]:
        """Ask for predictions and store the answer, as Label Studio does."""
        tasks = [self.studio.row(self.studio.tasks[task_id], {"fields": "all"}) for task_id in task_ids]
        body = {"tasks": tasks, "project": PROJECT, "label_config": self.studio.project["label_config"], "params": {"context": None}}
        answer = self.client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        predictions = answer.json["results"]
        with self.studio.lock:
            for task_id, prediction in zip(task_ids, predictions, strict=True):
                self.studio.n_added += 1
                self.studio.predictions[self.studio.n_added] = {"id": self.studio.n_added, "task": task_id} | prediction
        return predictions


@pytest.fixture
def tier(workers: Workers, studio: Studio, monkeypatch) -> Iterator[Callable[..., Tier]]:
    monkeypatch.setattr("backend.preannotator._STORED_WITHIN_S", 0.3)
    monkeypatch.setattr("backend.late_predictions.LOOK_EVERY_S", 0.1)
    made: list[Tier] = []

    def make(**changes: Any) -> Tier:
        settings = replace(workers.settings, **({"label_studio_url": studio.url, "label_studio_api_key": TOKEN} | changes))
        made.append(Tier(create_app(settings), studio))
        return made[-1]

    yield make
    for one in made:
        one.app.extensions["late_predictions"].stop()


def images(count: int) -> list[dict]:
    return [{"image": f"http://images.test/{number}.png"} for number in range(count)]


def stored(studio: Studio) -> dict[int, list[str]]:
    """Model versions of the predictions of each task, with a plus where there is a result."""
    with studio.lock:
        return {
            task_id: [prediction["model_version"] + "+" * bool(prediction["result"]) for prediction in studio.predictions_of(task_id)]
            for task_id in studio.tasks
        }


def test_opening_a_task_gives_its_prediction_of_the_version_that_setup_names(workers, studio, tier):
    studio.add_tasks(*images(1))
    workers.start("w0")
    web = tier()
    version = web.setup()
    (prediction,) = web.retrieve(1)
    assert version.startswith("no-model@1 everything ")
    assert prediction["model_version"] == version
    assert prediction["result"][0]["value"]["brushlabels"] == ["Cat"]
    assert prediction["score"] == 0.5
    assert workers.connection.zcard("sam2:preannotations") == 0


def test_what_is_not_ready_is_answered_in_time_and_takes_its_place_later_once(workers, studio, tier):
    studio.add_tasks(*images(1))
    workers.start("w0", SECONDS_PER_IMAGE="3")
    web, other = tier(preannotate_wait_s=0.5), tier()
    version = web.setup()
    other.app.extensions["late_predictions"].start()
    started = time.monotonic()
    (prediction,) = web.retrieve(1)
    assert time.monotonic() - started < 3
    assert prediction == {"result": [], "model_version": f"{version} (not ready)"}
    until(lambda: stored(studio)[1] == [version + "+"])
    until(lambda: workers.connection.zcard("sam2:preannotations") == 0)
    assert workers.connection.llen("sam2:test:annotated") == 1, "asked once, done once"


def test_a_batch_is_answered_in_order_with_one_prediction_per_task_and_the_rest_is_pushed(workers, studio, tier):
    studio.add_tasks(*images(130))
    workers.start("w0")
    web = tier(preannotate_wait_s=0.01)
    version = web.setup()
    predictions = web.retrieve(*studio.tasks)
    assert len(predictions) == 130
    assert {prediction["model_version"] for prediction in predictions} <= {version, f"{version} (not ready)"}
    until(lambda: stored(studio) == {task_id: [version + "+"] for task_id in studio.tasks}, 60)
    until(lambda: workers.connection.zcard("sam2:preannotations") == 0)


def test_an_image_that_cannot_be_had_is_said_and_the_others_are_answered(workers, studio, tier):
    studio.add_tasks(*images(1), {"image": "http://images.test/error=media_unreachable"}, {"picture": "x"})
    workers.start("w0")
    web = tier()
    version = web.setup()
    versions = [prediction["model_version"] for prediction in web.retrieve(1, 2, 3)]
    assert versions == [version, f"{version} (failed)", f"{version} (failed)"]
    said = {task_id: web.client.get(f"/tasks?task={task_id}").json["events"] for task_id in (2, 3)}
    assert [(event["outcome"], event["code"], event["words"]) for event in said[2]] == [("failed", "media_unreachable", "as asked")]
    assert "The task's data has no 'image'" in said[3][0]["words"]


def test_boxes_that_came_after_a_first_look_become_masks_when_asked_again(workers, studio, tier):
    studio.project["label_config"] = BOXES
    studio.add_tasks(*images(1))
    workers.start("w0")
    web = tier()
    version = web.setup()
    assert web.retrieve(1)[0]["model_version"] == f"{version} (no boxes)"
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["Cat"]}
    region = {"id": "a", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}
    studio.tasks[1]["annotations"] = [{"id": 1, "result": [region]}]
    assert web.retrieve(1)[0]["model_version"] == version


def test_without_a_worker_or_a_redis_a_task_opens_all_the_same(workers, studio, tier, tmp_path):
    studio.add_tasks(*images(1))
    for web in (tier(preannotate_wait_s=0.3), tier(preannotate_wait_s=0.3, redis_url=f"unix://{tmp_path}/nobody.sock")):
        started = time.monotonic()
        (prediction,) = web.retrieve(1)
        assert time.monotonic() - started < 6
        assert prediction["result"] == []
        assert prediction["model_version"].endswith("(not ready)")


def test_a_restarted_web_process_goes_on_with_what_was_owed(workers, studio, tier):
    studio.add_tasks(*images(3))
    first = tier(preannotate_wait_s=0.1)
    first.retrieve(1, 2, 3)
    first.app.extensions["late_predictions"].stop()
    workers.start("w0")
    tier().app.extensions["late_predictions"].start()
    until(lambda: all(len(versions) == 1 and versions[0].endswith("+") for versions in stored(studio).values()))


def test_without_a_way_to_push_the_status_page_says_so_and_asking_again_gives_it(workers, studio, tier):
    studio.add_tasks(*images(1))
    workers.start("w0", SECONDS_PER_IMAGE="1")
    web = tier(preannotate_wait_s=0.1, label_studio_url="", label_studio_api_key="")
    assert web.retrieve(1)[0]["result"] == []
    assert "cannot be later: set LABEL_STUDIO_URL" in web.client.get("/", headers={"Accept": "text/html"}).text
    until(lambda: web.retrieve(1)[0]["result"])
    assert workers.connection.llen("sam2:test:annotated") == 1
