"""The demo's clip, made of its own photographs: a saucer flies over a launch pad."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FRAMERATE = 24
N_FRAMES = 48
SIZE_WH = (480, 320)

_IMAGES = Path(__file__).with_name("demo_images")
#: The saucer and the cup on it, in pixels of coffee.jpg.
_SAUCER, _CUP = (78, 72, 482, 388), (168, 14, 412, 200)
_FINER = 4
_WIDTH_PX = (105, 150)
"""At the start of the clip and at its end."""


def make_clip(path: Path) -> bool:
    """Write the clip as H.264, which every browser plays; False: PyAV, which workers need, is not installed here."""
    try:
        import av
    except ImportError:
        return False
    fresh = path.with_suffix(".part.mp4")
    with av.open(str(fresh), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMERATE)
        stream.width, stream.height = SIZE_WH
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FRAMERATE)
        stream.options = {"crf": "20", "movflags": "faststart"}
        sky, saucer = _sky(), _saucer()
        for index in range(N_FRAMES):
            pixels = np.asarray(frame(sky, saucer, index / (N_FRAMES - 1)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    fresh.replace(path)
    return True


def frame(sky: Image.Image, saucer: Image.Image, share: float) -> Image.Image:
    """One frame, RGB; `share` of the clip from 0 to 1."""
    width_px = round(_WIDTH_PX[0] + share * (_WIDTH_PX[1] - _WIDTH_PX[0]))
    height_px = round(width_px * saucer.height / saucer.width)
    small = saucer.resize((width_px, height_px), Image.Resampling.LANCZOS)
    turned = small.rotate(12 * math.sin(2 * math.pi * share), Image.Resampling.BICUBIC, expand=True)
    x_px = 40 + share * (SIZE_WH[0] - 80 - width_px)
    y_px = 150 - 120 * math.sin(math.pi * share)
    image = sky.copy()
    image.paste(turned, (round(x_px), round(y_px)), turned)
    return image


def _sky() -> Image.Image:
    with Image.open(_IMAGES / "rocket.jpg") as photograph:
        return photograph.convert("RGB").resize(SIZE_WH, Image.Resampling.LANCZOS)


def _saucer() -> Image.Image:
    """Cut out, RGBA."""
    with Image.open(_IMAGES / "coffee.jpg") as photograph:
        cut = photograph.convert("RGB")
    mask = Image.new("L", (cut.width * _FINER, cut.height * _FINER))
    for outline in (_SAUCER, _CUP):
        ImageDraw.Draw(mask).ellipse([edge * _FINER for edge in outline], fill=255)
    cut.putalpha(mask.resize(cut.size, Image.Resampling.BOX))
    return cut.crop(cut.getbbox())
