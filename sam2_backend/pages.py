"""The pages of an image sequence as frames: each an image of its own, fetched when it is asked for, kept one at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakSet

from sam2_backend.errors import VideoFrameError, VideoTooLargeError, VideoUnreadableError
from sam2_backend.images import ImageInfo, RgbImage, load_rgb, orientation_for
from sam2_backend.media import MediaFile, MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.prefetch import prefetched
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource

AHEAD_PAGES = 2


def open_pages(source: FrameSource, store: MediaStore, settings: Settings) -> PageFrames:
    """Open an image sequence; its first page is fetched.

    Raises:
        VideoError, MediaError: see `frame_sources.open_frames`.
    """
    if not source.media:
        raise VideoUnreadableError("The image sequence has no pages. Check the task's data.")
    if len(source.media) > settings.video_max_frames:
        raise VideoTooLargeError(
            f"The image sequence has {len(source.media)} pages; at most {settings.video_max_frames} are taken. Raise SAM2_VIDEO_MAX_FRAMES."
        )
    return PageFrames(source.media, store, settings.media_max_pixels)


class PageFrames:
    """`Frames` of an image sequence: place on the grid, frame and page are one number. See `frame_sources.Frames`.

    Every page has the size of the first; an EXIF orientation is applied where a browser applies it.
    """

    def __init__(self, pages: tuple[MediaRef, ...], store: MediaStore, max_pixels: int) -> None:
        self._pages, self._store, self._max_pixels = pages, store, max_pixels
        self.n_frames = self.n_grid = len(pages)
        file = store.fetch(pages[0])
        self.image_hash = file.image_hash
        self.size_hw = _shown_hw(file.info)
        self._streams: WeakSet[Generator[tuple[int, RgbImage], None, None]] = WeakSet()

    def frame_of_grid(self, grid_idx: int) -> int:
        self._check_range(grid_idx, grid_idx)
        return grid_idx

    def grid_of_frame(self, frame_idx: int) -> range:
        self._check_range(frame_idx, frame_idx)
        return range(frame_idx, frame_idx + 1)

    def frame_hash(self, frame_idx: int) -> str:
        """The page's image hash where it is shown upright, so that an embedding made for a click on the page serves here too."""
        self._check_range(frame_idx, frame_idx)
        known = self._store.lookup(self._pages[frame_idx])
        if known is None:
            file = self._store.fetch(self._pages[frame_idx])
            known = file.image_hash, file.info
        image_hash, info = known
        return image_hash if orientation_for(info, None) == "upright" else f"{image_hash}.stored"

    def read(self, frame_idx: int) -> RgbImage:
        self._check_range(frame_idx, frame_idx)
        return self._decoded(frame_idx, self._store.fetch(self._pages[frame_idx]))

    def stream(self, first: int, last: int, *, reverse: bool = False) -> Generator[tuple[int, RgbImage], None, None]:
        self._check_range(first, last)
        order = range(last, first - 1, -1) if reverse else range(first, last + 1)
        stream = prefetched(partial(self._read_all, order), AHEAD_PAGES)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read_all(self, order: range) -> Iterator[tuple[int, RgbImage]]:
        for frame_idx in order:
            yield frame_idx, self.read(frame_idx)

    def _decoded(self, frame_idx: int, file: MediaFile) -> RgbImage:
        shown_hw = _shown_hw(file.info)
        if shown_hw != self.size_hw:
            (height, width), (first_height, first_width) = shown_hw, self.size_hw
            raise VideoUnreadableError(
                f"Page {frame_idx + 1} is {width} × {height} pixels, page 1 is {first_width} × {first_height}. "
                "Objects are followed only through pages of one size."
            )
        return load_rgb(file.data, orientation_for(file.info, None), self._max_pixels, f"Page {frame_idx + 1}")

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last < self.n_frames:
            asked = f"page {first + 1}" if first == last else f"pages {first + 1} to {last + 1}"
            raise VideoFrameError(f"There is no {asked}: the image sequence has {self.n_frames}.")


def _shown_hw(info: ImageInfo) -> tuple[int, int]:
    return info.upright_size_hw if orientation_for(info, None) == "upright" else info.stored_size_hw
