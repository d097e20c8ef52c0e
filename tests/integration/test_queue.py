"""The way of a message to a worker and back, over a real Redis and real worker processes."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rq import Queue
from rq.job import Callback
from rq.serializers import JSONSerializer, PickleSerializer

from backend.dispatch import Dispatcher
from sam2_backend.errors import (
    JobTimedOutError,
    MediaRefusedError,
    NoWorkerError,
    OverloadedError,
    QueueDownError,
    Sam2BackendError,
    SupersededError,
)
from sam2_backend.messages import ImagePrompt, MediaRef, RunLengths, WarmJob, to_wire
from sam2_backend.queue_format import SEGMENT_IMAGE, reply_key, unpack_answer

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import HEARTBEAT_S, Background, Workers, job, names_in, until


def test_every_job_gets_its_own_answer_in_order(dispatcher, workers):
    workers.start("w0")
    answers = dispatcher.segment([job("a", "b"), job("c", uri="http://images.test/2.png")], 20)
    assert [[mask.prompt_id for mask in answer.masks] for answer in answers] == [["a", "b"], ["c"]]
    assert set(answers[0].timings_ms) == {"queue", "decode"}
    assert dispatcher.segment([], 20) == []


def test_nothing_of_an_answered_job_stays_in_redis(dispatcher, workers):
    workers.start("w0")
    dispatcher.segment([job(), job("error:media_refused")], 20)
    keys = until(lambda: (k := workers.connection.keys("*")) and not any(b"rq:job" in key for key in k) and k)
    without_end = {key for key in keys if workers.connection.ttl(key) < 0}
    assert without_end <= {b"sam2:workers", b"sam2:model_version", b"rq:workers", b"rq:queues"} | {
        f"rq:workers:{queue}".encode() for queue in ("interactive", "warm", "interactive@w0", "warm@w0", "preannotate")
    }


def test_an_image_stays_with_one_worker_and_images_spread_over_all(dispatcher, workers):
    workers.start("w0")
    workers.start("w1")
    jobs = [job(uri=f"http://images.test/{index}.png") for index in range(16)]
    first, second = names_in(dispatcher.segment(jobs, 20)), names_in(dispatcher.segment(jobs, 20))
    assert first == second
    assert set(first) == {"w0", "w1"}


def test_an_error_of_ours_arrives_as_what_it_was(dispatcher, workers):
    workers.start("w0")
    error, good = dispatcher.segment([job("error:media_refused"), job()], 20)
    assert type(error) is MediaRefusedError
    assert (error.message, error.retry_after_s) == ("as asked", 7.0)
    assert names_in([good]) == ["w0"]


def test_a_crash_of_a_job_shows_its_traceback_to_the_log_alone_and_no_token_to_anyone(dispatcher, workers):
    workers.start("w0")
    [error] = dispatcher.segment([job("fail:GET https://user:pass@host/a.png?token=sesame failed")], 20)
    assert type(error) is Sam2BackendError
    assert "Traceback" not in error.message
    assert "sesame" not in error.message
    log = workers.log_of("w0").read_text()
    assert "Traceback" in log
    assert "https://host/a.png failed" in log
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]


def test_long_prompts_and_long_answers_travel_beside_the_queue(dispatcher, workers):
    workers.start("w0")
    brush = ImagePrompt("mask:50000", mask=RunLengths((2, 2), b"\x01\0\0\0" * 50_000))
    message = replace(job(), prompts=(brush,))
    busy = Background(lambda: dispatcher.segment([job("sleep:1")], 20))
    workers.started()
    call = Background(lambda: dispatcher.segment([message], 20))
    [job_id] = until(lambda: workers.waiting("interactive@w0"))
    assert int(workers.connection.memory_usage(b"rq:job:" + job_id)) < 10_000
    [answer] = call.result()
    assert len(answer.masks[0].runs.counts) == 200_000
    busy.result()


def test_a_newer_click_on_a_drawing_supersedes_the_one_that_waits(dispatcher, workers):
    workers.start("w0")
    busy = Background(lambda: dispatcher.segment([job("sleep:1")], 20))
    workers.started()
    older = Background(lambda: dispatcher.segment([job("note:older", drawing="7/x")], 20))
    until(lambda: len(workers.waiting("interactive@w0")) == 1)
    newer = Background(lambda: dispatcher.segment([job("note:newer", drawing="7/x")], 20))
    assert type(older.result()[0]) is SupersededError
    assert names_in(newer.result()) == ["w0"]
    assert workers.connection.lrange("sam2:test:notes", 0, -1) == [b"newer"]
    busy.result()


def test_jobs_of_one_call_do_not_supersede_one_another(dispatcher, workers):
    workers.start("w0")
    names_in(dispatcher.segment([job(drawing="7/x"), job(uri="http://images.test/2.png", drawing="7/x")], 20))


def test_a_full_queue_refuses_with_a_time_to_come_back(dispatcher, workers, quick):
    workers.start("w0")
    small = Dispatcher(replace(quick, max_queued=2))
    calls = [Background(lambda: small.segment([job("sleep:1")], 20))]
    workers.started()
    for waiting in (1, 2):
        calls.append(Background(lambda: small.segment([job()], 20)))
        until(lambda waiting=waiting: len(workers.waiting("interactive@w0")) == waiting)
    with pytest.raises(OverloadedError) as raised:
        small.segment([job()], 20)
    assert raised.value.retry_after_s > 0
    for call in calls:
        names_in(call.result())
    names_in(small.segment([job()], 20))
    small.close()


def test_a_job_that_takes_too_long_is_given_up_and_removed(dispatcher, workers):
    workers.start("w0")
    calls = [Background(lambda: dispatcher.segment([job("sleep:2")], 0.7))]
    workers.started()
    calls.append(Background(lambda: dispatcher.segment([job("note:late")], 0.5)))
    for call in calls:
        [error] = call.result()
        assert type(error) is JobTimedOutError
    names_in(dispatcher.segment([job()], 20))
    assert workers.connection.lrange("sam2:test:notes", 0, -1) == []


def test_the_time_limit_of_a_job_ends_it_inside_the_worker(dispatcher, workers):
    workers.start("w0")
    queue = Queue("interactive", connection=workers.connection, serializer=JSONSerializer)
    envelope = {"sent_at": time.time(), "message": to_wire(job("sleep:30"))}
    queue.enqueue_call(SEGMENT_IMAGE, args=(envelope,), timeout=1, job_id="slow-0")
    _, data = workers.connection.blpop(reply_key("slow-0"), 10) if until(lambda: workers.connection.exists(reply_key("slow-0"))) else None
    assert type(unpack_answer(data)) is JobTimedOutError
    names_in(dispatcher.segment([job()], 20))


def test_without_a_worker_the_answer_says_how_to_start_one_at_once(dispatcher):
    start = time.monotonic()
    with pytest.raises(NoWorkerError, match=r"sam2-backend worker"):
        dispatcher.segment([job()], 60)
    assert time.monotonic() - start < 3


def test_a_worker_that_loads_is_waited_for(dispatcher, workers):
    workers.start("w0", serving=False, LOADING_S="1.5")
    assert [worker.state for worker in dispatcher.workers()] == ["loading"]
    with pytest.raises(NoWorkerError, match="still loads"):
        dispatcher.segment([job()], 0.2)
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]


ATTACKS = {
    "a function of the system": {"f": "os.system", "args": ["touch {trace}"]},
    "a builtin": {"f": "builtins.eval", "args": ["open('{trace}', 'w')"]},
    "another function of ours": {"f": "sam2_backend.worker.run_worker", "args": []},
    "more arguments than ours": {"f": SEGMENT_IMAGE, "args": [{}, "{trace}"]},
    "an argument that is no envelope": {"f": SEGMENT_IMAGE, "args": ["{trace}"]},
    "a message with a field too many": {"f": SEGMENT_IMAGE, "args": [{"sent_at": 0, "message": {"trace": "{trace}"}}]},
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_worker_refuses(attack, dispatcher, workers, tmp_path):
    trace = tmp_path / "trace"
    workers.start("w0")
    arguments = json.loads(json.dumps(attack["args"]).replace("{trace}", str(trace)))
    queue = Queue("interactive", connection=workers.connection, serializer=JSONSerializer)
    queue.enqueue_call(
        attack["f"], args=arguments, job_id="bad-0", on_success=Callback("os.getpid"), on_failure=Callback("os.getpid"), description="x"
    )
    data = until(lambda: workers.connection.lindex(reply_key("bad-0"), 0))
    assert unpack_answer(data).code == "job_refused"
    assert not trace.exists()
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]


def test_a_pickle_is_refused_unread(dispatcher, workers, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    workers.start("w0")
    assert pickle.dumps(Evil())
    queue = Queue("interactive", connection=workers.connection, serializer=PickleSerializer)
    queue.enqueue_call(SEGMENT_IMAGE, args=(Evil(),), job_id="bad-0", description="x")
    data = until(lambda: workers.connection.lindex(reply_key("bad-0"), 0))
    assert unpack_answer(data).code == "job_refused"
    assert not (tmp_path / "trace").exists()
    names_in(dispatcher.segment([job()], 20))


def test_a_job_record_that_cannot_be_read_is_dropped(dispatcher, workers):
    workers.start("w0")
    workers.connection.hset("rq:job:bad", mapping={"data": "x", "created_at": "yesterday", "timeout": "soon"})
    workers.connection.rpush("rq:queue:interactive", "bad")
    until(lambda: not workers.connection.exists("rq:job:bad"))
    names_in(dispatcher.segment([job()], 20))


def uris(count: int) -> list[str]:
    return [f"http://images.test/{index}.png" for index in range(count)]


def test_warming_goes_to_the_worker_that_the_clicks_go_to(dispatcher, workers):
    workers.start("w0")
    workers.start("w1")
    dispatcher.warm([WarmJob(MediaRef(uri)) for uri in uris(12)])
    warmed = until(lambda: (lines := workers.connection.lrange("sam2:test:warmed", 0, -1)) and len(lines) == 12 and lines)
    clicked = names_in(dispatcher.segment([job(uri=uri) for uri in uris(12)], 20))
    assert sorted(line.decode() for line in warmed) == sorted(f"{name} {uri}" for name, uri in zip(clicked, uris(12), strict=True))


def test_an_image_is_warmed_once_however_often_it_is_asked_for(dispatcher, workers):
    workers.start("w0", serving=False, LOADING_S="30")
    for _ in range(3):
        dispatcher.warm([WarmJob(MediaRef(uri)) for uri in (*uris(2), *uris(2))])
    assert len(workers.waiting("warm@w0")) == 2


def test_the_queue_of_warm_jobs_is_bounded(dispatcher, workers):
    workers.start("w0", serving=False, LOADING_S="30")
    dispatcher.warm([WarmJob(MediaRef(uri)) for uri in uris(1500)])
    assert len(workers.waiting("warm@w0")) == 1000
    workers.connection.delete("rq:queue:warm@w0")
    dispatcher.warm([WarmJob(MediaRef(uri)) for uri in uris(1500)])
    assert len(workers.waiting("warm@w0")) == 500, "what was dropped may be asked for again, what was taken may not"


def test_warming_without_a_worker_waits_for_the_first_that_comes(dispatcher, workers):
    dispatcher.warm([WarmJob(MediaRef(uri)) for uri in uris(2)])
    workers.start("w0")
    until(lambda: workers.connection.llen("sam2:test:warmed") == 2)


def test_a_click_does_not_wait_behind_warm_jobs(dispatcher, workers):
    workers.start("w0")
    dispatcher.warm([WarmJob(MediaRef(uri)) for uri in uris(200)])  # 20 ms each
    names_in(dispatcher.segment([job(uri=uris(200)[-1])], 20))
    assert workers.connection.llen("sam2:test:warmed") < 100


def test_equal_bytes_are_one_blob(dispatcher, workers):
    first, second, other = dispatcher.put_blob(b"image"), dispatcher.put_blob(b"image"), dispatcher.put_blob(b"other")
    assert first == second != other
    key = f"sam2:{first.uri}"
    assert workers.connection.get(key) == b"image"
    assert 0 < workers.connection.ttl(key) <= 3600


def test_what_the_status_page_asks_for_is_true_and_quick(dispatcher, workers):
    assert dispatcher.model_version() == "sam2-backend"
    assert dispatcher.workers() == []
    worker = workers.start("w0")
    dispatcher.segment([job(), job("fail:x")], 20)
    [status] = until(lambda: (seen := dispatcher.workers()) and seen[0].jobs_done == 2 and seen)
    assert (status.name, status.pid, status.jobs_failed, status.hits) == ("w0", worker.pid, 1, {"device": 3.0})
    assert dispatcher.queue_lengths() == {"interactive": 0, "warm": 0, "preannotate": 0, "interactive@w0": 0, "warm@w0": 0}
    assert dispatcher.model_version() == "no-model@1"
    start = time.monotonic()
    for _ in range(50):
        dispatcher.workers()
    assert (time.monotonic() - start) / 50 < 0.002
    worker.terminate()
    worker.wait()
    until(lambda: dispatcher.workers() == [])
    assert dispatcher.model_version() == "no-model@1", "the last one seen"


@pytest.fixture
def own(own_redis_server, settings, tmp_path) -> Iterator[tuple]:
    its_settings = replace(settings, redis_url=own_redis_server.url, heartbeat_s=HEARTBEAT_S)
    workers, dispatcher = Workers(its_settings, tmp_path), Dispatcher(its_settings)
    yield own_redis_server, workers, dispatcher
    workers.close()
    dispatcher.close()


def test_redis_that_stops_is_told_quickly_and_the_request_after_its_return_works(own):
    server, workers, dispatcher = own
    worker = workers.start("w0")
    names_in(dispatcher.segment([job()], 20))
    under_way = Background(lambda: dispatcher.segment([job("sleep:1")], 20))
    workers.started()
    server.stop()
    for call in (
        under_way.result,
        lambda: dispatcher.segment([job()], 20),
        lambda: dispatcher.warm([WarmJob(MediaRef("http://images.test/1.png"))]),
        lambda: dispatcher.put_blob(b"image"),
        dispatcher.queue_lengths,
    ):
        start = time.monotonic()
        with pytest.raises(QueueDownError, match="Redis"):
            call()
        assert time.monotonic() - start < 3
    assert dispatcher.model_version() == "no-model@1"
    time.sleep(1.5)
    server.start()  # empty
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]
    assert worker.poll() is None
    assert "Traceback" not in workers.log_of("w0").read_text()


def test_redis_that_hangs_is_told_quickly_and_the_request_after_its_return_works(own):
    server, workers, dispatcher = own
    workers.start("w0")
    names_in(dispatcher.segment([job()], 20))
    os.kill(server._process.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(QueueDownError):
            dispatcher.segment([job()], 20)
        assert time.monotonic() - start < 3.5
    finally:
        os.kill(server._process.pid, signal.SIGCONT)
    assert names_in(dispatcher.segment([job()], 20)) == ["w0"]


def test_no_redis_set_is_told_in_words(settings):
    with pytest.raises(QueueDownError, match="SAM2_REDIS_URL"):
        Dispatcher(replace(settings, redis_url="")).segment([job()], 1)
