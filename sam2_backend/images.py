"""Bytes of an image file to RGB pixels as the browser shows them, or a sentence that says why not.

Pillow reads; only formats that a labelling tool meets are tried (its EPS reader, for one, starts Ghostscript). Pixels are counted
in the header, before any is decoded. Which formats are rotated by their EXIF tag was measured in Chromium 156.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from sam2_backend.errors import MediaError, MediaTooLargeError, MediaUnreachableError, MediaUnreadableError
from sam2_backend.exif import exif_orientation
from sam2_backend.image_modes import to_rgb
from sam2_backend.jpeg_scans import MOST_SCANS, goes_on_too_long

Orientation = Literal["upright", "stored"]
RgbImage: TypeAlias = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000")
ROTATED_BY_BROWSER = frozenset({"JPEG", "PNG", "AVIF"})
"""Formats whose orientation Chromium applies. A PNG's counts only where it stands before the pixels, as Pillow's header read finds it."""
SAME_ASPECT = 0.01
HEAD_BYTES = 4096

TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Our own limit is looked at before pixels are decoded. Pillow's stands behind it at twice ours, for sizes inside files that only its
# readers see (tiles, frames); it also prints a warning from ours on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header of an image file says.

    Attributes:
        stored_size_hw: Height and width of the pixels as they lie in the file.
        exif_orientation: 1 (upright) to 8.
        format: "JPEG", "PNG", …
        browser_rotates: Whether the browser applies this format's orientation.
    """

    stored_size_hw: tuple[int, int]
    exif_orientation: int
    format: str
    browser_rotates: bool

    @property
    def upright_size_hw(self) -> tuple[int, int]:
        """Height and width after the orientation is applied."""
        height, width = self.stored_size_hw
        return (width, height) if self.exif_orientation >= 5 else (height, width)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ImageInfo:
        """Read what `to_json` wrote. Raises ValueError: it is something else."""
        try:
            height, width = value["stored_size_hw"]
            return cls((int(height), int(width)), int(value["exif_orientation"]), str(value["format"]), bool(value["browser_rotates"]))
        except (KeyError, TypeError) as error:
            raise ValueError("not an ImageInfo") from error


def inspect(data: bytes | Path, max_pixels: int, name: str = "The image") -> ImageInfo:
    """Read an image's header; nothing is decoded.

    Args:
        data: The file's bytes, or its path.
        name: What the messages call it.

    Raises:
        MediaUnreadableError: it is not an image of a known format.
        MediaTooLargeError: it has more than `max_pixels`.
    """
    with _opened(data, max_pixels, name) as image:
        return _info(image)


def orientation_for(info: ImageInfo, shown_size_hw: tuple[int, int] | None) -> Orientation:
    """Whether the annotator sees the image upright or as stored.

    The size that the browser reports decides; where it does not (no size given, a square, a half turn), Chromium's rule does.
    An image without a rotation is always "upright".

    Raises:
        MediaUnreadableError: the reported size has another aspect than the image: it is not the same image.
    """
    by_rule: Orientation = "upright" if info.browser_rotates or info.exif_orientation == 1 else "stored"
    if shown_size_hw is None:
        return by_rule
    sizes: dict[Orientation, tuple[int, int]] = {"upright": info.upright_size_hw, "stored": info.stored_size_hw}
    for fits in (_same_size, _same_aspect):
        fitting = [orientation for orientation, size_hw in sizes.items() if fits(size_hw, shown_size_hw)]
        if fitting:
            return by_rule if by_rule in fitting else fitting[0]
    (height, width), (shown_height, shown_width) = sizes[by_rule], shown_size_hw
    raise MediaUnreadableError(
        f"The image is {width} × {height} pixels, but the prompts were drawn on one of {shown_width} × {shown_height}. "
        "Reload the task: its image may have been replaced."
    )


def load_rgb(data: bytes | Path, orientation: Orientation, max_pixels: int, name: str = "The image") -> RgbImage:
    """Decode an image.

    Grey becomes RGB, 16-bit and deeper grey is scaled to 8, transparency is laid on white, and of an animation the first frame is
    taken. Colour profiles are not applied.

    Returns:
        (H, W, 3) uint8 RGB, contiguous and writable; upright or as stored.

    Raises:
        MediaUnreadableError: not an image, or a damaged or truncated one.
        MediaTooLargeError: it has more than `max_pixels`.
    """
    with _opened(data, max_pixels, name) as image:
        _check_scans(image, name)
        turn = TRANSPOSES.get(_info(image).exif_orientation) if orientation == "upright" else None
        if getattr(image, "default_image", False):
            image.seek(1)  # an animated PNG's still image for viewers that cannot animate: browsers skip it
        rgb = to_rgb(image)
        return np.array(rgb if turn is None else rgb.transpose(turn))


