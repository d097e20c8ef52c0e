"""Waiting for single jobs that take their time: images of datasets, and images that are embedded ahead. Knows no rq.

An answer stays in Redis until `forget`, so whoever asks again for the same finds it, and two who ask at once share it. A job whose worker
died, or that vanished between two hands, is sent again; one over which several workers died is an error.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import redis

from backend.alone import Locks, Stopped
from backend.dispatch import Dispatcher
from backend.pending import PendingDataset, PendingWarm, lost_among
from sam2_backend.dataset_messages import DatasetJob, DatasetReply
from sam2_backend.errors import Sam2BackendError
from sam2_backend.liveness import BEATS_UNTIL_DEAD, incarnation
from sam2_backend.messages import ImageReply, WarmJob, to_wire
from sam2_backend.queue_format import choose_worker, digest, queue_key
from sam2_backend.redis_connection import BLOCK_S, redis_errors_as_ours
from sam2_backend.settings import Settings


def dataset_job(job: DatasetJob, *belongs_to: object) -> PendingDataset:
    """A job with an id that it has again when it is asked for again.

    Args:
        belongs_to: What else tells it from others: task, page, model version.
    """
    return PendingDataset("dataset-" + digest(json.dumps([to_wire(job), belongs_to])), job)


class SlowJobs:
    """Sends and awaits, for all threads of a process; each waiting thread holds one connection."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.locks = Locks(dispatcher.redis)
        self._limit_s = settings.preannotate_limit_s
        # Often enough to notice a death soon after its record ends, seldom enough to cost nothing.
        self._look_every_s = min(BLOCK_S, settings.heartbeat_s * BEATS_UNTIL_DEAD / 2)

    def send(self, job: PendingDataset, *, is_urgent: bool = False) -> None:
        """Put a job on its way unless it is, or is answered.

        Raises:
            QueueDownError: Redis does not answer.
        """
        self._dispatcher.send(job, self._limit_s, is_urgent=is_urgent)

    def dataset(self, job: PendingDataset, stopped: threading.Event) -> DatasetReply:
        """Have an image of a dataset annotated, however long that takes.

        Raises:
            Stopped: the event was set.
            QueueDownError: Redis does not answer.
            Sam2BackendError: what the worker says.
        """
        self.send(job)
        self._wait(job, stopped)
        assert job.answer is not None
        if isinstance(job.answer, Sam2BackendError):
            self.forget([job])  # asked again, it is tried again
            raise job.answer
        return job.answer

    def warm(self, job: PendingWarm, stopped: threading.Event) -> ImageReply:
        """Have an image embedded by the worker that its clicks go to; errors as `dataset`."""
        job.worker = self._owner(job)
        self._dispatcher.send(job, self._limit_s)
        self._wait(job, stopped)
        self.forget([job])
        assert job.answer is not None
        if isinstance(job.answer, Sam2BackendError):
            raise job.answer
        return job.answer

    def look(self, jobs: Sequence[PendingDataset]) -> None:
        """Take the answers that are there; returns at once.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours(), self._dispatcher.redis().pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.lindex(job.reply_key, 0)
            for job, data in zip(jobs, pipe.execute(), strict=True):
                if data is not None:
                    job.take(data)

    def forget(self, jobs: Sequence[PendingDataset] | Sequence[PendingWarm]) -> None:
        """Drop answers that have been made use of; where Redis is away they end by themselves."""
        if jobs:
            with suppress(redis.RedisError):
                self._dispatcher.redis().delete(*(job.reply_key for job in jobs))

    def withdraw(self, job: PendingDataset | PendingWarm) -> None:
        """Take a job off its queue; one that a worker has in hand is finished.

        Raises:
            QueueDownError: Redis does not answer.
        """
        client = self._dispatcher.redis()
        with redis_errors_as_ours():
            if client.lrem(queue_key(job.queue), 0, job.job_id):
                client.delete(job.record_key)

    def _wait(self, job: PendingDataset | PendingWarm, stopped: threading.Event) -> None:
        client, look_at = self._dispatcher.redis(), time.monotonic() + self._look_every_s
        while job.answer is None:
            if stopped.is_set():
                self.withdraw(job)
                raise Stopped
            with redis_errors_as_ours():
                # Onto the list that it comes from: the answer stays for others, and keeps its end of life.
                data = client.blmove(job.reply_key, job.reply_key, self._look_every_s, "LEFT", "LEFT")  # type: ignore[arg-type]
                if data is not None:
                    job.take(data if isinstance(data, bytes) else str(data).encode())
                elif time.monotonic() >= look_at:
                    self._look_after(job)
                    look_at = time.monotonic() + self._look_every_s

    def _look_after(self, job: PendingDataset | PendingWarm) -> None:
        incarnations = {incarnation(worker) for worker in self._dispatcher.workers()}
        if lost_among(self._dispatcher.redis(), [job], incarnations):
            job.looks_missing = 0
            job.worker = self._owner(job) if isinstance(job, PendingWarm) else ""
            self._dispatcher.send(job, self._limit_s, is_lost=True)

    def _owner(self, job: PendingWarm) -> str:
        serving = [worker.name for worker in self._dispatcher.workers() if worker.state != "loading"]
        return choose_worker(job.message.media.uri, serving) if serving else ""


def warm_job(job: WarmJob) -> PendingWarm:
    """An image to embed; asked for twice it is done once."""
    return PendingWarm("warm-" + digest(job.media.uri), job)
