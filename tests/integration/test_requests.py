"""Every request that the real Label Studio 1.23.2 was recorded sending, replayed; answers are judged by Label Studio's own SDK."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

from backend.app import create_app
from backend.dispatch import Dispatcher
from backend.propagations import Propagations
from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, ObjectMask
from sam2_backend.queue_format import queue_key
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagateJob, PropagationState, Track

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "requests"
LABEL_STUDIO_WAITS_S = {"/health": 1.0, "/webhook": 1.0, "/setup": 3.0, "/versions": 3.0}


def _exchanges() -> Iterator[Any]:
    for path in sorted(FIXTURES.glob("*.json")):
        for step in json.loads(path.read_text()).get("steps", []):
            for number, exchange in enumerate(step.get("backend", [])):
                yield pytest.param(exchange, id=f"{path.stem}-{step['step']}-{number}-{exchange['path'][1:]}".replace(" ", "_"))


class DiscDispatcher(Dispatcher):
    """The real one, but for the workers: every prompt gets a disc around its first point or in its box."""

    def segment(self, jobs: Sequence[ImageJob], wait_s: float) -> list[Any]:
        return [
            ImageReply(
                "9f3ac1", "stub", "stub", "none", tuple(ObjectMask(p.prompt_id, runs_from_mask(_disc(p, job)), 0.9) for p in job.prompts)
            )
            for job in jobs
        ]


def _disc(prompt: ImagePrompt, job: ImageJob) -> np.ndarray:
    x_px, y_px = (prompt.points[0].x_px, prompt.points[0].y_px) if prompt.points else np.array(prompt.box_xyxy_px).reshape(2, 2).mean(0)
    rows, columns = np.ogrid[: job.size_hw[0], : job.size_hw[1]]
    return (columns + 0.5 - x_px) ** 2 + (rows + 0.5 - y_px) ** 2 <= 12**2


@pytest.fixture
def dispatcher(settings):
    dispatcher = DiscDispatcher(settings)
    yield dispatcher
    dispatcher.close()


class RightwardPropagations(Propagations):
    """The real ones, but for the workers: every object goes to the right, and all is done at once."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher) -> None:
        super().__init__(settings, dispatcher)
        self._jobs: dict[str, PropagateJob] = {}

    def start(self, job: PropagateJob) -> PropagationState:
        self._jobs[job.session] = job
        return self.wait(job.session, 0)

    def wait(self, session: str, wait_s: float) -> PropagationState:
        grid = np.arange(self._jobs[session].source.n_frames, dtype="<i4")
        left = np.linspace(0.1, 0.6, len(grid))
        boxes = np.stack([left, np.full_like(left, 0.2), left + 0.3, np.full_like(left, 0.7)], axis=1).astype("<f4")
        scores = np.full(len(grid), 0.9, "<f4")
        ids = dict.fromkeys(keyframe.object_id for keyframe in self._jobs[session].keyframes)
        tracks = tuple(Track(object_id, grid.tobytes(), boxes.tobytes(), scores.tobytes()) for object_id in ids)
        return PropagationState(session, "done", "", len(grid), len(grid), (120, 160), tracks, "stub", "stub")


@pytest.fixture
def client(settings, dispatcher):
    settings = _with_label_studio(settings)
    return create_app(settings, dispatcher, RightwardPropagations(settings, dispatcher)).test_client()


def _with_label_studio(settings):
    return dataclasses.replace(settings, label_studio_url="http://127.0.0.1:18080", label_studio_api_key="x")


def test_the_recordings_are_there():
    paths = [parameter.values[0]["path"] for parameter in _exchanges()]
    assert {"/health", "/setup", "/predict", "/webhook", "/versions"} <= set(paths)
    assert paths.count("/predict") >= 25


@pytest.mark.parametrize("exchange", list(_exchanges()))
def test_a_recorded_request_gets_a_valid_answer(client, redis_server, exchange):
    sent = exchange["request"]
    started = time.monotonic()
    answer = client.open(exchange["path"], method=exchange["method"], json=sent)
    spent_s = time.monotonic() - started
    assert spent_s < LABEL_STUDIO_WAITS_S.get(exchange["path"], 10) / 4
    if exchange["path"] == "/setup":
        _check_setup(answer, sent)
    elif exchange["path"] == "/predict":
        _check_predictions(answer, sent, redis_server)
    else:
        assert answer.status_code == exchange["status"]
        assert set(exchange["response"]) <= set(answer.json)


def _check_setup(answer, sent):
    if "<Image" in sent["schema"] or "<VideoRectangle" in sent["schema"]:
        assert answer.status_code == 200
        assert isinstance(answer.json["model_version"], str)
    else:
        assert answer.status_code == 422
        assert "<Image>" in answer.status


def _check_predictions(answer, sent, redis_server):
    assert answer.status_code == 200, answer.text
    predictions = answer.json["results"]
    assert len(predictions) == len(sent["tasks"])
    label_studio = LabelInterface(sent["label_config"])
    for prediction in predictions:
        assert isinstance(prediction, dict)
        assert label_studio.validate_prediction(prediction, return_errors=True) == []
    context = sent["params"]["context"]
    if context is None:
        assert all(prediction["result"] == [] for prediction in predictions)
        with redis_server.connect() as connection:
            assert connection.llen(queue_key("warm")) == (len(sent["tasks"]) if "<Image" in sent["label_config"] else 0)
    elif "<Image" in sent["label_config"]:
        _check_click(predictions[0]["result"], context["result"])
    else:
        _check_track(predictions[0]["result"], context["result"])


def _check_track(regions, drawn):
    """Every region comes back under its id and label, with its own first keyframe as it was and a track to the last frame."""
    assert [(r["id"], r["value"].get("labels")) for r in regions] == [(r["id"], r["value"].get("labels")) for r in drawn]
    for region, before in zip(regions, drawn, strict=True):
        assert region["value"]["sequence"][0] == before["value"]["sequence"][0]
        assert region["value"]["sequence"][-1]["frame"] == before["value"]["framesCount"]


def _check_click(regions, prompts):
    assert regions
    sizes = {(p["original_height"], p["original_width"], p.get("item_index")) for p in prompts}
    labels = {label for p in prompts for key, names in p["value"].items() if key.endswith("labels") for label in names}
    for region in regions:
        assert (region["original_height"], region["original_width"], region.get("item_index")) in sizes
        assert {label for key, names in region["value"].items() if key.endswith("labels") for label in names} <= labels
        if "rle" in region["value"]:
            _check_brush(region, prompts)


def _check_brush(region, prompts):
    """The whole way there and back: the mask, decoded by Label Studio's SDK, covers a prompt of its page."""
    height, width = region["original_height"], region["original_width"]
    words = decode_rle(region["value"]["rle"])
    assert len(words) == height * width * 4
    alpha = np.reshape(words, (height, width, 4))[..., 3]
    page = [p["value"] for p in prompts if p.get("item_index") == region.get("item_index")]
    centres = [(v["x"] + (v["width"] / 2 if "height" in v else 0), v["y"] + v.get("height", 0) / 2) for v in page]
    assert any(alpha[min(int(y * height / 100), height - 1), min(int(x * width / 100), width - 1)] for x, y in centres)
