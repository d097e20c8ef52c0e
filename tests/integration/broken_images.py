"""Image files that lie, made here: sizes that no memory holds, loops, text and profiles that unpack without end, other things in an image's name."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from png_chunks import png_chunks, png_of

SIZE_WH = (64, 48)
BOMB_BYTES = 200 << 20


def good_images() -> dict[str, bytes]:
    """One whole file of every kind that is read."""
    pixels = np.zeros((SIZE_WH[1], SIZE_WH[0], 3), np.uint8)
    pixels[:, :, 0] = np.arange(SIZE_WH[0]) * 4
    pixels[:, :, 1] = np.arange(SIZE_WH[1])[:, None] * 5
    image = Image.fromarray(pixels)
    kinds = {
        "png": ("PNG", {}), "jpeg": ("JPEG", {}), "progressive jpeg": ("JPEG", {"progressive": True}), "webp": ("WEBP", {}),
        "lossless webp": ("WEBP", {"lossless": True}), "avif": ("AVIF", {}), "gif": ("GIF", {}), "bmp": ("BMP", {}), "tiff": ("TIFF", {}),
        "packed tiff": ("TIFF", {"compression": "tiff_deflate"}), "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}), "jpeg 2000": ("JPEG2000", {}),
    }  # fmt: skip
    return {name: _saved(image, kind, **options) for name, (kind, options) in kinds.items()}


def cut_and_changed(seed: int = 7) -> Iterator[tuple[str, bytes]]:
    """Every kind cut off in twelve places, and with some of its bytes changed, thirty times; many of these are still readable."""
    random = np.random.default_rng(seed)
    for kind, data in good_images().items():
        for part in range(12):
            yield f"{kind} cut at {part}/12", data[: len(data) * part // 12 + part % 2]
        for number in range(30):
            changed = bytearray(data)
            for position in random.integers(0, min(len(data), 600) if number % 2 else len(data), 1 + number % 5):
                changed[position] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, random.integers(256)]))
            yield f"{kind} changed, {number}", bytes(changed)


def lying_images() -> Iterator[tuple[str, bytes]]:
    """Files of a few kB, none of which may be decoded as it asks to be."""
    good = good_images()
    yield from _png_lies(good["png"])
    yield from _gif_lies(good["gif"])
    yield from _jpeg_lies(good["jpeg"])
    yield from _tiff_lies()
    yield from _other_lies(good)
    yield from _no_images()


def harmless_images() -> Iterator[tuple[str, bytes]]:
    """Files with something odd in them that a browser shows all the same, and so do we."""
    good = good_images()
    zipped = b"PK\3\4" + bytes(26) + b"payload.sh"
    yield "a JPEG with a zip behind it", good["jpeg"] + zipped
    yield "a PNG with a page behind it", good["png"] + b"<html><script>alert(1)</script></html>"
    yield "a JPEG whose EXIF goes in a circle", _with_jpeg_segment(good["jpeg"], 0xE1, b"Exif\0\0" + _circular_exif())
    yield "a JPEG with twenty thousand comments", good["jpeg"][:2] + b"\xff\xfe\x00\x04hi" * 8_000 + good["jpeg"][2:]
    head, *_, end = png_chunks(good["png"])
    yield "a PNG with pixels for a thousand images", png_of([head, (b"IDAT", zlib.compress(bytes(BOMB_BYTES), 9)), end])
    yield "a PNG that says four gigabytes of pixels follow", good["png"][:33] + struct.pack(">I", 0xFFFFFFFF) + good["png"][37:]
    yield "a JPEG whose segment has no length", good["jpeg"][:2] + b"\xff\xe0\x00\x00" + good["jpeg"][4:]
    yield "a JPEG of a hundred scans", jpeg_of_many_scans(99, (64, 48))
    yield "a GIF that ends like a script", good["gif"] + b"/*<script>*/"


def _png_lies(good: bytes) -> Iterator[tuple[str, bytes]]:
    row = zlib.compress(bytes(8192))
    for width, height in ((60_000, 60_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1), (0, 5)):
        yield f"a PNG of {width} x {height}", png_of([_ihdr(width, height), (b"IDAT", row), (b"IEND", b"")])
    chunks = png_chunks(good)
    bomb = zlib.compress(bytes(BOMB_BYTES), 9)
    for kind, head in ((b"zTXt", b"comment\0\0"), (b"iTXt", b"comment\0\1\0\0\0"), (b"iCCP", b"profile\0\0")):
        yield f"a PNG with a bomb in {kind.decode()}", png_of([chunks[0], (kind, head + bomb), *chunks[1:]])
    text = [(b"zTXt", b"k%d\0\0" % number + zlib.compress(bytes(1 << 20))) for number in range(200)]
    yield "a PNG with two hundred texts of a megabyte", png_of([chunks[0], *text, *chunks[1:]])
    still = struct.pack(">IIIIIHHBB", 0, 60_000, 60_000, 0, 0, 1, 1, 0, 0)
    yield "a PNG whose animation is larger than it", png_of([chunks[0], (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", still), *chunks[1:]])


def _gif_lies(good: bytes) -> Iterator[tuple[str, bytes]]:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00\x3b"
    yield "a GIF of 65535 x 65535", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + frame
    yield "a GIF of 1 x 1 with a frame of 65535 x 65535", b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame
    yield "a GIF without frames", good[:13] + b"\x3b"
    yield "a GIF of endless extensions", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\x21\xfe\x01a\x00" * 50_000


def _jpeg_lies(good: bytes) -> Iterator[tuple[str, bytes]]:
    at = good.index(b"\xff\xc0")
    yield "a JPEG of 65535 x 65535", good[: at + 5] + b"\xff\xff\xff\xff" + good[at + 9 :]
    yield "a JPEG of height 0", good[: at + 5] + b"\0\0" + good[at + 7 :]
    yield "a JPEG of markers alone", b"\xff\xd8" + b"\xff\xd0" * 20_000 + b"\xff\xd9"
    yield "a JPEG with tables of 255 symbols", good[:2] + b"\xff\xc4\x00\x13\x00" + b"\xff" * 16 + good[2:]
    yield "a JPEG of twenty thousand scans", jpeg_of_many_scans(20_000)


def jpeg_of_many_scans(n_scans: int, size_wh: tuple[int, int] = (1600, 1600)) -> bytes:
    """A grey progressive JPEG, each of whose scans goes through the whole image and says nothing."""
    table = b"\xff\xdb\x00\x43\x00" + b"\x01" * 64
    frame = b"\xff\xc2\x00\x0b\x08" + struct.pack(">HH", size_wh[1], size_wh[0]) + b"\x01\x01\x11\x00"
    codes = b"\xff\xc4\x00\x14\x00\x01" + bytes(15) + b"\x00" + b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\xe0"
    first = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x01" + bytes(8)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10" + bytes(2 + 3 * (size_wh[0] * size_wh[1] // 64 // 16_384 + 1))
    return b"\xff\xd8" + table + frame + codes + first + scan * n_scans + b"\xff\xd9"


def _tiff_lies() -> Iterator[tuple[str, bytes]]:
    short, long = 3, 4
    grey = {256: (short, 32), 257: (short, 32), 258: (short, 8), 259: (short, 1), 262: (short, 1), 277: (short, 1), 278: (short, 32)}
    whole = grey | {273: (long, 8), 279: (long, 1024)}
    yield "a TIFF of 2^31 x 2^31", tiff_of(whole | {256: (long, 2**31), 257: (long, 2**31)})
    yield "a TIFF of no rows", tiff_of(whole | {257: (short, 0)})
    yield "a TIFF whose pages go in a circle", tiff_of(whole | {279: (long, 10**9)}, next_at=8)
    yield "a TIFF whose directory lies behind its end", b"II*\0" + struct.pack("<I", 2**32 - 2)
    tiles = {256: (long, 32), 257: (long, 32), 322: (long, 65_520), 323: (long, 65_520), 324: (long, 8), 325: (long, 100)}
    yield "a TIFF with one tile of 4 gigapixels", tiff_of({k: v for k, v in grey.items() if k != 278} | tiles)
    yield "a packed TIFF with one tile of 4 gigapixels", tiff_of({k: v for k, v in grey.items() if k != 278} | tiles | {259: (short, 8)})
    yield "a TIFF of a billion samples", tiff_of(whole | {277: (long, 10**9)})
    yield "a TIFF with a tag of four gigabytes", tiff_of(whole | {270: (2, 8)}, counts={270: 2**32 - 1})
    yield "a TIFF whose thumbnails go in a circle", tiff_of(whole | {330: (long, 8), 279: (long, 10**9)})


def tiff_of(tags: dict[int, tuple[int, int]], next_at: int = 0, counts: dict[int, int] | None = None) -> bytes:
    """A TIFF of one directory at byte 8: tag → (type, value)."""
    entries = b"".join(struct.pack("<HHII", tag, kind, (counts or {}).get(tag, 1), value) for tag, (kind, value) in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", next_at) + bytes(64)


def _other_lies(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for width, height in ((2**31 - 1, 2**31 - 1), (2**31 - 1, -1), (-5, 40_000)):
        yield f"a BMP of {width} x {height}", good["bmp"][:18] + struct.pack("<ii", width, height) + good["bmp"][26:]
    canvas = struct.pack("<I", 16_383)[:3]
    animated = b"VP8X" + struct.pack("<IB", 10, 2) + bytes(3) + canvas + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    yield "a WebP with a canvas of 16384 x 16384", b"RIFF" + struct.pack("<I", 4 + len(animated)) + b"WEBP" + animated
    yield "a WebP that says four gigabytes follow", good["webp"][:4] + b"\xff\xff\xff\xff" + good["webp"][8:]
    at = good["avif"].index(b"ispe") + 8
    for width, height in ((60_000, 60_000), (2**32 - 1, 2**32 - 1), (0, 0)):
        yield f"an AVIF that says {width} x {height}", good["avif"][:at] + struct.pack(">II", width, height) + good["avif"][at + 8 :]
    yield from _jpeg_2000_lies(good["jpeg 2000"])
    for kind in ("webp", "avif", "jpeg 2000", "gif", "tiff", "bmp"):
        noise = np.random.default_rng(3).integers(0, 256, 4000).astype(np.uint8).tobytes()
        yield f"noise behind the head of a {kind}", good[kind][:24] + noise


def _jpeg_2000_lies(good: bytes) -> Iterator[tuple[str, bytes]]:
    size = good.index(b"\xff\x51") + 6  # after the marker, its length and the capabilities
    stream = good.index(b"\xff\x4f\xff\x51")
    told = struct.pack(">II", 60_000, 60_000)
    for name, start in (("in its box and its stream", 0), ("in its bare stream", stream)):
        yield f"a JPEG 2000 of 60000 x 60000 {name}", _with_jp2_box(good, told)[start:size] + told + good[size + 8 :]
    yield "a JPEG 2000 whose stream is larger than its box says", good[:size] + told + bytes(8) + told + good[size + 24 :]
    yield "a JPEG 2000 of a billion tiles", good[:size] + told + bytes(8) + struct.pack(">II", 1, 1) + good[size + 24 :]


def _with_jp2_box(data: bytes, size_hw: bytes) -> bytes:
    at = data.index(b"ihdr") + 4
    return data[:at] + size_hw + data[at + 8 :]


def _no_images() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "one byte", b"\x89"
    yield "a page", b"<!doctype html><html><body>Please log in</body></html>"
    yield (
        "a drawing that names a file",
        (b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>'),
    )
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "a Python object", b"\x80\x04cos\nsystem\n(S'true'\ntR."
    yield "an icon", b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + struct.pack("<II", 40, 22) + bytes(40)


def _with_jpeg_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + jpeg[2:]


def _circular_exif() -> bytes:
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)


def _ihdr(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
