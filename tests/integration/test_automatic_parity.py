"""Automatic masks on the shipped checkpoint against Meta's generator on the same weights, in every way of running it."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.automatic import found_again
from benchmarks.automatic_reference import ReferenceGenerator
from sam2_backend.automatic import everything
from sam2_backend.checkpoints import load
from sam2_backend.dataset_messages import EverythingOptions
from sam2_backend.engine import Sam2Engine
from sam2_backend.masks import clean, mask_from_runs
from sam2_backend.settings import Settings

DEMO = Settings(model="demo", device="cpu", torch_threads=1)
PHOTO = Path(__file__).parents[2] / "backend/demo_images/astronaut.jpg"
PLAIN = EverythingOptions(points_per_side=10, pred_iou_thresh=0.4, stability_score_thresh=0.6, stability_score_offset=0.2)
WAYS = {
    "plain": PLAIN,
    "a crop layer": replace(PLAIN, points_per_side=6, crop_n_layers=1),
    "two crop layers with thinner grids": replace(
        PLAIN, points_per_side=4, crop_n_layers=2, crop_n_points_downscale_factor=2, crop_overlap_ratio=0.2
    ),
    "refined once more": replace(PLAIN, points_per_side=5, use_m2m=True, pred_iou_thresh=0.3, stability_score_thresh=0.4),
    "one mask a point": replace(PLAIN, multimask_output=False, pred_iou_thresh=0.3, stability_score_thresh=0.4),
    "another threshold, small batches": replace(PLAIN, mask_threshold=-0.5, points_per_batch=7),
    "nothing filtered by score": replace(PLAIN, points_per_side=4, pred_iou_thresh=0.0),
    "strict about overlap": replace(PLAIN, box_nms_thresh=0.2),
}


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    image = Image.open(PHOTO).convert("RGB")
    return np.array(image.resize((301, 260)))


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    return Sam2Engine.load(DEMO)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS.keys())
def test_the_masks_are_those_of_the_reference(engine, photo, options):
    theirs, ours = ReferenceGenerator(load(DEMO), options).generate(photo), everything(engine, photo, options)
    assert len(theirs) >= 3
    assert abs(len(ours) - len(theirs)) <= 0.05 * len(theirs)
    assert np.mean(np.array(found_again(theirs, ours)) >= 0.99) >= 0.95
    assert sorted(m.score for m in ours)[-3:] == pytest.approx(sorted(score for _, score in theirs)[-3:], abs=0.01)


def test_no_hole_and_no_island_smaller_than_the_limit_is_left(engine, photo):
    rough = everything(engine, photo, replace(PLAIN, mask_threshold=-0.5))
    smooth = everything(engine, photo, replace(PLAIN, mask_threshold=-0.5, min_mask_region_area=40))
    assert not all(np.array_equal(clean(mask, 39, 39), mask) for mask in (mask_from_runs(m.runs) for m in rough))
    assert all(np.array_equal(clean(mask, 39, 39), mask) for mask in (mask_from_runs(m.runs) for m in smooth))
    assert 0 < len(smooth) <= len(rough)


def test_memory_does_not_grow_with_the_masks_of_a_large_photograph(engine):
    large = np.array(Image.open(PHOTO).convert("RGB").resize((4000, 3000)))
    unfiltered = EverythingOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    tracemalloc.start()
    try:
        found = everything(engine, large, unfiltered)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) > 30
    assert peak_bytes < 6 * large.shape[0] * large.shape[1]  # as bool masks alone they would be more than 30 times that


def test_clicks_come_in_after_each_batch(engine, photo):
    pauses = []
    everything(engine, photo, replace(PLAIN, points_per_batch=25), between_batches=lambda: pauses.append(1))
    assert len(pauses) == 4
