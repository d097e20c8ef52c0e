"""NIfTI volumes, slice by slice from disk, oriented as DICOM shows them: the patient's right at the left, front above, feet first."""

from __future__ import annotations

import gzip
import os
import zlib
from typing import BinaryIO, cast

import numpy as np

from sam2_backend.errors import VideoTooLargeError, VideoUnreadableError
from sam2_backend.media_files import HeldFile
from sam2_backend.volume_slices import VolumeLimits, volume_errors
from sam2_backend.volume_window import Values, Window

KIND = "a NIfTI volume"
READ_BYTES = 1 << 20
N_AXES = 3


class NiftiSlices:
    """See `volume_slices.Slices`. A compressed file is unpacked to an unnamed file first.

    Raises:
        VideoError: it is damaged, too large, or not of three dimensions of plain numbers.
    """

    window: Window | None = None
    is_inverted = False
    is_shades = False

    def __init__(self, held: HeldFile, limits: VolumeLimits) -> None:
        self._name = held.name
        self._file = _unpacked(held, limits)
        try:
            with volume_errors(held.name, KIND):
                self._open(limits)
        except BaseException:
            self._file.close()
            raise

    def values(self, position: int) -> Values:
        across = self._n_along(2) - 1 - position if self._flips[2] else position
        where: list[int | slice] = [slice(None)] * N_AXES + [0] * self._n_extra
        where[self._axes[2]] = across
        with volume_errors(self._name, KIND):
            plane = np.asarray(self._proxy[tuple(where)])
            rows_first = plane if self._axes[1] < self._axes[0] else plane.T
            return rows_first[:: -1 if self._flips[1] else 1, :: -1 if self._flips[0] else 1]

    def close(self) -> None:
        self._file.close()

    def _open(self, limits: VolumeLimits) -> None:
        import nibabel

        image = (nibabel.Nifti2Image if _header_bytes(self._file) == 540 else nibabel.Nifti1Image).from_stream(self._file)
        shape = image.shape
        if len(shape) < N_AXES or any(n != 1 for n in shape[N_AXES:]) or image.get_data_dtype().kind not in "biuf":
            raise VideoUnreadableError(
                f"{self._name} holds {' × '.join(map(str, shape))} values of type {image.get_data_dtype()}; "
                "a volume of three dimensions and plain numbers is needed. Split a series over time into its volumes."
            )
        self._shape, self._n_extra, self._proxy = shape[:N_AXES], len(shape) - N_AXES, image.dataobj
        to_lps = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt("LPS"))
        # For each axis of the shown volume (column, row, slice): the file's axis, and whether it runs the other way.
        self._axes = [int(np.flatnonzero(to_lps[:, 0] == shown)[0]) for shown in range(N_AXES)]
        self._flips = [bool(to_lps[axis, 1] < 0) for axis in self._axes]
        self.size_hw, self.n_slices = (self._n_along(1), self._n_along(0)), self._n_along(2)
        limits.check(self._name, self.size_hw, self.n_slices)

    def _n_along(self, shown_axis: int) -> int:
        return int(self._shape[self._axes[shown_axis]])


def _header_bytes(file: BinaryIO) -> int:
    """The header's own size, 348 or 540, in either byte order."""
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    return min(int.from_bytes(head, "little"), int.from_bytes(head, "big"))


def _unpacked(held: HeldFile, limits: VolumeLimits) -> BinaryIO:
    held.file.seek(0)
    if held.file.read(2) != b"\x1f\x8b":
        return cast("BinaryIO", os.fdopen(os.dup(held.file.fileno()), "rb"))
    held.file.seek(0)
    with volume_errors(held.name, KIND):
        unpacked = limits.scratch_file()
        try:
            _unpack(held, unpacked, limits.max_bytes)
        except BaseException as error:
            unpacked.close()
            if isinstance(error, zlib.error | EOFError | gzip.BadGzipFile):
                raise VideoUnreadableError(
                    f"{held.name} is a compressed volume that is damaged or truncated. Upload the file again."
                ) from None
            raise
        return unpacked


def _unpack(held: HeldFile, unpacked: BinaryIO, max_bytes: int) -> None:
    n_bytes = 0
    with gzip.GzipFile(fileobj=held.file, mode="rb") as packed:
        while data := packed.read(READ_BYTES):
            n_bytes += len(data)
            if n_bytes > max_bytes:
                raise VideoTooLargeError(f"{held.name} unpacks to more than {max_bytes} bytes. Raise SAM2_VIDEO_MAX_BYTES.")
            unpacked.write(data)
