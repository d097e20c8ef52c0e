"""A real worker process whose model sleeps: queue, heartbeat and propagation look-ups are the product's, and no CPU goes into masks.

Run by fleet.py, as `python -m benchmarks.fleet_worker MILLISECONDS`; the environment holds the settings.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import redis

from sam2_backend.dataset_messages import DatasetJob, DatasetMask, DatasetReply
from sam2_backend.jobs import Usage
from sam2_backend.liveness import live_workers
from sam2_backend.messages import ImageJob, ImageReply, RunLengths, WarmJob
from sam2_backend.propagation_claims import Claims
from sam2_backend.propagator import Propagator
from sam2_backend.settings import Settings
from sam2_backend.worker import run_worker

VERSION = "sleep@1"
MASK = RunLengths((480, 640), b"".join(n.to_bytes(4, "little") for n in (150_000, *[20, 620] * 200, 480 * 640 - 150_000 - 200 * 640)))


class SleepingRuntime:
    """Answers an image of a dataset with one mask of 200 rows, after a while."""

    model_version, device, prompts_together = VERSION, "none", 1

    def __init__(self, settings: Settings, connection: redis.Redis, name: str, model_s: float) -> None:
        self._name, self._model_s = name, model_s
        # Looks into Redis after every image, as a worker does, and never finds a session.
        workers = lambda: live_workers(connection)  # noqa: E731
        self.propagator = Propagator(Claims(connection, settings), _no_session, workers, settings, name, VERSION)

    def preannotate(self, job: DatasetJob, _let_others: Callable[[], None]) -> DatasetReply:
        time.sleep(self._model_s)
        mask = DatasetMask(job.label, MASK, 0.9, (0.0, 0.4, 1.0, 0.9), 4000)
        return DatasetReply("hash", MASK.size_hw, VERSION, self._name, "none", (mask,), timings_ms={"decode": 1000 * self._model_s})

    def usage(self) -> Usage:
        return Usage()

    def is_ready(self, _job: ImageJob) -> bool:
        return False

    def segment(self, _job: ImageJob, _let_others: Callable[[], None] = lambda: None) -> ImageReply:
        return ImageReply("hash", VERSION, self._name, "none")

    def segment_together(self, jobs: Sequence[ImageJob]) -> Iterator[list[tuple[int, ImageReply]]]:
        yield [(place, self.segment(job)) for place, job in enumerate(jobs)]

    def warm(self, _job: WarmJob, _let_others: Callable[[], None] = lambda: None) -> ImageReply:
        return ImageReply("hash", VERSION, self._name, "none")


def _no_session(_job: object) -> object:
    raise AssertionError("the benchmark has no videos")


if __name__ == "__main__":
    seconds = float(sys.argv[1]) / 1000
    build = lambda settings, connection, name: SleepingRuntime(settings, connection, name, seconds)  # noqa: E731
    sys.exit(run_worker(Settings.from_env(os.environ), build))
