"""The PNG of a bitmask region, read back by Pillow."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from backend.mask_png import png_from_mask


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_the_mask_is_opaque_white_and_all_else_is_transparent(mask):
    with Image.open(io.BytesIO(png_from_mask(mask)), formats=("PNG",)) as image:
        image.verify()
    with Image.open(io.BytesIO(png_from_mask(mask))) as image:
        assert image.size == mask.shape[::-1]
        rgba = np.asarray(image.convert("RGBA"))
        grey = np.asarray(image.convert("L"))
    assert np.array_equal(rgba, np.where(mask[..., None], [255] * 4, [0, 0, 0, 0]))
    assert np.array_equal(grey, mask * 255)


def test_a_large_mask_makes_a_small_file():
    mask = np.zeros((3000, 4000), bool)
    mask[500:2500, 700:3300] = True
    assert len(png_from_mask(mask)) < 40_000
