"""The one EXIF tag that turns an image, read as Chromium reads it.

Pillow's own reader also takes the orientation from XMP, from PNG text and from tags of the wrong type, where Chromium does not.
"""

from __future__ import annotations

import struct
from typing import Any

ORIENTATION_TAG = 0x0112
SHORT = 3
UPRIGHT = 1


def exif_orientation(exif: Any) -> int:
    """The orientation in an EXIF block.

    Args:
        exif: Bytes of a TIFF header with its first directory, with or without its `Exif` mark before it; None: there is no EXIF.

    Returns:
        1 to 8; 1 where there is none, and where the block is damaged.

    Source: Exif 2.32, section 4.6.4; measured in Chromium 156 with types BYTE, SHORT and LONG and values 0 to 9.
    """
    if not isinstance(exif, bytes):
        return UPRIGHT
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        return _first_directory_orientation(tiff, order) if order else UPRIGHT
    except struct.error:
        return UPRIGHT


def _first_directory_orientation(tiff: bytes, order: str) -> int:
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (n_entries,) = struct.unpack_from(f"{order}H", tiff, start)
    for index in range(n_entries):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * index)
        if tag == ORIENTATION_TAG:
            return value if kind == SHORT and count == 1 and 1 <= value <= 8 else UPRIGHT
    return UPRIGHT
