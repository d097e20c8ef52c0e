"""More requests than a real gunicorn has threads: what cannot be served is told so at once, and the rest is answered meanwhile."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from backend import patience, web_server
from backend.dispatch import Dispatcher
from backend.slow_jobs import SlowJobs, dataset_job
from backend.supervisor import child_environment
from sam2_backend.dataset_messages import DatasetJob
from sam2_backend.errors import OverloadedError
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import HEARTBEAT_S, ROOT, Background, Workers, until

THREADS = 12
WAITING_CLICKS = THREADS - 8
CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels></View>"""


class Web:
    """The web tier as `sam2-backend web` starts it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self.url = f"http://127.0.0.1:{settings.port}"
        with log.open("ab") as output:
            command = [sys.executable, "-m", "backend.cli", "web"]
            self._process = subprocess.Popen(command, env=child_environment(settings), cwd=ROOT, stderr=output)
        until(self._answers, 60)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=60)

    def post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60)

    def click(self, wish: str, number: int = 0) -> requests.Response:
        value = {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Cat"]}
        region = {"id": wish, "from_name": "point", "to_name": "image", "type": "keypointlabels", "is_positive": True, "value": value}
        region |= {"original_width": 2, "original_height": 2, "image_rotation": 0}
        return self._predict(number, {"result": [region]})

    def open_task(self, number: int = 0) -> requests.Response:
        return self._predict(number, None)

    def _predict(self, number: int, context: Any) -> requests.Response:
        tasks = [{"id": number, "data": {"image": f"http://images.test/{number}.png"}}]
        return self.post("/predict", {"tasks": tasks, "project": "3.1", "label_config": CONFIG, "params": {"context": context}})

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def crowded(own_redis_server, settings: Settings, tmp_path: Path) -> Iterator[tuple[Web, Workers, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    small = replace(settings, redis_url=own_redis_server.url, web_threads=THREADS, port=port, heartbeat_s=HEARTBEAT_S, log_level="warning")
    workers, web = Workers(small, tmp_path), Web(small, tmp_path / "web.log")
    yield web, workers, own_redis_server
    web.close()
    workers.close()


def test_clicks_beyond_the_threads_are_refused_at_once_and_everything_else_is_answered_meanwhile(crowded):
    web, workers, _ = crowded
    workers.start("w0")
    calls = [Background(lambda: web.click("wait"))]
    workers.started()
    calls += [Background(lambda n=n: web.click("plain", n)) for n in range(1, WAITING_CLICKS)]
    until(lambda: len(workers.waiting("interactive@w0")) == WAITING_CLICKS - 1)
    refused = [Background(lambda n=n: web.click("plain", n)) for n in range(40)]
    for path in ("/health", "/metrics", "/", "/ready"):
        assert web.get(path).status_code == 200
    assert web.post("/setup", {"project": "3.1", "schema": CONFIG}).status_code == 200
    assert web.post("/webhook", {"action": "ANNOTATION_CREATED"}).status_code == 201
    assert web.open_task(99).json()["results"][0]["result"] == []
    answers = [call.result() for call in refused]
    assert {answer.status_code for answer in answers} == {429}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    assert all("Try again" in answer.reason for answer in answers)
    assert workers.connection.llen("rq:queue:interactive@w0") == WAITING_CLICKS - 1
    workers.connection.rpush("sam2:test:go", 1)
    assert [call.result().status_code for call in calls] == [200] * WAITING_CLICKS
    assert web.click("plain").status_code == 200


def test_health_is_answered_while_a_hung_redis_holds_up_all_that_needs_it(crowded):
    web, workers, server = crowded
    workers.start("w0")
    assert web.click("plain").status_code == 200
    os.kill(server._process.pid, signal.SIGSTOP)
    try:
        held = [Background(lambda n=n: web.open_task(n)) for n in range(3 * THREADS)]
        held += [Background(lambda n=n: web.get(("/", "/metrics", "/ready")[n % 3])) for n in range(THREADS)]
        for _ in range(10):
            assert requests.get(f"{web.url}/health", timeout=1).status_code == 200, "Label Studio waits for 1 s"
        answers = [call.result() for call in held]
    finally:
        os.kill(server._process.pid, signal.SIGCONT)
    assert {answer.status_code for answer in answers} <= {200, 429, 503}
    assert 429 in {answer.status_code for answer in answers}
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 429)
    until(lambda: web.click("plain").ok)


def test_a_dataset_job_that_its_queue_has_no_room_for_is_refused_and_background_work_waits_for_room(settings, redis_server, monkeypatch):
    monkeypatch.setattr(patience, "_PAUSE_S", 0.01)
    dispatcher = Dispatcher(settings)
    jobs, wanted = SlowJobs(settings, dispatcher), dataset_job(DatasetJob(MediaRef("http://images.test/1.png"), "everything"))
    tried: list[bool] = []

    def send() -> None:
        tried.append(True)
        if len(tried) == 3:
            connection.ltrim("rq:queue:preannotate", 0, 10)
        jobs.send(wanted)

    with redis_server.connect() as connection:
        connection.rpush("rq:queue:preannotate", *range(1000))
        with pytest.raises(OverloadedError) as raised:
            jobs.send(wanted)
        assert raised.value.retry_after_s > 0
        assert not connection.exists(wanted.record_key)
        patience.while_redis_is_away(send, threading.Event())
        assert len(tried) == 3
        assert connection.lrange("rq:queue:preannotate", -1, -1) == [wanted.job_id.encode()]
    dispatcher.close()


def test_a_caller_that_falls_silent_does_not_hold_a_thread_for_ever(caplog):
    logger = logging.getLogger("gunicorn.error")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = SimpleNamespace(LISTENERS=[SimpleNamespace(sock=listener)], log=SimpleNamespace(error_log=logger))
        web_server.when_ready(server)
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                seconds = int.from_bytes(accepted.getsockopt(socket.SOL_SOCKET, option, 16)[:8], sys.byteorder)
                assert seconds == web_server.SILENCE_S
    try:
        raise BlockingIOError
    except BlockingIOError:
        logger.exception("Socket error processing request.")
    logger.removeFilter(web_server._in_words)
    [record] = caplog.records
    assert "its connection was cut" in record.getMessage()
    assert record.exc_info is None
