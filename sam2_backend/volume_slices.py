"""What every reader of volumes offers: slices by number; and what each may refuse, in words."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from sam2_backend.errors import MediaError, MediaUnreachableError, VideoTooLargeError, VideoUnreadableError, VolumeSupportError
from sam2_backend.settings import Settings
from sam2_backend.volume_window import Values, Window


class Slices(Protocol):
    """The slices of one volume, all of one size. Used by one thread at a time.

    Attributes:
        size_hw: Height and width of a slice.
        n_slices: At least one.
        window: What the file asks to be shown with; None: it does not say.
        is_shades: The values are 8-bit shades already.
        is_inverted: Low values are to be shown white.
    """

    size_hw: tuple[int, int]
    n_slices: int
    window: Window | None
    is_shades: bool
    is_inverted: bool

    def values(self, position: int) -> Values:
        """One slice: (H, W) of any number type, or (H, W, 3) uint8 RGB."""

    def close(self) -> None:
        """Let go of the files."""


SPOOL_BYTES = 16 << 20
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES})


@dataclass(frozen=True, slots=True)
class VolumeLimits:
    """The settings that bound a volume.

    Attributes:
        scratch: Folder for what a volume unpacks to.
    """

    max_bytes: int
    max_pixels: int
    max_slices: int
    scratch: Path

    @classmethod
    def of(cls, settings: Settings) -> VolumeLimits:
        return cls(settings.video_max_bytes, settings.video_max_pixels, settings.video_max_frames, settings.data_dir)

    def check(self, name: str, size_hw: tuple[int, int], n_slices: int) -> None:
        """Look at a volume's size before anything of it is decoded.

        Raises:
            VideoUnreadableError: it is empty.
            VideoTooLargeError: more pixels or slices than allowed.
        """
        height, width = size_hw
        if min(height, width, n_slices) <= 0:
            raise VideoUnreadableError(f"{name} has no slices. Upload the file again.")
        if height * width > self.max_pixels:
            raise VideoTooLargeError(
                f"{name} has slices of {width} × {height} pixels; at most {self.max_pixels} are taken. Raise SAM2_VIDEO_MAX_PIXELS."
            )
        if n_slices > self.max_slices:
            raise VideoTooLargeError(f"{name} has {n_slices} slices; at most {self.max_slices} are taken. Raise SAM2_VIDEO_MAX_FRAMES.")

    def scratch_file(self) -> BinaryIO:
        """A new file without a name, in memory as long as it is small.

        Raises:
            OSError: the folder cannot be made.
        """
        self.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cast("BinaryIO", tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self.scratch)))


@contextmanager
def volume_errors(name: str, kind: str) -> Iterator[None]:
    """What a reader of volumes raises in the block becomes an error that names the file.

    Args:
        kind: "a NIfTI volume", "a DICOM file", …
    """
    try:
        yield
    except MediaError:
        raise
    except ModuleNotFoundError as error:
        raise VolumeSupportError(
            f"{name} is {kind}, and the worker lacks the package {error.name} to read it. Install sam2-label-studio[medical]."
        ) from None
    except MemoryError:
        raise VideoTooLargeError(f"{name} does not fit into this machine's memory. Use a smaller volume.") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            raise MediaUnreachableError(f"{name} cannot be unpacked below SAM2_DATA_DIR ({error.strerror}). Free some disk.") from None
        raise VideoUnreadableError(
            f"{name} is {kind} that is damaged, truncated or of a variety that is not read here. Export it again."
        ) from None
