"""Image files of every kind, made here in memory, to the pixels that the browser shows; damaged ones to a MediaError."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))
from png_chunks import png_chunks, png_of

from sam2_backend.errors import MediaError, MediaTooLargeError, MediaUnreachableError, MediaUnreadableError
from sam2_backend.exif import exif_orientation
from sam2_backend.images import ImageInfo, inspect, load_rgb, orientation_for

MEGAPIXEL = 1_000_000
WIDTH, HEIGHT = 200, 50
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture() -> Image.Image:
    """200 × 50 with another colour in each corner, so that swapped axes, flips and turns all show."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, WIDTH)
    pixels[:, :, 1] = np.linspace(0, 255, HEIGHT)[:, None]
    pixels[:25, :100, 2] = 200
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def raw_exif(order: str, kind: int, value: int, count: int = 1) -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    packed = struct.pack(f"{order}I", value) if kind == 4 else struct.pack(f"{order}HH", value, 0)
    return b"Exif\0\0" + mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, count) + packed + bytes(4)


def load(data: bytes, orientation: str = "upright", max_pixels: int = MEGAPIXEL) -> np.ndarray:
    pixels = load_rgb(data, orientation, max_pixels)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    return pixels


# Modes and formats


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "JPEG2000", "GIF", "WEBP", "AVIF", "JPEG"])
def test_every_format_gives_the_same_picture(kind):
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}, "JPEG": {"quality": 98, "subsampling": 0}}.get(
        kind, {}
    )
    data = saved(picture(), kind, **options)
    info = inspect(data, MEGAPIXEL)
    assert (info.format, info.stored_size_hw, info.exif_orientation) == (kind, (HEIGHT, WIDTH), 1)
    tolerance = {"GIF": 60, "JPEG": 30, "AVIF": 30, "JPEG2000": 30}.get(kind, 0)
    assert np.abs(load(data).astype(int) - np.asarray(picture()).astype(int)).max() <= tolerance


def test_bytes_and_a_path_are_read_alike(tmp_path):
    data = saved(picture(), "JPEG", exif=exif(6))
    (tmp_path / "image").write_bytes(data)
    assert inspect(tmp_path / "image", MEGAPIXEL) == inspect(data, MEGAPIXEL)
    np.testing.assert_array_equal(load_rgb(tmp_path / "image", "upright", MEGAPIXEL), load(data))


def test_a_path_that_vanished_is_a_media_error(tmp_path):
    with pytest.raises(MediaUnreachableError, match="Try again"):
        load_rgb(tmp_path / "gone", "upright", MEGAPIXEL)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB"])
def test_opaque_pngs_of_every_mode_keep_their_grey(mode):
    grey = Image.fromarray(np.repeat(np.uint8([0, 255]), 50)[None].repeat(20, 0))
    np.testing.assert_array_equal(load(saved(grey.convert(mode), "PNG")), np.asarray(grey.convert("RGB")))


@pytest.mark.parametrize(("mode", "pixel"), [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0))])
def test_what_is_transparent_becomes_white(mode, pixel):
    assert load(saved(Image.new(mode, (4, 4), pixel), "PNG"))[0, 0].tolist() == list(WHITE)


def test_half_transparent_is_mixed_with_white():
    assert np.abs(load(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG"))[0, 0].astype(int) - (255, 127, 127)).max() <= 1


def test_a_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, *RED])
    image.putpixel((0, 0), 0)
    pixels = load(saved(image, "PNG", transparency=0))
    assert (pixels[0, 0].tolist(), pixels[1, 1].tolist()) == (list(WHITE), list(RED))


