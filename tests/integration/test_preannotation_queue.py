"""Whole datasets give way to people: over a real Redis and a real worker process."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from backend.dispatch import Dispatcher
from backend.propagations import Propagations
from backend.slow_jobs import SlowJobs, dataset_job
from sam2_backend.dataset_messages import DatasetJob, DatasetReply, LabelledBox
from sam2_backend.messages import ImagePrompt, MediaRef
from sam2_backend.queue_format import (
    PREANNOTATE,
    PREANNOTATE_IMAGE,
    REPLY_TTL_S,
    pack_job,
    queue_key,
    reply_key,
    unpack_dataset_answer,
)
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob, VideoOptions

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import HEARTBEAT_S, Background, Workers, job, names_in, until

BOX = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def workers(settings: Settings, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(replace(settings, heartbeat_s=HEARTBEAT_S), tmp_path)
    yield started
    started.close()


@pytest.fixture
def dispatcher(workers: Workers) -> Iterator[Dispatcher]:
    opened = Dispatcher(workers.settings)
    yield opened
    opened.close()


def send(workers: Workers, job_id: str, *wishes: str, limit_s: int = 60) -> None:
    """Enqueue a DatasetJob as whoever annotates a dataset does."""
    boxes = tuple(LabelledBox(wish, BOX, "Cat") for wish in wishes)
    queue = Queue(PREANNOTATE, connection=workers.connection, serializer=JSONSerializer)
    with workers.connection.pipeline() as pipe:
        envelope = pack_job(DatasetJob(MediaRef("http://images.test/1.png"), "boxes", boxes), pipe)
        pipe.execute()
    queue.enqueue_call(PREANNOTATE_IMAGE, args=(envelope,), job_id=job_id, timeout=limit_s, description=job_id)


def answer_of(workers: Workers, job_id: str) -> DatasetReply:
    answer = unpack_dataset_answer(until(lambda: workers.connection.lindex(reply_key(job_id), 0)))
    assert isinstance(answer, DatasetReply), answer
    return answer


def test_a_dataset_job_is_answered_and_the_answer_waits_for_whoever_collects_it(workers):
    workers.start("w0")
    send(workers, "a", "one", "mask:2")
    answer = answer_of(workers, "a")
    assert [(mask.source, mask.label) for mask in answer.masks] == [("one", "Cat"), ("mask:2", "Cat")]
    assert set(answer.timings_ms) == {"queue"}
    assert workers.connection.ttl(reply_key("a")) > 10 * REPLY_TTL_S


def test_an_answer_that_was_waited_for_stays_for_others_as_long_as_one_that_was_not(dispatcher, workers):
    jobs, stopped = SlowJobs(workers.settings, dispatcher), threading.Event()
    pending = dataset_job(DatasetJob(MediaRef("http://images.test/1.png"), "boxes", (LabelledBox("sleep:0.3", BOX, "Cat"),)))
    waiting = [Background(lambda: jobs.dataset(replace(pending), stopped)) for _ in range(2)]
    workers.start("w0")
    assert [len(waiter.result().masks) for waiter in waiting] == [1, 1]
    assert workers.connection.ttl(pending.reply_key) > 10 * REPLY_TTL_S
    assert workers.started() == ["w0"]


def test_a_click_is_answered_in_the_middle_of_a_dataset_job(dispatcher, workers):
    workers.start("w0")
    send(workers, "a", *["sleep:0.1"] * 60)
    until(lambda: workers.connection.llen("sam2:test:started") > 1)
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]
    assert not workers.connection.exists(reply_key("a"))
    assert len(answer_of(workers, "a").masks) == 60


def test_the_time_of_clicks_does_not_count_against_a_dataset_job(dispatcher, workers):
    workers.start("w0")
    send(workers, "a", *["sleep:0.1"] * 12, limit_s=4)
    until(lambda: workers.connection.llen("sam2:test:started") > 1)
    names_in(dispatcher.segment([job("sleep:5")], 20))
    assert len(answer_of(workers, "a").masks) == 12


def test_the_time_limit_of_a_dataset_job_holds_after_a_click(dispatcher, workers):
    workers.start("w0")
    send(workers, "a", *["sleep:0.1"] * 200, limit_s=2)
    until(lambda: workers.connection.llen("sam2:test:started") > 1)
    names_in(dispatcher.segment([job()], 20))
    assert unpack_dataset_answer(until(lambda: workers.connection.lindex(reply_key("a"), 0))).code == "job_timed_out"
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]


def test_a_dataset_job_that_fails_takes_no_click_with_it(dispatcher, workers):
    workers.start("w0")
    send(workers, "a", "sleep:0.3", "error:media_unreadable")
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]
    assert unpack_dataset_answer(until(lambda: workers.connection.lindex(reply_key("a"), 0))).code == "media_unreadable"


def test_a_propagation_is_done_before_the_rest_of_a_dataset(dispatcher, workers):
    workers.start("w0")
    for number in range(40):
        send(workers, f"a{number}", "sleep:0.1")
    until(lambda: workers.connection.llen("sam2:test:started") > 1)
    source = FrameSource((MediaRef("http://videos.test/a.mp4"),), "video", 24.0, 10)
    keyframe = Keyframe("o", 0, ImagePrompt("o", box_xyxy_px=(0.1, 0.1, 0.5, 0.5)))
    propagations = Propagations(workers.settings, dispatcher)
    propagations.start(PropagateJob("1" * 32, source, (1, 1), (keyframe,), VideoOptions("forward")))
    assert propagations.wait("1" * 32, 20).phase == "done"
    assert workers.connection.llen(queue_key(PREANNOTATE)) > 20
    answer_of(workers, "a39")
