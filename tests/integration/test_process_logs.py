"""What whole processes write: every line has the chosen form, one of them for each click, and the end of a process loses nothing."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image

from backend.journal_store import JournalStore
from backend.label_studio_process import free_port
from backend.supervisor import child_environment
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import until

CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels></View>"""
POINT = {
    "id": "p1", "from_name": "point", "to_name": "image", "type": "keypointlabels", "original_width": 64, "original_height": 48,
    "image_rotation": 0, "is_positive": True, "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Cat"]},
}  # fmt: skip


@pytest.fixture
def launch(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    """Starts `sam2-backend WORD` with JSON logs; its log is in the file."""
    started: list[subprocess.Popen[bytes]] = []

    def start(word: str, **more: object) -> tuple[subprocess.Popen[bytes], Path]:
        chosen = dataclasses.replace(settings, log_json=True, **more)
        log = tmp_path / f"{word}.log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "backend.cli", word]
            process = subprocess.Popen(command, env=child_environment(chosen), stdout=out, stderr=out, cwd=Path(__file__).parents[2])
        started.append(process)
        return process, log

    yield start
    for process in started:
        process.kill()
        process.wait()


def body(task_id: int) -> dict:
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "white").save(picture, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    tasks = [{"id": task_id, "data": {"image": uri}}]
    return {"tasks": tasks, "project": "3.1", "label_config": CONFIG, "params": {"context": {"result": [POINT]}}}


def stop(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGTERM)
    process.wait(60)


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_line_of_both_tiers_is_json_and_a_click_is_one_of_them(launch, settings, redis_server):
    port = free_port(0)
    url = f"http://127.0.0.1:{port}"
    worker, worker_log = launch("worker", worker_name="w0")
    web, web_log = launch("web", port=port)

    def is_ready() -> bool:
        try:
            return requests.get(f"{url}/ready", timeout=5).ok
        except requests.RequestException:
            return False

    assert until(is_ready, 120)
    assert requests.post(f"{url}/predict", json=body(17), timeout=90).ok
    assert requests.post(f"{url}/predict", data=b"{", timeout=90).status_code == 400
    assert requests.get(f"{url}/", headers={"Accept": "text/html"}, timeout=30).ok
    assert requests.post(f"{url}/predict", json=body(18), timeout=90).ok
    stop(web)
    stop(worker)
    (click, later) = [line for line in lines(web_log) if line["event"] == "click"]
    assert (click["task"], click["points"], click["worker"]) == ("17", 1, "w0")
    assert [line["code"] for line in lines(web_log) if line["event"] == "error"] == ["bad_request"]
    assert any("serves" in line["message"] for line in lines(worker_log) if line["event"] == "log")
    with redis_server.connect() as client:  # the last click came just before the end
        assert [event.task for event in JournalStore(lambda: client).recent()][:3] == ["18", "", "17"]
    assert later["task"] == "18"
