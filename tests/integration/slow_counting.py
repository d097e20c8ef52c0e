"""Stands in for a propagation where there is no model: counts frames, and what it finds on one depends on all frames before it.

A frame that is left out, done twice or done on another's memory changes everything after it. The job's title tells how: `frame_s=0.05`
(else FRAME_S of the environment);
`die=7` ends the process at frame 7, `fail=7` raises there, `open=CODE` fails to open, `salt=X` changes all that is found, `bank=N` adds N bytes to the bank. Every frame that is done is noted in
`sam2:test:frames` as `WORKER FRAME`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Generator

import numpy as np
import redis

from sam2_backend.errors import VideoUnreadableError, error_from_code
from sam2_backend.propagation_format import ROW, PackedMask, digest_of, pack_masks
from sam2_backend.propagation_plan import Run, plan_runs
from sam2_backend.video_messages import PropagateJob

SIZE_HW = (60, 90)


class SlowCounting:
    """The `Work` of `sam2_backend.propagator`."""

    size_hw = SIZE_HW

    def __init__(self, job: PropagateJob, connection: redis.Redis, worker: str) -> None:
        self._job, self._redis, self._worker = job, connection, worker
        self._wishes = dict(wish.split("=") for wish in job.title.split() if "=" in wish)
        if "open" in self._wishes:
            raise error_from_code(self._wishes["open"], "as asked")
        self.runs = plan_runs(job.keyframes, job.options, job.source.n_frames, lambda grid_idx: grid_idx)
        self.n_results = sum(run.n_places for run in self.runs)
        self.is_at_boundary = True
        self._copied: list[int] = []
        self._done, self._chain = 0, self._wishes.get("salt", "")
        self._rows: list[bytes] = []
        self._masks: list[PackedMask] = []

    def work(self) -> Generator[None, None, None]:
        for frame in range(self._done, self._job.source.n_frames):
            self.is_at_boundary = False
            yield
            self._obey(frame)
            self._chain = hashlib.sha256(f"{self._chain}{frame}".encode()).hexdigest()
            for i, run in enumerate(self.runs):
                if i not in self._copied and run.holds(frame):
                    self._find(run, frame)
            self._redis.rpush("sam2:test:frames", f"{self._worker} {frame}")
            self._done, self.is_at_boundary = frame + 1, True
            yield

    def take_found(self) -> tuple[bytes, tuple[bytes, ...]]:
        rows, masks = b"".join(self._rows), self._masks
        self._rows, self._masks = [], []
        return rows, (pack_masks(masks),) if masks else ()

    def bank(self) -> bytes:
        assert self.is_at_boundary
        return json.dumps([self._done, self._chain, self._copied]).encode() + b" " * int(self._wishes.get("bank", 0))

    def go_on_with(self, bank: bytes) -> bool:
        self._done, self._chain, self._copied = json.loads(bank)
        return True

    def run_digest(self, run: Run) -> str:
        return digest_of([[c.grid_idx for c in run.conditioning], run.reverse, run.first_grid_idx, self._job.source])

    def mark_copied(self, run_idx: int) -> None:
        self._copied.append(run_idx)

    def close(self) -> None:
        self._redis.incr("sam2:test:closed")

    def _obey(self, frame: int) -> None:
        time.sleep(float(self._wishes.get("frame_s", os.environ.get("FRAME_S", "0"))))
        if self._wishes.get("die") == str(frame):
            os._exit(1)
        if self._wishes.get("fail") == str(frame):
            raise VideoUnreadableError("The video ends at frame 7.")

    def _find(self, run: Run, frame: int) -> None:
        row = np.zeros(1, ROW)
        values = np.frombuffer(bytes.fromhex(self._chain), "<u4") / 2.0**32
        row["object_idx"], row["grid_idx"], row["box"], row["score"] = run.object_idx, frame, values[:4], values[4]
        self._rows.append(row.tobytes())
        if self._job.options.wants_masks:
            left = frame % SIZE_HW[1]
            counts = np.array([left, 1, SIZE_HW[0] * SIZE_HW[1] - left - 1], "<u4").tobytes()
            self._masks.append(PackedMask(run.object_idx, frame, frame, float(values[4]), counts))
