"""What people made of predictions in the real Label Studio, in the report as a browser shows it."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import iou, two_objects

from backend import config_generator
from backend.brush_rle import encode_mask
from backend.evaluate import Asked, run_evaluate
from backend.label_studio import LabelStudio
from backend.progress import Progress

LABELS = ["Disc", "Rectangle"]
VERSION = "model@1 boxes 0123abcd"


def brush(region_id: str, mask: np.ndarray, label: str) -> dict[str, Any]:
    value = {"format": "rle", "rle": list(encode_mask(mask)), "brushlabels": [label]}
    size = {"original_width": mask.shape[1], "original_height": mask.shape[0], "image_rotation": 0}
    return {"id": region_id, "from_name": "brush", "to_name": "image", "type": "brushlabels", "value": value} | size


def annotate(client: LabelStudio, task_id: int, prediction_id: int, *result: dict[str, Any], lead_time: float) -> None:
    """As the editor stores a copy of a prediction that was corrected and submitted."""
    body = {"result": result, "lead_time": lead_time, "parent_prediction": prediction_id}
    client._send("POST", f"/api/tasks/{task_id}/annotations", body)


def test_corrections_and_a_smart_click_are_in_the_report_that_a_browser_shows(stack, new_project, editor, tmp_path: Path) -> None:
    scene = two_objects()
    disc, rectangle = scene.objects["Disc"], scene.objects["Rectangle"]
    moved = np.roll(disc, 20, axis=1)
    project = new_project(config_generator.generate(LABELS))
    clicked, corrected, relabelled = [project.upload(scene.save(tmp_path / f"{number}.png")) for number in range(3)]

    def predict(task_id: int, *result: dict[str, Any]) -> int:
        return project.client.create_prediction(task_id, result, score=0.9, model_version=VERSION)

    predict(clicked, brush("a", disc, "Disc"))
    of_corrected = predict(corrected, brush("b", moved, "Disc"), brush("c", rectangle, "Rectangle"))
    of_relabelled = predict(relabelled, brush("d", disc, "Rectangle"))
    project.client.update_project(project.project_id, model_version=VERSION)
    editor.open(project.project_id, clicked)
    editor.choose_label(project.prompt_row(), "Rectangle")
    editor.pick("keypoint")
    editor.click(485, 205)
    editor.accept()
    editor.submit()
    annotate(project.client, corrected, of_corrected, brush("b", disc, "Disc"), lead_time=6.0)
    annotate(project.client, relabelled, of_relabelled, brush("d", disc, "Disc"), lead_time=2.0)

    asked = Asked(project.project_id, json_path=tmp_path / "e.json", html_path=tmp_path / "e.html")
    table = io.StringIO()
    assert run_evaluate(stack.settings, asked, threading.Event(), Progress(out=io.StringIO()), table) == 0
    print(table.getvalue())
    written = json.loads((tmp_path / "e.json").read_bytes())
    regions = {(region["task"], region["label"]): region for region in written["regions"]}
    assert {key: region["became"] for key, region in regions.items()} == {
        (clicked, "Disc"): "unchanged",
        (clicked, "Rectangle"): "added",
        (corrected, "Disc"): "corrected",
        (corrected, "Rectangle"): "deleted",
        (relabelled, "Disc"): "relabelled",
    }
    assert regions[corrected, "Disc"]["iou"] == pytest.approx(iou(disc, moved), abs=1e-4)
    assert (regions[clicked, "Disc"]["clicks"], regions[clicked, "Rectangle"]["clicks"]) == (0, 1), "the editor keeps what regions say"
    assert regions[clicked, "Disc"]["seconds"] > 0, "the editor's lead time"
    assert written["summary"]["n_copied"] == 3

    asked_for: list[str] = []
    editor.page.on("request", lambda request: asked_for.append(request.url))
    editor.page.goto((tmp_path / "e.html").as_uri())
    editor.screenshot("report")
    assert editor.page.locator("svg.plot").count() == 2
    shown = editor.page.locator(".cases image")
    assert shown.evaluate_all("images => images.map(image => image.getBBox().width > 100)") == [True]
    assert all(url.startswith(("file:", "data:")) for url in asked_for), asked_for
