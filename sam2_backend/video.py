"""A video file as frames: any one exactly, or a stream of them in either direction, in memory that does not grow with its length."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakSet

import numpy as np
from av.video.frame import VideoFrame

from sam2_backend.errors import VideoFrameError, VideoTooLargeError, VideoUnreadableError
from sam2_backend.frame_grid import FrameGrid, checked_framerate
from sam2_backend.images import RgbImage
from sam2_backend.media import MediaStore
from sam2_backend.media_files import HeldFile
from sam2_backend.prefetch import prefetched
from sam2_backend.settings import Settings
from sam2_backend.video_decoder import VideoDecoder
from sam2_backend.video_file import opened
from sam2_backend.video_index import VideoIndex, build_index
from sam2_backend.video_messages import FrameSource
from sam2_backend.video_pixels import turn_of, upright_rgb

AHEAD_FRAMES = 3
BACKWARD_BYTES = 128 << 20
"""Decoded frames kept at a time when going backwards; a stretch between key frames that needs more is decoded repeatedly."""


def open_video(source: FrameSource, store: MediaStore, settings: Settings) -> VideoFrames:
    """Fetch, check and index one video file.

    Raises:
        VideoError, MediaError: see `frame_sources.open_frames`.
    """
    framerate = checked_framerate(source.framerate)
    if len(source.media) != 1:
        raise VideoUnreadableError(f"A video is one file; the task names {len(source.media)}.")
    held = store.open_file(source.media[0], partial(_check_video, max_pixels=settings.video_max_pixels))
    try:
        with opened(held, settings.video_max_pixels) as (container, stream):
            index = build_index(container, stream, held.name, settings.video_max_frames)
        grid = FrameGrid(
            index.timestamps,
            time_base=index.time_base,
            zero=index.zero,
            framerate=framerate,
            n_grid=_n_grid(source, index, held.name, settings.video_max_frames),
        )
        return VideoFrames(held, index, grid, max_pixels=settings.video_max_pixels)
    except BaseException:
        held.close()
        raise


def _check_video(held: HeldFile, max_pixels: int) -> None:
    with opened(held, max_pixels):
        pass


def _n_grid(source: FrameSource, index: VideoIndex, name: str, max_frames: int) -> int:
    """As many places as asked for, but not more than fit into the file's duration, give or take a second."""
    framerate = checked_framerate(source.framerate)
    n_fitting = max(round(index.duration_s * framerate), 1)
    n_grid = min(source.n_frames, n_fitting + max(round(framerate), 1)) if source.n_frames > 0 else n_fitting
    if n_grid > max_frames:
        raise VideoTooLargeError(
            f"{name} has {n_grid} places at {source.framerate:g} frames per second; at most {max_frames} are taken. "
            "Cut it into parts, or raise SAM2_VIDEO_MAX_FRAMES."
        )
    return n_grid


class VideoFrames:
    """`Frames` of one video file; see `frame_sources.Frames` for what its methods promise.

    Args:
        held: Closed with this.
    """

    def __init__(self, held: HeldFile, index: VideoIndex, grid: FrameGrid, *, max_pixels: int) -> None:
        self._held, self._index, self._grid, self._max_pixels = held, index, grid, max_pixels
        self.n_frames, self.n_grid, self.image_hash = index.n_frames, grid.n_grid, held.file_hash
        self._decoder = VideoDecoder(held, index, max_pixels)
        self._run: Iterator[tuple[int, VideoFrame]] = iter(())
        self._last_read: tuple[int, VideoFrame] | None = None
        self._streams: WeakSet[Generator[tuple[int, RgbImage], None, None]] = WeakSet()
        try:
            first = self._frame(0)
        except BaseException:
            self._decoder.close()
            raise
        self._stored_hw, self._turn = (first.height, first.width), turn_of(first)
        self._frame_bytes = sum(plane.buffer_size for plane in first.planes)
        self.size_hw = self._turn.size_hw(self._stored_hw)

    def frame_of_grid(self, grid_idx: int) -> int:
        return self._grid.frame_of_grid(grid_idx)

    def grid_of_frame(self, frame_idx: int) -> range:
        return self._grid.grid_of_frame(frame_idx)

    def frame_hash(self, frame_idx: int) -> str:
        return f"{self.image_hash}.{frame_idx}"

    def read(self, frame_idx: int) -> RgbImage:
        self._check_range(frame_idx, frame_idx)
        return self._rgb(frame_idx, self._frame(frame_idx))

    def stream(self, first: int, last: int, *, reverse: bool = False) -> Generator[tuple[int, RgbImage], None, None]:
        self._check_range(first, last)
        stream = prefetched(partial(self._decoded_stream, first, last, reverse=reverse), AHEAD_FRAMES)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()
        self._run, self._last_read = iter(()), None
        self._decoder.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _frame(self, frame_idx: int) -> VideoFrame:
        """Decode on from the last frame read where no key frame is nearer."""
        last, self._last_read = self._last_read, None
        if last is None or last[0] > frame_idx or self._index.first_frame_of_key(self._index.key_of(frame_idx)) > last[0] + 1:
            self._run = self._decoder.frames_from(frame_idx)
        elif last[0] == frame_idx:
            self._last_read = last
            return last[1]
        for idx, frame in self._run:
            if idx == frame_idx:
                self._last_read = (idx, frame)
                return frame
        raise VideoUnreadableError(f"{self._held.name} cannot be decoded to its end: it is damaged. Upload the file again.")

    def _decoded_stream(self, first: int, last: int, *, reverse: bool) -> Iterator[tuple[int, RgbImage]]:
        with closing(VideoDecoder(self._held, self._index, self._max_pixels)) as decoder:
            frames = self._backward(decoder, first, last) if reverse else _until(decoder.frames_from(first), last)
            for frame_idx, frame in frames:
                yield frame_idx, self._rgb(frame_idx, frame)

    def _backward(self, decoder: VideoDecoder, first: int, last: int) -> Iterator[tuple[int, VideoFrame]]:
        stop = last + 1
        while stop > first:
            start = self._chunk_start(first, stop)
            chunk = list(_until(decoder.frames_from(start), stop - 1))
            while chunk:
                yield chunk.pop()
            stop = start

    def _chunk_start(self, first: int, stop: int) -> int:
        """Where a chunk that ends before `stop` begins: at a key frame if one lies within what may be kept."""
        earliest = max(first, stop - max(BACKWARD_BYTES // self._frame_bytes, 1))
        key_idx = int(np.searchsorted(self._index.keys, self._index.timestamps[earliest]))
        at_key = self._index.first_frame_of_key(key_idx) if key_idx < len(self._index.keys) else stop
        return at_key if at_key < stop else earliest

    def _rgb(self, frame_idx: int, frame: VideoFrame) -> RgbImage:
        if (frame.height, frame.width) != self._stored_hw:
            height, width = self._stored_hw
            raise VideoUnreadableError(
                f"{self._held.name} changes its size at {self._index.seconds(frame_idx):.2f} s, from {width} × {height} to "
                f"{frame.width} × {frame.height} pixels. Convert it to one size."
            )
        return upright_rgb(frame, self._turn)

    def _check_range(self, first: int, last: int) -> None:
        if not 0 <= first <= last < self.n_frames:
            raise VideoFrameError(f"There are no frames {first} to {last}: {self._held.name} has {self.n_frames}, counted from 0.")


def _until(frames: Generator[tuple[int, VideoFrame], None, None], last: int) -> Iterator[tuple[int, VideoFrame]]:
    with closing(frames):
        for frame_idx, frame in frames:
            yield frame_idx, frame
            if frame_idx == last:
                return
