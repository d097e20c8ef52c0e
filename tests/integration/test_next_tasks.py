"""People at work, real workers and Redis: the next task's image is ready before the first click, and is encoded once for everybody."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend import config_generator
from backend.app import create_app
from backend.dispatch import Dispatcher
from backend.pending import Pending
from backend.waiting import await_answers
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MediaRef, Point
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from fake_label_studio import TOKEN, Studio
from worker_processes import ROOT, until

CONFIG = config_generator.generate(["Cat"])
SIZE_HW = (60, 90)
PROJECT = "1.1700000000"


class Images:
    """An image server: `<n>.png` is a picture of its own for every n, and takes `delay_s`."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.delay_s = 0.0
        images = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                number = int(self.path.strip("/").partition(".")[0])
                images.asked.append(number)
                time.sleep(images.delay_s)
                body = picture(number)
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def uri(self, number: int) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{number}.png"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def images() -> Iterator[Images]:
    started = Images()
    yield started
    started.stop()


@pytest.fixture
def studio(images: Images) -> Iterator[Studio]:
    started = Studio(CONFIG)
    started.add_tasks(*({"image": images.uri(number)} for number in range(1, 61)))
    started.start()
    yield started
    started.stop()


@pytest.fixture
def team(settings: Settings, studio: Studio) -> Settings:
    """Two workers with a small network, and a web tier that knows Label Studio."""
    return replace(
        settings,
        model="random:nano",
        device="cpu",
        media_allow_hosts="127.0.0.1",
        label_studio_url=studio.url,
        label_studio_api_key=TOKEN,
        warm_next_tasks=2,
    )


@pytest.fixture
def dispatcher(team: Settings, tmp_path: Path) -> Iterator[Dispatcher]:
    """With both workers serving."""
    main = "import os, sys; from sam2_backend.settings import Settings; from sam2_backend.worker import run_worker; "
    main += "sys.exit(run_worker(Settings.from_env(os.environ)))"
    processes = []
    for name in ("cpu0", "cpu1"):
        env = os.environ | replace(team, worker_name=name, data_dir=tmp_path / name).to_env() | {"PYTHONPATH": str(ROOT)}
        with (tmp_path / f"{name}.log").open("ab") as log:
            processes.append(subprocess.Popen([sys.executable, "-c", main], env=env, stderr=log))
    opened = Dispatcher(team)
    until(lambda: sum(worker.state in {"idle", "busy"} for worker in opened.workers()) == 2, 90)
    yield opened
    opened.close()
    for process in processes:
        process.kill()
        process.wait()


class Tier:
    """The web tier, and the editor's clicks."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, studio: Studio) -> None:
        app = create_app(settings, dispatcher)
        self._client, self._studio = app.test_client(), studio

    def setup(self) -> None:
        assert self._client.post("/setup", json={"project": PROJECT, "schema": CONFIG, "extra_params": None}).status_code == 200

    def submit(self, task_id: int) -> None:
        """By hand, without a click; the webhook tells."""
        self._studio.tasks[task_id]["annotations"].append({"result": []})
        body = {"action": "ANNOTATION_CREATED", "annotation": {"task": task_id, "project": 1, "result": []}, "project": {"id": 1}}
        assert self._client.post("/webhook", json=body).status_code == 201

    def click(self, task_id: int, caplog: pytest.LogCaptureFixture) -> str:
        """A first click in a task; where its embedding came from."""
        value = {"x": 40, "y": 60, "width": 0.3, "keypointlabels": ["Cat"]}
        region: dict[str, Any] = {"id": f"p{task_id}", "from_name": "point", "to_name": "image", "type": "keypointlabels", "value": value}
        region |= {"original_width": SIZE_HW[1], "original_height": SIZE_HW[0], "is_positive": True}
        task = {"id": task_id, "data": self._studio.tasks[task_id]["data"]}
        body = {"tasks": [task], "project": PROJECT, "label_config": CONFIG, "params": {"context": {"result": [region]}}}
        caplog.clear()
        answer = self._client.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("click ")]
        return line.partition("cache=")[2].split()[0]


@pytest.fixture
def tier(team: Settings, dispatcher: Dispatcher, studio: Studio, caplog: pytest.LogCaptureFixture) -> Tier:
    caplog.set_level("INFO")
    return Tier(team, dispatcher, studio)


def test_the_first_click_finds_the_image_ready_wherever_people_are_and_however_they_work(tier, images, caplog):
    tier.setup()
    until(lambda: {1, 2} <= set(images.asked), 60)
    assert tier.click(1, caplog) != "none", "the first task of a connected project"
    tier.click(40, caplog)
    for step in range(1, 4):
        for place in (1, 40):
            until(lambda: place + step in images.asked, 60)
            assert tier.click(place + step, caplog) != "none", "two people at different places"
    tier.submit(20)
    until(lambda: {21, 22} <= set(images.asked), 60)
    assert tier.click(21, caplog) != "none", "work by hand, of which a webhook tells"
    assert len(images.asked) == len(set(images.asked)), "each image was fetched once"


def test_many_people_on_one_image_on_two_workers_cost_one_encoding(dispatcher, images):
    """Jobs of one image lie with both workers when the list of workers has just changed."""
    images.delay_s = 0.2
    media = MediaRef(images.uri(7))
    prompt = ImagePrompt("p", (Point(30.0, 20.0),))
    pending = [Pending(f"user{n}", ImageJob(media, SIZE_HW, (prompt,), drawing=f"{n}/p"), f"cpu{n % 2}") for n in range(12)]
    dispatcher._send(pending, 60)
    await_answers(dispatcher.redis(), pending, 60, time.monotonic() + 60, 2.0, lambda _lost: None)
    replies = [job.answer for job in pending]
    assert all(isinstance(reply, ImageReply) for reply in replies), replies
    assert sorted({reply.worker for reply in replies}) == ["cpu0", "cpu1"]
    assert [reply.cache for reply in replies].count("none") == 1
    assert len({reply.masks for reply in replies}) == 1, "and everybody gets the same mask"
