"""No body brings an endpoint down: thousands of changed recordings against the real app with a real Redis; workers are fakes that check the messages.

`BAD_BODIES=20` in the environment makes twenty times as many, at random; CI makes the same 5,400 every time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from bad_bodies import HOSTILE_CONFIGS, changed_bodies, drawn_bodies, encoded, recorded

from backend.app import create_app
from backend.dispatch import Dispatcher
from backend.propagations import Propagations
from sam2_backend.messages import ImageJob, ImageReply, ObjectMask, RunLengths, from_wire, to_wire
from sam2_backend.settings import MIB, Settings
from sam2_backend.video_messages import PropagateJob, PropagationState

TIMES = int(os.environ.get("BAD_BODIES", "1"))
LONGEST_S = 20.0
"""Of the processor's time for one body: far above what any takes, and far below what Label Studio waits."""
MOST_GROWTH_BYTES = 1500 * MIB


def many(count: int):
    """So many cases, the same in every run unless more are asked for."""
    return profile(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class CheckingDispatcher(Dispatcher):
    """The real one, but for the workers: what would be sent is read as a worker reads it, and every mask is a point."""

    def segment(self, jobs: Sequence[ImageJob], wait_s: float) -> list[Any]:
        assert wait_s > 0
        return [self._answer(from_wire(ImageJob, json.loads(json.dumps(to_wire(job))))) for job in jobs]

    def _answer(self, job: ImageJob) -> ImageReply:
        height, width = job.size_hw
        runs = RunLengths(job.size_hw, b"".join(n.to_bytes(4, "little") for n in (height * width - 1, 1)))
        return ImageReply("9f3ac1", "stub", "stub", "none", tuple(ObjectMask(p.prompt_id, runs, 0.9) for p in job.prompts))


class CheckingPropagations(Propagations):
    """The real ones, but nobody tracks: what would be queued is read as a worker reads it, and is still waiting."""

    def start(self, job: PropagateJob) -> PropagationState:
        from_wire(PropagateJob, json.loads(json.dumps(to_wire(job))))
        return self.wait(job.session, 0)

    def wait(self, session: str, wait_s: float) -> PropagationState:
        return PropagationState(session, "waiting", "", 0, 0, (0, 0), (), "stub", "")


@pytest.fixture(scope="module")
def client(_session_redis, tmp_path_factory):
    settings = Settings(
        redis_url=_session_redis.url,
        data_dir=tmp_path_factory.mktemp("data"),
        label_studio_url="http://127.0.0.1:9/ls",  # nobody listens
        label_studio_api_key="",
        preannotate_wait_s=0.02,
        propagate_wait_s=0.02,
    )
    dispatcher = CheckingDispatcher(settings)
    app = create_app(settings, dispatcher, CheckingPropagations(settings, dispatcher))
    yield app.test_client()
    dispatcher.close()


@pytest.fixture(scope="module", autouse=True)
def _memory_is_bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST_GROWTH_BYTES


def ask(client, path: str, body: bytes, headers: dict[str, str] | None = None, method: str = "POST"):
    """The answer, which keeps what every answer promises."""
    began_s = time.process_time()
    answer = client.open(path, method=method, data=body, headers=headers)
    assert time.process_time() - began_s < LONGEST_S
    assert answer.status_code < 500, answer.text
    assert answer.is_json, answer.headers
    assert "Traceback" not in answer.text
    assert all("\n" not in value for value in (answer.status, *answer.headers.values()))
    if answer.status_code >= 400:
        error = answer.json["error"]
        assert error["code"] not in {"internal_error", ""}
        assert error["message"].rstrip().endswith((".", "?", "…")), error
        assert error["mender"]
    return answer


def check_predict(client, sent: tuple[bytes, dict[str, str]]) -> None:
    body, headers = sent
    answer = ask(client, "/predict", body, headers)
    if answer.status_code == 200:
        predictions = answer.json["results"]
        assert len(predictions) == len(json.loads(body.decode("utf-8-sig"))["tasks"])
        assert all(isinstance(prediction["result"], list) and prediction["model_version"] for prediction in predictions)


PREDICTS, SETUPS, WEBHOOKS = recorded("/predict"), recorded("/setup"), recorded("/webhook")


def test_the_recordings_are_there():
    assert min(len(PREDICTS), len(SETUPS), len(WEBHOOKS)) >= 5
    assert sum(body["params"]["context"] is not None for body in PREDICTS) >= 5


@given(sent=encoded(changed_bodies(PREDICTS)))
@many(2000)
def test_no_changed_predict_brings_it_down(client, sent):
    check_predict(client, sent)


@given(sent=encoded(drawn_bodies(PREDICTS)))
@many(1200)
def test_no_region_brings_predict_down(client, sent):
    check_predict(client, sent)


@given(sent=encoded(changed_bodies(SETUPS)))
@many(1000)
def test_no_changed_setup_brings_it_down(client, sent):
    answer = ask(client, "/setup", *sent)
    assert answer.status_code != 200 or isinstance(answer.json["model_version"], str)


@given(sent=encoded(changed_bodies(WEBHOOKS)))
@many(800)
def test_no_changed_webhook_brings_it_down(client, sent):
    assert ask(client, "/webhook", *sent).status_code in {200, 201, 400}


PATHS = st.sampled_from(
    ["/", "/health", "/ready", "/versions", "/metrics", "/propagations", "/propagations/{}/cancel", "/projects/{}", "/tasks?task={}", "/{}"]
)
NAMES = st.sampled_from(
    ["0" * 32, "1.2", "..", "%2e%2e", "%00", "a" * 3000, "%F0%9F%90%88", "%ff%fe", "<script>", "{{7*7}}", "1%0d%0aX: 1", "*", ""]
) | st.text(st.characters(codec="utf-8"), max_size=12)


@given(path=PATHS, name=NAMES, method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]), body=st.binary(max_size=30))
@many(500)
def test_no_path_and_no_method_brings_a_smaller_endpoint_down(client, path, name, method, body):
    answer = client.open(path.format(name), method=method, data=body, headers={"Accept": "application/json"})
    assert answer.status_code < 500 or (path == "/ready" and "missing" in answer.json)
    assert answer.is_json or path == "/metrics" or answer.status_code in {308, 303}


