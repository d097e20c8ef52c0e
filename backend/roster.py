"""Which workers live, as the web tier sees it: read at most once a second, however many threads ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import redis

from sam2_backend.errors import NoWorkerError, QueueDownError
from sam2_backend.liveness import live_workers
from sam2_backend.messages import WorkerStatus
from sam2_backend.queue_format import MODEL_VERSION
from sam2_backend.redis_connection import as_bytes, redis_errors_as_ours, through_cuts

_AGE_S = 1.0
#: A worker that lost its Redis announces itself again within this.
_GRACE_S = 1.0
_POLL_S = 0.1


class Roster:
    """The live workers of one Redis.

    No lock: threads that find the list too old each read it, so that none waits for another one's time-out.
    """

    def __init__(self, connection: Callable[[], redis.Redis]) -> None:
        self._connection = connection
        self._seen: tuple[float, list[WorkerStatus]] = (-math.inf, [])
        self._last_version = "sam2-backend"

    def live(self, max_age_s: float = _AGE_S) -> list[WorkerStatus]:
        """The live workers by name, those that still load among them.

        Raises:
            QueueDownError: Redis does not answer.
        """
        seen_at, workers = self._seen
        if time.monotonic() - seen_at > max_age_s:
            with redis_errors_as_ours():
                workers = through_cuts(lambda: live_workers(self._connection()))
            self._seen = (time.monotonic(), workers)
            self._last_version = next((worker.model_version for worker in workers if worker.state != "loading"), self._last_version)
        return workers

    def serving(self, deadline: float, wait_s: float) -> list[str]:
        """Names of the workers that serve. One that loads is waited for; without any, only one that has just lost its Redis is.

        Args:
            deadline: In time.monotonic(), `wait_s` after the request came.

        Raises:
            QueueDownError: Redis does not answer.
            NoWorkerError: no worker lives, or none has loaded its model by the deadline.
        """
        grace_ends = min(deadline, time.monotonic() + _GRACE_S)
        workers = self.live()
        while not (serving := [worker.name for worker in workers if worker.state != "loading"]):
            if time.monotonic() >= (deadline if workers else grace_ends):
                raise NoWorkerError(_nobody_serves(workers, wait_s))
            time.sleep(_POLL_S)
            workers = self.live(_POLL_S / 2)
        return serving

    def model_version(self) -> str:
        """What the live workers serve, else what was served last, else "sam2-backend". Never fails."""
        try:
            serving = [worker.model_version for worker in self.live() if worker.state != "loading"]
            stored = None if serving else self._connection().get(MODEL_VERSION)
        except (QueueDownError, redis.RedisError):
            return self._last_version
        if not serving and stored is not None:
            self._last_version = as_bytes(stored).decode()
        return self._last_version


def _nobody_serves(workers: list[WorkerStatus], wait_s: float) -> str:
    if workers:
        return f"Worker {workers[0].name} still loads its model after {wait_s:.0f} s. Try again soon, or see the status page."
    return "No worker is running. Start one with `sam2-backend worker`, or see the status page."
