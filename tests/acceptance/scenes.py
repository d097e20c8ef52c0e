"""Images drawn by the test, so that the true mask of every object is known to the pixel."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Scene:
    """An image (H, W, 3) uint8 as a person sees it, and its objects' masks (H, W) bool by name."""

    image: NDArray[np.uint8]
    objects: dict[str, Mask] = field(default_factory=dict)

    @classmethod
    def blank(cls, width: int, height: int) -> Scene:
        """A background with a slow gradient and a little noise, the same at every run."""
        y, x = np.mgrid[:height, :width]
        ramp = np.stack([190 + 40 * x / width, 200 + 30 * y / height, 215 - 30 * x / width], axis=-1)
        noise = np.random.default_rng(7).normal(0, 2.5, ramp.shape)
        return cls(np.clip(ramp + noise, 0, 255).astype(np.uint8))

    def add_ellipse(self, name: str, center_xy: tuple[float, float], radii_xy: tuple[float, float], color: tuple[int, int, int]) -> Scene:
        y, x = np.mgrid[: self.image.shape[0], : self.image.shape[1]] + 0.5
        return self._add(name, ((x - center_xy[0]) / radii_xy[0]) ** 2 + ((y - center_xy[1]) / radii_xy[1]) ** 2 <= 1, color)

    def add_rectangle(self, name: str, left: int, top: int, right: int, bottom: int, color: tuple[int, int, int]) -> Scene:
        mask = np.zeros(self.image.shape[:2], dtype=bool)
        mask[top:bottom, left:right] = True
        return self._add(name, mask, color)

    def save(self, path: Path, exif_orientation: int = 1) -> Path:
        """Write it so that a browser which follows the EXIF orientation shows `image`."""
        stored = Image.fromarray(self.image)
        if exif_orientation == 6:
            stored = stored.transpose(Image.Transpose.ROTATE_90)  # shown after a turn to the right
        exif = Image.Exif()
        exif[0x0112] = exif_orientation
        options = {"exif": exif, "quality": 95} if path.suffix == ".jpg" else {}
        stored.save(path, **options)
        return path

    def _add(self, name: str, mask: Mask, color: tuple[int, int, int]) -> Scene:
        shade = np.random.default_rng(len(self.objects)).normal(0, 4, self.image.shape)
        self.image[mask] = np.clip(np.array(color) + shade, 0, 255).astype(np.uint8)[mask]
        self.objects[name] = mask
        return self


def two_objects() -> Scene:
    """640 × 480: a disc and a rectangle, apart from each other.

    Colours that stand out: whether the path is right is asked here. How good the shipped checkpoint is, its own evaluation tells.
    """
    return (
        Scene.blank(640, 480)
        .add_ellipse("Disc", (180, 190), (85, 85), (210, 120, 20))
        .add_rectangle("Rectangle", 390, 110, 580, 300, (36, 84, 170))
    )


def one_ellipse() -> Scene:
    return Scene.blank(640, 480).add_ellipse("Ellipse", (330, 360), (170, 70), (36, 84, 170))


def one_disc(width: int, height: int, center_xy: tuple[float, float], radius: float) -> Scene:
    return Scene.blank(width, height).add_ellipse("Disc", center_xy, (radius, radius), (150, 40, 140))


def upright_rgb(data: bytes) -> NDArray[np.uint8]:
    """The file as a browser shows it."""
    from PIL import ImageOps

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def iou(a: Mask, b: Mask) -> float:
    """1 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 1.0
