"""The embedding of one image: three feature maps, and how they are stored."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FORMAT = "S2E3"
"""Of the bytes. Part of the name that they are kept under, so that a change of it is a miss."""
_MAGIC = FORMAT.encode()
_HEADER = struct.Struct("<4sI")  # magic, crc32 of all that follows
_SIDES = struct.Struct("<9I")  # (channels, height, width) of each map


@dataclass(frozen=True, slots=True, eq=False)
class ImageEmbedding:
    """What the encoder makes of one image of side S, d channels wide; rounded to fp16 whatever the dtype.

    In memory the channels of a pixel lie together (channels_last), as the decoder reads them.

    Rounding comes before the first use, so that a mask does not depend on the cache tier that an embedding came through.

    Attributes:
        high_res_0: (1, d/8, S/4, S/4).
        high_res_1: (1, d/4, S/8, S/8).
        image: (1, d, S/16, S/16), without the no-memory vector, as a video tracker wants it.
    """

    high_res_0: Tensor
    high_res_1: Tensor
    image: Tensor

    @classmethod
    def rounded(cls, maps: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> ImageEmbedding:
        """Make one of what the encoder returned."""
        return cls(*(_channels_last(t.to(torch.float16).to(dtype)) for t in maps))

    @property
    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.high_res_0, self.high_res_1, self.image

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(t.nbytes for t in self.maps)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ImageEmbedding:
        return ImageEmbedding(*(t.to(device, dtype) for t in self.maps))

    def to_bytes(self) -> bytes:
        """The values as fp16 behind a header that `from_bytes` checks, in the order that they have in memory; no pickle."""
        sides = _SIDES.pack(*(side for t in self.maps for side in t.shape[1:]))
        body = b"".join((sides, *(t.to("cpu", torch.float16).permute(0, 2, 3, 1).numpy().tobytes() for t in self.maps)))
        return _HEADER.pack(_MAGIC, zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, device: torch.device | str, dtype: torch.dtype) -> ImageEmbedding:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: the data are damaged or of another format.
        """
        if len(data) < _HEADER.size + _SIDES.size or bytes(data[:4]) != _MAGIC:
            raise ValueError("not an embedding")
        body = memoryview(data)[_HEADER.size :]
        if len(body) % 2 or zlib.crc32(body) != _HEADER.unpack_from(data)[1]:
            raise ValueError("the embedding is damaged")
        sides, values = _SIDES.unpack_from(body), body[_SIDES.size :]
        flat = torch.from_numpy(np.frombuffer(values, dtype="<f2").copy())
        shapes = [sides[i : i + 3] for i in (0, 3, 6)]
        ends = np.cumsum([0, *(channels * height * width for channels, height, width in shapes)])
        if not all(sides) or ends[-1] != flat.numel():  # a side of 0 would let the others be beyond what torch counts
            raise ValueError("the embedding is damaged")
        maps = [
            flat[start:end].view(1, height, width, channels).permute(0, 3, 1, 2)
            for start, end, (channels, height, width) in zip(ends[:-1], ends[1:], shapes, strict=True)
        ]
        return cls(*(t.to(device, dtype, copy=True) for t in maps))


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)
