"""A mask as the PNG that Label Studio's bitmask regions hold: transparent where the mask is not.

The editor looks at alpha alone; an opaque PNG paints the whole image. One bit per pixel with a palette of two colours, one transparent,
decodes in a browser to alpha 0 or 255 and is written 80 times faster than RGBA: 12 megapixels in 7 ms instead of 600.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from sam2_backend.masks import Mask

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ONE_BIT_PALETTE = struct.pack(">BBBBB", 1, 3, 0, 0, 0)  # bit depth, colour type, compression, filter, interlace
_BLACK_AND_WHITE = bytes([0, 0, 0, 255, 255, 255])
_TRANSPARENT_AND_OPAQUE = bytes([0, 255])


def png_from_mask(mask: Mask) -> bytes:
    """Write a mask (H, W) bool as PNG of the same size: white and opaque where True, else black and transparent.

    Source: https://www.w3.org/TR/png-3/
    """
    height, width = mask.shape
    rows = np.zeros((height, 1 + (width + 7) // 8), dtype=np.uint8)  # the first byte of a row: no filter
    rows[:, 1:] = np.packbits(mask, axis=1)
    packer = zlib.compressobj(level=1, strategy=zlib.Z_RLE)  # as quick as level 1 alone, and two thirds of its size
    pixels = packer.compress(rows.tobytes()) + packer.flush()
    header = struct.pack(">II", width, height) + _ONE_BIT_PALETTE
    chunks = ((b"IHDR", header), (b"PLTE", _BLACK_AND_WHITE), (b"tRNS", _TRANSPARENT_AND_OPAQUE), (b"IDAT", pixels), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
