"""A dispatcher without Redis and workers that obeys the contract of `backend.dispatch.Dispatcher`: every prompt gets a disc."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
from collections.abc import Callable, Sequence

import flask
import numpy as np
import pytest
import redis

from sam2_backend.errors import QueueDownError, Sam2BackendError
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MediaRef, ObjectMask, WarmJob, WorkerStatus, from_wire, to_wire
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagationState


def disc(prompt: ImagePrompt, size_hw: tuple[int, int]) -> np.ndarray:
    """A disc of a tenth of the shorter side around the first point, the box's centre or the image's."""
    height, width = size_hw
    x_px, y_px = width / 2, height / 2
    if prompt.points:
        x_px, y_px = prompt.points[0].x_px, prompt.points[0].y_px
    elif prompt.box_xyxy_px:
        x_px, y_px = (prompt.box_xyxy_px[0] + prompt.box_xyxy_px[2]) / 2, (prompt.box_xyxy_px[1] + prompt.box_xyxy_px[3]) / 2
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (columns - x_px) ** 2 + (rows - y_px) ** 2 < (min(size_hw) / 10 + 1) ** 2


class FakeRedis:
    """The commands that `backend.projects` and `backend.journal_store` use; a write without an end is an error."""

    def __init__(self) -> None:
        self.texts: dict[str, bytes] = {}
        self.rankings: dict[str, dict[str, float]] = {}
        self.lists: dict[str, list[bytes]] = {}
        self.hashes: dict[str, dict[bytes, int]] = {}
        self.sets: dict[str, set[str]] = {}
        self.ends_s: dict[str, int] = {}
        self.is_down = False

    @property
    def ranks(self) -> dict[str, float]:
        """Of the projects."""
        return self.rankings.setdefault("sam2:project-index", {})

    def _look(self) -> None:
        if self.is_down:
            raise redis.ConnectionError("down")

    def get(self, key):
        self._look()
        return self.texts.get(key)

    def mget(self, keys):
        self._look()
        return [self.texts.get(key) for key in keys]

    def set(self, key, text, ex=None):
        self._look()
        assert ex, "everything in Redis ends some day"
        self.texts[key] = text.encode()

    def delete(self, *keys):
        for key in keys:
            for kind in (self.texts, self.lists, self.hashes, self.sets, self.rankings):
                kind.pop(key, None)

    def expire(self, key, end_s):
        self._look()
        self.ends_s[key] = end_s

    def zadd(self, key, ranks):
        self._look()
        self.rankings.setdefault(key, {}).update(ranks)

    def zrem(self, key, *names):
        for name in names:
            self.rankings.get(key, {}).pop(name, None)

    def zmscore(self, key, names):
        self._look()
        return [self.rankings.get(key, {}).get(name) for name in names]

    def zrange(self, key, start, end):
        ranks = self.rankings.get(key, {})
        names = sorted(ranks, key=ranks.__getitem__)
        return [name.encode() for name in names[start : max(0, len(names) + end + 1)]]

    def zrevrange(self, key, start, end):
        self._look()
        ranks = self.rankings.get(key, {})
        names = sorted(ranks, key=ranks.__getitem__, reverse=True)
        return [name.encode() for name in names[start : end + 1 or None]]

    def zremrangebyrank(self, key, start, end):
        self.zrem(key, *(name.decode() for name in self.zrange(key, start, end)))

    def lpush(self, key, *texts):
        self._look()
        self.lists[key] = [text.encode() for text in reversed(texts)] + self.lists.get(key, [])

    def ltrim(self, key, start, end):
        self.lists[key] = self.lists[key][start : end + 1]

    def lrange(self, key, start, end):
        self._look()
        return self.lists.get(key, [])[start : end + 1 or None]

    def hincrby(self, key, name, count):
        counters = self.hashes.setdefault(key, {})
        counters[name.encode()] = counters.get(name.encode(), 0) + count

    def hgetall(self, key):
        self._look()
        return {name: str(count).encode() for name, count in self.hashes.get(key, {}).items()}

    def pfadd(self, key, *names):
        self.sets.setdefault(key, set()).update(names)

    def pfcount(self, key):
        self._look()
        return len(self.sets.get(key, ()))

    def info(self, _section):
        self._look()
        return {"used_memory": 300 << 20, "maxmemory": 2 << 30}

    def pipeline(self, transaction=True):
        return FakePipeline(self)


class FakePipeline:
    def __init__(self, client: FakeRedis) -> None:
        self._client, self._calls = client, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self._calls.append((name, args, kwargs))

    def execute(self):
        return [getattr(self._client, name)(*args, **kwargs) for name, args, kwargs in self._calls]


class FakeDispatcher:
    """Answers at once; `failures` by a pattern of the image's address, and `raises` for all."""

    def __init__(self) -> None:
        self.jobs: list[ImageJob] = []
        self.warmed: list[WarmJob] = []
        self.n_urgent = 0
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[str, Sam2BackendError] = {}
        self.raises: Exception | None = None
        self.find_nothing = False
        self.client = FakeRedis()
        self.alive = [
            WorkerStatus(
                "cpu0", 7, "here", "cpu", "sam2.1_hiera_tiny@0123456789ab", 0.0, 0.0, "idle", 3, 1, 1 << 23, 0, {"device": 2.0, "none": 1.0}
            )
        ]

    def _look(self) -> None:
        if self.client.is_down:
            raise QueueDownError("Redis does not answer.")

    def segment(self, jobs: Sequence[ImageJob], wait_s: float) -> list[ImageReply | Sam2BackendError]:
        assert wait_s > 0
        self._look()
        if self.raises:
            raise self.raises
        self.jobs += [from_wire(ImageJob, to_wire(job)) for job in jobs]
        return [self._answer(job) for job in jobs]

    def _answer(self, job: ImageJob) -> ImageReply | Sam2BackendError:
        for pattern, error in self.failures.items():
            if fnmatch.fnmatch(job.media.uri, pattern):
                return error
        from sam2_backend.masks import runs_from_mask

        empty = np.zeros(job.size_hw, bool)
        masks = tuple(
            ObjectMask(p.prompt_id, runs_from_mask(empty if self.find_nothing else disc(p, job.size_hw)), 0.9) for p in job.prompts
        )
        image_hash = hashlib.sha256(job.media.uri.encode()).hexdigest()
        timings = {"queue": 4.0, "media": 1.0, "embed": 0.0, "decode": 38.0, "runs": 1.0}
        return ImageReply(image_hash, self.model_version(), "cpu0", "device", masks, timings)

    def warm(self, jobs: Sequence[WarmJob], *, is_urgent: bool = False) -> None:
        self._look()
        self.warmed += jobs
        self.n_urgent += len(jobs) * is_urgent

    def put_blob(self, data: bytes) -> MediaRef:
        self._look()
        name = hashlib.sha256(data).hexdigest()[:32]
        self.blobs[name] = data
        return MediaRef(f"blob:{name}")

    def workers(self) -> list[WorkerStatus]:
        self._look()
        return self.alive

    def queue_lengths(self) -> dict[str, int]:
        self._look()
        return {"interactive": 0, "interactive@cpu0": 2}

    def model_version(self) -> str:
        return self.alive[0].model_version if self.alive else "sam2-backend"

    def redis(self) -> FakeRedis:
        return self.client

    def close(self) -> None: ...


