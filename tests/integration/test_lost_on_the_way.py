"""What was done in Redis and its answer lost: nothing stays in the hands of somebody who does not know of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from backend.dispatch import Dispatcher
from sam2_backend.errors import MediaRefusedError
from sam2_backend.job_records import JobRecords
from sam2_backend.job_source import JobSource
from sam2_backend.liveness import forget_registered
from sam2_backend.messages import ImagePrompt, MediaRef
from sam2_backend.propagation_claims import Claims
from sam2_backend.propagation_format import session_of
from sam2_backend.queue_format import SEGMENT_IMAGE, pack_job, reply_key, unpack_answer
from sam2_backend.safe_job import SafeJob
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob, VideoOptions

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import job

ME, OTHER = "w0:1:1.000", "w1:2:1.000"


class Cut:
    """A connection that is cut when an answer is on its way, or before it can ask."""

    def __init__(self, connection: redis.Redis) -> None:
        self._connection = connection
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def pipeline(self, **options: Any) -> Any:
        pipe = self._connection.pipeline(**options)
        execute = pipe.execute

        def cut() -> Any:
            if self.fails == "before":
                pipe.reset()
                raise redis.ConnectionError
            found = execute()
            if self.fails == "after":
                raise redis.ConnectionError
            return found

        pipe.execute = cut
        return pipe


@pytest.fixture
def connection(settings) -> Iterator[redis.Redis]:
    dispatcher = Dispatcher(settings)
    yield dispatcher.redis()
    dispatcher.close()


@pytest.fixture
def taken(connection) -> SafeJob:
    """A click that a worker has just taken off the queue."""
    with connection.pipeline() as pipe:
        envelope = pack_job(job(), pipe)
    Queue("interactive", connection=connection, serializer=JSONSerializer).enqueue_call(SEGMENT_IMAGE, args=(envelope,), job_id="a-0")
    [found] = JobSource(connection, "w0", 1).take(["interactive"], waits=False)
    return found


@pytest.fixture
def cut(connection, monkeypatch) -> Cut:
    monkeypatch.setattr("sam2_backend.job_records._RETRY_S", 0.0)
    return Cut(connection)


def records(cut: Cut, holder: str = ME) -> JobRecords:
    return JobRecords(cut, holder, lambda _pipe, _job: None)  # type: ignore[arg-type]


def test_a_job_whose_begin_was_noted_without_its_worker_knowing_is_let_go_of(cut, connection, taken):
    mine = records(cut)
    cut.fails = "after"
    with pytest.raises(redis.ConnectionError):
        mine.begin([taken])
    assert connection.hget(taken.key, "worker_name") == ME.encode()
    cut.fails = ""
    mine.settle()
    assert not connection.exists(taken.key), "whoever waits sees that it is in nobody's hands"


def test_an_answer_that_could_not_be_pushed_is_pushed_once_redis_is_back(cut, connection, taken):
    mine = records(cut)
    mine.begin([taken])
    cut.fails = "before"
    with pytest.raises(redis.ConnectionError):
        mine.answer(taken, MediaRefusedError("No."))
    assert not connection.exists(reply_key("a-0"))
    with pytest.raises(redis.ConnectionError):
        mine.settle()
    cut.fails = ""
    mine.settle()
    mine.settle()
    [data] = connection.lrange(reply_key("a-0"), 0, -1)
    assert unpack_answer(data).message == "No."
    assert not connection.exists(taken.key)


def test_a_job_that_another_worker_took_over_stays_its(cut, connection, taken):
    mine, others = records(cut), records(cut, OTHER)
    cut.fails = "after"
    with pytest.raises(redis.ConnectionError):
        mine.begin([taken])
    cut.fails = ""
    others.begin([taken])
    mine.settle()
    assert connection.hget(taken.key, "worker_name") == OTHER.encode()


def video() -> PropagateJob:
    source = FrameSource((MediaRef("http://videos.test/a.mp4"),), "video", 24.0, 10)
    keyframes = (Keyframe("o", 0, ImagePrompt("o", box_xyxy_px=(0.1, 0.1, 0.5, 0.5))),)
    return PropagateJob(session_of(source, (1, 1), keyframes, VideoOptions(), "m@1"), source, (1, 1), keyframes)


def test_a_session_taken_by_a_worker_that_never_heard_of_it_is_no_death(connection, settings):
    claims, message = Claims(connection, settings), video()
    claims.store.start(message, "m@1")
    for _ in range(5):
        assert claims.take("w0", ME)  # and the answer is lost
        assert claims.store.requeue_lost(lambda: {ME}, free_handed=ME) == 1
    assert claims.store.phase(message.session) == "waiting"
    for _ in range(3):
        assert claims.take("w0", ME)
        claims.store.requeue_lost(lambda: {OTHER}, free_handed=OTHER)
    assert claims.store.phase(message.session) == "failed", "three that died are enough"


def test_processes_that_were_killed_do_not_stay_on_the_lists_of_rq(connection):
    for incarnation in (ME, OTHER):
        for key in ("rq:workers", "rq:workers:interactive", f"rq:workers:warm@{incarnation.split(':')[0]}"):
            connection.sadd(key, f"rq:worker:{incarnation}")
    connection.hset(f"rq:worker:{ME}", "state", "idle")
    forget_registered(connection)
    assert connection.smembers("rq:workers") == connection.smembers("rq:workers:interactive") == {f"rq:worker:{ME}".encode()}
    assert not connection.exists("rq:workers:warm@w1")
    assert connection.exists("rq:workers:warm@w0")
