"""COCO's run lengths, held against pycocotools in both directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as oracle

from backend.coco_rle import coco_rle, mask_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools's own


@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_it_is_what_pycocotools_writes_and_reads(mask):
    ours = coco_rle(mask)
    theirs = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert ours["counts"] == theirs["counts"].decode()
    assert ours["size"] == list(theirs["size"])
    assert (oracle.decode(ours) == mask).all()
    assert (mask_of(ours) == mask).all()


@pytest.mark.parametrize("fill", [False, True])
def test_an_empty_and_a_full_mask_of_a_large_frame(fill):
    mask = np.full((1080, 1920), fill)
    assert (oracle.decode(coco_rle(mask)) == mask).all()
    assert oracle.area(coco_rle(mask)) == mask.sum()


@given(st.integers(0, 2**32 - 1))
def test_long_runs_survive(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((500, 700), bool)
    for _ in range(4):
        top, left = rng.integers(0, 499), rng.integers(0, 699)
        mask[top : top + rng.integers(1, 300), left : left + rng.integers(1, 300)] ^= True
    assert (oracle.decode(coco_rle(mask)) == mask).all()
    assert (mask_of(coco_rle(mask)) == mask).all()
