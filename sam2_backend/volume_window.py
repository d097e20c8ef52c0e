"""Values of a volume to 8-bit grey: one window for all slices, so that tissue keeps its shade from slice to slice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2_backend.images import RgbImage

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5
SAMPLED_SLICES, SAMPLED_VALUES = 32, 1 << 16

Values = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Window:
    """Values at or below `low` are black, at or above `high` white; `is_inverted`: the other way round."""

    low: float
    high: float
    is_inverted: bool = False

    @classmethod
    def from_centre(cls, centre: float, width: float, *, is_inverted: bool) -> Window:
        """The window that a DICOM file asks for. Source: DICOM PS3.3, C.11.2.1.2."""
        low = centre - 0.5 - (width - 1) / 2
        return cls(low, low + max(width - 1, 1e-6), is_inverted)


def sampled_window(n_slices: int, slice_values: Callable[[int], Values], *, is_inverted: bool = False) -> Window:
    """Between the percentiles 0.5 and 99.5 of the finite values of slices spread over the volume."""
    positions = np.unique(np.linspace(0, n_slices - 1, min(n_slices, SAMPLED_SLICES)).round().astype(int))
    samples = []
    for position in positions:
        flat = slice_values(int(position)).reshape(-1)
        values = flat[:: max(flat.size // SAMPLED_VALUES, 1)].astype(np.float64)
        samples.append(values[np.isfinite(values)])
    joined = np.concatenate(samples)
    low, high = np.percentile(joined, (LOW_PERCENT, HIGH_PERCENT)) if joined.size else (0.0, 1.0)
    if high <= low and joined.size:  # so little of the volume is not background that the percentiles miss it
        low, high = joined.min(), joined.max()
    return Window(float(low), float(high) if high > low else float(low) + 1.0, is_inverted)


def to_rgb(values: Values, window: Window | None) -> RgbImage:
    """One slice, (H, W) of any number type or (H, W, 3) uint8, to (H, W, 3) uint8; None: the values are shades already."""
    if values.ndim == 3:
        return np.ascontiguousarray(values, dtype=np.uint8)
    grey = values if window is None else _windowed(values, window)
    return np.repeat(np.asarray(grey, dtype=np.uint8)[:, :, None], 3, axis=2)


def _windowed(values: Values, window: Window) -> npt.NDArray[np.uint8]:
    scale = 255.0 / (window.high - window.low)
    shades = np.nan_to_num((values.astype(np.float64) - window.low) * scale, nan=0.0, posinf=255.0, neginf=0.0)
    grey: npt.NDArray[np.uint8] = np.rint(255 - shades.clip(0, 255) if window.is_inverted else shades.clip(0, 255)).astype(np.uint8)
    return grey