@pytest.mark.parametrize("config", HOSTILE_CONFIGS, ids=lambda config: config[:40])
def test_no_labeling_config_brings_setup_or_predict_down(client, config):
    ask(client, "/setup", json.dumps({"project": "1.1", "schema": config}).encode())
    predict = next(body for body in PREDICTS if body["params"]["context"])
    check_predict(client, (json.dumps(predict | {"label_config": config}).encode(), {}))


def test_entities_are_never_expanded_and_nothing_outside_is_read(client):
    for config in (config for config in HOSTILE_CONFIGS if "<!DOCTYPE" in config):
        answer = ask(client, "/setup", json.dumps({"project": "1.1", "schema": config}).encode())
        assert answer.status_code == 422
        assert "root:" not in answer.text and "document type" in answer.json["error"]["message"]


HALVES = [
    '{{"action": "X", "id": "{}"}}'.format,
    '{{"project": "{}", "schema": "<View/>"}}'.format,
    '{{"tasks": [{{"id": "{}"}}], "label_config": ""}}'.format,
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-32"])
def test_half_a_surrogate_pair_gets_in_by_no_encoding(client, encoding):
    """Redis, logs and Label Studio take none; once in, it would fail far from here."""
    for half, make in itertools.product(["\\ud800", "\ud800", "\\udfff\\ud800", "\udfff"], HALVES):
        body = make(half).encode(encoding, "surrogatepass")
        for path in ("/predict", "/setup"):
            assert ask(client, path, body).status_code in {400, 422}


@pytest.mark.parametrize("kind", ["ellipse", "polygon", "bitmask"])
def test_masks_as_large_as_can_be_are_read_in_bounded_time_or_refused(client, kind):
    """A few kB of hundreds of masks on the largest image: whatever they cost, they do not keep a thread for minutes."""
    values = {
        "ellipse": {"x": 50, "y": 50, "radiusX": 49, "radiusY": 49, "rotation": 30},
        "polygon": {"points": [[100 * (n % 2), 100 * n / 400] for n in range(400)] + [[0, 100]]},
        "bitmask": {"imageDataURL": noise_png(4096)},
    }
    side = {"ellipse": 16_384, "polygon": 16_384, "bitmask": 4096}[kind]
    body = dict(next(body for body in PREDICTS if body["params"]["context"] and "<Image" in body["label_config"]))
    to_name = body["params"]["context"]["result"][0]["to_name"]
    region = {"type": kind, "to_name": to_name, "original_width": side, "original_height": side, "value": values[kind]}
    regions = [region | {"id": str(number)} for number in range(500 if kind != "bitmask" else 3)]
    sent = body | {"params": {"context": {"result": regions}}}
    answer = ask(client, "/predict", json.dumps(sent).encode())
    assert answer.json["error"]["code"] == "bad_prompt"
    assert ("too long to read" if kind != "bitmask" else "noise") in answer.json["error"]["message"]


def noise_png(side: int) -> str:
    """Every second pixel opaque: small as a file, and as many runs as pixels."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    pixels = np.zeros((side, side, 2), np.uint8)
    pixels[:, ::2, 1] = 255
    file = io.BytesIO()
    Image.fromarray(pixels, "LA").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_large_body_is_refused_by_its_length_before_it_is_read(_session_redis, tmp_path):
    settings = dataclasses.replace(Settings(redis_url=_session_redis.url, data_dir=tmp_path), max_request_bytes=1000)
    client = create_app(settings).test_client()
    for path in ("/predict", "/setup", "/webhook"):
        answer = client.post(path, data=b"{" + b" " * 1000)
        assert (answer.status_code, answer.json["error"]["code"]) == (413, "bad_request")
