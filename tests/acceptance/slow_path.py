"""The mask that a click must give, made in this process: no queue, no cache, no web tier, no Label Studio."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sam2_backend import refinement
from sam2_backend.engine import Sam2Engine
from sam2_backend.messages import ImagePrompt, MaskOptions, Point
from sam2_backend.settings import Settings


class SlowPath:
    """The engine that the stack's worker has, asked directly."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(max(1, settings.torch_threads))
        self._engine = Sam2Engine.load(settings)

    @property
    def is_trained(self) -> bool:
        return not self._engine.model_version.startswith("random-weights")

    @property
    def model_version(self) -> str:
        return self._engine.model_version

    def mask(self, image: NDArray[np.uint8], context: dict[str, Any]) -> NDArray[np.bool_]:
        """The mask (H, W) bool of the one object prompted in a browser's context, on an upright image (H, W, 3)."""
        embedding = self._engine.embed(image)
        prompt, size_hw = _prompt(context, image.shape[:2]), image.shape[:2]
        (step,) = refinement.segment(self._engine, embedding, "slow", [prompt], size_hw, MaskOptions(), refinement.LogitsCache(64))
        return np.zeros(size_hw, bool) if step is None else self._engine.upsample(step.logits, size_hw)


def _prompt(context: dict[str, Any], size_hw: tuple[int, int]) -> ImagePrompt:
    height, width = size_hw
    by_id = {region["id"]: region for region in reversed(context["result"])}  # separated configs send every prompt twice
    regions = [by_id[region_id] for region_id in dict.fromkeys(region["id"] for region in context["result"])]
    assert all((region["original_height"], region["original_width"]) == size_hw for region in regions)
    points, box = [], None
    for region in regions:
        value = region["value"]
        x, y = value["x"] / 100 * width, value["y"] / 100 * height
        if "height" in value:
            box = (x, y, x + value["width"] / 100 * width, y + value["height"] / 100 * height)
        else:
            points.append(Point(x, y, region["is_positive"]))
    return ImagePrompt(regions[0]["id"], tuple(points), box)
