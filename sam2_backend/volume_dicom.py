"""DICOM: one file of many frames, or a series of files, a zip of them among these, in the order in which they lie in the patient."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np

from sam2_backend.errors import VideoTooLargeError, VideoUnreadableError
from sam2_backend.media_files import HeldFile
from sam2_backend.volume_slices import VolumeLimits, volume_errors
from sam2_backend.volume_window import Values, Window

KIND = "a DICOM file"
PREAMBLE_BYTES, MARK = 128, b"DICM"
MOST_READS, READS_OF_A_FILE, HEADER_BYTES = 200_000, 2_000, 32 << 20
"""What parsing the headers of one volume may cost: a read is an element or an item, and some ten microseconds."""
LARGE_ELEMENT_BYTES = READ_BYTES = 1 << 20
"""Larger elements are passed over: none of those that are asked for is."""
ELEMENTS = (
    "SeriesInstanceUID", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "RescaleType",
)  # fmt: skip

Opener: TypeAlias = Callable[[], BinaryIO]
"""Opens one file of a series anew; whoever calls it closes it."""


@dataclass(frozen=True, slots=True)
class _File:
    """One file of a series, its pixels not read."""

    open_file: Opener
    header: Any
    n_frames: int


@dataclass(frozen=True, slots=True)
class _Slice:
    open_file: Opener
    frame: int
    order: tuple[float, ...]


class DicomSlices:
    """See `volume_slices.Slices`. Only headers are kept; a slice's pixels are read when it is asked for.

    Args:
        openers: At least one.
        release: Called at `close`.

    Raises:
        VideoError: the files are damaged, too large, of several series or sizes, or compressed in a way that is not read here.
    """

    def __init__(self, openers: Sequence[Opener], name: str, limits: VolumeLimits, release: Callable[[], None]) -> None:
        self._name, self._release = name, release
        try:
            self._open(openers, limits)
        except BaseException:
            release()
            raise

    def _open(self, openers: Sequence[Opener], limits: VolumeLimits) -> None:
        with volume_errors(self._name, KIND):
            budget = _Budget(self._name, MOST_READS + READS_OF_A_FILE * len(openers))
            files = [_described(opener, budget) for opener in openers]
            headers = [file.header for file in files]
            self._check_alike(headers)
            first = headers[0]
            self.size_hw = int(first.Rows), int(first.Columns)
            self.n_slices = sum(file.n_frames for file in files)
            limits.check(self._name, self.size_hw, self.n_slices)
            self._slices = sorted((one for file in files for one in _slices_of(file)), key=lambda one: one.order)
            self.is_inverted = first.get("PhotometricInterpretation") == "MONOCHROME1"
            self.is_shades = int(first.get("SamplesPerPixel", 1)) == 3
            self.window = _window(headers, is_inverted=self.is_inverted)

    def values(self, position: int) -> Values:
        from pydicom import pixels

        one = self._slices[position]
        with volume_errors(self._name, KIND), one.open_file() as file:
            header = _header(file, _Budget(self._name, MOST_READS + READS_OF_A_FILE))
            file.seek(0)
            try:
                values = pixels.pixel_array(file, index=one.frame)
            except (RuntimeError, NotImplementedError):
                raise VideoUnreadableError(
                    f"{self._name} is compressed in a way that is not read here ({header.file_meta.TransferSyntaxUID.name}). "
                    "Export it uncompressed."
                ) from None
            return values if values.ndim == 3 else np.asarray(pixels.apply_rescale(values, header))

    def close(self) -> None:
        release, self._release = self._release, lambda: None
        release()

    def _check_alike(self, headers: list[Any]) -> None:
        for what, n_kinds in (
            ("series", len({str(header.get("SeriesInstanceUID", "")) for header in headers})),
            ("sizes", len({(header.get("Rows", 0), header.get("Columns", 0)) for header in headers})),
        ):
            if n_kinds > 1:
                raise VideoUnreadableError(
                    f"{self._name} holds slices of {n_kinds} {what}; one is needed. Give each series a task of its own."
                )
        if not headers[0].get("Rows"):
            raise VideoUnreadableError(f"{self._name} is a DICOM file without pixels. Upload the images of the series.")


def dicom_from_files(openers: Sequence[Opener], name: str, limits: VolumeLimits) -> DicomSlices:
    """A series of files."""
    return DicomSlices(openers, name, limits, lambda: None)


def dicom_from_held(held: HeldFile, limits: VolumeLimits) -> DicomSlices:
    """One file, mostly of many frames."""
    handle = os.dup(held.file.fileno())
    return DicomSlices([lambda: os.fdopen(os.dup(handle), "rb")], held.name, limits, lambda: os.close(handle))


def dicom_from_zip(held: HeldFile, limits: VolumeLimits) -> DicomSlices:
    """A series in a zip; whatever else lies in it is passed over.

    Raises:
        VideoTooLargeError: its files unpack to more than allowed.
        VideoError: there is no DICOM file in it; and as for `DicomSlices`.
    """
    resources = ExitStack()
    try:
        with volume_errors(held.name, "a zip file"):
            file = resources.enter_context(os.fdopen(os.dup(held.file.fileno()), "rb"))
            openers = _openers_in(resources.enter_context(zipfile.ZipFile(file)), held.name, limits)
    except BaseException:
        resources.close()
        raise
    return DicomSlices(openers, held.name, limits, resources.close)


def _openers_in(archive: zipfile.ZipFile, name: str, limits: VolumeLimits) -> list[Opener]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > limits.max_slices or sum(member.file_size for member in members) > limits.max_bytes:
        raise VideoTooLargeError(
            f"{name} has too many files, or unpacks to more than {limits.max_bytes} bytes. Raise SAM2_VIDEO_MAX_BYTES."
        )
    openers = [_member_opener(archive, member, limits) for member in members if _is_dicom(archive, member)]
    if not openers:
        raise VideoUnreadableError(f"{name} is a zip file without DICOM files in it. Zip the files of one series.")
    return openers


def _is_dicom(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    with archive.open(member) as file:
        return file.read(PREAMBLE_BYTES + len(MARK))[PREAMBLE_BYTES:] == MARK


def _member_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limits: VolumeLimits) -> Opener:
    def open_member() -> BinaryIO:
        file = limits.scratch_file()
        try:
            with archive.open(member) as packed:  # which holds it to the size that was checked
                shutil.copyfileobj(packed, file, READ_BYTES)
        except BaseException:
            file.close()
            raise
        return file

    return open_member


@dataclass(slots=True)
class _Budget:
    """What may still be spent on parsing the headers of a volume."""

    name: str
    n_reads: int
    n_bytes: int = HEADER_BYTES

    def spend(self, n_bytes: int) -> None:
        self.n_reads, self.n_bytes = self.n_reads - 1, self.n_bytes - n_bytes
        if min(self.n_reads, self.n_bytes) < 0:
            raise VideoTooLargeError(f"{self.name} has a DICOM header without end. Export it again, without private elements.")


class _HeaderFile:
    """A file for a parser that believes every length in it: within a budget, and never all that is left at once."""

    def __init__(self, file: BinaryIO, budget: _Budget) -> None:
        self._file, self._budget = file, budget
        self.seek, self.tell = file.seek, file.tell

    def read(self, n_bytes: int = -1) -> bytes:
        if n_bytes < 0:  # to unpack a file that is compressed as a whole, however much that gives
            raise VideoUnreadableError(f"{self._budget.name} is DICOM that is compressed as a whole (deflated). Export it uncompressed.")
        data = self._file.read(min(n_bytes, self._budget.n_bytes + 1))
        self._budget.spend(len(data))
        return data


def _header(file: BinaryIO, budget: _Budget) -> Any:
    from pydicom import dcmread

    file.seek(0)
    bounded = cast("BinaryIO", _HeaderFile(file, budget))
    return dcmread(bounded, defer_size=LARGE_ELEMENT_BYTES, stop_before_pixels=True, specific_tags=list(ELEMENTS))


def _described(open_file: Opener, budget: _Budget) -> _File:
    with open_file() as file:
        header, n_bytes = _header(file, budget), file.seek(0, os.SEEK_END)
    n_frames = int(header.get("NumberOfFrames") or 1)
    if not 0 < n_frames <= n_bytes:
        raise VideoUnreadableError(f"{budget.name} says that it has {n_frames} frames, in {n_bytes} bytes. Export it again.")
    return _File(open_file, header, n_frames)


def _slices_of(file: _File) -> list[_Slice]:
    place = _place(file.header)
    return [_Slice(file.open_file, frame, (*place, frame)) for frame in range(file.n_frames)]


def _place(header: Any) -> tuple[float, float]:
    """Along the normal of the slices, then by instance number."""
    position, directions = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    along = 0.0
    if position and directions and len(position) == 3 and len(directions) == 6:
        normal = np.cross(np.array(directions[:3], float), np.array(directions[3:], float))
        along = round(float(normal @ np.array(position, float)), 4)
    return along, float(header.get("InstanceNumber") or 0)


def _window(headers: list[Any], *, is_inverted: bool) -> Window | None:
    """The first file's window, where every file has one; of several to choose from the first."""
    if not all(header.get("WindowWidth") and header.get("WindowCenter") is not None for header in headers):
        return None
    centre, width = (cast("float", np.ravel(headers[0].get(name)).astype(float)[0]) for name in ("WindowCenter", "WindowWidth"))
    return Window.from_centre(float(centre), float(width), is_inverted=is_inverted) if width >= 1 else None
