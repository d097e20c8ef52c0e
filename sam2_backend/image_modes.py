"""Every kind of pixel that Pillow reads → 8-bit RGB as a browser shows it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

STRIP_PIXELS = 1 << 20
"""Deep grey is scaled so many pixels at a time: at 8 bytes each, a whole image of 100 megapixels would take gigabytes."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey becomes RGB, grey deeper than 8 bits is scaled, transparency is laid on white; colour profiles are not applied."""
    if image.mode.startswith("I;16"):
        return _grey(image, 0.0, 257.0 * 255)
    if image.mode in {"I", "F"}:
        # 32-bit grey has no agreed white: its own darkest and brightest values become 0 and 255.
        return _grey(image, *_extremes(image))
    if "transparency" in image.info or image.mode in {"LA", "La", "PA", "RGBA", "RGBa"}:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """(first row, values) of parts of an image, from above, each of whole rows."""
    values = np.asarray(image)
    n_rows = max(STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, n_rows):
        yield top, values[top : top + n_rows].astype(np.float64)


def _extremes(image: Image.Image) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for _, values in _strips(image):
        finite = values[np.isfinite(values)]
        low, high = min(low, finite.min(initial=np.inf)), max(high, finite.max(initial=-np.inf))
    return (float(low), float(high)) if low <= high else (0.0, 0.0)


def _grey(image: Image.Image, low: float, high: float) -> Image.Image:
    """Values to 8 bits, `low` black and `high` white; what is no number is black."""
    shades = np.empty((image.height, image.width), np.uint8)
    for top, values in _strips(image):
        scaled = np.nan_to_num((values - low) * (255.0 / (high - low or 1.0)), nan=0.0, posinf=255.0, neginf=0.0)
        shades[top : top + len(values)] = np.rint(scaled).clip(0, 255)
    return Image.fromarray(shades).convert("RGB")
