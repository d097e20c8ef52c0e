"""Clicks that wait together on one worker: who goes first, who shares a decoder run, and that nobody's trouble becomes another's."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from backend.dispatch import Dispatcher
from backend.pending import Pending
from sam2_backend import jobs
from sam2_backend.errors import JobTimedOutError, MediaUnreachableError, Sam2BackendError, SupersededError
from sam2_backend.job_source import JobSource
from sam2_backend.messages import ImageReply, MediaRef, WarmJob, WorkerStatus, to_wire
from sam2_backend.queue_format import SEGMENT_IMAGE, queues_served, reply_key, unpack_answer
from sam2_backend.queue_worker import QueueWorker

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import Background, Workers, job, names_in, until

READY = "http://images.test/ready/{}.png"
COLD = "http://images.test/{}.png"


@pytest.fixture
def in_line(dispatcher: Dispatcher, workers: Workers) -> Callable[..., list[Background]]:
    """Has jobs wait in this order behind a click that takes a while, on the only worker; returns the calls, the slow one first."""

    def wait(*jobs: tuple[str, str], busy_s: float = 1.5, wait_s: float = 30) -> list[Background]:
        calls = [Background(lambda: dispatcher.segment([job(f"sleep:{busy_s}")], 30))]
        workers.started()
        for place, (wish, uri) in enumerate(jobs, 1):
            message = job(wish, uri=uri, drawing="7/x" if wish in {"note:older", "note:newer"} else "")
            calls.append(Background(lambda message=message: dispatcher.segment([message], wait_s)))
            until(lambda place=place: len(workers.waiting("interactive@w0")) == place)
        return calls

    return wait


def notes(workers: Workers) -> list[str]:
    return [note.decode() for note in workers.connection.lrange("sam2:test:notes", 0, -1)]


def together(workers: Workers) -> list[int]:
    return [int(count) for count in workers.connection.lrange("sam2:test:together", 0, -1)]


def test_clicks_on_images_that_are_ready_do_not_wait_for_an_image_that_is_embedded_ahead(dispatcher, workers):
    workers.start("w0")
    dispatcher.warm([WarmJob(MediaRef(COLD.format("until told")))])
    until(lambda: workers.connection.exists("sam2:test:warmed"))
    cold = Background(lambda: dispatcher.segment([job("note:cold", uri=COLD.format(1))], 30))
    until(lambda: len(workers.waiting("interactive@w0")) == 1)
    for place in range(3):
        assert names_in(dispatcher.segment([job(f"note:ready {place}", uri=READY.format(place))], 30)) == ["w0"]
    assert len(workers.waiting("interactive@w0")) == 1, "it needs an encoder run itself"
    workers.connection.rpush("sam2:test:go", 1)
    names_in(cold.result())
    assert notes(workers) == ["ready 0", "ready 1", "ready 2", "cold"]


def test_warm_clicks_do_not_wait_for_the_encoder_run_of_a_first_click_that_has_begun(dispatcher, workers):
    workers.start("w0")
    cold = Background(lambda: dispatcher.segment([job("wait")], 60))
    workers.started()
    other_cold = Background(lambda: dispatcher.segment([job("note:cold", uri=COLD.format(2))], 60))
    for n in range(3):
        names_in(Background(lambda n=n: dispatcher.segment([job(f"note:{n}", uri=READY.format(n))], 60)).result())
    workers.connection.rpush("sam2:test:go", 1)
    names_in(cold.result())
    names_in(other_cold.result())
    assert notes(workers) == ["0", "1", "2", "cold"]


def test_a_first_click_that_takes_an_encoder_run_does_not_hold_up_the_warm_clicks_behind_it(in_line, workers):
    workers.start("w0")
    calls = in_line(
        ("note:cold 1", COLD.format(1)), ("note:cold 2", COLD.format(2)), ("note:warm 3", READY.format(3)), ("note:warm 4", READY.format(4))
    )
    for call in calls:
        names_in(call.result())
    assert notes(workers) == ["warm 3", "warm 4", "cold 1", "cold 2"]


def test_warm_clicks_that_come_meanwhile_go_before_the_next_first_click(dispatcher, in_line, workers):
    workers.start("w0")
    calls = in_line(("sleep:1", COLD.format(1)), ("note:cold", COLD.format(2)))
    until(lambda: len(workers.started(1)) == 2)
    calls.append(Background(lambda: dispatcher.segment([job("note:warm", uri=READY.format(3))], 30)))
    for call in calls:
        names_in(call.result())
    assert notes(workers) == ["warm", "cold"]


@pytest.mark.parametrize(("batch", "groups"), [("8", [5]), ("3", [3, 2]), ("1", [])])
def test_clicks_that_wait_are_decoded_in_one_go_up_to_the_setting(batch, groups, in_line, workers):
    workers.start("w0", PROMPTS_TOGETHER="32", SAM2_CLICK_BATCH=batch)
    calls = in_line(*((f"note:{n}", READY.format(n)) for n in range(5)))
    for call in calls:
        [answer] = call.result()
        assert isinstance(answer, ImageReply)
        assert answer.timings_ms["queue"] > 0
    assert notes(workers) == list("01234")
    assert together(workers) == groups


def test_trouble_of_one_click_is_nobody_elses(in_line, workers):
    workers.start("w0", PROMPTS_TOGETHER="32")
    wishes = ["note:a", "left out", "note:older", "error:media_unreachable", "note:newer", "note:b"]
    calls = in_line(*((wish, READY.format(n)) for n, wish in enumerate(wishes)))
    outcomes = [type(call.result()[0]) for call in calls[1:]]
    assert outcomes == [ImageReply, ImageReply, SupersededError, MediaUnreachableError, ImageReply, ImageReply]
    assert sorted(set(notes(workers))) == ["a", "b", "newer"]
    assert together(workers) == [5]
    assert list(workers.connection.scan_iter("rq:job:*")) == []


def test_the_time_limit_of_one_click_ends_that_click_alone(in_line, workers):
    """The alarm ends what they do together; each is then done by itself, and it goes off for the slow one."""
    workers.start("w0", PROMPTS_TOGETHER="32")
    [busy] = in_line()
    queue = Queue("interactive@w0", connection=workers.connection, serializer=JSONSerializer)
    wishes = ["note:a", "sleep:30", "note:b"]
    for n, wish in enumerate(wishes):
        envelope = {"sent_at": time.time(), "message": to_wire(job(wish, uri=READY.format(n)))}
        queue.enqueue_call(SEGMENT_IMAGE, args=(envelope,), timeout=1 if wish == "sleep:30" else 60, job_id=f"call{n}-0", description="x")
    names_in(busy.result())
    answers = [unpack_answer(until(lambda n=n: workers.connection.lindex(reply_key(f"call{n}-0"), 0))) for n in range(3)]
    assert [type(answer) for answer in answers] == [ImageReply, JobTimedOutError, ImageReply]
    assert together(workers) == [3]
    assert set(notes(workers)) == {"a", "b"}


def test_the_clicks_in_the_hands_of_a_killed_worker_are_all_done_by_another(dispatcher, workers):
    processes = {name: workers.start(name, PROMPTS_TOGETHER="32") for name in ("w0", "w1")}
    wishes = ["sleep:3", *(f"note:{n}" for n in range(4))]
    call = Background(lambda: dispatcher.segment([job(wish, uri=READY.format(1)) for wish in wishes], 60))
    [victim] = workers.started()
    processes[victim].kill()
    processes[victim].wait()
    [other] = set(processes) - {victim}
    assert names_in(call.result()) == [other] * 5
    assert together(workers) == [5], "what a worker died over is done by itself"
    assert sorted(notes(workers)) == list("0123")


def test_a_click_that_kills_its_workers_takes_none_of_the_clicks_beside_it_along(dispatcher, workers):
    for name in ("w0", "w1", "w2"):
        workers.start(name, PROMPTS_TOGETHER="32")
    wishes = ["note:a", "die", "note:b", "note:c"]
    answers = Background(lambda: dispatcher.segment([job(wish, uri=READY.format(1)) for wish in wishes], 60)).result()
    assert [type(answer) for answer in answers] == [ImageReply, Sam2BackendError, ImageReply, ImageReply]
    assert "2 workers died" in answers[1].message
    assert len(dispatcher.workers()) == 1


def test_a_worker_that_is_asked_to_stop_hands_on_what_it_has_not_begun(dispatcher, workers):
    processes = {name: workers.start(name) for name in ("w0", "w1")}
    wishes = ["sleep:1.5", "plain", "plain"]
    call = Background(lambda: dispatcher.segment([job(wish, uri=READY.format(1)) for wish in wishes], 60))
    [leaver] = workers.started()
    assert workers.waiting(f"interactive@{leaver}") == [], "all three are in its hands"
    processes[leaver].terminate()
    assert processes[leaver].wait(20) == 0
    [other] = set(processes) - {leaver}
    assert names_in(call.result()) == [leaver, other, other]
    assert list(workers.connection.scan_iter("rq:job:*")) == []


def test_a_job_that_was_taken_as_the_worker_was_asked_to_stop_is_done_whatever_it_is(dispatcher, workers, monkeypatch):
    monkeypatch.setattr(jobs, "_runtime", SimpleNamespace(warm=lambda _job, _let_others: ImageReply("hash", "model", "w0", "none")))
    worker = QueueWorker(WorkerStatus("w0", os.getpid(), "here", "cpu", "", 0.0, 0.0), workers.connection, 1.0, 8)
    worker._runtime, worker._should_stop = SimpleNamespace(propagator=SimpleNamespace(is_busy=False)), lambda: True
    dispatcher.warm([WarmJob(MediaRef("http://images.test/9.png"))])
    [taken] = worker._source.take(queues_served("w0"), waits=False)
    worker._do([taken])
    assert isinstance(unpack_answer(workers.connection.lindex(reply_key(taken.id), 0)), ImageReply)
    assert list(workers.connection.scan_iter("rq:queue:*")) == []


def test_jobs_of_another_kind_among_the_clicks_are_done_and_keep_their_place(dispatcher, in_line, workers):
    workers.start("w0")
    busy, *calls = in_line(("note:a", READY.format(1)), ("note:b", READY.format(2)))
    dispatcher.warm([WarmJob(MediaRef("http://images.test/9.png"))])
    [warm] = workers.connection.lrange("rq:queue:warm@w0", 0, -1)
    workers.connection.lmove("rq:queue:warm@w0", "rq:queue:interactive@w0", "LEFT", "LEFT")
    assert workers.waiting("interactive@w0")[0] == warm
    for call in (busy, *calls):
        names_in(call.result())
    until(lambda: workers.connection.llen("sam2:test:warmed") == 1)
    assert notes(workers) == ["a", "b"]


def test_one_click_alone_is_taken_in_as_many_round_trips_as_without_batches(dispatcher, workers, monkeypatch):
    sent: list[int] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def counted(self, command, check_health=True):
        sent.append(1)
        return send(self, command, check_health)

    workers.connection.ping()
    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", counted)
    for most_clicks in (1, 8):
        dispatcher._send([Pending("call-0", job(), "w0")], 10)
        source = JobSource(workers.connection, "w0", most_clicks)
        sent.clear()
        [taken] = source.take(queues_served("w0"), waits=True)
        assert taken.id == "call-0"
        assert len(sent) == 2