@pytest.mark.parametrize(("mode", "colour"), [("RGB", RED), ("L", 7)])
def test_a_transparent_colour_key_is_laid_on_white(mode, colour):
    assert load(saved(Image.new(mode, (4, 4), colour), "PNG", transparency=colour))[0, 0].tolist() == list(WHITE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = load(saved(Image.fromarray(ramp), kind))
    assert pixels[..., 0].ravel().tolist() == list(range(256))
    assert (pixels == pixels[..., :1]).all()


def test_16_bit_grey_is_as_bright_as_in_chromium():
    assert load(saved(Image.fromarray(np.full((8, 8), 0x1234, np.uint16)), "PNG"))[0, 0].tolist() == [18, 18, 18]


def test_big_endian_16_bit_grey_is_read_with_its_own_byte_order():
    image = Image.frombytes("I;16B", (2, 1), b"\x00\x00\xff\xff")
    assert load(saved(image, "TIFF"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(("mode", "values"), [("I", [-70000, 0, 70000]), ("F", [-0.5, 0.0, 0.5]), ("F", [np.nan, 2.0, np.inf])])
def test_32_bit_grey_is_stretched_between_its_own_extremes(mode, values):
    image = Image.fromarray(np.array([values], np.int32 if mode == "I" else np.float32))
    expected = [0, 0, 255] if np.isnan(values[0]) else [0, 128, 255]
    assert load(saved(image, "TIFF"))[0, :, 0].tolist() == expected


def test_flat_32_bit_grey_is_black_without_a_division_by_zero():
    assert load(saved(Image.fromarray(np.full((3, 3), 7.5, np.float32)), "TIFF")).max() == 0


def test_cmyk_is_read_as_chromium_reads_it():
    pixels = load(saved(Image.new("CMYK", (8, 8), (200, 30, 60, 20)), "JPEG", quality=98))
    assert np.abs(pixels[4, 4].astype(int) - (50, 207, 179)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert load(data)[4, 4].tolist() == list(RED)


def test_an_animated_png_shows_its_animation_and_not_its_still_image():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    assert load(data)[4, 4].tolist() == list(GREEN)


# Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_pixels_are_those_of_the_independent_transposition(kind, orientation):
    data = saved(picture(), kind, exif=exif(orientation))
    info = inspect(data, MEGAPIXEL)
    with Image.open(io.BytesIO(data)) as image:
        stored, upright = np.asarray(image.convert("RGB")), np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (info.exif_orientation, info.stored_size_hw, info.upright_size_hw) == (orientation, (HEIGHT, WIDTH), upright.shape[:2])
    np.testing.assert_array_equal(load(data, "upright"), upright)
    np.testing.assert_array_equal(load(data, "stored"), stored)


@pytest.mark.parametrize(("kind", "expected"), [("JPEG", "upright"), ("PNG", "upright"), ("AVIF", "upright"), ("WEBP", "stored")])
def test_a_file_is_turned_where_chromium_turns_it(kind, expected):
    """Measured in Chromium 156: a 64 × 48 file with orientation 6 shows as 48 × 64, but for WebP."""
    assert orientation_for(inspect(saved(picture(), kind, exif=exif(6)), MEGAPIXEL), None) == expected


def test_a_phone_photo_with_a_second_picture_behind_it_is_a_jpeg():
    data = saved(picture(), "MPO", save_all=True, append_images=[picture()], exif=exif(6))
    info = inspect(data, MEGAPIXEL)
    assert (info.format, info.browser_rotates, orientation_for(info, None)) == ("JPEG", True, "upright")


def test_orientations_that_chromium_does_not_see_are_not_applied():
    """Measured in Chromium 156: XMP, PNG text, a PNG's EXIF behind the pixels, tags of the wrong type."""
    chunks = png_chunks(saved(picture(), "PNG"))
    behind_pixels = png_of([*chunks[:-1], (b"eXIf", exif(6)[6:]), chunks[-1]])
    profile = b"\nexif\n%8d\n" % len(exif(6)) + exif(6).hex().encode() + b"\n"
    in_text = png_of([chunks[0], (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)), *chunks[1:]])
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></x:xmpmeta>'
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    jpeg = saved(picture(), "JPEG")
    in_xmp = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    long_tag = saved(picture(), "JPEG", exif=raw_exif("<", 4, 6))
    for data in (behind_pixels, in_text, in_xmp, long_tag):
        assert load(data, "upright").shape[:2] == (HEIGHT, WIDTH)
        assert inspect(data, MEGAPIXEL).exif_orientation == 1


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "count", "value", "expected"), [(3, 1, 8, 8), (3, 1, 0, 1), (3, 1, 9, 1), (4, 1, 6, 1), (3, 2, 6, 1)])
def test_the_tag_counts_in_either_byte_order_when_type_count_and_value_are_right(order, kind, count, value, expected):
    assert exif_orientation(raw_exif(order, kind, value, count)) == expected
    assert exif_orientation(raw_exif(order, kind, value, count)[6:]) == expected


@given(st.binary(max_size=64).map(lambda tail: b"II*\0" + tail))
def test_damaged_exif_is_upright_or_a_valid_orientation(block):
    assert exif_orientation(block) in range(1, 9)


def turned(kind: str = "JPEG", orientation: int = 6, size_hw: tuple[int, int] = (480, 640)) -> ImageInfo:
    return ImageInfo(size_hw, orientation, kind, kind in {"JPEG", "PNG", "AVIF"})


@pytest.mark.parametrize(
    ("kind", "expected"), [("JPEG", "upright"), ("PNG", "upright"), ("AVIF", "upright"), ("WEBP", "stored"), ("TIFF", "stored")]
)
def test_without_a_size_chromiums_rule_decides(kind, expected):
    assert orientation_for(turned(kind), None) == expected
    assert orientation_for(turned(kind, size_hw=(512, 512)), (512, 512)) == expected
    assert orientation_for(turned(kind, orientation=3), (480, 640)) == expected


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_size_that_the_browser_reports_decides(kind):
    assert orientation_for(turned(kind), (640, 480)) == "upright"
    assert orientation_for(turned(kind), (480, 640)) == "stored"
    assert orientation_for(turned(kind), (320, 240)) == "upright"


def test_an_exact_size_beats_a_similar_one():
    assert orientation_for(turned("JPEG", size_hw=(1000, 1001)), (1000, 1001)) == "stored"
    assert orientation_for(turned("WEBP", size_hw=(1000, 1001)), (1001, 1000)) == "upright"


def test_an_image_without_rotation_has_one_orientation():
    for kind in ("JPEG", "WEBP"):
        assert orientation_for(turned(kind, orientation=1), (480, 640)) == "upright"
        assert orientation_for(turned(kind, orientation=1), None) == "upright"


@pytest.mark.parametrize("shown_hw", [(240, 320), (960, 1280), (481, 640), (484, 640), (48, 64), (3, 4)])
def test_another_scale_of_the_same_aspect_is_the_same_image(shown_hw):
    assert orientation_for(turned(orientation=1), shown_hw) == "upright"


@pytest.mark.parametrize("shown_hw", [(640, 480), (480, 650), (486, 640), (2, 4), (100, 1000)])
def test_another_aspect_is_another_image(shown_hw):
    with pytest.raises(MediaUnreadableError, match="640 × 480"):
        orientation_for(turned(orientation=1), shown_hw)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 8), st.floats(0.1, 4), st.booleans())
