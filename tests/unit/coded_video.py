"""Clips whose every frame tells its number in pixels: eight blocks, black or white, are its bits; a mark stands in the top left corner."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from sam2_backend.frame_sources import Frames, open_frames
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource

N_BITS = 8
WIDTH, HEIGHT = 128, 64
BLOCK = WIDTH // N_BITS

H264 = "libx264" if "libx264" in av.codecs_available else "mpeg4"


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width, 3) uint8: the mark above, the number's bits below, lowest first."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[: height // 2, : width // 2] = 255
    image[: height // 2, width // 2 :] = 0
    for bit in range(N_BITS):
        image[height // 2 :, bit * width // N_BITS : (bit + 1) * width // N_BITS] = 255 * (number >> bit & 1)
    return image


def number_in(image: np.ndarray) -> int:
    """What `picture` was given, read back from a decoded frame; fails where a bit is neither black nor white."""
    height, width, _ = image.shape
    number = 0
    for bit in range(N_BITS):
        block = image[height // 2 + 4 : height - 4, bit * width // N_BITS + 4 : (bit + 1) * width // N_BITS - 4].mean()
        assert block < 60 or block > 195, f"bit {bit} is grey ({block:.0f})"
        number |= (block > 128) << bit
    return number


def encode(
    timestamps: Sequence[int],
    time_base: Fraction = Fraction(1, 25),
    *,
    form: str = "mp4",
    codec: str = H264,
    gop: int = 12,
    b_frames: int = 2,
    rotation: int = 0,
    hflip: bool = False,
    mux: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    size_wh: tuple[int, int] = (WIDTH, HEIGHT),
) -> bytes:
    """A video file with frame i at `timestamps[i]`."""
    with tempfile.NamedTemporaryFile() as file:  # named: an index in front is written by opening it again
        _encode(file.name, timestamps, time_base, form, codec, gop, b_frames, rotation, hflip, mux, codec_options, size_wh)
        return Path(file.name).read_bytes()


def _encode(path, timestamps, time_base, form, codec, gop, b_frames, rotation, hflip, mux, codec_options, size_wh) -> None:
    with av.open(path, "w", format=form, options=mux or {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.options = ({"crf": "12", "preset": "veryfast"} if codec == "libx264" else {}) | (codec_options or {})
        if codec == "mpeg4":
            stream.codec_context.qmax = 4
        if rotation or hflip:
            stream.set_display_rotation(rotation, hflip=hflip)
        for number, timestamp in enumerate(timestamps):
            frame = av.VideoFrame.from_ndarray(picture(number % 256, *size_wh), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = timestamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Clips:
    """Writes files below the local files root and opens them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self.settings = Settings(data_dir=folder / "data", local_files_root=str(self.root))
        self._n_files = 0

    def ref(self, data: bytes) -> MediaRef:
        self._n_files += 1
        path = self.root / f"file-{self._n_files}"
        path.write_bytes(data)
        return MediaRef(path.as_uri())

    def open(self, data: bytes | Iterable[bytes], kind: str = "video", framerate: float = 25.0, n_frames: int = 0) -> Frames:
        files = [data] if isinstance(data, bytes) else list(data)
        source = FrameSource(tuple(map(self.ref, files)), kind, framerate, n_frames)
        return open_frames(source, MediaStore(self.settings, None), self.settings)
