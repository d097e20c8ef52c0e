"""Taking jobs off the queues: one, or of the clicks that wait for this worker alone as many as are there.

A job that is taken is in nobody's hands until it is marked as begun; whoever waits for it notices if that never happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import redis
from rq.serializers import JSONSerializer

from sam2_backend.messages import ImageJob
from sam2_backend.queue_format import QUEUE_TTL_S, private_queue, queue_key
from sam2_backend.redis_connection import BLOCK_S, as_bytes
from sam2_backend.safe_job import SafeJob

log = logging.getLogger(__name__)


class JobSource:
    """The queues of one worker. Used by one thread.

    Args:
        worker: Its name.
        most_clicks: Clicks taken at a time; 1: one by one.
    """

    def __init__(self, connection: redis.Redis, worker: str, most_clicks: int) -> None:
        self._redis, self._most_clicks = connection, most_clicks
        # What stands on the shared queue is for whoever comes first: taken one by one, it spreads over all workers.
        self._own_clicks = queue_key(private_queue("interactive", worker)).encode()

    def take(self, queues: Sequence[str], *, waits: bool) -> list[SafeJob]:
        """The first job of the first queue that has any; with it the clicks behind it. Nothing further is waited for.

        Args:
            queues: Names, most urgent first.
            waits: Up to a second, for the first job.

        Returns:
            Empty: there is nothing. Several: all are clicks.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        keys = [queue_key(queue) for queue in queues]
        while first := self._pop(keys, waits=waits):
            if jobs := self._read(*first):
                return self._that_go_together(jobs)
        return []

    def take_clicks(self, is_wanted: Callable[[ImageJob], bool]) -> list[SafeJob]:
        """Of the first clicks that wait for this worker, those that are wanted; the others stay where they are.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        waiting = self._redis.lrange(self._own_clicks.decode(), 0, self._most_clicks - 1)
        ids = [as_bytes(job_id) for job_id in waiting] if isinstance(waiting, list) else []
        if not ids:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(_record_key(job_id))
            records = pipe.execute()
        jobs = [job for job_id, record in zip(ids, records, strict=True) if record and (job := self._job(job_id, record))]
        wanted = [job for job in jobs if (click := job.click()) and is_wanted(click)]
        with self._redis.pipeline() as pipe:
            for job in wanted:
                pipe.lrem(self._own_clicks.decode(), 1, job.id)
            return [job for job, n_removed in zip(wanted, pipe.execute(), strict=True) if n_removed]

    def put_back(self, jobs: Sequence[SafeJob]) -> None:
        """In front of the clicks that wait for this worker, in their order.

        Raises:
            redis.RedisError: Redis does not answer; whoever waits for them sends them again.
        """
        with self._redis.pipeline() as pipe:
            for job in reversed(jobs):
                pipe.lpush(self._own_clicks, job.id)
            pipe.expire(self._own_clicks, QUEUE_TTL_S)
            pipe.execute()

    def _pop(self, keys: Sequence[str], *, waits: bool) -> tuple[bytes, bytes] | None:
        if waits:
            found = self._redis.blpop(list(keys), round(BLOCK_S))
            return (as_bytes(found[0]), as_bytes(found[1])) if found else None
        for key in keys:
            job_id = self._redis.lpop(key)
            if isinstance(job_id, bytes):
                return key.encode(), job_id
        return None

    def _read(self, key: bytes, first_id: bytes) -> list[SafeJob]:
        """The jobs that can be read; a record that is gone belonged to somebody who waits no longer."""
        is_batch = key == self._own_clicks and self._most_clicks > 1
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(_record_key(first_id))
            if is_batch:
                pipe.lpop(key.decode(), self._most_clicks - 1)
            record, *popped = pipe.execute()
        ids = [first_id, *(popped[0] or [] if popped else [])]
        records = [record]
        if len(ids) > 1:
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids[1:]:
                    pipe.hgetall(_record_key(job_id))
                records += pipe.execute()
        jobs = [self._job(job_id, record) for job_id, record in zip(ids, records, strict=True) if record]
        return [job for job in jobs if job]

    def _job(self, job_id: bytes, record: Mapping[bytes, bytes]) -> SafeJob | None:
        try:
            job = SafeJob(job_id.decode(), connection=self._redis, serializer=JSONSerializer)
            job.restore(record)
        except Exception as error:
            name, kind = job_id.decode(errors="replace"), type(error).__name__
            log.warning("job %s has an unreadable record (%s) and was dropped: sam2-backend did not write it", name, kind)
            self._redis.delete(_record_key(job_id))
            return None
        return job

    def _that_go_together(self, jobs: list[SafeJob]) -> list[SafeJob]:
        """The clicks in front; what must go alone does, and the rest waits on."""
        if len(jobs) == 1:
            return jobs
        n_clicks = next((place for place, job in enumerate(jobs) if job.click() is None), len(jobs))
        together = jobs[: max(1, n_clicks)]
        if left := jobs[len(together) :]:
            self.put_back(left)
        return together


def _record_key(job_id: bytes) -> Any:
    return SafeJob.redis_job_namespace_prefix.encode() + job_id
