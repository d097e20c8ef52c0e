"""A real worker process whose answers follow `rules`. Run as a program; the environment holds the settings."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parent))

from rules import CLICK_S, IMAGE_S, SIZE_HW, mask_of_click, mask_of_image
from worker_without_model import VERSION, RuntimeWithoutModel

from sam2_backend.dataset_messages import DatasetJob, DatasetMask, DatasetReply
from sam2_backend.masks import area_px, box_xyxy_px, runs_from_mask
from sam2_backend.messages import ImageJob, ImageReply, ObjectMask
from sam2_backend.settings import Settings
from sam2_backend.worker import run_worker


class RuntimeByRule(RuntimeWithoutModel):
    def segment(self, job: ImageJob, _let_others: Callable[[], None] = lambda: None) -> ImageReply:
        time.sleep(CLICK_S)
        masks = []
        for prompt in job.prompts:
            points = [(point.x_px, point.y_px, point.is_positive) for point in prompt.points]
            masks.append(ObjectMask(prompt.prompt_id, runs_from_mask(mask_of_click(job.media.uri, points, job.size_hw)), 0.5))
        return ImageReply("hash", VERSION, self._name, "device", tuple(masks), {"decode": 1000 * CLICK_S})

    def preannotate(self, job: DatasetJob, let_others: Callable[[], None]) -> DatasetReply:
        for _ in range(5):
            time.sleep(IMAGE_S / 5)
            let_others()
        runs = runs_from_mask(mask_of_image(job.media.uri))
        left, top, right, bottom = box_xyxy_px(runs) or (0, 0, 0, 0)
        mask = DatasetMask(job.label, runs, 0.5, (float(left), float(top), float(right), float(bottom)), area_px(runs))
        return DatasetReply("hash", SIZE_HW, VERSION, self._name, "none", (mask,), timings_ms={"decode": 1000 * IMAGE_S})


def build(settings: Settings, connection: redis.Redis, name: str) -> RuntimeByRule:
    return RuntimeByRule(settings, connection, name)


if __name__ == "__main__":
    sys.exit(run_worker(Settings.from_env(os.environ), build))
