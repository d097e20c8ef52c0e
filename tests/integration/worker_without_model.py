"""A real worker process with a runtime that has no model: what a job does is written in its prompts' ids.

Run as a program; the environment holds the settings. `sleep:S` sleeps; `wait` waits for something on the list
sam2:test:go and lets others go before; `fail:TEXT` raises; `error:CODE` raises an error of the tree; `die` ends
the process;
`mask:N` answers a mask with N runs; `note:TEXT` appends TEXT to the list sam2:test:notes. An image with `ready` in its address counts as embedded; how many clicks are done
together is listed in sam2:test:together, where a click with the wish `left out` gets no answer. A DatasetJob obeys the ids of its boxes and lets
others go before, after each; without boxes it takes 20 ms, finds the whole image of 2 x 2 and fails with the error that the image's
address names after `error=`. A propagation only counts, see slow_counting.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import redis

from sam2_backend.dataset_messages import DatasetJob, DatasetMask, DatasetReply
from sam2_backend.errors import error_from_code
from sam2_backend.jobs import Usage
from sam2_backend.liveness import live_workers
from sam2_backend.messages import ImageJob, ImageReply, ObjectMask, RunLengths, WarmJob
from sam2_backend.propagation_claims import Claims
from sam2_backend.propagator import Propagator
from sam2_backend.settings import Settings
from sam2_backend.worker import run_worker

sys.path.insert(0, str(Path(__file__).parent))
from slow_counting import SlowCounting

VERSION = os.environ.get("MODEL_VERSION", "no-model@1")
SECONDS_PER_IMAGE = float(os.environ.get("SECONDS_PER_IMAGE", "0.02"))
WHOLE = b"\0\0\0\0\x04\0\0\0"


class RuntimeWithoutModel:
    model_version = VERSION
    device = "cpu"

    def __init__(self, settings: Settings, connection: redis.Redis, name: str) -> None:
        self._redis, self._name = connection, name
        self.propagator = Propagator(
            Claims(connection, settings),
            lambda job: SlowCounting(job, connection, name),
            lambda: live_workers(connection),
            settings,
            name,
            VERSION,
        )

    prompts_together = int(os.environ.get("PROMPTS_TOGETHER", "1"))

    def is_ready(self, job: ImageJob) -> bool:
        return "ready" in job.media.uri

    def segment_together(self, jobs: Sequence[ImageJob]) -> Iterator[list[tuple[int, ImageReply]]]:
        self._redis.rpush("sam2:test:together", len(jobs))
        for place, job in enumerate(jobs):
            wishes = [prompt.prompt_id for prompt in job.prompts]
            if "left out" not in wishes:
                yield [(place, self.segment(job))]

    def segment(self, job: ImageJob, let_others: Callable[[], None] = lambda: None) -> ImageReply:
        masks = tuple(ObjectMask(prompt.prompt_id, self._obey(prompt.prompt_id, let_others), 0.5) for prompt in job.prompts)
        return ImageReply("hash", VERSION, self._name, "none", masks, {"decode": 1.0})

    def warm(self, job: WarmJob, let_others: Callable[[], None] = lambda: None) -> ImageReply:
        self._redis.rpush("sam2:test:warmed", f"{self._name} {job.media.uri}")
        time.sleep(0.02)
        while "until told" in job.media.uri and not self._redis.lpop("sam2:test:go"):
            let_others()
            time.sleep(0.01)
        return ImageReply("hash", VERSION, self._name, "none")

    def preannotate(self, job: DatasetJob, let_others: Callable[[], None]) -> DatasetReply:
        masks = []
        for box in job.boxes:
            masks.append(DatasetMask(box.label, self._obey(box.box_id), 0.5, box.box, 1, box.box_id))
            let_others()
        if not job.boxes:
            self._redis.rpush("sam2:test:annotated", f"{self._name} {job.media.uri}")
            time.sleep(SECONDS_PER_IMAGE)
            if "error=" in job.media.uri:
                self._obey("error:" + job.media.uri.partition("error=")[2])
            masks.append(DatasetMask(job.label, RunLengths((2, 2), WHOLE), 0.5, (0.0, 0.0, 1.0, 1.0), 4))
        timings_ms = {} if job.boxes else {"decode": 1000 * SECONDS_PER_IMAGE}
        return DatasetReply("hash", (2, 2), VERSION, self._name, "none", tuple(masks), timings_ms=timings_ms)

    def usage(self) -> Usage:
        return Usage(hits={"device": 3.0})

    def _obey(self, wish: str, let_others: Callable[[], None] = lambda: None) -> RunLengths:
        verb, _, value = wish.partition(":")
        if verb == "sleep":
            self._redis.rpush("sam2:test:started", self._name)
            time.sleep(float(value))
        elif verb == "wait":
            self._redis.rpush("sam2:test:started", self._name)
            while not self._redis.lpop("sam2:test:go"):
                let_others()
                time.sleep(0.02)
        elif verb == "fail":
            raise ValueError(value)
        elif verb == "error":
            raise error_from_code(value, "as asked", 7.0)
        elif verb == "die":
            os._exit(1)
        elif verb == "note":
            self._redis.rpush("sam2:test:notes", value)
        return RunLengths((2, 2), b"\x04\0\0\0" * (int(value) if verb == "mask" else 1))


def build(settings: Settings, connection: redis.Redis, name: str) -> RuntimeWithoutModel:
    time.sleep(float(os.environ.get("LOADING_S", "0")))
    return RuntimeWithoutModel(settings, connection, name)


if __name__ == "__main__":
    sys.exit(run_worker(Settings.from_env(os.environ), build))
