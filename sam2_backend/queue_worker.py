"""The rq worker: one process, one job at a time, never a fork, since a fork would lose the model.

Queue, job and registration are rq's. The loop is ours, because rq's ends when Redis does; so is the bookkeeping of a job: one round trip
before the work and one after it, and nothing left behind that has no end of life.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal

import redis
from rq import Queue, SimpleWorker, worker_registration
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import now
from rq.worker.base import WorkerStatus as RqState

from sam2_backend.click_batch import turns
from sam2_backend.courtesy import Courtesy
from sam2_backend.dataset_messages import DatasetReply
from sam2_backend.errors import JobTimedOutError, Sam2BackendError, SupersededError
from sam2_backend.job_records import MARGIN_S, JobRecords, limit_s
from sam2_backend.job_source import JobSource
from sam2_backend.jobs import Runtime, segment_images
from sam2_backend.liveness import BEATS_UNTIL_DEAD, announce, bury, incarnation
from sam2_backend.messages import ImageReply, WorkerStatus
from sam2_backend.queue_format import (
    PREANNOTATE,
    queues_of_people,
    queues_served,
    worker_key,
)
from sam2_backend.redis_connection import BLOCK_S, SOCKET_TIMEOUT_S
from sam2_backend.safe_job import SafeJob

log = logging.getLogger(__name__)

_RETRY_S = 0.25
_PUSHES = 20
#: How long a started job's record outlives its time limit.
_MARGIN_S = 60
_DEFAULT_LIMIT_S = 180


class QueueWorker(SimpleWorker):  # type: ignore[misc]
    """Serves the queues of one worker name.

    Args:
        status: What is known before the model is loaded.
        connection: Used by the loop and by the heartbeat thread.
        heartbeat_s: How often `beat` will be called.
        click_batch: Clicks taken at a time.
    """

    job_class = SafeJob
    #: rq widens the socket's timeout to this; ours is wide enough for our short waits.
    connection_timeout = SOCKET_TIMEOUT_S

    def __init__(self, status: WorkerStatus, connection: redis.Redis, heartbeat_s: float, click_batch: int = 1) -> None:
        super().__init__(
            queues_served(status.name),
            name=incarnation(status),
            connection=connection,
            serializer=JSONSerializer,
            prepare_for_work=False,  # it would ask Redis, which may not be there yet
        )
        self.hostname, self.pid, self.ip_address = status.hostname, status.pid, "unknown"
        self.birth_date = self.last_heartbeat = now()
        self._status, self._heartbeat_s = status, heartbeat_s
        self._people, self._all = queues_of_people(status.name), queues_served(status.name)
        self._source = JobSource(connection, status.name, click_batch)
        self._runtime: Runtime | None = None
        self._should_stop: Callable[[], bool] = lambda: False
        self._redis_is_down = False
        self._records = JobRecords(connection, self.name, self._mark)

    def beat(self) -> None:
        """Write one sign of life, ours and rq's, whole: a Redis that came back empty knows this worker again.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        usage = self._runtime.usage() if self._runtime else None
        status = replace(self._status, beat_at=time.time())
        if usage:
            status = replace(
                status,
                device_cache_bytes=usage.device_cache_bytes,
                host_cache_bytes=usage.host_cache_bytes,
                device_used_bytes=usage.device_used_bytes,
                device_total_bytes=usage.device_total_bytes,
                hits=dict(usage.hits or {}),
            )
        self.last_heartbeat = now()
        with self.connection.pipeline() as pipe:
            announce(pipe, status, self._heartbeat_s)
            pipe.hset(self.key, mapping=self.serialize())
            pipe.expire(self.key, max(1, round(self._heartbeat_s * BEATS_UNTIL_DEAD)))
            worker_registration.register(self, pipe)
            pipe.execute()

    def serve(self, runtime: Runtime, should_stop: Callable[[], bool]) -> None:
        """Take jobs until told to stop; looked at between jobs, and every second while idle. Outlives any absence of Redis.

        Where no job waits, a piece of a propagation is done, and where there is none, an image of a dataset: whoever clicks waits for
        one piece at most.
        """
        self._runtime, self._should_stop = runtime, should_stop
        propagator, has_more, looks_at = runtime.propagator, False, 0.0
        self._status = replace(self._status, state="idle", model_version=runtime.model_version, device=runtime.device)
        self._redis_is_down = True  # so that the first success announces the new state at once
        while not should_stop():
            try:
                if self._redis_is_down:
                    self.beat()
                    self._redis_is_down = False
                self._records.settle()
                found = self._source.take(self._people if has_more else self._all, waits=not has_more)
                self._do(found)
                # People who click every second must not keep a propagation from being begun: then it has the time between them.
                if not found or found[0].origin == PREANNOTATE or (not has_more and time.monotonic() >= looks_at):
                    has_more, looks_at = propagator.step(self.name), time.monotonic() + BLOCK_S
                    self._status = replace(self._status, state=self._state_between_jobs())
            except redis.RedisError as error:
                if not self._redis_is_down:
                    log.warning("Redis does not answer (%s); trying again until it does", type(error).__name__)
                self._redis_is_down = True
                time.sleep(_RETRY_S)
        with suppress(redis.RedisError):
            propagator.put_down()

    def leave(self) -> None:
        """Hand what waits for this worker to the others, and unregister. The heartbeat must have ended before.

        Raises:
            redis.RedisError: Redis does not answer; the others notice by the silence.
        """
        self.connection.delete(worker_key(self._status.name))
        bury(self.connection, self._status.name)
        self.register_death()

    def execute_job(self, job: SafeJob, queue: Queue) -> None:  # noqa: ARG002  rq's signature
        """Do one job and push its answer.

        Raises:
            redis.RedisError: Redis went away; what could not be said of the job is said once it is back (`JobRecords.settle`).
        """
        self._begin([job])
        self._finish(job, self._answer(job))

    def _do(self, jobs: list[SafeJob], *, may_stop: bool = True) -> None:
        """Do what was taken: one job, or several clicks. A worker that is asked to stop begins no further turn of them."""
        assert self._runtime is not None
        groups, later = turns(jobs, self._runtime) if len(jobs) > 1 else ([jobs] if jobs else [], [])
        if later:
            self._source.put_back(later)
        if groups:
            self._begin(_flat(groups))
        try:
            while groups:
                self._do_together(groups[0])
                groups = groups[1:]
                if may_stop and self._should_stop():
                    break
        except redis.RedisError:
            self._records.abandon(_flat(groups))
            raise
        if groups:
            self._records.hand_back(_flat(groups))
            self._source.put_back(_flat(groups))

    def _do_together(self, jobs: Sequence[SafeJob]) -> None:
        left = dict(enumerate(jobs))
        for place, answer in self._answers_together(jobs) if len(jobs) > 1 else ():
            self._finish(left.pop(place), answer)
        for job in left.values():
            self._finish(job, self._answer(job))

    def _answers_together(self, jobs: Sequence[SafeJob]) -> Iterator[tuple[int, ImageReply | SupersededError]]:
        """Answers, with the places of their jobs, as they come. Who gets none is asked alone: what goes wrong is one job's alone."""
        clicks = [click for job in jobs if (click := job.click())]
        answers = segment_images(clicks, [job.order() for job in jobs])
        ends_at = time.monotonic() + min(map(limit_s, jobs))
        while True:
            try:
                with self.death_penalty_class(max(1, round(ends_at - time.monotonic())), JobTimeoutException, job_id=jobs[0].id):
                    done = next(answers, None)
            except Exception as error:
                log.warning("%d clicks failed together (%s); each is done by itself", len(jobs), type(error).__name__)
                return
            if done is None:
                return
            yield from done

    def _begin(self, jobs: Sequence[SafeJob]) -> None:
        self._records.begin(jobs)
        self._status = replace(self._status, state="busy")

    def _finish(self, job: SafeJob, answer: ImageReply | DatasetReply | Sam2BackendError) -> None:
        failed = isinstance(answer, Sam2BackendError) and not isinstance(answer, SupersededError)
        self._status = replace(
            self._status,
            state=self._state_between_jobs(),
            jobs_done=self._status.jobs_done + 1,
            jobs_failed=self._status.jobs_failed + failed,
        )
        self._records.answer(job, answer)

    def _let_people(self, job_key: str, record_s: int) -> None:
        """Do what people wait for, in the middle of another job, whose time limit stands still meanwhile, as does its record's end."""
        try:
            while found := self._source.take(self._people, waits=False):
                with _paused_alarm():
                    self._do(found, may_stop=False)
                self.connection.expire(job_key, record_s)
                self._status = replace(self._status, state="busy")
        except redis.RedisError as error:
            log.warning("Redis does not answer (%s); going on with the job at hand", type(error).__name__)

    def _let_ready(self, job: SafeJob, courtesy: Courtesy) -> None:
        """As `_let_people`, in the middle of an encoder run: clicks whose image is embedded, which need the decoder alone."""
        if not courtesy.is_due or self._runtime is None:
            return
        try:
            with courtesy.giving():
                found = self._source.take_clicks(self._runtime.is_ready)
            while found:
                with courtesy.giving(), _paused_alarm():
                    self._do(found, may_stop=False)
                self.connection.expire(job.key, limit_s(job) + MARGIN_S)
                self._status = replace(self._status, state="busy")
                found = self._source.take_clicks(self._runtime.is_ready) if courtesy.has_time else []
        except redis.RedisError as error:
            log.warning("Redis does not answer (%s); going on with the job at hand", type(error).__name__)

    def _answer(self, job: SafeJob) -> ImageReply | DatasetReply | Sam2BackendError:
        ends_s, courtesy = limit_s(job), Courtesy(is_waited_for=job.origin.startswith("interactive"))

        def let_others() -> None:
            if job.origin == PREANNOTATE:
                self._let_people(job.key, ends_s + MARGIN_S)
            else:
                self._let_ready(job, courtesy)

        try:
            with self.death_penalty_class(ends_s, JobTimeoutException, job_id=job.id):
                return job.answer(let_others)
        except JobTimeoutException:
            log.warning("job %s exceeded its limit of %d s", job.id, ends_s)
            return JobTimedOutError(f"The worker did not finish within {ends_s} s. Click again, or use a smaller model.")

    def _mark(self, pipe: Any, job: SafeJob | None) -> None:
        """What rq's own tools show of this worker."""
        self.set_state(RqState.BUSY if job else RqState.IDLE, pipe)
        self.set_current_job_id(job.id if job else None, pipe)

    def _state_between_jobs(self) -> Literal["idle", "busy"]:
        return "busy" if self._runtime and self._runtime.propagator.is_busy else "idle"


def _flat(groups: Sequence[Sequence[SafeJob]]) -> list[SafeJob]:
    return [job for group in groups for job in group]


@contextmanager
def _paused_alarm() -> Iterator[None]:
    """The alarm that is set goes off later by as long as this lasts; the one set within is its own."""
    handler, (left_s, _) = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left_s)
