"""A video file opened by FFmpeg, which is told to open nothing else, its refusals in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from sam2_backend.errors import VideoError, VideoTooLargeError, VideoUnreadableError
from sam2_backend.media_files import HeldFile

# Playlists and edit scripts, which FFmpeg would follow to other addresses and files, are not among these.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf"
SHOWN_FROM_ZERO = ("mov,", "matroska,")
READ_BYTES = 256 << 10
HEAD_BYTES = 4096


class ReadAt:
    """Reads an open file at a position of its own, so that several readers share one; closes its own handle."""

    def __init__(self, held: HeldFile) -> None:
        self._handle = os.dup(held.file.fileno())
        self._n_bytes = os.fstat(self._handle).st_size
        self._position = 0

    def read(self, n_bytes: int = -1) -> bytes:
        data = os.pread(self._handle, n_bytes if n_bytes >= 0 else self._n_bytes, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._n_bytes}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


@contextmanager
def opened(held: HeldFile, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the video stream that a browser would play; what FFmpeg raises in the block becomes a VideoError.

    Raises:
        VideoUnreadableError: it is no video, has no video stream, is damaged, or its codec is not known.
        VideoTooLargeError: its frames have more than `max_pixels`.
    """
    reader = ReadAt(held)
    try:
        with errors_named(held), _container(reader) as container:
            yield container, _video_stream(container, held.name, max_pixels)
    finally:
        reader.close()


@contextmanager
def errors_named(held: HeldFile) -> Iterator[None]:
    """What FFmpeg raises in the block becomes a VideoError that names the file."""
    try:
        yield
    except VideoError:
        raise
    except MemoryError:
        raise VideoTooLargeError(f"{held.name} does not fit into this machine's memory. Lower SAM2_VIDEO_MAX_PIXELS.") from None
    except (av.FFmpegError, ValueError, OverflowError):
        raise VideoUnreadableError(f"{held.name} {_what_it_is(_head(held))}") from None


def zero_s(container: InputContainer) -> Fraction | None:
    """The file's time that a viewer calls 0 seconds; None: where the frames begin.

    MP4 and WebM are shown by the times that stand in them: what begins later is preceded by a still first frame. Transport streams and
    the like count from any number, and players from where the first picture or sound begins.

    Source: measured in Chromium 156 with MP4 and WebM files that begin at 0.08 s and 0.52 s, with and without sound and edit lists.
    """
    streams = [*container.streams.video, *container.streams.audio]
    starts = [s.start_time * s.time_base for s in streams if s.start_time is not None and s.time_base is not None and not _is_cover(s)]
    start = min(starts, default=None)
    return min(start or Fraction(0), Fraction(0)) if container.format.name.startswith(SHOWN_FROM_ZERO) else start


def _container(reader: ReadAt) -> InputContainer:
    # genpts: AVI stores no presentation times for reordered frames.
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none", "fflags": "+genpts"}
    return av.open(reader, "r", container_options=options, buffer_size=READ_BYTES)


def _video_stream(container: InputContainer, name: str, max_pixels: int) -> VideoStream:
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        holds = "only sound" if container.streams.audio else "no picture stream"
        raise VideoUnreadableError(f"{name} is a media file with {holds}. A video is needed.")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise VideoUnreadableError(f"{name} is compressed with a codec that is not known here. Convert it to H.264, VP9 or AV1.")
    if context.width * context.height > max_pixels:
        raise VideoTooLargeError(
            f"{name} is {context.width} × {context.height} pixels; at most {max_pixels} are taken. Scale it down, or raise SAM2_VIDEO_MAX_PIXELS."
        )
    context.options = {"max_pixels": str(max_pixels)}  # for sizes that change later: refused before memory is taken for them
    return stream


def _is_cover(stream: av.stream.Stream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _head(held: HeldFile) -> bytes:
    return os.pread(held.file.fileno(), HEAD_BYTES, 0)


def _what_it_is(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty (0 bytes). Upload the file again."
    if text.startswith(b"<!doctype html") or b"<html" in text:
        return "is an HTML page, not a video: perhaps a login page."
    if text.startswith((b"{", b"[", b"<?xml")):
        return "is a text answer (JSON or XML), not a video: perhaps an error message."
    if text.startswith(b"#extm3u"):
        return "is a playlist, not a video. Join its parts into one file."
    if text.startswith((b"\xff\xd8\xff", b"\x89png", b"gif8")):
        return "is an image, not a video. Use the <Image> tag."
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"free", b"wide"} or head.startswith(b"\x1a\x45\xdf\xa3"):
        return "is a video that is damaged or truncated: its end may be missing. Upload the file again."
    return "is not a video, or of a format that is not read here, or damaged. Convert it to MP4 with H.264."
