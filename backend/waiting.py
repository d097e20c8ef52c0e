"""Waiting for answers, and seeing to it that they can still come. Knows no rq.

A job whose worker died, or that vanished between two hands, is sent again; jobs are idempotent, so twice is harmless.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import redis

from backend.pending import Pending, lost_among
from sam2_backend.errors import JobTimedOutError, NoWorkerError
from sam2_backend.liveness import BEATS_UNTIL_DEAD, bury, incarnation, live_workers
from sam2_backend.queue_format import choose_worker, queue_key
from sam2_backend.redis_connection import BLOCK_S, as_bytes, through_cuts

SendAgain = Callable[[Sequence[Pending]], None]


def await_answers(
    connection: redis.Redis, pending: Sequence[Pending], wait_s: float, deadline: float, heartbeat_s: float, send_again: SendAgain
) -> None:
    """Return when every job has its answer; at the deadline that is an error.

    Args:
        deadline: In time.monotonic(), `wait_s` after the request came.
        send_again: Enqueues jobs where their `worker` says.

    Raises:
        redis.RedisError: Redis does not answer, not even when a connection that was cut is made again.
        NoWorkerError: nobody answered any of them, and at the deadline nobody lives.
    """
    # Often enough to notice a death soon after its record ends, seldom enough to cost nothing.
    look_every_s = min(BLOCK_S, heartbeat_s * BEATS_UNTIL_DEAD / 2)
    by_key = {job.reply_key.encode(): job for job in pending}
    look_at = time.monotonic() + look_every_s
    while waiting := [job for job in pending if job.answer is None]:
        now = time.monotonic()
        if now >= deadline:
            _give_up(connection, pending, waiting, wait_s)
            return
        if now >= look_at:
            through_cuts(partial(_look_after, connection, waiting, send_again))
            look_at = now + look_every_s
            continue
        for key, data in _answered(connection, waiting, min(deadline, look_at) - now):
            by_key[key].take(data)


def _answered(connection: redis.Redis, waiting: Sequence[Pending], wait_s: float) -> Iterator[tuple[bytes, bytes]]:
    """The first answer that comes, if one does. One that is lost with its connection is missed by `_look_after`, and made again."""
    keys = [job.reply_key for job in waiting]
    popped = through_cuts(lambda: connection.blpop(keys, max(0.01, wait_s)))  # not 0, which would wait for ever
    if popped:
        yield as_bytes(popped[0]), as_bytes(popped[1])


def _look_after(connection: redis.Redis, waiting: Sequence[Pending], send_again: SendAgain) -> None:
    live = live_workers(connection)
    for name in {job.worker for job in waiting} - {"", *(worker.name for worker in live)}:
        bury(connection, name)  # it left between the choice of the worker and the enqueueing: nobody else would
    lost = lost_among(connection, waiting, {incarnation(worker) for worker in live})
    serving = [worker.name for worker in live if worker.state != "loading"]
    for job in lost:
        job.worker = choose_worker(job.message.media.uri, serving) if serving else ""
        job.looks_missing = 0
    if lost:
        send_again(lost)


def _give_up(connection: redis.Redis, pending: Sequence[Pending], waiting: Sequence[Pending], wait_s: float) -> None:
    with connection.pipeline() as pipe:
        for job in waiting:
            for queue in {job.queue, "interactive"}:
                pipe.lrem(queue_key(queue), 0, job.job_id)
            pipe.delete(job.record_key)
        pipe.execute()
    if any(worker.state != "loading" for worker in live_workers(connection)):
        for job in waiting:
            job.answer = JobTimedOutError(f"The masks were not ready within {wait_s:.0f} s. Try again: what was done so far is kept.")
        return
    error = NoWorkerError(f"No worker answered within {wait_s:.0f} s. Start one with `sam2-backend worker`, or see the status page.")
    if len(waiting) == len(pending):
        raise error
    for job in waiting:
        job.answer = error
