"""The endpoints: what each answers, and that no input brings one down."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from backend import logs
from sam2_backend.errors import ERRORS_BY_CODE, MediaRefusedError, NoWorkerError, OverloadedError
from sam2_backend.settings import Settings

MEDIUM = effort(
    max_examples=300 if os.environ.get("CI") else 60,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _is_our_error(answer) -> bool:
    error = answer.json["error"]
    return set(error) == {"code", "message", "mender"} and error["code"] in ERRORS_BY_CODE and "Traceback" not in answer.text


def test_a_click_becomes_one_region_with_its_score_and_model(client, predict_body):
    answer = client.post("/predict", json=predict_body())
    assert answer.status_code == 200
    (prediction,) = answer.json["results"]
    assert prediction["score"] == 0.9
    assert prediction["model_version"] == "sam2.1_hiera_tiny@0123456789ab"
    (region,) = prediction["result"]
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
    assert region["value"]["brushlabels"] == ["Cat"]


def test_server_timing_splits_the_time_of_a_click(client, predict_body):
    timing = client.post("/predict", json=predict_body()).headers["Server-Timing"]
    spent = dict(part.split(";dur=") for part in timing.split(", "))
    assert list(spent) == ["queue", "media", "embed", "decode", "runs", "regions", "total"]
    assert float(spent["decode"]) == 38
    assert 0 < float(spent["regions"]) < float(spent["total"])


def test_a_click_is_one_log_line_with_fixed_keys(client, predict_body, caplog):
    with caplog.at_level(logging.INFO):
        client.post("/predict", json=predict_body())
    (line,) = [message for message in caplog.messages if message.startswith("click ")]
    keys = [pair.split("=")[0] for pair in line.split()[1:]]
    stages = ["queue_ms", "media_ms", "embed_ms", "decode_ms", "runs_ms", "rle_ms", "total_ms"]
    assert keys == ["task", "image", "objects", "points", "cache", *stages, "worker", "score"]
    assert line.startswith("click task=17 image=")
    assert " objects=1 points=1 cache=device queue_ms=4 " in line


def test_opening_a_task_answers_at_once_and_embeds_its_image(client, dispatcher, predict_body):
    answer = client.post("/predict", json=predict_body(context=None))
    assert answer.json["results"] == [{"result": [], "model_version": "sam2.1_hiera_tiny@0123456789ab"}]
    assert [job.media.uri for job in dispatcher.warmed] == ["http://images.test/cat.png"]
    assert dispatcher.jobs == []


def test_health_answers_while_redis_is_away(client, dispatcher):
    dispatcher.client.is_down = True
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json["status"] == "UP"


def test_versions_names_the_model_to_a_get_and_to_the_post_of_old_clients(client):
    for answer in (client.get("/versions"), client.post("/versions", json={"project": "1.2"})):
        assert answer.json == {"versions": ["sam2.1_hiera_tiny@0123456789ab"]}


@pytest.mark.parametrize("path", ["/train", "/predict/", "/favicon.ico", "/static/x", "/%00"])
def test_an_unknown_endpoint_answers_json_that_names_the_known_ones(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "not_found"
    assert "/predict" in answer.json["error"]["message"]


def test_a_wrong_method_is_told_the_right_one(client):
    answer = client.get("/predict")
    assert answer.status_code == 405
    assert "POST" in answer.json["error"]["message"]


def test_the_reason_phrase_is_the_message(client, dispatcher, predict_body):
    dispatcher.raises = NoWorkerError("No worker answered within 20 s. Start one with `sam2-backend worker`.")
    answer = client.post("/predict", json=predict_body())
    assert answer.status == "503 No worker answered within 20 s. Start one with `sam2-backend worker`."
    assert answer.json["error"] == {"code": "no_worker", "message": dispatcher.raises.message, "mender": "operator"}


@given(st.text())
@MEDIUM
def test_no_message_can_forge_a_header(client, dispatcher, predict_body, text):
    dispatcher.raises = MediaRefusedError(f"Refused: {text}")
    answer = client.post("/predict", json=predict_body())
    assert answer.status_code == 403
    answer.status.encode("latin-1")
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", answer.status)


def test_an_overloaded_queue_says_when_to_come_back(client, dispatcher, predict_body):
    dispatcher.raises = OverloadedError("Too many wait.", retry_after_s=1.2)
    answer = client.post("/predict", json=predict_body())
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")


def test_an_unexpected_error_keeps_its_words_to_the_log(client, dispatcher, predict_body, web_settings, caplog):
    dispatcher.raises = RuntimeError("Token 0123456789abcdef0123456789abcdef01234567 at /home/someone/app.py")
    answer = client.post("/predict", json=predict_body())
    assert answer.status_code == 500
    assert answer.json["error"]["code"] == "internal_error"
    assert "someone" not in answer.text + answer.status
    (record,) = [record for record in caplog.records if record.getMessage().startswith("error ")]
    written = logs.LineFormatter(logs.scrubber(web_settings), as_json=False).format(record)
    assert "RuntimeError" in written
    assert "0123456789abcdef" not in written
    dispatcher.raises = None
    assert client.post("/predict", json=predict_body()).status_code == 200


def test_a_secret_in_a_message_is_hidden_from_the_answer(client, dispatcher, predict_body, web_settings):
    dispatcher.raises = MediaRefusedError(f"GET http://x/?token={web_settings.label_studio_api_key} was refused.")
    answer = client.post("/predict", json=predict_body())
    assert web_settings.label_studio_api_key not in answer.text + answer.status


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe{}", "JSON"),
        (b'{"tasks": ' + b"[" * 100_000, "JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
        (b'{"project": "\\ud800"}', "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"{}", "tasks"),
        (b'{"tasks": []}', "tasks"),
        (b'{"tasks": {}}', "tasks"),
        (b'{"tasks": [1]}', "tasks"),
        (b'{"tasks": [{}]}', "label_config"),
        (b'{"tasks": [{}], "label_config": 1}', "label_config"),
        (b'{"tasks": [{}], "label_config": "<View/>", "params": []}', None),
        (b'{"tasks": [{}], "label_config": "<View/>", "params": [1]}', "params"),
        (b'{"tasks": [{}], "label_config": "<View/>", "params": {"context": []}}', "context"),
        (b'{"tasks": [{}], "label_config": "<View/>", "params": {"context": {"result": {}}}}', "result"),
    ],
)
def test_a_body_that_is_not_label_studios_is_told_what_is_wrong(client, body, says):
    answer = client.post("/predict", data=body, content_type="application/json")
    if says is None:  # an empty `params` of any type means that nobody clicked
        assert answer.status_code == 200
    else:
        assert answer.status_code == 400
        assert says in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"label_config": "<View><Text"}, 422, "no_control_tag"),
        ({"label_config": "<View><Image name='image' value='$image'/></View>"}, 422, "no_control_tag"),
        ({"tasks": [{"id": 17, "data": {}}]}, 422, "bad_task"),
        ({"tasks": [{"id": 17}]}, 422, "bad_task"),
        ({"tasks": [{"id": 17, "data": {"image": 5}}]}, 422, "bad_task"),
    ],
)
def test_what_cannot_be_used_gets_its_own_error(client, predict_body, change, status, code):
    answer = client.post("/predict", json=predict_body() | change)
    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)


@pytest.mark.parametrize("x", [float("nan"), float("inf"), -40, 140, "5", None])
def test_a_prompt_outside_the_image_or_no_number_is_refused(client, predict_body, point, x):
    answer = client.post("/predict", data=json.dumps(predict_body(point(x=x))))
    assert (answer.status_code, answer.json["error"]["code"]) == (422, "bad_prompt")


def test_a_body_above_the_limit_is_refused(client_of, predict_body):
    answer = client_of(Settings(max_request_bytes=1000)).post("/predict", json=predict_body() | {"more": "x" * 2000})
    assert answer.status_code == 413
    assert "SAM2_MAX_REQUEST_BYTES" in answer.json["error"]["message"]


def test_waiting_clicks_leave_threads_for_the_rest(client_of, dispatcher, predict_body):
    """With five threads one click may wait; the next is refused at once, and an opened task is still answered."""
    client = client_of(Settings(web_threads=5))
    entered, go_on = threading.Event(), threading.Event()

    def wait(_jobs, _wait_s):
        entered.set()
        go_on.wait(10)
        return []

    answer, dispatcher.segment = type(dispatcher).segment, wait
    waiting = threading.Thread(target=client.post, args=("/predict",), kwargs={"json": predict_body()})
    waiting.start()
    assert entered.wait(10)
    assert client.application.test_client().post("/predict", json=predict_body()).status_code == 429
    assert client.application.test_client().post("/predict", json=predict_body(context=None)).status_code == 200
    go_on.set()
    waiting.join(10)
    dispatcher.segment = lambda jobs, wait_s: answer(dispatcher, jobs, wait_s)
    assert client.post("/predict", json=predict_body()).status_code == 200


# ---------------------------------------------------------------------------------------------------------------- /setup


def test_setup_answers_the_model_version(client, brush_config):
    body = {
        "project": "3.1700000000",
        "schema": brush_config,
        "hostname": "http://localhost:8080",
        "access_token": "t",
        "extra_params": None,
    }
    answer = client.post("/setup", json=body)
    assert answer.status_code == 200
    assert answer.json["model_version"] == "sam2.1_hiera_tiny@0123456789ab"


def test_setup_answers_while_redis_is_away(client, dispatcher, brush_config):
    dispatcher.client.is_down = True
    answer = client.post("/setup", json={"project": "3.1", "schema": brush_config})
    assert answer.status_code == 200
    assert answer.json["model_version"]


@pytest.mark.parametrize(
    "schema", ["<View><Image name='i' value='$i'/></View>", "<View><Text name='t' value='$t'/></View>", "<View>", "", "<View>ä\n</Wiew>"]
)
def test_connecting_an_unusable_project_says_why_in_the_reason_phrase(client, schema):
    answer = client.post("/setup", json={"project": "3.1", "schema": schema})
    assert answer.status_code == 422
    assert len(answer.status) > 30
    assert answer.json["error"]["mender"] == "project owner"
    assert answer.json["error"]["message"] in " ".join(client.get("/ready").json["warnings"])


def test_an_unknown_option_is_reported_and_breaks_nothing(client, brush_config, caplog):
    schema = brush_config.replace('smart="false"', 'smart="false" model_epsilom="2"')
    answer = client.post("/setup", json={"project": "3.1", "schema": schema})
    assert answer.status_code == 200
    assert "model_epsilom" in " ".join(client.get("/ready").json["warnings"])
    assert "model_epsilom" in caplog.text


def test_no_token_of_setup_is_logged_or_kept(client, dispatcher, brush_config, caplog):
    with caplog.at_level(logging.DEBUG):
        client.post("/setup", json={"project": "3.1", "schema": brush_config, "access_token": "deadbeef" * 5})
    assert "deadbeef" not in caplog.text + str(dispatcher.client.texts)


@pytest.mark.parametrize("body", [{}, {"project": "3.1"}, {"schema": "<View/>"}, {"project": [], "schema": "<View/>"}])
def test_setup_without_project_or_schema_is_refused(client, body):
    assert client.post("/setup", json=body).status_code == 400


# -------------------------------------------------------------------------------------------------------------- /webhook


@pytest.mark.parametrize(
    "action",
    ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED", "TASKS_CREATED", "TASKS_DELETED", "PROJECT_UPDATED", "START_TRAINING"],
)  # fmt: skip
def test_every_event_is_taken(client, action):
    answer = client.post("/webhook", json={"action": action, "project": {"id": 3}})
    assert answer.status_code == 201
    assert answer.json == {"result": {}, "status": "ok"}


def test_an_unknown_event_is_tolerated(client):
    assert client.post("/webhook", json={"action": "MOON_RISEN"}).json["status"] == "ignored"


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"action": 5}', b"\xff"])
def test_a_webhook_without_an_event_is_refused(client, body):
    assert client.post("/webhook", data=body).status_code == 400


def test_the_event_is_found_wherever_it_stands(client):
    """The fast path reads it from the front; a client that writes it last is understood as well."""
    first, last = {"action": "TASKS_DELETED", "n": 1}, {"n": {"action": "NOT_THIS"}, "action": "TASKS_DELETED"}
    for body in (first, last):
        for text in (json.dumps(body), json.dumps(body, indent=4), json.dumps(body, separators=(",", ":"))):
            assert client.post("/webhook", data=text).json["status"] == "ok"


# ------------------------------------------------------------------------------------------------------------- bad input

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
REGION_KEYS = (
    "id",
    "from_name",
    "to_name",
    "type",
    "original_width",
    "original_height",
    "image_rotation",
    "is_positive",
    "value",
    "item_index",
)
VALUE_KEYS = (
    "x",
    "y",
    "width",
    "height",
    "rotation",
    "radiusX",
    "radiusY",
    "points",
    "format",
    "rle",
    "keypointlabels",
    "rectanglelabels",
    "labels",
)
KINDS = (
    "keypointlabels",
    "keypoint",
    "rectanglelabels",
    "rectangle",
    "ellipse",
    "polygon",
    "brush",
    "brushlabels",
    "labels",
    "videorectangle",
)
VALUES = st.dictionaries(st.sampled_from(VALUE_KEYS), st.floats(-10, 110) | JSON, max_size=6)
REGIONS = st.fixed_dictionaries(
    {},
    optional={
        key: {"type": st.sampled_from(KINDS), "value": VALUES, "to_name": st.just("image") | JSON, "original_width": st.just(200) | JSON}.get(key, JSON)
        for key in REGION_KEYS
    },
)  # fmt: skip


def _shown(answer) -> None:
    assert answer.status_code < 500, answer.text
    assert answer.status_code == 200 or _is_our_error(answer)


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()), path=st.sampled_from(["/predict", "/setup"]))
@MEDIUM
def test_no_body_brings_an_endpoint_down(client, body, path):
    _shown(client.post(path, data=body))


@given(changes=st.fixed_dictionaries({}, optional=dict.fromkeys(("tasks", "project", "label_config", "params"), JSON)))
@MEDIUM
def test_no_field_of_predict_brings_it_down(client, predict_body, changes):
    _shown(client.post("/predict", data=json.dumps(predict_body() | changes)))


@given(regions=st.lists(REGIONS, min_size=1, max_size=3), data=st.dictionaries(st.sampled_from(["image", "x"]), JSON))
@MEDIUM
def test_no_region_and_no_task_data_bring_predict_down(client, predict_body, point, regions, data):
    body = predict_body(*({**point(), **region} for region in regions))
    body["tasks"][0]["data"] = {"image": "http://images.test/cat.png"} | data
    _shown(client.post("/predict", data=json.dumps(body)))


@given(changes=st.fixed_dictionaries({}, optional=dict.fromkeys(("project", "schema", "hostname", "access_token", "extra_params"), JSON)))
@MEDIUM
def test_no_field_of_setup_brings_it_down(client, brush_config, changes):
    _shown(client.post("/setup", data=json.dumps({"project": "3.1", "schema": brush_config} | changes)))


@given(body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps({"action": value}).encode()))
@MEDIUM
def test_no_webhook_brings_it_down(client, body):
    answer = client.post("/webhook", data=body)
    assert answer.status_code in {200, 201} or _is_our_error(answer)


# ------------------------------------------------------------------------------------------------------------- the tier


def test_the_web_tier_imports_without_torch():
    code = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {"torch", "torchvision", "transformers", "safetensors"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import backend.app, backend.predictor, backend._wsgi
from sam2_backend.settings import Settings
assert backend.app.create_app(Settings()).test_client().get("/health").status_code == 200
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_making_an_app_connects_to_nothing(web_settings):
    from backend.app import create_app

    app = create_app(Settings(redis_url="redis://127.0.0.1:1/0"))
    assert app.test_client().get("/health").status_code == 200
