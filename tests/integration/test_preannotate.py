"""Whole projects through real workers without a model, into a Label Studio that may go away."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backend import config_generator
from backend.dataset_studio import DatasetStudio
from backend.label_studio import LabelStudioError
from backend.preannotate import Asked, run_preannotate, run_warm
from backend.progress import Progress
from sam2_backend.errors import LabelConfigError, NoWorkerError, SettingsError, TaskDataError
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from fake_label_studio import TOKEN, Studio
from worker_processes import HEARTBEAT_S, Background, Workers, until

BRUSH = config_generator.generate(["Cat"])
TWO_LABELS = config_generator.generate(["Cat", "Dog"])


@pytest.fixture
def workers(settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(replace(settings, heartbeat_s=HEARTBEAT_S), tmp_path)
    yield started
    started.close()


@pytest.fixture
def studio() -> Iterator[Studio]:
    started = Studio(BRUSH)
    started.start()
    yield started
    started.stop()


class Command:
    """The command as the command line runs it, with what it said."""

    def __init__(self, workers: Workers, studio: Studio, **asked) -> None:
        self.settings = replace(workers.settings, label_studio_url=studio.url, label_studio_api_key=TOKEN)
        self.out, self.stopped = io.StringIO(), threading.Event()
        self.progress = Progress(out=self.out)
        self.asked = Asked(1, **({"mode": "everything"} | asked))

    def run(self, command=run_preannotate) -> int:
        code = command(self.settings, self.asked, self.stopped, self.progress)
        print(self.said)  # seen where the test fails
        return code

    @property
    def said(self) -> str:
        return self.out.getvalue()


def images(count: int) -> list[dict]:
    return [{"image": f"http://images.test/{number}.png"} for number in range(count)]


def per_task(studio: Studio) -> Counter:
    return Counter(prediction["task"] for prediction in studio.predictions.values())


def once_each(studio: Studio) -> bool:
    return per_task(studio) == Counter(dict.fromkeys(studio.tasks, 1))


@pytest.mark.timeout(120)
def test_a_thousand_tasks_through_two_workers_with_one_killed_and_label_studio_restarted_get_one_prediction_each(workers, studio):
    studio.add_tasks(*images(1000))
    studio.loses_every = 97
    victim = workers.start("w0")
    workers.start("w1")
    command = Command(workers, studio)
    running = Background(command.run)
    until(lambda: len(studio.predictions) > 200, 60)
    victim.kill()
    until(lambda: len(studio.predictions) > 400, 60)
    studio.stop()
    time.sleep(1)
    studio.start()
    assert running.result(100) == 0, command.said
    assert once_each(studio)
    assert all(prediction["result"] for prediction in studio.predictions.values())
    assert command.progress.counts.seen == 1000
    assert not workers.connection.keys("sam2:reply:*"), "an answer that was used is dropped"


@pytest.mark.parametrize("patience_s", [1.0, 0.0], ids=["done before it is looked again", "done after it was sent again"])
def test_what_is_stored_after_a_proxy_gave_up_on_it_is_there_once(workers, studio, monkeypatch, patience_s):
    monkeypatch.setattr("backend.dataset_studio._STORED_LATE_S", patience_s)
    predictions = DatasetStudio.predictions

    def looked_slowly(self: DatasetStudio, task_id: int) -> list:
        time.sleep(0.0 if patience_s or not studio.predictions_of(task_id) else 0.5)
        return predictions(self, task_id)

    monkeypatch.setattr(DatasetStudio, "predictions", looked_slowly)
    studio.add_tasks(*images(12))
    studio.is_late_every = 5
    workers.start("w0")
    assert Command(workers, studio).run() == 0
    time.sleep(0.5)
    assert once_each(studio)


def test_running_twice_adds_nothing_and_asks_no_worker(workers, studio):
    studio.add_tasks(*images(30))
    workers.start("w0")
    assert Command(workers, studio).run() == 0
    again = Command(workers, studio)
    assert again.run() == 0
    assert once_each(studio)
    assert again.progress.counts.had == 30
    assert workers.connection.llen("sam2:test:annotated") == 30


def test_two_commands_at_once_add_every_prediction_once(workers, studio):
    studio.add_tasks(*images(60))
    workers.start("w0")
    commands = [Command(workers, studio) for _ in range(2)]
    assert [running.result() for running in [Background(command.run) for command in commands]] == [0, 0]
    assert once_each(studio)


def test_what_was_stopped_goes_on_with_the_rest_alone(workers, studio):
    studio.add_tasks(*images(120))
    workers.start("w0")
    first = Command(workers, studio)
    running = Background(first.run)
    until(lambda: len(studio.predictions) >= 20)
    first.stopped.set()
    assert running.result() == 130
    n_done = len(studio.predictions)
    assert n_done < 120
    assert "Run it again" in first.said
    assert workers.waiting("preannotate") == []
    second = Command(workers, studio)
    assert second.run() == 0
    assert once_each(studio)
    assert second.progress.counts.had == n_done


def test_failed_tasks_are_listed_with_their_reasons_and_the_others_are_done(workers, studio):
    studio.add_tasks(*images(3), {"image": "http://images.test/error=media_unreachable"}, {"picture": "x"}, {"image": "no address"})
    workers.start("w0")
    command = Command(workers, studio)
    assert command.run() == 1
    assert set(per_task(studio)) == {1, 2, 3}
    told = command.said.split("failed\n")[-1]
    assert "task 4: as asked (media_unreachable)" in told
    assert "task 5: The task's data has no 'image'" in told
    assert "task 6: The task's value 'no address' is no address" in told


def test_a_failure_is_tried_again_by_the_next_run(workers, studio):
    studio.add_tasks({"image": "http://images.test/error=media_unreachable"})
    workers.start("w0")
    assert Command(workers, studio).run() == 1
    assert Command(workers, studio).run() == 1
    assert workers.connection.llen("sam2:test:annotated") == 2


def test_where_all_fail_alike_the_rest_is_not_begun(workers, studio):
    studio.add_tasks(*[{"image": f"http://images.test/{n}.png?error=media_refused"} for n in range(200)])
    workers.start("w0")
    command = Command(workers, studio)
    assert command.run() == 1
    assert 50 <= command.progress.counts.failed < 70
    assert "the others were not begun" in command.said


def test_an_empty_project_is_done_at_once(workers, studio):
    workers.start("w0")
    command = Command(workers, studio)
    assert command.run() == 0
    assert "0 tasks done" in command.said


def test_several_pages_of_tasks_and_several_images_a_task(workers, studio):
    studio.project["label_config"] = config_generator.generate(["Cat"], pages=True)
    field = "images"
    studio.add_tasks(*[{field: [f"http://images.test/{n}/{page}.png" for page in range(3)]} for n in range(110)])
    workers.start("w0")
    workers.start("w1")
    assert Command(workers, studio).run() == 0
    assert once_each(studio)
    indices = {tuple(region["item_index"] for region in prediction["result"]) for prediction in studio.predictions.values()}
    assert indices == {(0, 1, 2)}


def test_the_only_label_of_the_config_is_the_label_and_of_several_none(workers, studio):
    studio.add_tasks(*images(1))
    workers.start("w0")
    Command(workers, studio).run()
    studio.project["label_config"] = TWO_LABELS
    Command(workers, studio).run()
    labels = [prediction["result"][0]["value"]["brushlabels"] for prediction in studio.predictions.values()]
    assert labels == [["Cat"], []]


def test_another_mode_or_option_makes_another_prediction(workers, studio):
    studio.add_tasks(*images(1))
    workers.start("w0")
    for options in ({}, {"points_per_side": "8"}, {"model_points_per_side": "8"}, {"points_per_side": "9"}):
        assert Command(workers, studio, options=options).run() == 0
    versions = [prediction["model_version"] for prediction in studio.predictions.values()]
    assert len(set(versions)) == len(versions) == 3
    assert all(version.startswith("no-model@1 everything ") for version in versions)


def test_an_empty_prediction_that_stood_in_is_replaced(workers, studio):
    studio.add_tasks(*images(2))
    version = "no-model@1"
    for prediction_id, (task, result, kept) in enumerate(
        [(1, [], False), (1, [], False), (2, [{"id": "by a person's detector"}], True)], 1
    ):
        studio.predictions[prediction_id] = {"id": prediction_id, "task": task, "result": result, "model_version": version}
        assert kept == bool(result)
    studio.n_added = 3
    workers.start("w0")
    assert Command(workers, studio).run() == 0
    assert per_task(studio) == {1: 1, 2: 2}
    assert all(prediction["result"] for prediction in studio.predictions.values())


def test_a_dry_run_says_what_would_be_done_and_does_nothing(workers, studio):
    studio.add_tasks(*images(7), {"image": "no address"})
    workers.start("w0")
    command = Command(workers, studio, is_dry=True)
    assert command.run() == 1
    assert "7 images of 7 tasks would be annotated; 0 tasks have it, 1 would fail" in command.said
    assert not studio.predictions
    assert workers.connection.llen("sam2:test:annotated") == 0


def test_limit_and_filters_choose_tasks(workers, studio):
    studio.add_tasks(*images(20))
    studio.tasks[2]["annotations"] = [{"id": 1, "result": []}]
    workers.start("w0")
    assert Command(workers, studio, limit=3, filters=["id=2-9", "unlabelled"]).run() == 0
    assert sorted(per_task(studio)) == [3, 4, 5]
    assert Command(workers, studio, limit=3, filters=["id=2-9", "unlabelled"]).run() == 0
    assert sorted(per_task(studio)) == [3, 4, 5, 6, 7, 8]
    with pytest.raises(SettingsError, match="--filter 'all' is not known"):
        Command(workers, studio, filters=["all"]).run()


def test_boxes_from_a_detector_become_masks_with_its_labels_and_bad_ones_are_named(workers, studio):
    def box(box_id: str, x: float, width: float, label: str) -> dict:
        value = {"x": x, "y": 10, "width": width, "height": 20, "rotation": 0, "rectanglelabels": [label]}
        return {"id": box_id, "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value}

    studio.project["label_config"] = TWO_LABELS
    studio.add_tasks(*images(3))
    drawn = [box("a", 10, 30, "Cat"), box("b", 120, 5, "Cat"), box("c", 1, 0, "Dog"), box("d", 50, 80, "Martian")]
    studio.predictions[1] = {"id": 1, "task": 1, "result": drawn, "model_version": "detector"}
    studio.tasks[2]["annotations"] = [{"id": 1, "result": [box("e", 5, 5, "Dog")]}]
    studio.n_added = 1
    workers.start("w0")
    command = Command(workers, studio, mode="boxes")
    assert command.run() == 0
    assert "Rectangle 'b' (rectanglelabels): it lies outside the image." in command.said
    assert "Rectangle 'c' (rectanglelabels): it has no area." in command.said
    assert "Label 'Martian' is not one of <BrushLabels" in command.said
    assert command.progress.counts.nothing == 1
    assert per_task(studio) == {1: 2, 2: 1}


def test_show_has_label_studio_show_them(workers, studio):
    studio.add_tasks(*images(1))
    workers.start("w0")
    assert Command(workers, studio, shows=True).run() == 0
    assert studio.project["model_version"] == studio.predictions[1]["model_version"]
    assert studio.project["show_collab_predictions"]


def test_without_a_worker_it_says_how_to_start_one(workers, studio, monkeypatch):
    monkeypatch.setattr("backend.dataset_command._WORKERS_S", 0.2)
    with pytest.raises(NoWorkerError, match="sam2-backend worker"):
        Command(workers, studio).run()


def test_a_worker_that_comes_later_takes_over_from_one_that_died(workers, studio):
    studio.add_tasks(*images(40))
    victim = workers.start("w0")
    running = Background(Command(workers, studio).run)
    until(lambda: len(studio.predictions) > 5)
    os.kill(victim.pid, signal.SIGKILL)
    time.sleep(1)
    workers.start("w1")
    assert running.result() == 0
    assert once_each(studio)


@pytest.mark.parametrize(
    ("config", "mode", "error", "says"),
    [
        ('<View><Image name="i" value="$image"/><Choices name="c" toName="i"/></View>', "everything", LabelConfigError, "can hold a mask"),
        ("<View><Text name='t' value='$t'/></View>", "everything", LabelConfigError, "no <Image> tag"),
        ("<View>", "everything", LabelConfigError, "is not XML"),
        (BRUSH, "", LabelConfigError, "No mode of pre-annotation is set"),
        (BRUSH, "similar", TaskDataError, "Annotate a few tasks first"),
    ],
)
def test_a_project_of_no_use_is_said_before_anything_is_done(workers, studio, config, mode, error, says):
    studio.project["label_config"] = config
    workers.start("w0")
    with pytest.raises(error, match=says):
        Command(workers, studio, mode=mode).run()


def test_a_misspelt_option_and_a_wrong_token_are_said_at_once(workers, studio):
    with pytest.raises(SettingsError, match="Did you mean model_points_per_side"):
        Command(workers, studio, options={"points_per_sid": "3"}).run()
    command = Command(workers, studio)
    command.settings = replace(command.settings, label_studio_api_key="0" * 40)
    with pytest.raises(LabelStudioError, match="Check LABEL_STUDIO_API_KEY"):
        command.run()


def test_warming_embeds_every_image_once_on_the_worker_that_its_clicks_go_to(workers, studio):
    studio.add_tasks(*images(25), {"picture": "x"})
    workers.start("w0")
    workers.start("w1")
    command = Command(workers, studio)
    assert command.run(run_warm) == 1
    assert command.progress.counts.stored == 25
    warmed = [line.decode().split() for line in workers.connection.lrange("sam2:test:warmed", 0, -1)]
    assert len({uri for _, uri in warmed}) == len(warmed) == 25
    from sam2_backend.queue_format import choose_worker

    assert all(name == choose_worker(uri, ["w0", "w1"]) for name, uri in warmed)
    assert not studio.predictions
