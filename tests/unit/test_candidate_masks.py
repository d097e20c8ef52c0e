"""The small part of the image that is made is what making all of it gives."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_backend.candidate_masks import Upsampler, runs_of_part
from sam2_backend.masks import mask_from_runs, runs_from_mask

sides = st.integers(1, 70)


def blobs(seed: int, side: int = 64) -> np.ndarray:
    """Logits with islands and holes, some near the edge."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 4) * 40 - 3


def whole(logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(logits)[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize("size_hw", [(64, 64), (150, 200), (37, 91), (20, 30), (1, 500)])
@pytest.mark.parametrize("threshold", [0.0, 1.5, -2.0])
def test_a_mask_is_that_of_upsampling_everything(size_hw, threshold):
    for seed in range(8):
        logits = blobs(seed)
        full = whole(logits, size_hw)
        made = Upsampler(logits.shape, (0, 0, size_hw[1], size_hw[0]), size_hw).mask(logits, threshold, 1.0, 0.0)
        mask = mask_from_runs(made.runs)
        differs = mask != (full > threshold)
        assert not (differs & (np.abs(full - threshold) > 1e-4)).any()
        inner, outer = np.count_nonzero(full > threshold + 1), np.count_nonzero(full > threshold - 1)
        assert made.stability == pytest.approx(inner / outer, abs=1e-3) if outer else np.isnan(made.stability)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        expected = (columns[0], rows[0], columns[-1], rows[-1]) if len(rows) else (0, 0, 0, 0)
        assert made.box_xyxy_px == expected


def test_the_mask_of_a_crop_lies_where_the_crop_does():
    logits, image_hw = blobs(3), (120, 160)
    left, top, right, bottom = crop = (40, 10, 150, 100)
    expected = np.zeros(image_hw, bool)
    expected[top:bottom, left:right] = whole(logits, (bottom - top, right - left)) > 0
    assert (mask_from_runs(Upsampler(logits.shape, crop, image_hw).mask(logits, 0.0, 1.0, 0.0).runs) == expected).mean() > 0.9999


def test_a_mask_that_is_not_stable_enough_is_not_made():
    logits = blobs(1)
    upsampler = Upsampler(logits.shape, (0, 0, 64, 64), (64, 64))
    stability = upsampler.mask(logits, 0.0, 1.0, 0.0).stability
    assert upsampler.mask(logits, 0.0, 1.0, stability) is not None
    assert upsampler.mask(logits, 0.0, 1.0, stability + 1e-6) is None


@pytest.mark.parametrize("size_hw", [(64, 64), (150, 200), (37, 91), (20, 30)])
def test_a_mask_that_is_turned_down_unseen_would_have_been_turned_down(size_hw):
    upsampler = Upsampler((64, 64), (0, 0, size_hw[1], size_hw[0]), size_hw)
    unseen = 0
    for seed in range(12):
        for offset in (0.1, 0.5, 2.0):
            logits = blobs(seed)
            stability = upsampler.mask(logits, 0.0, offset, 0.0).stability
            most = upsampler._most_stability(logits, 0.0, offset)
            assert most >= stability or np.isnan(stability)
            for least in (0.3, 0.6, 0.95):
                assert (upsampler.mask(logits, 0.0, offset, least) is None) == (not stability >= least)
                unseen += most < least
    assert unseen > 3


def test_nothing_above_the_threshold_is_an_empty_mask_and_never_stable():
    logits = np.full((16, 16), -5.0, np.float32)
    upsampler = Upsampler((16, 16), (0, 0, 40, 30), (30, 40))
    empty = upsampler.mask(logits, 0.0, 1.0, 0.0)
    assert not mask_from_runs(empty.runs).any()
    assert upsampler.mask(logits, 0.0, 1.0, 0.1) is None


def test_a_small_object_on_a_large_photograph_takes_little_memory():
    logits = np.full((256, 256), -10.0, np.float32)
    logits[100:110, 50:60] = 10
    upsampler = Upsampler((256, 256), (0, 0, 4000, 3000), (3000, 4000))
    tracemalloc.start()
    try:
        made = upsampler.mask(logits, 0.0, 1.0, 0.5)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert made is not None
    assert peak_bytes < 4_000_000  # the image itself has 12 million pixels


@settings(deadline=None)  # machines may be busy
@given(sides, sides, st.data())
def test_runs_of_a_part_are_those_of_the_whole_image(height, width, data):
    size_hw = (height, width)
    top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    bottom, right = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    part = data.draw(hnp.arrays(np.bool_, (bottom - top, right - left)))
    image = np.zeros(size_hw, bool)
    image[top:bottom, left:right] = part
    assert runs_of_part(part, left, top, size_hw) == runs_from_mask(image)
