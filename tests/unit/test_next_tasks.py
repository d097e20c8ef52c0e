"""Told where people are at work, the next tasks' images are sent to the workers; nobody waits, and nothing is said twice."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_manager import Studio, task

from backend.label_studio import LabelStudioAwayError
from backend.next_tasks import MOST_IMAGES_AHEAD, Ahead
from backend.predictor import Predictor
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

PROJECT = "1.1700000000"


def until(is_true: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := is_true()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)
    return value


class Told:
    """An `Ahead` with what it is asked through and what it sends to."""

    def __init__(self, settings: Settings, dispatcher: Any, studio: Studio) -> None:
        self.dispatcher, self.studio = dispatcher, studio
        self.events: list[Any] = []
        self.ahead = Ahead(settings, dispatcher, MediaRef, lambda _settings: studio)
        self.ahead.record = self.events.append

    def warmed(self) -> list[int]:
        return [int(job.media.uri.rpartition("/")[2].partition(".")[0]) for job in self.dispatcher.warmed]

    def settled(self) -> None:
        """Whatever was told has been dealt with: the thread takes one thing after the other."""
        self.ahead.heard(b"nothing")
        until(self.ahead._waiting.empty)
        self.ahead.stop()


@pytest.fixture
def told(web_settings, dispatcher, brush_config) -> Iterator[Told]:
    settings = dataclasses.replace(web_settings, warm_next_tasks=3)
    told = Told(settings, dispatcher, Studio(brush_config, [task(n) for n in range(1, 40)]))
    yield told
    told.ahead.stop()


def test_a_task_that_is_seen_has_the_next_ones_embedded_behind_everything_else(told):
    told.ahead.seen(PROJECT, 5)
    assert until(lambda: told.warmed() == [6, 7, 8])
    assert told.dispatcher.n_urgent == 0
    (event,) = until(lambda: told.events)
    assert (event.outcome, event.project, len(event.prepared)) == ("ahead", PROJECT, 3)


def test_a_connected_project_has_its_first_tasks_embedded(told):
    told.ahead.connected(PROJECT)
    assert until(lambda: told.warmed() == [1, 2, 3])


def test_clicks_on_one_task_ask_once_and_going_on_sends_only_what_is_new(told):
    for task_id in (5, 5, 5, 6, 5, 6):
        told.ahead.seen(PROJECT, task_id)
    assert until(lambda: told.warmed() == [6, 7, 8, 9])
    told.settled()
    assert told.warmed() == [6, 7, 8, 9]
    assert told.studio.asked == ["project", "tabs", "tasks"]
    assert told.studio.is_closed


@pytest.mark.parametrize(
    ("project", "task_id"),
    [("", 5), ("x.1", 5), ("1" * 30, 5), ("-1.5", 5), (PROJECT, None), (PROJECT, "5"), (PROJECT, True), (PROJECT, -5), (PROJECT, 1 << 70)],
)
def test_what_names_no_task_is_passed_over(told, project, task_id):
    told.ahead.seen(project, task_id)
    told.settled()
    assert told.studio.asked == []


@pytest.mark.parametrize("missing", [{"warm_next_tasks": 0}, {"label_studio_url": ""}, {"label_studio_api_key": ""}])
def test_without_an_address_or_a_token_or_with_none_wished_for_it_is_off(missing, web_settings, dispatcher, brush_config):
    settings = dataclasses.replace(web_settings, **({"warm_next_tasks": 3} | missing))
    told = Told(settings, dispatcher, Studio(brush_config, [task(1), task(2)]))
    told.ahead.seen(PROJECT, 1)
    told.ahead.connected(PROJECT)
    told.ahead.heard(submitted(1))
    assert told.ahead._thread is None
    assert told.ahead._waiting.empty()


def submitted(task_id: int, project_id: int = 1, action: str = "ANNOTATION_CREATED", **more: Any) -> bytes:
    annotation = {"id": 9, "result": [], "task": task_id, "project": project_id, "completed_by": 2} | more
    return json.dumps({"action": action, "annotation": annotation, "project": {"id": project_id}}).encode()


def test_a_task_that_was_submitted_without_a_click_counts_as_well(told):
    told.ahead.connected(PROJECT)
    told.ahead.heard(submitted(20))
    assert until(lambda: told.warmed() == [1, 2, 3, 21, 22, 23])


@pytest.mark.parametrize(
    "event",
    [
        submitted(20, project_id=2),
        submitted(20, action="ANNOTATIONS_DELETED"),
        submitted(20, filling="x" * 300_000),
        submitted("20"),
        b"no JSON",
        b'{"annotation": ' + b"[" * 100_000,
        b"[]",
        b'{"action": "ANNOTATION_CREATED"}',
    ],
    ids=["project unknown", "no work", "large", "no id", "no JSON", "deep", "no object", "empty"],
)
def test_other_webhooks_ask_nothing(told, event, caplog):
    told.ahead.connected(PROJECT)
    until(lambda: told.warmed() == [1, 2, 3])
    told.ahead.heard(event)
    told.settled()
    assert told.warmed() == [1, 2, 3]
    assert "Traceback" not in caplog.text


def test_a_label_studio_that_is_away_is_told_of_once_and_left_alone_for_a_while(told, caplog):
    told.studio.fails = LabelStudioAwayError("It does not answer.")
    for task_id in range(1, 20):
        told.ahead.seen(PROJECT, task_id)
    told.settled()
    assert told.studio.asked == ["project"]
    (event,) = told.events
    assert (event.outcome, event.code) == ("failed", "label_studio_away")
    assert "It does not answer." in event.words
    assert caplog.text.count("not_warmed_ahead") == 1
    assert "Traceback" not in caplog.text


def test_an_answer_that_is_not_understood_is_told_of_as_well(told, caplog):
    told.studio.tasks[6].pop("id")
    told.ahead.seen(PROJECT, 5)
    told.settled()
    assert "not understood" in caplog.text
    assert "Traceback" not in caplog.text


def test_while_redis_is_away_nothing_counts_as_sent(told, monkeypatch):
    told.dispatcher.client.is_down = True
    told.ahead.seen(PROJECT, 5)
    until(lambda: told.events)
    told.dispatcher.client.is_down = False
    monkeypatch.setattr("backend.next_tasks._PAUSE_S", 0.0)
    told.ahead._projects[1].left_alone_until = 0.0
    told.ahead.seen(PROJECT, 6)
    assert until(lambda: told.warmed() == [7, 8, 9])


def test_of_tasks_with_many_pages_the_first_pages_of_all_come_first(web_settings, dispatcher):
    config = '<View><Image name="i" valueList="$pages"/><BrushLabels name="b" toName="i"><Label value="Cat"/></BrushLabels></View>'
    pages = {n: [f"http://images.test/{100 * n + page}.png" for page in range(50)] for n in range(1, 6)}
    told = Told(dataclasses.replace(web_settings, warm_next_tasks=3), dispatcher, Studio(config, [task(n, pages=pages[n]) for n in pages]))
    told.ahead.seen(PROJECT, 1)
    until(lambda: len(told.warmed()) == MOST_IMAGES_AHEAD)
    assert told.warmed()[:6] == [200, 300, 400, 201, 301, 401]
    told.ahead.stop()


def test_more_than_can_be_dealt_with_is_dropped_and_nobody_waits(told):
    told.studio.first_tasks = lambda *_: time.sleep(0.5) or ([], 0)
    for task_id in range(1, 2000):
        told.ahead.seen(PROJECT, task_id)
    assert told.ahead._waiting.full()


def test_the_predictor_tells_of_what_is_opened_and_clicked_and_connected(web_settings, dispatcher, brush_config, point):
    predictor = Predictor(web_settings, dispatcher)
    seen: list[Any] = []
    predictor.ahead.seen = lambda *what: seen.append(what)
    predictor.ahead.connected = lambda *what: seen.append(what)
    one = {"id": 17, "data": {"image": "http://images.test/17.png"}}
    predictor.predict([one], brush_config, None, PROJECT)
    assert dispatcher.n_urgent == 1, "who opened it looks at it"
    predictor.predict([one], brush_config, {"result": [point()]}, PROJECT)
    predictor.predict([one, one], brush_config, None, PROJECT)
    assert dispatcher.n_urgent == 1, "a batch is looked at by nobody"
    predictor.setup(PROJECT, brush_config)
    assert seen == [(PROJECT, 17), (PROJECT, 17), (PROJECT,)]
