"""H.264 clips drawn by the test, so that the true box of the moving object is known on every frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scenes import Scene

BoxXYWH = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Clip:
    """A disc that moves over a still background; its box is known in per cent of the frame."""

    path: Path
    framerate: int
    boxes_pct: tuple[BoxXYWH, ...]

    @property
    def n_frames(self) -> int:
        return len(self.boxes_pct)


def moving_disc(path: Path, *, n_frames: int = 24, framerate: int = 25, width: int = 320, height: int = 240, radius: int = 36) -> Clip:
    """Write a clip whose disc goes from the upper left to the lower right on a slight curve."""
    boxes = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=framerate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, framerate)
        stream.options = {"crf": "12", "g": "12"}
        for index in range(n_frames):
            share = index / max(n_frames - 1, 1)
            x, y = radius + 20 + share * (width - 2 * radius - 40), radius + 15 + share**1.5 * (height - 2 * radius - 30)
            scene = Scene.blank(width, height).add_ellipse("Disc", (x, y), (radius, radius), (210, 120, 20))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(scene.image), format="rgb24")))
            boxes.append(((x - radius) / width * 100, (y - radius) / height * 100, 2 * radius / width * 100, 2 * radius / height * 100))
        container.mux(stream.encode(None))
    return Clip(path, framerate, tuple(boxes))
