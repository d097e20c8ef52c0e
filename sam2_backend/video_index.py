"""When each frame of a video appears, and where decoding can start: read from the packets, nothing is decoded.

The only thing that grows with a video's length: 8 bytes for each frame, and 8 more for each key frame.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from sam2_backend.errors import VideoTooLargeError, VideoUnreadableError
from sam2_backend.frame_grid import Timestamps
from sam2_backend.video_file import zero_s

TRUNCATED_S = Fraction(1)
TRUNCATED_SHARE = Fraction(1, 50)


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """The frames of a video by their timestamps, in units of `time_base`.

    Attributes:
        timestamps: (n,) int64, ascending without repeats; position = frame_idx.
        keys: (k,) int64, ascending; timestamps of the key frames, among them such as are decoded but never shown.
        time_base: Seconds per unit.
        zero: What a viewer calls 0 seconds.
        duration_s: From there to the end of what lasts longest, sound included.
    """

    timestamps: Timestamps
    keys: Timestamps
    time_base: Fraction
    zero: Fraction
    duration_s: Fraction

    @property
    def n_frames(self) -> int:
        return len(self.timestamps)

    def key_of(self, frame_idx: int) -> int:
        """Position in `keys` of the one that decoding of this frame starts from."""
        return max(int(np.searchsorted(self.keys, self.timestamps[frame_idx], side="right")) - 1, 0)

    def first_frame_of_key(self, key_idx: int) -> int:
        """The first frame shown at or after a key frame's time."""
        return int(np.searchsorted(self.timestamps, self.keys[key_idx]))

    def frame_at(self, timestamp: int | None) -> int | None:
        """The frame with exactly this timestamp; None: there is none."""
        if timestamp is None:
            return None
        frame_idx = int(np.searchsorted(self.timestamps, timestamp))
        return frame_idx if frame_idx < self.n_frames and self.timestamps[frame_idx] == timestamp else None

    def seconds(self, frame_idx: int) -> float:
        """When a frame appears, as a viewer counts."""
        return float((int(self.timestamps[frame_idx]) - self.zero) * self.time_base)


def build_index(container: InputContainer, stream: VideoStream, name: str, max_frames: int) -> VideoIndex:
    """Go through the packets once.

    Raises:
        VideoTooLargeError: more than `max_frames`.
        VideoUnreadableError: no frames, no timestamps, or the end is missing.
        av.FFmpegError: the file is damaged.
    """
    if not stream.time_base:
        raise VideoUnreadableError(f"{name} tells no times. Convert it to MP4.")
    shown, keys, end = array("q"), array("q"), 0
    for packet in container.demux(stream):
        if not packet.size or packet.is_corrupt:
            continue
        if packet.pts is None:
            raise VideoUnreadableError(f"{name} gives its frames no timestamps. Convert it to MP4.")
        if packet.is_keyframe:
            keys.append(packet.pts)
        if not packet.is_discard:
            shown.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
        if len(shown) > max_frames:
            raise VideoTooLargeError(f"{name} has more than {max_frames} frames. Cut it into parts, or raise SAM2_VIDEO_MAX_FRAMES.")
    return _index(container, stream, name, shown, keys, end)


def _index(container: InputContainer, stream: VideoStream, name: str, shown: array[int], keys: array[int], end: int) -> VideoIndex:
    timestamps = np.unique(np.asarray(shown, dtype=np.int64))
    key_times = np.unique(np.asarray(keys, dtype=np.int64)) if keys else timestamps[:1]
    timestamps = timestamps[np.searchsorted(timestamps, key_times[:1].min(initial=0)) :] if len(key_times) else timestamps
    if not len(timestamps):
        raise VideoUnreadableError(f"{name} has no frames: its duration is zero. Upload the file again.")
    time_base = stream.time_base or Fraction(1)
    begins_s = zero_s(container)
    zero = int(timestamps[0]) if begins_s is None else begins_s / time_base
    end_s = (end - zero) * time_base
    _check_end(stream, name, end_s)
    told_s = Fraction(container.duration, av.time_base) if container.duration else Fraction(0)
    return VideoIndex(timestamps, key_times, time_base, Fraction(zero), max(end_s, told_s))


def _check_end(stream: VideoStream, name: str, end_s: Fraction) -> None:
    """A file that tells how long its picture lasts, and has less, was cut off."""
    if stream.duration is None or stream.time_base is None:
        return
    told_s = stream.duration * stream.time_base
    if end_s < told_s - max(TRUNCATED_S, told_s * TRUNCATED_SHARE):
        raise VideoUnreadableError(
            f"{name} is truncated: it has {float(end_s):.1f} of its {float(told_s):.1f} seconds. Upload the file again."
        )
