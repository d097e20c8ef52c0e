"""Message → queue → message. The only module of the web tier that imports rq.

An image belongs to one live worker (rendezvous hash of its address), whose private queue its clicks go to: that worker has its embedding.
Whoever waits also watches that the job is in somebody's hands (waiting.py).
"""

from __future__ import annotations

import itertools
import math
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import redis
from rq import Queue
from rq.serializers import JSONSerializer

from backend import blobs
from backend.pending import Pending, PendingDataset, PendingWarm
from backend.queue_room import QueueRoom, check_length
from backend.roster import Roster
from backend.waiting import await_answers
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import ImageJob, ImageReply, MediaRef, WarmJob, WorkerStatus
from sam2_backend.queue_format import (
    DATASET_REPLY_TTL_S,
    DRAWING_TTL_S,
    PREANNOTATE,
    PREANNOTATE_IMAGE,
    PRIVATE_KINDS,
    QUEUE_TTL_S,
    SEGMENT_IMAGE,
    WARM_IMAGE,
    choose_worker,
    drawing_key,
    pack_job,
    private_queue,
    queue_key,
    warm_key,
)
from sam2_backend.redis_connection import connect, redis_errors_as_ours, through_cuts
from sam2_backend.settings import Settings

_RECORD_TTL_S = 60
_WARM_TTL_S = 600
_WARM_ONCE_S = 60
_WARM_LIMIT_S = 300
_MAX_WARM = 1000
_MAX_SLOW = 1000
_SLOW_JOBS = {PREANNOTATE: PREANNOTATE_IMAGE, PendingWarm.kind: WARM_IMAGE}


