"""A worker whose decoder sleeps for 10 ms and whose encoder for 50, without using a processor: what is left of a click is our overhead.

python -m benchmarks.load_fake_worker        (the settings come from the environment)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import redis

from sam2_backend.dataset_messages import DatasetJob, DatasetReply
from sam2_backend.jobs import Usage
from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import ImageJob, ImageReply, ObjectMask, WarmJob
from sam2_backend.settings import Settings
from sam2_backend.worker import run_worker

DECODE_S, ENCODE_S = 0.010, 0.050


class NoLongWork:
    is_busy = False

    def step(self, _incarnation: str) -> bool:
        return False

    def put_down(self) -> None: ...


class Sleeper:
    """The runtime; one prompt after the other, as on a CPU."""

    model_version, device, prompts_together = "sleeper@1", "cpu", 1
    propagator = NoLongWork()

    def __init__(self, name: str) -> None:
        self._name = name
        self._embedded: set[str] = set()
        self._runs: dict[tuple[int, int], bytes] = {}

    def is_ready(self, job: ImageJob) -> bool:
        return job.media.uri in self._embedded

    def segment(self, job: ImageJob, _let_others: Callable[[], None] = lambda: None) -> ImageReply:
        embed_ms, started = self._embed(job.media.uri), time.perf_counter()
        time.sleep(DECODE_S * len(job.prompts))
        timings_ms = {"media": 0.0, "embed": embed_ms, "decode": (time.perf_counter() - started) * 1e3, "runs": 0.0}
        masks = tuple(ObjectMask(prompt.prompt_id, self._disc(job.size_hw), 0.9) for prompt in job.prompts)
        return ImageReply("0" * 40, self.model_version, self._name, "none" if embed_ms else "device", masks, timings_ms)

    def segment_together(self, jobs: Sequence[ImageJob]) -> Iterator[list[tuple[int, ImageReply]]]:
        for place, job in enumerate(jobs):
            yield [(place, self.segment(job))]

    def warm(self, job: WarmJob, _let_others: Callable[[], None] = lambda: None) -> ImageReply:
        embed_ms = self._embed(job.media.uri)
        return ImageReply("0" * 40, self.model_version, self._name, "none" if embed_ms else "device", timings_ms={"embed": embed_ms})

    def preannotate(self, job: DatasetJob, let_others: Callable[[], None]) -> DatasetReply:
        raise NotImplementedError

    def usage(self) -> Usage:
        return Usage()

    def _embed(self, uri: str) -> float:
        if uri in self._embedded:
            return 0.0
        time.sleep(ENCODE_S)
        self._embedded.add(uri)
        return ENCODE_S * 1e3

    def _disc(self, size_hw: tuple[int, int]):
        if size_hw not in self._runs:
            rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
            self._runs[size_hw] = runs_from_mask((rows - size_hw[0] / 2) ** 2 + (columns - size_hw[1] / 2) ** 2 < (size_hw[0] / 4) ** 2)
        return self._runs[size_hw]


def build(_settings: Settings, _connection: redis.Redis, name: str) -> Sleeper:
    return Sleeper(name)


if __name__ == "__main__":
    sys.exit(run_worker(Settings.from_env(os.environ), build))
