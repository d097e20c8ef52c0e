"""Videos, playlists and volumes that lie, made here: references to other files, tables and sizes that no memory holds, bombs."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import tifffile
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).parent))
from broken_images import good_images, tiff_of
from coded_video import encode

BOMB_BYTES = 200 << 20
FRONT = {"movflags": "faststart"}


URL, PIPE = "http://127.0.0.1:9/canary", "/nowhere/pipe"


def playlists(url: str = URL, pipe: str = PIPE) -> Iterator[tuple[str, bytes]]:
    """Files that ask a player to play another, in every way that FFmpeg knows.

    Args:
        url, pipe: Where they lead: an address that counts who comes, and a named pipe, whose opening would hang.
    """
    for target in (url, f"file://{pipe}", pipe, f"concat:{pipe}|{pipe}", f"subfile,,start,0,end,9,,:{pipe}", f"data:text/plain,{url}"):
        yield from _playlists(target)


def odd_videos(pipe: str = PIPE) -> Iterator[tuple[str, bytes]]:
    """Files with lies in them that some versions of FFmpeg see through, and refuse, and some pass over."""
    yield from _containers(encode(range(12), mux=FRONT), pipe)
    for form in ("mp4", "matroska", "mpegts", "avi"):
        data = encode(range(12), form=form)
        yield from ((f"{form} cut at {part}/8", data[: len(data) * part // 8]) for part in range(7))
    for name, data in good_images().items():
        yield f"an image for a video: {name}", data


def _playlists(target: str) -> Iterator[tuple[str, bytes]]:
    yield f"m3u8 of {target}", f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n".encode()
    yield f"m3u8 with a key at {target}", f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:5,\n{target}\n'.encode()
    yield f"ffconcat of {target}", f"ffconcat version 1.0\nfile '{target}'\n".encode()
    yield f"asx of {target}", f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode()
    yield f"ASF reference to {target}", f"[Reference]\nRef1={target}\n".encode()
    yield (
        f"mpd of {target}",
        (
            f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet mimeType="video/mp4">'
            f"<Representation id='1'><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
        ).encode(),
    )
    yield (
        f"sdp of {target}",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{target}\n".encode(),
    )
    yield f"a film of pictures at {target}", f"image2 {target}%d.png\n".encode()


def _containers(good: bytes, pipe: str) -> Iterator[tuple[str, bytes]]:
    yield "an MP4 whose samples lie in another file", _with_alias(good, pipe)
    for kind, name in ((b"stsz", "sizes"), (b"stts", "times"), (b"stsc", "chunks"), (b"stco", "offsets"), (b"ctts", "shifts")):
        if kind in good:
            at = good.index(kind) + (12 if kind == b"stsz" else 8)
            yield f"an MP4 of four billion {name}", good[:at] + b"\xff\xff\xff\xff" + good[at + 4 :]
    at = good.index(b"stsz") + 8
    yield "an MP4 of four billion samples of one byte", good[:at] + struct.pack(">II", 1, 0xFFFFFFFF) + good[at + 8 :]
    yield "an MP4 of a hundred million samples in one chunk", _many_samples(good, 100_000_000)
    for width, height in ((65_535, 65_535), (0, 0)):
        at = good.index(b"avc1" if b"avc1" in good else b"mp4v", good.index(b"stsd")) + 28
        yield f"an MP4 of {width} x {height}", good[:at] + struct.pack(">HH", width, height) + good[at + 4 :]
    at = good.index(b"moov")
    yield "an MP4 whose boxes have no end", good[: at - 4] + b"\0\0\0\1moov" + b"\xff" * 8 + good[at + 4 :]
    yield (
        "an MP4 of boxes in boxes",
        struct.pack(">I", 20)
        + b"ftypisom"
        + bytes(8)
        + b"".join(struct.pack(">I", 8 * (5_000 - depth)) + b"moov" for depth in range(5_000)),
    )
    yield (
        "an EBML file of endless size",
        b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 7 + b"\x42\x82\x84webm" + b"\x18\x53\x80\x67\x01" + b"\xff" * 7,
    )


def _with_alias(good: bytes, pipe: str) -> bytes:
    """The data reference of the track names a file (kind "alis", which QuickTime follows) in place of saying "in here"."""
    path = pipe.encode()
    record = bytes(150) + struct.pack(">HH", 2, len(path)) + path + bytes(len(path) % 2) + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I", 12 + len(record)) + b"alis" + bytes(4) + record
    at = good.index(b"dref") - 4
    (length,) = struct.unpack_from(">I", good, at)
    dref = struct.pack(">I", 16 + len(entry)) + b"dref" + struct.pack(">II", 0, 1) + entry
    return _resized(good[:at] + dref + good[at + length :], at, len(dref) - length)


def _many_samples(good: bytes, n_samples: int) -> bytes:
    """Tables of a few bytes that say: so many samples, all of one byte and a tick, all key frames, in one chunk."""
    data = good
    tables = {
        b"stsz": struct.pack(">III", 0, 1, n_samples), b"stsc": struct.pack(">IIIII", 0, 1, 1, n_samples, 1),
        b"stts": struct.pack(">IIII", 0, 1, n_samples, 1), b"stco": struct.pack(">III", 0, 1, 8),
        b"ctts": struct.pack(">II", 0, 0),
    }  # fmt: skip
    for kind, table in tables.items():
        if kind not in data:
            continue
        at = data.index(kind) - 4
        (length,) = struct.unpack_from(">I", data, at)
        box = struct.pack(">I", 8 + len(table)) + kind + table
        data = _resized(data[:at] + box + data[at + length :], at, len(box) - length)
    return data.replace(b"stss", b"free")


def _resized(data: bytes, at: int, more: int) -> bytes:
    """The boxes around a place that grew, grown as well."""
    changed = bytearray(data)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl"):
        box = data.find(kind)
        while box >= 0:
            (length,) = struct.unpack_from(">I", data, box - 4)
            if box < at < box - 4 + length:
                struct.pack_into(">I", changed, box - 4, length + more)
            box = data.find(kind, box + 4)
    return bytes(changed)


def lying_volumes() -> Iterator[tuple[str, bytes]]:
    """Nothing here may be unpacked or held in memory as it asks to be."""
    yield from _nifti_lies()
    yield from _dicom_lies()
    yield from _zip_lies()
    yield from _stack_lies()


def _nifti_lies() -> Iterator[tuple[str, bytes]]:
    good = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)).to_bytes()
    for dims in ((3, 32_767, 32_767, 32_767), (3, -5, 5, 5), (7, *[9_999] * 7), (0, 1, 1, 1), (3, 2, 2, 32_767)):
        values = [*dims, *[1] * (8 - len(dims))]
        yield f"a NIfTI of dimensions {dims}", good[:40] + struct.pack("<8h", *values) + good[56:]
    for offset in (float("inf"), float("nan"), -1.0, 1e30):
        yield f"a NIfTI whose values begin at {offset}", good[:108] + struct.pack("<f", offset) + good[112:]
    yield "a NIfTI of type 9999", good[:70] + struct.pack("<hh", 9999, 16) + good[74:]
    yield "a NIfTI that lies nowhere", good[:280] + struct.pack("<12f", *[float("nan")] * 12) + good[328:]
    yield "a NIfTI in a bomb", gzip.compress(good + bytes(BOMB_BYTES), 9)
    yield "a bomb in a bomb", gzip.compress(gzip.compress(bytes(BOMB_BYTES), 9))


def dicom(**elements: object) -> bytes:
    """A DICOM file of 8 x 8, with these elements in place of its own."""
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    header.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    header.SeriesInstanceUID, header.InstanceNumber = "1.2.3", 1
    header.Rows = header.Columns = 8
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation, header.SamplesPerPixel, header.PhotometricInterpretation = 15, 0, 1, "MONOCHROME2"
    header.PixelData = bytes(128)
    file = io.BytesIO()
    with warnings.catch_warnings():  # pydicom's, of what is written wrongly here on purpose
        warnings.simplefilter("ignore")
        for name, value in elements.items():
            setattr(header, name, value)
        if header.file_meta.TransferSyntaxUID.is_encapsulated:
            header["PixelData"].is_undefined_length = True
        header.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _dicom_lies() -> Iterator[tuple[str, bytes]]:
    for n_frames in (2_000_000_000, 999_999_999_999, 9_999, -3):
        yield f"a DICOM file of {n_frames} frames", dicom(NumberOfFrames=n_frames)
    yield "a DICOM file of 65535 x 65535", dicom(Rows=65_535, Columns=65_535)
    yield "a DICOM file of 1900 x 1900 and no pixels", dicom(Rows=1_900, Columns=1_900)
    yield "a DICOM file of 255 samples", dicom(SamplesPerPixel=255)
    yield "a DICOM file of a window without width", dicom(WindowWidth="nan", WindowCenter="inf")[:400]
    whole = dicom()
    at = whole.index(b"\xe0\x7f\x10\x00")
    yield "a DICOM file in a bomb", _deflated(whole, bytes(BOMB_BYTES))
    yield "a DICOM file with an element of four gigabytes", whole[:at] + b"\x09\x00\x01\x10OB\0\0\xfc\xff\xff\xff" + whole[at:]
    yield (
        "a DICOM file of sequences in sequences",
        whole[:at] + b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000,
    )
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 2_200_000
    yield "a DICOM file of two million items", whole[:at] + b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff" + items + whole[at:]
    elements = b"".join(struct.pack("<HH2sH", 9, number, b"LO", 0) for number in range(0x1000, 0xFFFF)) * 40
    yield "a DICOM file of two million elements", whole[:at] + elements + whole[at:]
    large = np.zeros((8, 8), np.uint8)
    yield (
        "a DICOM file whose picture is larger than it says",
        dicom(
            syntax=JPEG2000Lossless,
            BitsAllocated=8,
            BitsStored=8,
            HighBit=7,
            PixelData=pydicom.encaps.encapsulate([_large_jpeg_2000(large)]),
        ),
    )


def _large_jpeg_2000(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True)
    data = file.getvalue()
    at = data.index(b"\xff\x51") + 6
    side = struct.pack(">II", 40_000, 40_000)
    return data[:at] + side + bytes(8) + side + data[at + 24 :]


def _deflated(whole: bytes, behind: bytes) -> bytes:
    """The header of the file, and everything after it packed."""
    uid = str(ExplicitVRLittleEndian).encode()
    meta = dicom(syntax=DeflatedExplicitVRLittleEndian)
    start = meta.index(str(DeflatedExplicitVRLittleEndian).encode())
    start += len(str(DeflatedExplicitVRLittleEndian)) + len(str(DeflatedExplicitVRLittleEndian)) % 2
    rest = whole[whole.index(uid) + len(uid) + len(uid) % 2 :]
    implementation = meta.find(b"\x02\x00\x12\x00")
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    end = _end_of_meta(meta, max(start, implementation))
    return meta[:end] + packer.compress(rest[rest.index(b"\x08\x00") if b"\x08\x00" in rest else 0 :] + behind) + packer.flush()


def _end_of_meta(data: bytes, _start: int) -> int:
    (length,) = struct.unpack_from("<I", data, 140)
    return 144 + length


def _zip_lies() -> Iterator[tuple[str, bytes]]:
    yield "a zip of one DICOM file that unpacks to 200 MB", _zipped({"a.dcm": dicom() + bytes(BOMB_BYTES)})
    yield (
        "a zip of many that unpack to 200 MB",
        _zipped({f"{number}": dicom(InstanceNumber=number) + bytes(2 << 20) for number in range(100)}),
    )
    yield "a zip of names that climb", _zipped({"../../../../tmp/climbed.dcm": dicom(), "/etc/climbed.dcm": dicom()})[:-30]
    yield "a zip of twenty thousand files", _zipped({f"{number}": b"" for number in range(20_000)})
    told = bytearray(_zipped({"a.dcm": dicom() + bytes(BOMB_BYTES)}))
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", told, told.index(mark) + at, 600)
    yield "a zip whose file is larger than it says", bytes(told)
    yield "a zip in a zip", _zipped({"a.zip": _zipped({"a.dcm": dicom()})})


def _zipped(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def _stack_lies() -> Iterator[tuple[str, bytes]]:
    short, long = 3, 4
    page = {256: (short, 32), 257: (short, 32), 258: (short, 8), 259: (short, 1), 262: (short, 1), 277: (short, 1), 278: (short, 32)}
    whole = page | {273: (long, 8), 279: (long, 1024)}
    yield "a stack of pages in a circle", tiff_of(whole, next_at=8)
    yield "a stack of 2^31 x 2^31", tiff_of(whole | {256: (long, 2**31), 257: (long, 2**31)})
    yield "a stack a million deep", tiff_of(whole | {32_997: (long, 1_000_000)})
    yield "a stack with a tag of four gigabytes", tiff_of(whole | {270: (2, 8)}, counts={270: 2**32 - 1})
    yield "a stack with four billion strips", tiff_of(whole, counts={273: 2**32 - 1, 279: 2**32 - 1})
    tiles = {322: (long, 65_520), 323: (long, 65_520), 324: (long, 8), 325: (long, 100)}
    for compression in (1, 8):
        named = {k: v for k, v in page.items() if k != 278} | tiles | {259: (short, compression)}
        yield f"a stack with one tile of 4 gigapixels, compression {compression}", tiff_of(named)
    yield "a stack of two hundred pages, the last before the middle one", _chain(200, back_to=120)
    yield "a stack of twenty thousand pages", _chain(20_000)
    told = io.BytesIO()
    text = "ImageJ=1.11a\nimages=999999999\nslices=999999999\n"
    tifffile.imwrite(told, np.zeros((8, 8), np.uint8), description=text, metadata=None)
    yield "an ImageJ stack of a billion images", told.getvalue()
    yield "a BigTIFF whose pages lie nowhere", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**62) + bytes(64)


def _chain(n_pages: int, back_to: int | None = None) -> bytes:
    """A TIFF of empty directories, each naming the next; the last names none, or one before it."""
    addresses = [8 + 6 * number for number in range(n_pages)]
    after = [*addresses[1:], 0 if back_to is None else addresses[back_to]]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, address) for address in after)


def harmless_volumes() -> Iterator[tuple[str, bytes]]:
    """Volumes with something odd in them that costs no memory."""
    nifti = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), np.eye(4)).to_bytes()
    yield "a NIfTI with an extension of two gigabytes", nifti[:348] + b"\1\0\0\0" + struct.pack("<II", 2**31 - 16, 6) + nifti[352:]
    whole, items = dicom(), b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000
    at = whole.index(b"\xe0\x7f\x10\x00")
    yield (
        "a DICOM file of a sequence of a million items",
        whole[:at] + b"\x09\x00\x10\x10SQ\0\0" + struct.pack("<I", len(items)) + items + whole[at:],
    )
    page = {256: (3, 32), 257: (3, 32), 258: (3, 8), 262: (3, 1), 277: (3, 1), 278: (3, 32)}
    for name, code, packed in (
        ("deflate", 8, zlib.compress(bytes(BOMB_BYTES), 9)),
        ("LZMA", 34_925, lzma.compress(bytes(BOMB_BYTES), preset=0)),
    ):
        bomb = tiff_of(page | {259: (3, code), 273: (4, 400), 279: (4, len(packed))})
        yield f"a stack with a bomb in a strip, {name}", bomb.ljust(400, b"\0") + packed
