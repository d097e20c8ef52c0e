"""What Redis is told of the jobs in a worker's hands: begun, answered, handed back; and what it could not be told, once it can."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from sam2_backend.dataset_messages import DatasetReply
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import ImageReply
from sam2_backend.queue_format import DATASET_REPLY_TTL_S, PREANNOTATE, REPLY_TTL_S, drawing_key, pack_answer, reply_key
from sam2_backend.safe_job import SafeJob

#: How long a started job's record outlives its time limit.
MARGIN_S = 60
_DEFAULT_LIMIT_S = 180
_RETRY_S = 0.25
_PUSHES = 20


@dataclass(frozen=True, slots=True)
class _Unsettled:
    """A job of which Redis could not be told what became of it; without an answer it was never begun."""

    record_key: str
    answer: bytes = b""
    ttl_s: int = 0


class JobRecords:
    """The records and replies of one worker's jobs. Used by one thread.

    Args:
        holder: The worker's incarnation, as the records name it.
        mark: Adds to a pipeline what else is to be said along with it: the job that is begun, or None where one is answered.
    """

    def __init__(self, connection: redis.Redis, holder: str, mark: Callable[[Any, SafeJob | None], None]) -> None:
        self._redis, self._holder, self._mark = connection, holder, mark
        self._unsettled: dict[str, _Unsettled] = {}

    def begin(self, jobs: Sequence[SafeJob]) -> None:
        """Write down whose hands these are in, and read what is newest on their drawings; one round trip.

        Raises:
            redis.RedisError: Redis does not answer; they are let go of once it does.
        """
        drawn = [job for job in jobs if job.drawing]
        try:
            with self._redis.pipeline() as pipe:
                for job in jobs:
                    job.prepare_for_execution(self._holder, pipe)
                    pipe.expire(job.key, limit_s(job) + MARGIN_S)
                self._mark(pipe, jobs[0])
                for job in drawn:
                    pipe.get(drawing_key(job.drawing))
                found = pipe.execute()
        except redis.RedisError:
            self.abandon(jobs)
            raise
        for job, newest in zip(drawn, found[len(found) - len(drawn) :], strict=True):
            job.newest = newest

    def answer(self, job: SafeJob, answer: ImageReply | DatasetReply | Sam2BackendError) -> None:
        """Push a job's answer and forget the job; tried for some seconds.

        Raises:
            redis.RedisError: Redis does not answer; the answer is pushed once it does.
        """
        ttl_s = DATASET_REPLY_TTL_S if job.origin == PREANNOTATE else REPLY_TTL_S
        data = pack_answer(answer)
        for left in reversed(range(_PUSHES)):
            try:
                with self._redis.pipeline() as pipe:
                    pipe.rpush(reply_key(job.id), data)
                    pipe.expire(reply_key(job.id), ttl_s)
                    pipe.delete(job.key)
                    self._mark(pipe, None)
                    pipe.execute()
                return
            except redis.RedisError:
                if not left:
                    self._unsettled[job.id] = _Unsettled(job.key, data, ttl_s)
                    raise
                time.sleep(_RETRY_S)

    def hand_back(self, jobs: Sequence[SafeJob]) -> None:
        """Undo `begin`; a record that nobody wants any more ends by itself.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        with self._redis.pipeline() as pipe:
            for job in jobs:
                pipe.hset(job.key, "status", "queued")
                pipe.expire(job.key, limit_s(job))
            pipe.execute()

    def abandon(self, jobs: Sequence[SafeJob]) -> None:
        """Remember to let go of jobs that are not answered."""
        for job in jobs:
            self._unsettled.setdefault(job.id, _Unsettled(job.key))

    def settle(self) -> None:
        """Push the answers that could not be pushed, and let go of jobs that were never begun.

        Their records name this worker, which lives: nobody would send them again before the records end.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        for job_id, left in list(self._unsettled.items()):
            with self._redis.pipeline() as pipe:
                if left.answer:
                    pipe.rpush(reply_key(job_id), left.answer)
                    pipe.expire(reply_key(job_id), left.ttl_s)
                if self._redis.hget(left.record_key, "worker_name") == self._holder.encode():
                    pipe.delete(left.record_key)
                pipe.execute()
            del self._unsettled[job_id]


def limit_s(job: SafeJob) -> int:
    """The longest time that a worker may spend on a job."""
    return max(1, int(job.timeout or _DEFAULT_LIMIT_S))
