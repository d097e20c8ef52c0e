"""`sam2-backend evaluate` against a Label Studio of pages over HTTP: the table, the JSON, the page, and what goes wrong."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.cli import main
from backend.config_generator import generate
from backend.dataset_studio import DatasetStudio
from backend.evaluate import Asked, run_evaluate
from backend.label_studio import LabelStudioError
from backend.progress import Progress
from backend.report_file import ReportError
from sam2_backend.errors import LabelConfigError, SettingsError
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from fake_label_studio import TOKEN, Studio

SIZE_HW = (60, 80)
MODE = "model@1 boxes 0123abcd"


def png() -> str:
    file = io.BytesIO()
    ramp = np.linspace(0, 255, SIZE_HW[1], dtype=np.uint8)
    Image.fromarray(np.broadcast_to(ramp[None, :, None], (*SIZE_HW, 3)).copy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def box(region_id: str, x: float, y: float, label: str = "Cat", **more) -> dict:
    value = {"x": x, "y": y, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": [label]}
    size = {"original_width": SIZE_HW[1], "original_height": SIZE_HW[0]}
    return {"id": region_id, "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value} | size | more


@pytest.fixture
def studio() -> Iterator[Studio]:
    started = Studio(generate(["Cat", "Dog <b>"]))
    started.start()
    yield started
    started.stop()


def add(studio: Studio, predicted: list[dict], annotated: list[dict], image: str = "", **annotation) -> int:
    studio.add_tasks({"image": image or png()})
    task_id = len(studio.tasks)
    studio.n_added += 1
    studio.predictions[studio.n_added] = {"id": studio.n_added, "task": task_id, "model_version": MODE, "result": predicted}
    studio.tasks[task_id]["annotations"] = [{"id": 100 + task_id, "result": annotated, "parent_prediction": studio.n_added} | annotation]
    return task_id


class Command:
    def __init__(self, studio: Studio, tmp_path: Path, **asked) -> None:
        self.settings = Settings(label_studio_url=studio.url, label_studio_api_key=TOKEN, data_dir=tmp_path / "data")
        self.asked = Asked(1, **asked)
        self.out, self.err = io.StringIO(), io.StringIO()

    def run(self, stopped: threading.Event | None = None) -> int:
        return run_evaluate(self.settings, self.asked, stopped or threading.Event(), Progress(out=self.err), self.out)


def test_a_project_of_several_pages_becomes_a_table_a_json_file_and_a_page(studio, tmp_path):
    for n in range(60):
        add(studio, [box("a", 10, 10), box("b", 60, 60)], [box("a", 10 + n % 3, 10), box("c", 30, 60, "Dog <b>")], lead_time=4.0)
    studio.add_tasks(*[{"image": png()}] * 30)
    command = Command(studio, tmp_path, json_path=tmp_path / "e.json", html_path=tmp_path / "e.html", n_worst=6)
    assert command.run() == 0
    assert [line.split()[:7] for line in command.out.getvalue().splitlines()[3:5]] == [
        ["Cat", "120", "60", "20", "40", "0", "60"],
        ["Dog", "<b>", "0", "60", "0", "0", "60"],
    ]
    written = json.loads((tmp_path / "e.json").read_bytes())
    assert len(written["regions"]) == 180
    assert written["summary"]["n_annotations"] == 60
    assert written["summary"]["overall"]["seconds_per_region"]["median"] == 2.0
    assert len(written["summary"]["worst"]) == 6
    page = (tmp_path / "e.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6
    assert page.count("<svg") == 8
    assert "Dog &lt;b&gt;" in page
    assert "Dog <b>" not in page
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["e.html", "e.json"]


def test_the_page_fetches_nothing_and_runs_nothing(studio, tmp_path):
    add(studio, [box("a", 10, 10)], [box("a", 15, 10)])
    assert Command(studio, tmp_path, html_path=tmp_path / "e.html").run() == 0
    page = (tmp_path / "e.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    fetched = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert fetched
    assert all(address.startswith("data:image/jpeg") or address == f"{studio.url}/projects/1/data?task=1" for address in fetched)


def test_a_picture_that_cannot_be_had_says_why_and_the_others_are_there(studio, tmp_path):
    add(studio, [box("a", 10, 10)], [box("a", 20, 10)], image="data:image/png;base64,AAAA")
    add(studio, [box("a", 10, 10)], [box("a", 19, 10)], image="ftp://nowhere/1.png")
    add(studio, [box("a", 10, 10)], [box("a", 15, 10)])
    assert Command(studio, tmp_path, html_path=tmp_path / "e.html").run() == 0
    page = (tmp_path / "e.html").read_text()
    assert page.count("No picture: ") == 2
    assert page.count("data:image/jpeg") == 1


def test_one_line_for_each_region_that_cannot_be_read_and_the_others_count(studio, tmp_path):
    add(studio, [box("a", 10, 10, original_width=None)], [box("a", 10, 10)])
    rle = {"format": "rle", "rle": [0, 0, 1, 2], "brushlabels": ["Cat"]}
    add(studio, [box("a", 10, 10)], [box("a", 10, 10, type="brushlabels", value=rle), box("b", 50, 10)])
    command = Command(studio, tmp_path, json_path=tmp_path / "e.json")
    assert command.run() == 0
    said = [line for line in command.err.getvalue().splitlines() if line.startswith("task ")]
    assert [line.split(":")[0] for line in said] == ["task 1, prediction 1", "task 2, annotation 102"]
    assert "Regions that could not be compared: 2" in command.out.getvalue()
    assert json.loads((tmp_path / "e.json").read_bytes())["summary"]["problems"] == said


def test_annotations_without_regions_are_a_report_of_nothing_wrong(studio, tmp_path):
    add(studio, [], [])
    command = Command(studio, tmp_path, json_path=tmp_path / "e.json", html_path=tmp_path / "e.html")
    assert command.run() == 0
    assert json.loads((tmp_path / "e.json").read_bytes())["regions"] == []
    assert "None: no prediction was corrected." in (tmp_path / "e.html").read_text()


def test_filters_limit_and_model_version_choose(studio, tmp_path):
    for _ in range(6):
        add(studio, [box("a", 10, 10)], [box("a", 10, 10)])
    for asked, n_tasks in (({"limit": 4}, 4), ({"filters": ["id=2-3"]}, 2), ({"version": MODE, "limit": 1}, 1)):
        command = Command(studio, tmp_path, **asked)
        assert command.run() == 0
        assert f"Annotations that were compared: {n_tasks}" in command.out.getvalue()


@pytest.mark.parametrize(
    ("prepare", "asked", "says"),
    [
        (lambda _: None, {}, "Project 1 has no annotations"),
        (lambda studio: studio.add_tasks({"image": png()}), {}, "Project 1 has no annotations"),
        (
            lambda studio: add(studio, [], [box("a", 1, 1)]) and studio.predictions.clear(),
            {},
            "None of the 1 annotated tasks has a prediction",
        ),
        (lambda studio: add(studio, [box("a", 1, 1)], []), {"version": "other"}, "has a prediction of model version 'other'"),
    ],
)
def test_where_there_is_nothing_to_compare_it_says_so_and_writes_no_file(studio, tmp_path, capsys, prepare, asked, says):
    prepare(studio)
    command = Command(studio, tmp_path, json_path=tmp_path / "e.json", html_path=tmp_path / "e.html", **asked)
    assert command.run() == 1
    assert says in capsys.readouterr().err
    assert command.out.getvalue() == ""
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_stopping_ends_it_without_a_file(studio, tmp_path):
    add(studio, [box("a", 10, 10)], [box("a", 10, 10)])
    stopped = threading.Event()
    stopped.set()
    assert Command(studio, tmp_path, json_path=tmp_path / "e.json").run(stopped) == 130
    assert not (tmp_path / "e.json").exists()


def test_what_was_asked_wrongly_is_said_before_anything_is_read(studio, tmp_path):
    add(studio, [box("a", 10, 10)], [box("a", 10, 10)])
    with pytest.raises(ReportError, match="cannot be written: No such file or directory"):
        Command(studio, tmp_path, html_path=tmp_path / "none" / "e.html").run()
    with pytest.raises(SettingsError, match="--filter 'all' is not known"):
        Command(studio, tmp_path, filters=["all"]).run()
    with pytest.raises(SettingsError, match="--worst 900"):
        Command(studio, tmp_path, n_worst=900).run()
    studio.project["label_config"] = "<View><Text name='t' value='$t'/></View>"
    with pytest.raises(LabelConfigError, match="no <Image> tag"):
        Command(studio, tmp_path).run()
    assert "GET /api/tasks" not in studio.asked


def test_a_wrong_token_and_another_project_are_one_sentence_of_the_command(studio, tmp_path, monkeypatch, capsys):
    command = Command(studio, tmp_path)
    command.settings = Settings(label_studio_url=studio.url, label_studio_api_key="0" * 40)
    with pytest.raises(LabelStudioError, match="Check LABEL_STUDIO_API_KEY"):
        command.run()
    monkeypatch.setenv("LABEL_STUDIO_URL", studio.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    assert main(["evaluate", "--project", "2"]) == 1
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    assert main(["evaluate", "--project", "1"]) == 78
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "404" in lines[0]
    assert "LABEL_STUDIO_API_KEY" in lines[1]


def test_tasks_are_read_page_by_page_and_one_that_moves_to_the_next_page_counts_once(studio, tmp_path):
    for n in range(60):
        add(studio, [box("a", 10, 10)], [box("a", 12, 10)] if n else [])
    client = DatasetStudio(studio.url, TOKEN, threading.Event())
    rows, moved = client.annotated_tasks(1), studio.tasks[1].pop("annotations")
    studio.tasks[1]["annotations"] = []
    seen = [next(rows)["id"]]
    assert studio.asked.count("GET /api/tasks") == 1
    studio.tasks[1]["annotations"] = moved
    seen += [task["id"] for task in rows]
    client.close()
    assert seen == list(range(2, 61))
    assert studio.asked.count("GET /api/tasks") == 3