class FakePropagations:
    """What `backend.propagations.Propagations` knows of sessions, without Redis and workers; nothing moves by itself."""

    def __init__(self, dispatcher: FakeDispatcher) -> None:
        self._dispatcher = dispatcher
        self.states: dict[str, PropagationState] = {}

    def state(self, session: str) -> PropagationState | None:
        return self.states.get(session)

    def cancel(self, session: str) -> None:
        self.states[session] = dataclasses.replace(self.states[session], phase="cancelled")

    def recent(self) -> list[PropagationState]:
        self._dispatcher._look()
        return list(self.states.values())

    def n_results(self) -> int:
        return sum(state.n_done for state in self.states.values())


@pytest.fixture
def propagations(dispatcher: FakeDispatcher) -> FakePropagations:
    return FakePropagations(dispatcher)


@pytest.fixture
def dispatcher() -> FakeDispatcher:
    return FakeDispatcher()


@pytest.fixture
def web_settings() -> Settings:
    token = "0123456789abcdef0123456789abcdef01234567"
    # No next tasks: nothing is asked behind a test's back.
    return Settings(label_studio_url="http://studio.test/ls", label_studio_api_key=token, warm_next_tasks=0)


@pytest.fixture
def client_of(
    dispatcher: FakeDispatcher, web_settings: Settings, propagations: FakePropagations
) -> Callable[..., flask.testing.FlaskClient]:
    """A client of an app with these settings."""

    def make(settings: Settings = web_settings) -> flask.testing.FlaskClient:
        from backend.app import create_app

        return create_app(settings, dispatcher, propagations).test_client()

    return make


@pytest.fixture
def client(client_of) -> flask.testing.FlaskClient:
    return client_of()


BRUSH_CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image" smart="false"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="Cat"/><Label value="Dog"/></RectangleLabels>
</View>"""


def keypoint(region_id: str = "p1", x: float = 50, y: float = 50, *, is_positive: bool = True, label: str = "Cat", **more) -> dict:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": [label]}
    return {
        "id": region_id, "from_name": "point", "to_name": "image", "type": "keypointlabels", "original_width": 200, "original_height": 100,
        "image_rotation": 0, "is_positive": is_positive, "value": value,
    } | more  # fmt: skip


@pytest.fixture
def point() -> Callable[..., dict]:
    """A click as the editor sends it, on an image of 200 × 100."""
    return keypoint


@pytest.fixture
def brush_config() -> str:
    return BRUSH_CONFIG


@pytest.fixture
def predict_body() -> Callable[..., dict]:
    """The body of a /predict; a click in the middle unless told otherwise."""

    def make(*regions: dict, image: str = "http://images.test/cat.png", context: object = ..., **more) -> dict:
        drawn = {"result": list(regions) or [keypoint()]} if context is ... else context
        task = {"id": 17, "data": {"image": image}, "annotations": [{"result": "never read"}]}
        params = {"login": None, "password": None, "context": drawn}
        return {"tasks": [task], "project": "3.1700000000", "label_config": BRUSH_CONFIG, "params": params} | more

    return make
