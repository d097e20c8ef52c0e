"""What tifffile leaves unbounded: directories that go in a circle, and strips that unpack without end."""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import Any, BinaryIO

from sam2_backend.errors import VideoTooLargeError, VideoUnreadableError

_DEFLATE, _LZMA = (8, 32946, 50013), (34925,)
_FORMS = {
    b"II*\0": ("<H", "<I", 12, 4),
    b"MM\0*": (">H", ">I", 12, 4),
    b"II+\0": ("<Q", "<Q", 20, 8),
    b"MM\0+": (">Q", ">Q", 20, 8),
}
"""By the file's first bytes: how the number of entries and an address are written, bytes of an entry, where the first address stands."""


def count_pages(file: BinaryIO, most: int, name: str) -> int:
    """Follow the chain of directories.

    Raises:
        VideoTooLargeError: it is longer than `most`.
        VideoUnreadableError: it comes back to where it was.
        struct.error: it leads out of the file.
    """
    file.seek(0)
    count_format, address_format, entry_bytes, first_at = _FORMS[file.read(4)]
    count, address = struct.Struct(count_format), struct.Struct(address_format)
    at, seen = _read(file, first_at, address), set[int]()
    while at:
        if at in seen:
            raise VideoUnreadableError(f"{name} is a TIFF stack whose pages go in a circle. Export it again.")
        seen.add(at)
        if len(seen) > most:
            raise VideoTooLargeError(f"{name} has more than {most} pages. Raise SAM2_VIDEO_MAX_FRAMES.")
        at = _read(file, at + count.size + entry_bytes * _read(file, at, count), address)
    return len(seen)


def _read(file: BinaryIO, at: int, kind: struct.Struct) -> int:
    file.seek(at)
    return int(kind.unpack(file.read(kind.size))[0])


def bound_decoders(decoders: Any) -> None:
    """Put decoders that stop at the size of their strip in the place of tifffile's own, which do not; imagecodecs' do, and stay.

    Args:
        decoders: `tifffile.TIFF.DECOMPRESSORS`.
    """
    for codes, decode in ((_DEFLATE, _inflate), (_LZMA, _unpack_lzma)):
        for code in codes:
            if decoders[code].__module__ == "tifffile._imagecodecs":
                decoders._codecs[code] = decode


def _inflate(data: bytes, /, *, out: int) -> bytes:
    return zlib.decompressobj().decompress(data, out)


def _unpack_lzma(data: bytes, /, *, out: int) -> bytes:
    return lzma.LZMADecompressor().decompress(data, out)
