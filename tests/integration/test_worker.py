"""Workers that come, die, return and leave: no click is lost while anybody lives, and nobody waits for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sam2_backend.errors import NoWorkerError, Sam2BackendError
from sam2_backend.liveness import live_workers
from sam2_backend.messages import MediaRef, WarmJob

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import HEARTBEAT_S, Background, Workers, job, names_in, until

DEAD_AFTER_S = HEARTBEAT_S * 5


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_the_job_of_a_killed_worker_is_done_by_another(dispatcher, workers):
    processes = {name: workers.start(name) for name in ("w0", "w1")}
    call = Background(lambda: dispatcher.segment([job("sleep:1")], 60))
    [victim] = workers.started()
    kill(processes[victim])
    start = time.monotonic()
    assert names_in(call.result()) == [name for name in processes if name != victim]
    assert time.monotonic() - start < DEAD_AFTER_S + 1 + 5


def test_the_jobs_that_wait_for_a_killed_worker_are_done_by_another(dispatcher, workers):
    processes = {name: workers.start(name) for name in ("w0", "w1")}
    call = Background(lambda: dispatcher.segment([job("sleep:0.5"), job(), job()], 60))
    [victim] = workers.started()
    assert len(workers.waiting(f"interactive@{victim}")) == 2
    kill(processes[victim])
    assert len(set(names_in(call.result()))) == 1
    assert workers.waiting(f"interactive@{victim}") == []


def test_without_another_worker_the_wait_ends_in_words_at_the_deadline(dispatcher, workers):
    process = workers.start("w0")
    start = time.monotonic()
    call = Background(lambda: dispatcher.segment([job("sleep:5"), job()], 4))
    workers.started()
    kill(process)
    with pytest.raises(
        NoWorkerError, match=r"No worker answered within 4 s\. Start one with `sam2-backend worker`, or see the status page\."
    ):
        call.result()
    assert time.monotonic() - start < 4 + 3
    assert workers.waiting("interactive") == workers.waiting("interactive@w0") == []
    assert list(workers.connection.scan_iter("rq:job:*")) == []


def test_a_killed_worker_that_returns_under_its_name_redoes_the_job_in_hand(dispatcher, workers):
    process = workers.start("w0")
    call = Background(lambda: dispatcher.segment([job("sleep:0.5"), job()], 60))
    workers.started()
    kill(process)
    workers.start("w0")
    assert names_in(call.result()) == ["w0", "w0"]
    assert workers.started() == ["w0", "w0"]


def test_a_job_that_vanished_between_two_hands_is_sent_again(dispatcher, workers):
    workers.start("w0")
    busy = Background(lambda: dispatcher.segment([job("sleep:1")], 60))
    workers.started()
    call = Background(lambda: dispatcher.segment([job()], 60))
    until(lambda: workers.connection.lpop("rq:queue:interactive@w0"))
    names_in(call.result())
    busy.result()


def test_a_job_enqueued_for_a_worker_that_has_just_left_is_handed_on(dispatcher, workers):
    leaving = workers.start("w0")
    dispatcher.workers()  # remembered for a second
    leaving.terminate()
    workers.start("w1")
    leaving.wait()
    assert names_in(dispatcher.segment([job()], 60)) == ["w1"]


def test_a_job_that_kills_its_workers_does_not_kill_them_all(dispatcher, workers):
    for name in ("w0", "w1", "w2"):
        workers.start(name)
    [error] = dispatcher.segment([job("die")], 60)
    assert type(error) is Sam2BackendError
    assert "2 workers died" in error.message
    assert len(dispatcher.workers()) == 1


def test_a_job_longer_than_a_dead_workers_silence_is_done_once(dispatcher, workers):
    workers.start("w0")
    workers.start("w1")
    names_in(dispatcher.segment([job("sleep:4")], 60))
    assert len(workers.started()) == 1


def test_sigterm_lets_the_job_in_hand_end_and_hands_the_rest_on(dispatcher, workers):
    processes = {name: workers.start(name) for name in ("w0", "w1")}
    call = Background(lambda: dispatcher.segment([job("sleep:1"), job("plain")], 60))
    [leaver] = workers.started()
    dispatcher.redis().rpush(f"rq:queue:warm@{leaver}", "some-warm-job")
    processes[leaver].terminate()
    assert processes[leaver].wait(20) == 0
    [other] = set(processes) - {leaver}
    assert names_in(call.result()) == [leaver, other]
    assert [worker.name for worker in live_workers(workers.connection)] == [other]
    assert workers.waiting(f"warm@{leaver}") == []
    assert "Traceback" not in workers.log_of(leaver).read_text()


def test_sigterm_while_the_model_loads_ends_at_once(workers):
    process = workers.start("w0", serving=False, LOADING_S="60")
    process.terminate()
    assert process.wait(10) == 0
    assert live_workers(workers.connection) == []


def test_a_second_interrupt_does_not_wait_for_the_job_in_hand(dispatcher, workers):
    process = workers.start("w0")
    call = Background(lambda: dispatcher.segment([job("sleep:30")], 3))
    workers.started()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == -signal.SIGINT
    with pytest.raises(NoWorkerError):
        call.result()


def test_sigterm_is_obeyed_while_redis_is_away(own_redis_server, quick, tmp_path):
    workers = Workers(replace(quick, redis_url=own_redis_server.url), tmp_path)
    process = workers.start("w0")
    own_redis_server.stop()
    time.sleep(0.5)
    process.terminate()
    assert process.wait(10) == 0
    assert "Traceback" not in workers.log_of("w0").read_text()
    workers.close()


def test_two_workers_do_not_share_a_name(workers):
    workers.start("w0")
    assert workers.start_unawaited("w0").wait(20) != 0
    assert "already runs" in workers.log_of("w0").read_text()


def test_the_warm_queue_of_a_dead_worker_is_served_by_another(dispatcher, workers):
    first = workers.start("w0", serving=False, LOADING_S="60")
    dispatcher.warm([WarmJob(MediaRef(f"http://images.test/{index}.png")) for index in range(3)])
    assert len(workers.waiting("warm@w0")) == 3
    kill(first)
    workers.start("w1")
    until(lambda: workers.connection.llen("sam2:test:warmed") == 3)


def test_a_worker_waits_for_a_redis_that_is_not_there_yet(own_redis_server, quick, tmp_path):
    own_redis_server.stop()
    workers = Workers(replace(quick, redis_url=own_redis_server.url), tmp_path)
    process = workers.start_unawaited("w0")
    time.sleep(1.5)
    own_redis_server.start()
    until(lambda: [worker.state for worker in live_workers(workers.connection)] == ["idle"])
    assert process.poll() is None
    workers.close()
