"""Whole projects annotated ahead in the real Label Studio: by the command, by opening a task and by Retrieve Predictions."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from scenes import Scene, iou, two_objects
from stored import mask_of

from backend import config_generator
from backend.brush_rle import encode_mask
from backend.dataset_studio import DatasetStudio
from backend.preannotate import Asked, run_preannotate
from backend.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))
from tiny_detectors import owlv2

PHOTOS = Path(__file__).resolve().parents[2] / "backend" / "demo_images"
LABELS = ["Disc", "Rectangle"]
TRUE = 0.75
#: Below SAM's thresholds: the masks of the small checkpoint that ships have soft outlines.
LOW = {"pred_iou_thresh": "0.5", "stability_score_thresh": "0.2"}


@pytest.fixture
def studio(stack) -> Iterator[DatasetStudio]:
    opened = DatasetStudio(stack.settings.label_studio_url, stack.settings.label_studio_api_key, threading.Event())
    yield opened
    opened.close()


def preannotate(stack, project_id: int, mode: str, **asked: Any) -> tuple[int, Progress]:
    progress = Progress(out=io.StringIO())
    code = run_preannotate(stack.settings, Asked(project_id, mode, **asked), threading.Event(), progress)
    print(progress.out.getvalue())
    return code, progress


def box(name: str, mask) -> dict[str, Any]:
    """A detector's rectangle around an object, as people import it."""
    (height, width), (ys, xs) = mask.shape, mask.nonzero()
    value = {
        "x": 100 * xs.min() / width,
        "y": 100 * ys.min() / height,
        "width": 100 * (xs.max() + 1 - xs.min()) / width,
        "height": 100 * (ys.max() + 1 - ys.min()) / height,
        "rotation": 0,
        "rectanglelabels": [name],
    }
    return {"id": f"box{name}", "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value}


def test_a_detectors_boxes_become_masks_that_annotators_start_from(stack, studio, new_project, editor, tmp_path, slow_path) -> None:
    scene = two_objects()
    project = new_project(config_generator.generate(LABELS))
    task_id = project.upload(scene.save(tmp_path / "objects.png"))
    boxes = [box(name, mask) for name, mask in scene.objects.items()]
    project.client.create_prediction(task_id, boxes, score=0.9, model_version="detector")
    code, _ = preannotate(stack, project.project_id, "boxes", shows=True)
    assert code == 0
    _, made = studio.predictions(task_id)
    assert made["model_version"].split()[1] == "boxes"
    assert [region["value"]["brushlabels"] for region in made["result"]] == [["Disc"], ["Rectangle"]]
    if slow_path.is_trained:
        for region, mask in zip(made["result"], scene.objects.values(), strict=True):
            assert iou(mask_of([region]), mask) >= TRUE
    code, progress = preannotate(stack, project.project_id, "boxes")
    assert (code, progress.counts.had, len(studio.predictions(task_id))) == (0, 1, 2)
    editor.open(project.project_id, task_id)
    editor.screenshot("boxes became masks")


def test_everything_in_photographs_is_found_and_seen_in_the_editor(stack, studio, new_project, editor) -> None:
    project = new_project(config_generator.generate(["Object"]))
    tasks = [project.upload(PHOTOS / name) for name in ("coffee.jpg", "cat.jpg")]
    options = LOW | {"points_per_side": "8", "max_masks": "12"}
    for _ in range(2):
        code, _ = preannotate(stack, project.project_id, "everything", options=options, shows=True)
        assert code == 0
    for task_id in tasks:
        (made,) = studio.predictions(task_id)
        assert 0 < len(made["result"]) <= 12
        assert all(region["value"]["brushlabels"] == ["Object"] for region in made["result"])
    for task_id in tasks:
        editor.open(project.project_id, task_id)
        editor.screenshot(f"everything {tasks.index(task_id)}")


def test_opening_a_task_and_retrieving_predictions_give_each_task_one_prediction(stack, studio, new_project, label_studio) -> None:
    options = {f"model_{name}": value for name, value in (LOW | {"preannotate": "everything", "points_per_side": "6"}).items()}
    project = new_project(config_generator.generate(["Object"], options=options))
    opened, *others = [project.upload(path) for path in sorted(PHOTOS.glob("*.jpg"))[:3]]
    project.client.task(opened)  # as the editor does
    headers = {"Authorization": f"Token {label_studio.login.token}"}
    for _ in range(2):
        answer = requests.post(
            f"{label_studio.url}/api/dm/actions?id=retrieve_tasks_predictions&project={project.project_id}",
            json={"selectedItems": {"all": True, "excluded": []}},
            headers=headers,
            timeout=120,
        )
        assert answer.ok, answer.text
    for task_id in [opened, *others]:
        (made,) = wait_for_whole(studio, task_id)
        assert made["model_version"].split()[1] == "everything"
        assert made["result"]


def test_what_people_accepted_on_some_pictures_is_found_on_others(stack, studio, new_project, editor, tmp_path, slow_path) -> None:
    project = new_project(config_generator.generate(LABELS))
    accepted = [objects((180 + 40 * n, 170 + 30 * n), 470 - 20 * n) for n in range(3)]
    others = [objects((200, 330), 420), objects((260, 200), 500)]
    for number, scene in enumerate(accepted):
        task_id = project.upload(scene.save(tmp_path / f"accepted {number}.png"))
        result = [brush(f"{name}{number}", mask, name) for name, mask in scene.objects.items()]
        project.client._send("POST", f"/api/tasks/{task_id}/annotations", {"result": result})
    tasks = [project.upload(scene.save(tmp_path / f"other {number}.png")) for number, scene in enumerate(others)]
    code, progress = preannotate(stack, project.project_id, "similar", filters=["unlabelled"], shows=True)
    assert (code, progress.counts.stored) == (0, 2)
    assert "6 examples of Disc, Rectangle" in progress.out.getvalue()
    for task_id, scene in zip(tasks, others, strict=True):
        (made,) = studio.predictions(task_id)
        found = {region["value"]["brushlabels"][0]: region for region in made["result"]}
        if slow_path.is_trained:
            assert {name: iou(mask_of([found[name]]), mask) >= TRUE for name, mask in scene.objects.items()} == dict.fromkeys(LABELS, True)
        editor.open(project.project_id, task_id)
        editor.screenshot("more like this")


def test_without_a_detector_every_task_says_what_to_install_and_with_one_labels_become_masks(
    stack, studio, new_project, editor, tmp_path
) -> None:
    project = new_project(config_generator.generate(["Cat", "Coffee cup"]))
    task_id = project.upload(PHOTOS / "coffee.jpg")
    code, progress = preannotate(stack, project.project_id, "text")
    assert code == 1
    assert "No detector is set. Install `pip install 'sam2-label-studio[detect]'` on the workers" in progress.out.getvalue()
    assert studio.predictions(task_id) == []

    # A worker of its own, which the command starts. The detector's weights are random: its boxes mean nothing, their way is what is seen.
    (tmp_path / "detector").mkdir()
    detector = owlv2(tmp_path / "detector")
    settings = replace(stack.settings, redis_url="", data_dir=tmp_path / "data", detector=str(detector))
    progress = Progress(out=io.StringIO())
    asked = Asked(project.project_id, "text", options={"score_threshold": "0.01", "max_masks": "4"}, shows=True)
    assert run_preannotate(settings, asked, threading.Event(), progress) == 0, progress.out.getvalue()
    (made,) = studio.predictions(task_id)
    assert 0 < len(made["result"]) <= 4
    assert {region["value"]["brushlabels"][0] for region in made["result"]} <= {"Cat", "Coffee cup"}
    editor.open(project.project_id, task_id)
    editor.screenshot("boxes of a random detector")


def objects(disc_xy: tuple[float, float], left: int) -> Scene:
    """A disc and a rectangle like those of `two_objects`, elsewhere."""
    return (
        Scene.blank(640, 480)
        .add_ellipse("Disc", disc_xy, (80, 80), (210, 120, 20))
        .add_rectangle("Rectangle", left, 90, left + 150, 240, (36, 84, 170))
    )


def brush(region_id: str, mask, label: str) -> dict[str, Any]:
    """A region as the editor stores it."""
    value = {"format": "rle", "rle": list(encode_mask(mask)), "brushlabels": [label]}
    size = {"original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0}
    return {"id": region_id, "from_name": "brush", "to_name": "image", "type": "brushlabels", "value": value} | size


def wait_for_whole(studio: DatasetStudio, task_id: int) -> list[dict[str, Any]]:
    """The task's predictions once none of them stands in for another."""
    waiting = threading.Event()
    for _ in range(120):
        found = studio.predictions(task_id)
        if found and not any(prediction["model_version"].endswith(")") for prediction in found):
            return found
        waiting.wait(0.5)
    raise AssertionError(found)