@contextmanager
def _opened(data: bytes | Path, max_pixels: int, name: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image and turn everything that Pillow may raise, there and in the caller's block, into a MediaError."""
    kind = "n image"
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(data.open("rb") if isinstance(data, Path) else io.BytesIO(data))
        except OSError:
            raise MediaUnreachableError(f"{name} is no longer in the folder of downloaded media. Try again.") from None
        try:
            image = stack.enter_context(Image.open(file, formats=FORMATS))
            kind = f" {_info(image).format}"
            _check_pixels(image, max_pixels, name)
            yield image
        except MediaError:
            raise
        except UnidentifiedImageError:
            file.seek(0)
            raise MediaUnreadableError(f"{name} {_what_it_is(file.read(HEAD_BYTES))}") from None
        except Image.DecompressionBombError:
            raise MediaTooLargeError(
                f"{name} holds more than {2 * max_pixels} pixels. Scale it down, or raise SAM2_MEDIA_MAX_PIXELS."
            ) from None
        except MemoryError:
            raise MediaTooLargeError(f"{name} does not fit into this machine's memory. Lower SAM2_MEDIA_MAX_PIXELS.") from None
        except Exception as error:
            fault = "truncated: its end is missing" if "truncated" in str(error).lower() else "damaged"
            raise MediaUnreadableError(f"{name} is a{kind} that is {fault}. Upload the file again.") from None


def _info(image: Image.Image) -> ImageInfo:
    kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with a second picture behind it, as phones make
    return ImageInfo((image.height, image.width), exif_orientation(image.info.get("exif")), kind, kind in ROTATED_BY_BROWSER)


def _check_pixels(image: Image.Image, max_pixels: int, name: str) -> None:
    if image.width * image.height > max_pixels:
        raise MediaTooLargeError(
            f"{name} is {image.width} × {image.height} pixels; at most {max_pixels} are taken. Scale it down, or raise SAM2_MEDIA_MAX_PIXELS."
        )
    if not image.width * image.height:
        raise MediaUnreadableError(f"{name} has no pixels.")


def _check_scans(image: ImageFile.ImageFile, name: str) -> None:
    file = image.fp
    if image.format not in {"JPEG", "MPO"} or file is None:
        return
    file.seek(0)
    if goes_on_too_long(file.read()):
        raise MediaUnreadableError(f"{name} is a JPEG of more than {MOST_SCANS} scans, or without end. Save it again in an image editor.")


def _same_size(size_hw: tuple[int, int], shown_hw: tuple[int, int]) -> bool:
    return size_hw == tuple(shown_hw)


def _same_aspect(size_hw: tuple[int, int], shown_hw: tuple[int, int]) -> bool:
    (height, width), (shown_height, shown_width) = size_hw, shown_hw
    # Some scale gives both sides, each rounded to a whole pixel; or the aspects differ by less than is tolerated.
    is_rounded = (shown_height - 0.5) * width <= (shown_width + 0.5) * height and (shown_width - 0.5) * height <= (
        shown_height + 0.5
    ) * width
    return is_rounded or abs(shown_width * height - shown_height * width) <= SAME_ASPECT * shown_height * width


def _what_it_is(head: bytes) -> str:
    if not head:
        return "is empty (0 bytes). Upload the file again."
    for is_it, sentence in _LOOKALIKES:
        if is_it(head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()):
            return sentence
    return f"is not an image, or of a format that is not read here. The formats are: {', '.join(FORMATS)}."


_LOOKALIKES: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda head: head.startswith(b"<!doctype html") or b"<html" in head, "is an HTML page, not an image: perhaps a login page."),
    (lambda head: b"<svg" in head, "is an SVG drawing, which has no pixels. Rasterise it, to PNG for instance."),
    (lambda head: head.startswith((b"{", b"[", b"<?xml")), "is a text answer (JSON or XML), not an image: perhaps an error message."),
    (lambda head: head.startswith(b"%pdf"), "is a PDF. Turn its pages into images."),
    (
        lambda head: head[4:12] in {b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"},
        "is a HEIC photo, which browsers do not show. Turn it into JPEG.",
    ),
    (lambda head: head[4:12] in {b"ftypavif", b"ftypavis"}, "is an AVIF image that is damaged. Upload the file again."),
    (lambda head: head[4:8] == b"ftyp" or head.startswith(b"\x1a\x45\xdf\xa3"), "is a video, not an image."),
    (lambda head: head[128:132] == b"dicm", "is a DICOM file, which browsers do not show. Turn it into PNG."),
)
