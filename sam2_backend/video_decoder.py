"""Decoding from any frame of a video on: each frame exactly once, in order, by its timestamp."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack

import av
from av.video.frame import VideoFrame

from sam2_backend.errors import VideoUnreadableError
from sam2_backend.media_files import HeldFile
from sam2_backend.video_file import errors_named, opened
from sam2_backend.video_index import VideoIndex

MAX_REPEATS = 25
"""Frames that do not decode are shown as the one before them, as a player does, or at the start as the one behind them; more than
these in a row are damage."""
MAX_THREADS = 4


class VideoDecoder:
    """One handle on the file with one decoder; one pass at a time, in one thread.

    Args:
        held: Shared; closing it does not disturb this.
    """

    def __init__(self, held: HeldFile, index: VideoIndex, max_pixels: int) -> None:
        self._held, self._index = held, index
        with ExitStack() as stack:
            self._container, self._stream = stack.enter_context(opened(held, max_pixels))
            self._stream.thread_type = "AUTO"
            self._stream.codec_context.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
            self._resources = stack.pop_all()

    def close(self) -> None:
        self._resources.close()

    def frames_from(self, first: int) -> Generator[tuple[int, VideoFrame], None, None]:
        """(frame_idx, frame) for every index from `first` to the end of the video; a new pass ends the one before.

        Raises:
            VideoUnreadableError: many frames in a row cannot be decoded.
        """
        expected, last = first, None
        with errors_named(self._held):
            for frame in self._from_at_or_before(first):
                frame_idx = self._index.frame_at(frame.pts)
                if frame_idx is None:
                    continue
                while expected < frame_idx:
                    yield expected, self._repeated(expected, frame_idx, last or frame)
                    expected += 1
                last = frame
                if frame_idx >= expected:
                    yield frame_idx, frame
                    expected = frame_idx + 1
            while expected < self._index.n_frames:
                yield expected, self._repeated(expected, self._index.n_frames, last)
                expected += 1

    def _repeated(self, frame_idx: int, until: int, last: VideoFrame | None) -> VideoFrame:
        if last is None or until - frame_idx > MAX_REPEATS:
            raise VideoUnreadableError(
                f"{self._held.name} cannot be decoded at {self._index.seconds(frame_idx):.2f} s: it is damaged. Upload the file again."
            )
        return last

    def _from_at_or_before(self, first: int) -> Iterator[VideoFrame]:
        """Decoded frames, the first of them at or before frame `first`, or as near as the file allows.

        A key frame may be none: some decoders come to an intact picture only frames later. Then an earlier one is tried.
        """
        key_idx, step = self._index.key_of(first), 1
        while True:
            frames = self._decoded(int(self._index.keys[key_idx]))
            head = next(frames, None)
            if key_idx == 0 or (head is not None and head.pts is not None and head.pts <= self._index.timestamps[first]):
                break
            key_idx, step = max(key_idx - step, 0), step * 4
        if head is not None:
            yield head
            yield from frames

    def _decoded(self, key: int) -> Iterator[VideoFrame]:
        for packet in self._packets_from(key):
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                continue  # as a player does: on with the next packet

    def _packets_from(self, key: int) -> Iterator[av.Packet[av.video.stream.VideoStream]]:
        """Packets from that of the key frame with this timestamp on, in the file's order."""
        for target in self._seek_targets(key):
            self._container.seek(target, stream=self._stream, backward=True)
            is_found = False
            for packet in self._container.demux(self._stream):
                is_found = is_found or packet.pts == key
                if is_found:
                    yield packet
                elif packet.is_keyframe and packet.pts is not None and packet.pts > key:
                    break
            if is_found:
                return
        raise VideoUnreadableError(f"{self._held.name} cannot be searched: it is damaged. Upload the file again.")

    def _seek_targets(self, key: int) -> Iterator[int]:
        """Where to look for a key frame: where it is said to be, then ever further before, as containers search by other times."""
        earliest = int(self._index.keys[0]) - round(10 / self._index.time_base)
        distance = 0
        while key - distance > earliest:
            yield key - distance
            distance = distance * 8 + max(round(1 / self._index.time_base), 1)
        yield earliest
