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
from rq.exceptions import DequeueTimeout
from rq.serializers import JSONSerializer
from rq.timeouts import JobTimeoutException
from rq.utils import now
from rq.worker.base import WorkerStatus as RqState

from sam2_backend.dataset_messages import DatasetReply
from sam2_backend.errors import JobTimedOutError, Sam2BackendError, SupersededError
from sam2_backend.jobs import Runtime
from sam2_backend.liveness import BEATS_UNTIL_DEAD, announce, bury, incarnation
from sam2_backend.messages import ImageReply, WorkerStatus
from sam2_backend.queue_format import (
    DATASET_REPLY_TTL_S,
    PREANNOTATE,
    REPLY_TTL_S,
    pack_answer,
    queues_of_people,
    queues_served,
    reply_key,
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
    """

    job_class = SafeJob
    #: rq widens the socket's timeout to this; ours is wide enough for our short waits.
    connection_timeout = SOCKET_TIMEOUT_S

    def __init__(self, status: WorkerStatus, connection: redis.Redis, heartbeat_s: float) -> None:
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
        people = queues_of_people(status.name)
        self._people = [queue for queue in self.queues if queue.name in people]
        self._runtime: Runtime | None = None
        self._redis_is_down = False

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
        self._runtime = runtime
        propagator, has_more = runtime.propagator, False
        self._status = replace(self._status, state="idle", model_version=runtime.model_version, device=runtime.device)
        self._redis_is_down = True  # so that the first success announces the new state at once
        while not should_stop():
            try:
                if self._redis_is_down:
                    self.beat()
                    self._redis_is_down = False
                found = self._next_job(self._people if has_more else self.queues, waits=not has_more)
                if found is not None:
                    self.execute_job(*found)
                if found is None or found[1].name == PREANNOTATE:
                    has_more = propagator.step(self.name)
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
            redis.RedisError: Redis went away; whoever waits for the job sends it again.
        """
        limit_s = max(1, int(job.timeout or _DEFAULT_LIMIT_S))
        with self.connection.pipeline() as pipe:
            job.prepare_for_execution(self.name, pipe)
            pipe.expire(job.key, limit_s + _MARGIN_S)
            self.set_state(RqState.BUSY, pipe)
            self.set_current_job_id(job.id, pipe)
            pipe.execute()
        self._status = replace(self._status, state="busy")
        answer = self._answer(job, limit_s)
        failed = isinstance(answer, Sam2BackendError) and not isinstance(answer, SupersededError)
        self._status = replace(
            self._status,
            state=self._state_between_jobs(),
            jobs_done=self._status.jobs_done + 1,
            jobs_failed=self._status.jobs_failed + failed,
        )
        self._push(job, answer)

    def _let_people(self, job_key: str, record_s: int) -> None:
        """Do what people wait for, in the middle of another job, whose time limit stands still meanwhile, as does its record's end."""
        try:
            while found := self._next_job(self._people, waits=False):
                with _paused_alarm():
                    self.execute_job(*found)
                self.connection.expire(job_key, record_s)
                self._status = replace(self._status, state="busy")
        except redis.RedisError as error:
            log.warning("Redis does not answer (%s); going on with the job at hand", type(error).__name__)

    def _answer(self, job: SafeJob, limit_s: int) -> ImageReply | DatasetReply | Sam2BackendError:
        try:
            with self.death_penalty_class(limit_s, JobTimeoutException, job_id=job.id):
                return job.answer(lambda: self._let_people(job.key, limit_s + _MARGIN_S))
        except JobTimeoutException:
            log.warning("job %s exceeded its limit of %d s", job.id, limit_s)
            return JobTimedOutError(f"The worker did not finish within {limit_s} s. Click again, or use a smaller model.")

    def _push(self, job: SafeJob, answer: ImageReply | DatasetReply | Sam2BackendError) -> None:
        ttl_s = DATASET_REPLY_TTL_S if job.origin == PREANNOTATE else REPLY_TTL_S
        data = pack_answer(answer)
        for left in reversed(range(_PUSHES)):
            try:
                with self.connection.pipeline() as pipe:
                    pipe.rpush(reply_key(job.id), data)
                    pipe.expire(reply_key(job.id), ttl_s)
                    pipe.delete(job.key)
                    self.set_state(RqState.IDLE, pipe)
                    self.set_current_job_id(None, pipe)
                    pipe.execute()
                return
            except redis.RedisError:
                if not left:
                    raise
                time.sleep(_RETRY_S)

    def _state_between_jobs(self) -> Literal["idle", "busy"]:
        return "busy" if self._runtime and self._runtime.propagator.is_busy else "idle"

    def _next_job(self, queues: Sequence[Queue], *, waits: bool) -> tuple[SafeJob, Queue] | None:
        try:
            found: tuple[SafeJob, Queue] | None = Queue.dequeue_any(
                queues, round(BLOCK_S) if waits else None, connection=self.connection, job_class=SafeJob, serializer=JSONSerializer
            )
            return found
        except DequeueTimeout:
            return None
        except redis.RedisError:
            raise
        except Exception as error:
            self._drop(str(getattr(error, "job_id", "")), error)
            return None

    def _drop(self, job_id: Any, error: Exception) -> None:
        log.warning("job %s has an unreadable record (%s) and was dropped: sam2-backend did not write it", job_id, type(error).__name__)
        self.connection.delete(SafeJob.redis_job_namespace_prefix + job_id)


@contextmanager
def _paused_alarm() -> Iterator[None]:
    """The alarm that is set goes off later by as long as this lasts; the one set within is its own."""
    handler, (left_s, _) = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left_s)
