"""A Redis that accepts and never answers: what Label Studio waits for is answered in its time all the same."""

from __future__ import annotations

import threading
import time

import pytest

from backend.app import create_app
from backend.dispatch import Dispatcher
from sam2_backend.settings import Settings

CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels></View>"""
TASK = {"id": 1, "data": {"image": "http://images.test/1.png"}}
CASES = [
    ("GET", "/health", None, 0.2, 200),
    ("POST", "/webhook", {"action": "ANNOTATION_CREATED"}, 0.2, 201),
    ("POST", "/setup", {"project": "3.1", "schema": CONFIG}, 2.0, 200),
    ("GET", "/versions", None, 2.0, 200),
    ("POST", "/predict", {"tasks": [TASK], "label_config": CONFIG, "params": {"context": None}}, 2.0, 200),
    ("GET", "/ready", None, 6.0, 503),
    ("GET", "/metrics", None, 6.0, 200),
]


@pytest.fixture
def client(own_redis_server, tmp_path):
    settings = Settings(redis_url=own_redis_server.url, data_dir=tmp_path)
    dispatcher = Dispatcher(settings)
    before = set(threading.enumerate())
    yield create_app(settings, dispatcher).test_client()
    own_redis_server.stop()  # ends what still waits beside its request
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    dispatcher.close()


@pytest.mark.parametrize(("method", "path", "body", "limit_s", "status"), CASES, ids=[case[1] for case in CASES])
def test_a_hung_redis_keeps_nobody_waiting(own_redis_server, client, method, path, body, limit_s, status):
    with own_redis_server.connect() as connection:
        connection.execute_command("CLIENT", "PAUSE", 8000, "ALL")
    started = time.monotonic()
    answer = client.open(path, method=method, json=body)
    assert time.monotonic() - started < limit_s
    assert answer.status_code == status


def test_setup_answers_again_with_the_model_once_redis_does(own_redis_server, client):
    own_redis_server.stop()
    assert client.post("/setup", json={"project": "3.1", "schema": CONFIG}).status_code == 200
    own_redis_server.start()
    with own_redis_server.connect() as connection:
        connection.set("sam2:model_version", "tiny@0123")
    time.sleep(1.1)
    assert client.post("/setup", json={"project": "3.1", "schema": CONFIG}).json["model_version"] == "tiny@0123"
    assert client.get("/ready").json["projects"][0]["project"] == "3.1"
