"""Pixels of any size → the square that a network sees.

As Meta's transform, bilinear with antialiasing, but in uint8: no float copy of a photograph is made, and twelve megapixels take 8 ms in
place of 150. What is lost is the rounding to whole grey levels, 0.27 of 255 on average, as in every pipeline that resizes uint8 images.

JPEG's own reduced decoding (Pillow's `draft`) is not used. It would save most of the 0.1 s that twelve megapixels take to decode, but it
is a sharper filter: on photographs with grain the masks of the demo checkpoint then agree to 0.945–0.985 IoU on average, however large the
reduced image was left (1 to 4 times the square), where rounding to uint8 leaves 0.99. See docs/benchmarks.md.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Part of every cache key: another way to make the square is another name.
METHOD = "antialias-uint8"

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def square(image: NDArray[np.uint8], side: int) -> Tensor:
    """Resize (H, W, 3) uint8 RGB, upright → (1, 3, side, side) uint8 on the CPU; the aspect is not kept."""
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy())
    return F.interpolate(pixels.permute(2, 0, 1)[None], (side, side), mode="bilinear", align_corners=False, antialias=True)


class Normalization:
    """Grey levels (B, 3, S, S) uint8 → what networks of the SAM family were trained on, float32 on one device."""

    def __init__(self, device: torch.device) -> None:
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        self._scale, self._offset = 1 / (255 * std), mean / std

    def __call__(self, squares: Tensor) -> Tensor:
        return squares.to(self._scale.device).float() * self._scale - self._offset
