"""More like this, with the checkpoint that ships: what people accepted on some pictures is found on others."""

from __future__ import annotations

import numpy as np
import pytest

from sam2_backend.client import Sam2
from sam2_backend.similar import Memory

SIZE_HW = (200, 260)
RED, BLUE = (220, 60, 40), (50, 90, 210)


def disc(x_px: float, y_px: float, radius_px: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    return np.hypot(x - x_px, y - y_px) < radius_px


def square(x_px: float, y_px: float, half_px: float) -> np.ndarray:
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    return (np.abs(x - x_px) < half_px) & (np.abs(y - y_px) < half_px)


def picture(seed: int, reds: np.ndarray, blues: np.ndarray) -> np.ndarray:
    image = np.random.default_rng(seed).integers(60, 100, (*SIZE_HW, 3))
    image[blues], image[reds] = BLUE, RED
    return image.astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.fixture(scope="module")
def sam2() -> Sam2:
    return Sam2.load("demo", device="cpu", torch_threads=1)


@pytest.fixture(scope="module")
def memory(sam2) -> Memory:
    """Three accepted discs and squares."""
    examples = []
    for i in range(3):
        reds, blues = disc(90 + 40 * i, 90 + 20 * i, 30 + 5 * i), square(40 + 5 * i, 40, 20)
        image = sam2.image(picture(i, reds, blues))
        examples += [(image, reds, "Disc"), (image, blues, "Square")]
    return sam2.remember(examples)


@pytest.mark.parametrize("place", [(200, 110, 28), (170, 100, 32), (110, 140, 36)])
def test_each_kind_is_found_where_it_is_now(sam2, memory, place):
    reds, blues = disc(*place), square(60, 60, 22)
    found = {one.label: one for one in sam2.image(picture(11, reds, blues)).similar(memory)}
    assert iou(found["Disc"].mask, reds) > 0.85
    assert iou(found["Square"].mask, blues) > 0.85
    assert all(one.score > 0.5 for one in found.values())


def test_nothing_is_found_where_there_is_nothing_of_the_kind(sam2, memory):
    nothing = np.zeros(SIZE_HW, bool)
    assert sam2.image(picture(12, nothing, nothing)).similar(memory) == []


def test_two_of_a_kind_are_one_mask_whose_parts_can_be_had_apart(sam2, memory):
    left, right = disc(90, 110, 28), disc(200, 110, 28)
    image = sam2.image(picture(13, left | right, square(30, 30, 15)))
    [both] = [one for one in image.similar(memory) if one.label == "Disc"]
    assert iou(both.mask, left | right) > 0.85
    parts = [one for one in image.similar(memory, splits_parts=True) if one.label == "Disc"]
    assert len(parts) == 2
    assert all(max(iou(part.mask, one) for part in parts) > 0.85 for one in (left, right))