class Dispatcher:
    """The way to the workers, for all threads of a web process. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: redis.Redis | None = None
        self._connecting = threading.Lock()
        self._roster = Roster(self.redis)
        self._room = QueueRoom(self._lengths)
        self._call_prefix, self._calls = secrets.token_hex(6), itertools.count()

    def segment(self, jobs: Sequence[ImageJob], wait_s: float) -> list[ImageReply | Sam2BackendError]:
        """Have images segmented; all jobs are on their way before the first is waited for.

        Returns:
            One reply or error per job, in their order.

        Raises:
            QueueDownError: Redis does not answer.
            NoWorkerError: no worker lives, or none that lives answered any of the jobs.
            OverloadedError: too many jobs wait for a worker that is needed; none was sent.
        """
        if not jobs:
            return []
        with redis_errors_as_ours():
            deadline = time.monotonic() + wait_s
            names = self._roster.serving(deadline, wait_s)
            call = f"{self._call_prefix}{next(self._calls):x}"  # of all processes; asking the system for random bits each time costs more
            pending = [Pending(f"{call}-{index}", job, choose_worker(job.media.uri, names)) for index, job in enumerate(jobs)]
            through_cuts(lambda: self._room.take([job.queue for job in pending], self._settings.max_queued))
            through_cuts(lambda: self._send(pending, wait_s, are_newest=True))
            await_answers(self.redis(), pending, wait_s, deadline, self._settings.heartbeat_s, lambda lost: self._send(lost, wait_s))
        return [job.answer for job in pending if job.answer is not None]

    def warm(self, jobs: Sequence[WarmJob], *, is_urgent: bool = False) -> None:
        """Have embeddings made ahead of time, each by the worker that its clicks will go to. Returns at once.

        An image is asked for once a minute; where too many wait already, the rest is dropped.

        Args:
            is_urgent: Somebody looks at them: they go before what is embedded ahead, also where they wait there already.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            queues = self._warm_queues({job.media.uri for job in jobs})
            fresh = self._first_asked(queues, is_urgent)
            room = {queue: _MAX_WARM - length for queue, length in self._lengths(queues.values()).items()}
            with self.redis().pipeline() as pipe:
                pipe.multi()  # rq would, too late
                for job in reversed(jobs) if is_urgent else jobs:
                    uri = job.media.uri
                    if uri not in fresh:
                        continue
                    fresh.remove(uri)
                    room[queues[uri]] -= 1
                    if room[queues[uri]] < 0:
                        pipe.delete(warm_key(uri, is_urgent))  # dropped: it may be asked for again
                    else:
                        job_id = f"{secrets.token_hex(8)}-warm"
                        self._put(pipe, queues[uri], WARM_IMAGE, job_id, job, limit_s=_WARM_LIMIT_S, ttl_s=_WARM_TTL_S, at_front=is_urgent)
                pipe.execute()

    def send(self, job: PendingDataset | PendingWarm, limit_s: int, *, is_urgent: bool = False, is_lost: bool = False) -> None:
        """Put one job on its queue and return; `SlowJobs` waits. Where the same is on its way, or answered already, nothing happens.

        Args:
            limit_s: Longest time that a worker may spend on it.
            is_urgent: It goes before what waits on the same queue.
            is_lost: Nobody will answer the one that is on its way.

        Raises:
            QueueDownError: Redis does not answer.
            OverloadedError: too many wait on its queue; it was not sent.
        """
        with redis_errors_as_ours():
            if not is_lost and self._is_on_its_way(job):
                return
            with self.redis().pipeline() as pipe:
                pipe.multi()  # rq would, too late
                function, ttl_s = _SLOW_JOBS[job.kind], max(DATASET_REPLY_TTL_S, limit_s)
                self._put(pipe, job.queue, function, job.job_id, job.message, limit_s=limit_s, ttl_s=ttl_s, at_front=is_urgent)
                pipe.execute()

    def _is_on_its_way(self, job: PendingDataset | PendingWarm) -> bool:
        """Whether the same was sent already, or is answered; where it was not, there is room for it."""
        with self.redis().pipeline(transaction=False) as pipe:
            pipe.exists(job.reply_key, job.record_key)
            pipe.llen(queue_key(job.queue))
            is_there, length = pipe.execute()
        if not is_there:
            check_length(job.queue, length, _MAX_SLOW)
        return bool(is_there)

    def put_blob(self, data: bytes) -> MediaRef:
        """Put bytes where workers can read them for an hour from their last use, within a budget; equal bytes get equal references.

        Raises:
            QueueDownError: Redis does not answer, or is full.
        """
        with redis_errors_as_ours():
            return MediaRef(f"blob:{blobs.keep(self.redis(), data)}")

    def workers(self) -> list[WorkerStatus]:
        """The live workers by name, those that still load among them; at most a second old.

        Raises:
            QueueDownError: Redis does not answer.
        """
        return self._roster.live()

    def queue_lengths(self) -> dict[str, int]:
        """Jobs that wait, by queue: the shared ones and those of the live workers.

        Raises:
            QueueDownError: Redis does not answer.
        """
        private = [private_queue(kind, worker.name) for worker in self.workers() for kind in PRIVATE_KINDS]
        with redis_errors_as_ours():
            return self._lengths([*PRIVATE_KINDS, PREANNOTATE, *private])

    def model_version(self) -> str:
        """What the live workers serve, else what was served last, else "sam2-backend". Never fails."""
        return self._roster.model_version()

    def redis(self) -> redis.Redis:
        """The client of this process, for small state of the web tier; its errors are redis-py's.

        Raises:
            QueueDownError: no Redis is configured.
        """
        with self._connecting:
            if self._client is None:
                # Each waiting thread holds a connection; the rest is for the status page and the metrics.
                self._client = connect(self._settings.redis_url, self._settings.web_threads + 32)
            return self._client

    def close(self) -> None:
        with self._connecting:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _warm_queues(self, uris: Iterable[str]) -> dict[str, str]:
        workers = self.workers()
        names = [worker.name for worker in workers if worker.state != "loading"] or [worker.name for worker in workers]
        return {uri: private_queue("warm", choose_worker(uri, names)) if names else "warm" for uri in uris}

    def _first_asked(self, uris: Iterable[str], is_urgent: bool) -> set[str]:
        asked = list(uris)
        with self.redis().pipeline() as pipe:
            for uri in asked:
                pipe.set(warm_key(uri, is_urgent), 1, nx=True, ex=_WARM_ONCE_S)
            return {uri for uri, is_first in zip(asked, pipe.execute(), strict=True) if is_first}

    def _lengths(self, queues: Iterable[str]) -> dict[str, int]:
        names = list(dict.fromkeys(queues))
        with self.redis().pipeline() as pipe:
            for name in names:
                pipe.llen(queue_key(name))
            return dict(zip(names, pipe.execute(), strict=True))

    def _send(self, pending: Iterable[Pending], wait_s: float, *, are_newest: bool = False) -> None:
        limit_s = math.ceil(wait_s) + _RECORD_TTL_S
        with self.redis().pipeline() as pipe:
            pipe.multi()  # rq would, too late
            for job in pending:
                if are_newest and job.message.drawing:
                    pipe.set(drawing_key(job.message.drawing), job.job_id, ex=DRAWING_TTL_S)
                self._put(pipe, job.queue, SEGMENT_IMAGE, job.job_id, job.message, limit_s=limit_s, ttl_s=limit_s, is_alone=job.deaths > 0)
            pipe.execute()

    def _put(
        self,
        pipe: Any,
        queue: str,
        function: str,
        job_id: str,
        message: Any,
        *,
        limit_s: int,
        ttl_s: int,
        at_front: bool = False,
        is_alone: bool = False,
    ) -> None:
        Queue(queue, connection=self.redis(), serializer=JSONSerializer).enqueue_call(
            function,
            args=(pack_job(message, pipe, is_alone=is_alone),),
            timeout=limit_s,
            ttl=ttl_s,
            result_ttl=_RECORD_TTL_S,
            failure_ttl=_RECORD_TTL_S,
            job_id=job_id,
            at_front=at_front,
            description=function,  # rq would write the arguments, and with them addresses that carry tokens
            pipeline=pipe,
        )
        pipe.expire(queue_key(queue), QUEUE_TTL_S)
