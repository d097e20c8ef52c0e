"""What a worker without a model finds, as a function of what it was asked: so that every answer can be judged from outside."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2_backend.masks import Mask

SIZE_HW = (80, 120)
N_FRAMES = 40
#: Seconds that a click, an image of a dataset, and a frame take.
CLICK_S, IMAGE_S, FRAME_S = 0.02, 0.15, 0.02

Points = Sequence[tuple[float, float, bool]]


def mask_of(size_hw: tuple[int, int], *asked: Any) -> Mask:
    """A rectangle that every detail of the question moves."""
    height, width = size_hw
    numbers = np.frombuffer(hashlib.sha256(repr(asked).encode()).digest()[:16], "<u4")
    left, top = int(numbers[0] % (width - 2)), int(numbers[1] % (height - 2))
    right, bottom = left + 1 + int(numbers[2] % (width - left - 1)), top + 1 + int(numbers[3] % (height - top - 1))
    mask = np.zeros(size_hw, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def mask_of_click(uri: str, points: Points, size_hw: tuple[int, int] = SIZE_HW) -> Mask:
    """What a click finds; pixels are rounded to hundredths, since they travelled as per cent."""
    return mask_of(size_hw, "click", uri, [(round(x_px, 2), round(y_px, 2), is_positive) for x_px, y_px, is_positive in points])


def mask_of_image(uri: str) -> Mask:
    """What `everything` finds."""
    return mask_of(SIZE_HW, "image", uri)


def lefts_of_video() -> list[float]:
    """The left edge of the tracked box on every frame, a share of the width; each depends on all frames before it (slow_counting)."""
    chain, lefts = "", []
    for frame in range(N_FRAMES):
        chain = hashlib.sha256(f"{chain}{frame}".encode()).hexdigest()
        lefts.append(float(np.float32(np.frombuffer(bytes.fromhex(chain), "<u4")[0] / 2.0**32)))
    return lefts


def environment() -> dict[str, str]:
    """What makes the worker of the tests take its time."""
    return {"FRAME_S": str(FRAME_S), "PROMPTS_TOGETHER": os.environ.get("PROMPTS_TOGETHER", "4")}