def test_any_scaling_with_rounding_is_accepted(height, width, orientation, scale, is_rotated):
    info = turned("JPEG" if is_rotated else "WEBP", orientation, (height, width))
    shown = tuple(max(1, int(scale * side + 0.5)) for side in info.upright_size_hw)
    if scale * min(height, width) >= 0.5:
        assert orientation_for(info, shown) in {"upright", "stored"}


def test_info_survives_json_and_anything_else_is_refused():
    info = turned()
    assert ImageInfo.from_json(info.to_json()) == info
    for value in (None, [], {}, {**info.to_json(), "stored_size_hw": 3}, {**info.to_json(), "stored_size_hw": [1]}):
        with pytest.raises(ValueError):
            ImageInfo.from_json(value)


# Limits and damage


def bomb() -> bytes:
    """200 megapixels in about 24 kB."""
    row = b"\0" + bytes(20_000 // 8)
    packed = zlib.compress(row * 10_000, 9)
    return png_of([(b"IHDR", struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")])


def test_200_megapixels_in_24_kb_are_refused_from_the_header(monkeypatch):
    data = bomb()
    assert len(data) < 30_000
    monkeypatch.setattr(Image.core, "new", lambda *_: pytest.fail("pixels were allocated"))
    for read in (lambda: inspect(data, 100_000_000), lambda: load_rgb(data, "upright", 100_000_000)):
        with pytest.raises(MediaTooLargeError, match=r"20000 × 10000.*SAM2_MEDIA_MAX_PIXELS"):
            read()


def test_more_than_pillows_own_limit_is_taken_where_the_setting_says_so():
    assert inspect(bomb(), 200_000_000).stored_size_hw == (10_000, 20_000)


def test_the_pixel_limit_is_the_last_size_that_is_taken():
    data = saved(picture(), "PNG")
    inspect(data, WIDTH * HEIGHT)
    with pytest.raises(MediaTooLargeError):
        inspect(data, WIDTH * HEIGHT - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html><head><title>Log in</title>", "HTML page.*login"),
        (b"<!-- x --><html lang='en'><svg>", "HTML page"),
        (b'\xef\xbb\xbf<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG.*[Rr]asterise"),
        (b"<svg viewBox='0 0 1 1'/>", "SVG"),
        (b'{"detail": "Authentication credentials were not provided."}', "JSON"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"P6 2 2 255\n" + bytes(12), "not an image"),
        (b"\0" * 100, "not an image"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data, words):
    for read in (
        lambda: inspect(data, MEGAPIXEL, name="http://host/x"),
        lambda: load_rgb(data, "upright", MEGAPIXEL, name="http://host/x"),
    ):
        with pytest.raises(MediaUnreadableError, match=f"http://host/x is .*{words}"):
            read()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_truncated_file_is_refused(kind, share):
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(pixels), kind)
    with pytest.raises(MediaUnreadableError):
        load_rgb(data[: int(len(data) * share)], "upright", MEGAPIXEL)


def test_a_truncated_jpeg_is_called_truncated():
    data = saved(picture(), "JPEG", quality=98)
    with pytest.raises(MediaUnreadableError, match="JPEG that is truncated"):
        load_rgb(data[:-500], "upright", MEGAPIXEL)


CORPUS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(picture(), "JPEG", exif=exif(6)),
    "progressive": lambda: saved(picture(), "JPEG", progressive=True, quality=60),
    "cmyk": lambda: saved(picture().convert("CMYK"), "JPEG"),
    "png": lambda: saved(picture(), "PNG", exif=exif(3)),
    "palette": lambda: saved(picture().quantize(16), "PNG", transparency=0),
    "deep": lambda: saved(Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)), "PNG"),
    "gif": lambda: saved(picture().resize((20, 20)), "GIF", save_all=True, append_images=[picture().resize((20, 20))]),
    "webp": lambda: saved(picture().resize((40, 20)), "WEBP", exif=exif(6)),
    "tiff": lambda: saved(picture().resize((20, 20)), "TIFF", compression="tiff_lzw"),
    "bmp": lambda: saved(picture().resize((20, 20)), "BMP"),
    "avif": lambda: saved(picture().resize((40, 20)), "AVIF", speed=10),
    "jp2": lambda: saved(picture().resize((20, 20)), "JPEG2000"),
}
_made: dict[str, bytes] = {}


def original(name: str) -> bytes:
    if name not in _made:
        _made[name] = CORPUS[name]()
    return _made[name]


def read_or_media_error(data: bytes) -> None:
    for orientation in ("upright", "stored"):
        try:
            info = inspect(data, MEGAPIXEL)
            pixels = load(data, orientation)
        except MediaError as error:
            assert " at 0x" not in error.message
            continue
        assert pixels.shape[0] * pixels.shape[1] <= MEGAPIXEL
        expected = info.upright_size_hw if orientation == "upright" else info.stored_size_hw
        assert pixels.shape[:2] == expected


in_bulk = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.filterwarnings("ignore")
@in_bulk
@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF", b"II*\0", b"BM"]))
def test_random_bytes_raise_nothing_but_media_errors(tail, magic):
    read_or_media_error(magic + tail)


@pytest.mark.filterwarnings("ignore")
@in_bulk
@given(st.sampled_from(sorted(CORPUS)), st.data())
def test_mutated_images_raise_nothing_but_media_errors(name, draw):
    data = bytearray(original(name))
    for _ in range(draw.draw(st.integers(1, 6))):
        at = draw.draw(st.integers(0, max(len(data) - 1, 0)))
        match draw.draw(st.sampled_from(["set", "cut", "drop", "double"])):
            case "set":
                data[at : at + 1] = bytes([draw.draw(st.integers(0, 255))])
            case "cut":
                del data[max(at, 16) :]
            case "drop":
                del data[at : at + draw.draw(st.integers(1, 8))]
            case _:
                data[at:at] = data[at : at + 16]
    read_or_media_error(bytes(data))


def many_scans(n_scans: int) -> bytes:
    """A progressive JPEG, its last scan said again and again, as a file of 400 kB can twenty thousand times."""
    data = saved(picture(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * n_scans + data[-2:]


def test_a_jpeg_that_goes_through_its_image_without_end_is_refused_before_it_is_decoded(monkeypatch):
    data = many_scans(2000)
    monkeypatch.setattr(Image.core, "jpeg_decoder", lambda *_: pytest.fail("it was decoded"), raising=False)
    with pytest.raises(MediaUnreadableError, match="more than 100 scans"):
        load(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"icc_profile": bytes(3_000_000)}])
def test_what_cameras_and_editors_write_is_not_too_much(options):
    trailer = np.random.default_rng(1).integers(0, 256, 4_000_000).astype(np.uint8).tobytes()  # the film of a motion photo
    load(saved(picture(), "JPEG", **options) + trailer)
    load(saved(picture(), "MPO", save_all=True, append_images=[picture()]) + trailer)


@pytest.mark.parametrize("n_scans", [0, 50])
def test_scans_up_to_the_limit_are_decoded(n_scans):
    load(many_scans(n_scans))


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deep_grey_is_scaled_in_parts_as_it_would_be_at_once(monkeypatch, mode):
    kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
    values = np.random.default_rng(2).integers(0, 60_000, (37, 23)).astype(kind)
    data = saved(Image.fromarray(values), "TIFF")
    whole = load(data)
    monkeypatch.setattr("sam2_backend.image_modes.STRIP_PIXELS", 50)
    np.testing.assert_array_equal(load(data), whole)
