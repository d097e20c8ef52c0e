"""TIFF stacks, page by page: 8-bit ones as they are, deeper ones to be windowed."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sam2_backend.errors import VideoTooLargeError, VideoUnreadableError
from sam2_backend.media_files import HeldFile
from sam2_backend.tiff_bounds import bound_decoders, count_pages
from sam2_backend.volume_slices import VolumeLimits, volume_errors
from sam2_backend.volume_window import Values, Window

KIND = "a TIFF stack"
CONTIGUOUS = 1
"""Of PlanarConfiguration: the samples of a pixel lie side by side."""


class TiffSlices:
    """See `volume_slices.Slices`.

    Raises:
        VideoError: it is damaged, too large, of pages that differ in size, or compressed in a way that is not read here.
    """

    window: Window | None = None
    is_inverted = False

    def __init__(self, held: HeldFile, limits: VolumeLimits) -> None:
        self._name = held.name
        self._file = os.fdopen(os.dup(held.file.fileno()), "rb")
        try:
            with volume_errors(held.name, KIND):
                self._open(limits)
        except BaseException:
            self._file.close()
            raise

    def values(self, position: int) -> Values:
        with volume_errors(self._name, KIND):
            plane = self._contiguous(position) if self._is_one_block else self._page(position)
        if plane.ndim == 3:
            return plane[:, :, :3] if self.is_shades else plane[:, :, 0]
        return plane

    def close(self) -> None:
        self._tiff.close()
        self._file.close()

    def _open(self, limits: VolumeLimits) -> None:
        import tifffile

        bound_decoders(tifffile.TIFF.DECOMPRESSORS)
        n_pages = count_pages(self._file, limits.max_slices, self._name)
        self._file.seek(0)
        self._tiff, self._max_pixels = tifffile.TiffFile(self._file, name="stack"), limits.max_pixels
        first = self._tiff.pages.first
        self.size_hw = int(first.imagelength), int(first.imagewidth)
        self._dtype, self._n_samples = np.dtype(first.dtype), int(first.samplesperpixel)
        self.is_shades = self._dtype == np.uint8
        if self._dtype.kind not in "biuf" or first.planarconfig != CONTIGUOUS or self._n_samples not in {1, 3, 4}:
            raise VideoUnreadableError(f"{self._name} has pages that are neither grey nor RGB. Split its channels into files.")
        # ImageJ writes large stacks as one page with the others behind it.
        n_told = int((self._tiff.imagej_metadata or {}).get("images", 1))
        self._is_one_block = n_pages == 1 and n_told > 1
        self.n_slices = n_told if self._is_one_block else n_pages
        limits.check(self._name, self.size_hw, self.n_slices)

    def _page(self, position: int) -> Values:
        page: Any = self._tiff.pages[position]
        if (page.imagelength, page.imagewidth) != self.size_hw or page.dtype != self._dtype or page.samplesperpixel != self._n_samples:
            raise VideoUnreadableError(f"{self._name} changes its size or depth at page {position + 1}. Use pages of one kind.")
        if page.imagedepth != 1 or (page.is_tiled and page.tilewidth * page.tilelength * page.tiledepth > self._max_pixels):
            raise VideoTooLargeError(f"{self._name} has pages of tiles or depths beyond SAM2_VIDEO_MAX_PIXELS ({self._max_pixels}).")
        return np.asarray(page.asarray())

    def _contiguous(self, position: int) -> Values:
        height, width = self.size_hw
        shape = (height, width) if self._n_samples == 1 else (height, width, self._n_samples)
        dtype = self._dtype.newbyteorder(self._tiff.byteorder)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        data = os.pread(self._file.fileno(), n_bytes, int(self._tiff.pages.first.dataoffsets[0]) + position * n_bytes)
        return np.frombuffer(data, dtype).reshape(shape)
