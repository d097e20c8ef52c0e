"""Medical volumes as frames: their slices in order, windowed to 8-bit grey. Needs the extra `[medical]`."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Generator, Iterator
from functools import partial
from types import TracebackType
from typing import BinaryIO, Self
from weakref import WeakSet

from sam2_backend.errors import VideoFrameError, VideoUnreadableError
from sam2_backend.images import RgbImage
from sam2_backend.media import MediaStore
from sam2_backend.media_files import HeldFile
from sam2_backend.messages import MediaRef
from sam2_backend.prefetch import prefetched
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource
from sam2_backend.volume_dicom import dicom_from_files, dicom_from_held, dicom_from_zip
from sam2_backend.volume_nifti import NiftiSlices
from sam2_backend.volume_slices import Slices, VolumeLimits
from sam2_backend.volume_tiff import TiffSlices
from sam2_backend.volume_window import Window, sampled_window, to_rgb

AHEAD_SLICES = 3
HEAD_BYTES = 352
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_volume(source: FrameSource, store: MediaStore, settings: Settings) -> VolumeFrames:
    """Open one volume: a NIfTI file, a TIFF stack, a DICOM file of many frames, a zip of a DICOM series, or its files one by one.

    Raises:
        VideoError, MediaError: see `frame_sources.open_frames`.
    """
    if not source.media:
        raise VideoUnreadableError("The volume names no file. Check the task's data.")
    limits = VolumeLimits.of(settings)
    if len(source.media) > 1:
        return _series(source.media, store, limits)
    held = store.open_file(source.media[0], _check_volume)
    try:
        return VolumeFrames(_slices(held, limits), held.file_hash, held.name)
    finally:
        held.close()  # the readers have handles of their own


def _series(refs: tuple[MediaRef, ...], store: MediaStore, limits: VolumeLimits) -> VolumeFrames:
    digest, name = hashlib.blake2b(digest_size=20), ""
    limits.check("The series", (1, 1), len(refs))
    for ref in refs:
        with store.open_file(ref, _check_volume) as held:
            name = name or held.name
            if _kind_of(held) != "dicom":
                raise VideoUnreadableError(f"{held.name} is not a DICOM file; only those make a volume of several files.")
            digest.update(bytes.fromhex(held.file_hash))
    openers = [partial(_opened, store, ref) for ref in refs]
    return VolumeFrames(dicom_from_files(openers, f"The series of {name}", limits), digest.hexdigest(), f"The series of {name}")


def _opened(store: MediaStore, ref: MediaRef) -> BinaryIO:
    return store.open_file(ref, _check_volume).file


def _slices(held: HeldFile, limits: VolumeLimits) -> Slices:
    kind = _kind_of(held)
    if kind == "nifti":
        return NiftiSlices(held, limits)
    if kind == "tiff":
        return TiffSlices(held, limits)
    if kind == "zip":
        return dicom_from_zip(held, limits)
    return dicom_from_held(held, limits)


def _check_volume(held: HeldFile) -> None:
    if not _kind_of(held):
        raise VideoUnreadableError(f"{held.name} is not a volume: neither NIfTI, DICOM, a TIFF stack nor a zip of DICOM files.")


def _kind_of(held: HeldFile) -> str:
    head = os.pread(held.file.fileno(), HEAD_BYTES, 0)
    if head[:2] == b"\x1f\x8b" or head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return "nifti"
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:4] in TIFF_MARKS:
        return "tiff"
    return "zip" if head[:4] == b"PK\3\4" else ""


class VolumeFrames:
    """`Frames` of one volume: place on the grid, frame and slice are one number. See `frame_sources.Frames`.

    Args:
        slices: Closed with this.
    """

    def __init__(self, slices: Slices, image_hash: str, name: str) -> None:
        self._slices, self._name, self.image_hash = slices, name, image_hash
        self.n_frames = self.n_grid = slices.n_slices
        self.size_hw = slices.size_hw
        self._lock = threading.Lock()
        self._streams: WeakSet[Generator[tuple[int, RgbImage], None, None]] = WeakSet()
        try:
            self._window = self._window_of(slices)
        except BaseException:
            slices.close()
            raise

    def frame_of_grid(self, grid_idx: int) -> int:
        self._check_range(grid_idx, grid_idx)
        return grid_idx

    def grid_of_frame(self, frame_idx: int) -> range:
        self._check_range(frame_idx, frame_idx)
        return range(frame_idx, frame_idx + 1)

    def frame_hash(self, frame_idx: int) -> str:
        self._check_range(frame_idx, frame_idx)
        return f"{self.image_hash}.{frame_idx}"

    def read(self, frame_idx: int) -> RgbImage:
        self._check_range(frame_idx, frame_idx)
        with self._lock:
            values = self._slices.values(frame_idx)
        return to_rgb(values, self._window)

    def stream(self, first: int, last: int, *, reverse: bool = False) -> Generator[tuple[int, RgbImage], None, None]:
        self._check_range(first, last)
        order = range(last, first - 1, -1) if reverse else range(first, last + 1)
        stream = prefetched(partial(self._read_all, order), AHEAD_SLICES)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()
        self._slices.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _window_of(self, slices: Slices) -> Window | None:
        if slices.is_shades:
            return None
        return slices.window or sampled_window(slices.n_slices, slices.values, is_inverted=slices.is_inverted)

    def _read_all(self, order: range) -> Iterator[tuple[int, RgbImage]]:
        for frame_idx in order:
            yield frame_idx, self.read(frame_idx)

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last < self.n_frames:
            asked = f"slice {first + 1}" if first == last else f"slices {first + 1} to {last + 1}"
            raise VideoFrameError(f"There is no {asked}: {self._name} has {self.n_frames}.")
