"""Which frame a viewer shows at each place on a grid of equal steps, exactly, in whole numbers and fractions.

Label Studio numbers frames by time: its frame f is what the browser shows at (f - 1) / framerate seconds, whatever the file's own frame
times are. Source: Label Studio 1.23, which seeks 2 ms further, so that rounding cannot show the frame before.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from sam2_backend.errors import VideoFrameError, VideoFramerateError

SEEK_EARLY = Fraction(2, 1000)
MAX_FRAMERATE = 1000.0
_INT64 = np.iinfo(np.int64)

Timestamps = npt.NDArray[np.int64]


def checked_framerate(framerate: float) -> Fraction:
    """The framerate as an exact number.

    Raises:
        VideoFramerateError: it is not a number above 0 and at most 1000.
    """
    try:
        if 0 < framerate <= MAX_FRAMERATE:
            return Fraction(framerate)
    except TypeError:
        pass
    raise VideoFramerateError(
        f"The framerate {framerate!r} is not a number above 0 and at most {MAX_FRAMERATE:g}. "
        'Set framerate="…" of the <Video> tag to the frames per second of the videos.'
    )


class FrameGrid:
    """Place g stands for the moment g / framerate; the frame there is the one with the greatest timestamp at or before it (+ 2 ms).

    Args:
        timestamps: (n,) int64, ascending without repeats, at least one; when each frame appears. Kept, not copied.
        time_base: Seconds per unit of `timestamps`.
        zero: The timestamp that a viewer calls 0 seconds, in the same units; may be fractional.
        framerate: Places per second.
        n_grid: Places.
    """

    def __init__(self, timestamps: Timestamps, *, time_base: Fraction, zero: Fraction, framerate: Fraction, n_grid: int) -> None:
        self._timestamps, self._zero = timestamps, zero
        self._units_per_place = 1 / (framerate * time_base)
        self._early = SEEK_EARLY / time_base
        self.n_frames, self.n_grid = len(timestamps), n_grid

    def frame_of_grid(self, grid_idx: int) -> int:
        """The frame shown at a place; before the first frame's time that is the first.

        Raises:
            VideoFrameError: there is no such place.
        """
        if not 0 <= grid_idx < self.n_grid:
            raise VideoFrameError(f"There is no frame {grid_idx + 1}: the video has {self.n_grid}, numbered from 1. Delete that keyframe.")
        moment = math.floor(self._zero + grid_idx * self._units_per_place + self._early)
        n_begun = np.searchsorted(self._timestamps, np.int64(min(max(moment, _INT64.min), _INT64.max)), side="right")
        return max(int(n_begun) - 1, 0)

    def grid_of_frame(self, frame_idx: int) -> range:
        """The places that show a frame; empty where frames are closer together than places.

        Raises:
            VideoFrameError: there is no such frame.
        """
        if not 0 <= frame_idx < self.n_frames:
            raise VideoFrameError(f"There is no frame with index {frame_idx}: the file has {self.n_frames}.")
        start = 0 if frame_idx == 0 else self._first_place_from(frame_idx)
        stop = self.n_grid if frame_idx == self.n_frames - 1 else self._first_place_from(frame_idx + 1)
        return range(start, max(start, stop))

    def _first_place_from(self, frame_idx: int) -> int:
        """The first place at which this frame or a later one is shown."""
        since_zero = int(self._timestamps[frame_idx]) - self._zero - self._early
        return min(max(math.ceil(since_zero / self._units_per_place), 0), self.n_grid)
