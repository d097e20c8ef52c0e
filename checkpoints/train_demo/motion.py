"""How a thing moves through a clip: it wanders, turns and changes its size smoothly; it can be out of the way for some frames."""

from dataclasses import dataclass

import numpy as np

from checkpoints.train_demo.backgrounds import Rng


@dataclass(frozen=True, slots=True)
class Motion:
    center_px: np.ndarray  # (T, 2) x, y
    angle: np.ndarray  # (T,) radians
    scale: np.ndarray  # (T,) at most 1

    def moved(self, offset_px: np.ndarray) -> "Motion":
        """The same, further off by (T, 2) x, y."""
        return Motion(self.center_px + offset_px, self.angle, self.scale)

    def to_canvas(self, frame: int, side_px: int) -> np.ndarray:
        """2×3 map of a canvas with the thing in its middle to the frame."""
        cos, sin = (self.scale[frame] * wave(self.angle[frame]) for wave in (np.cos, np.sin))
        linear = np.array([[cos, -sin], [sin, cos]])
        middle = np.full(2, (side_px - 1) / 2)
        return np.concatenate([linear, (self.center_px[frame] - linear @ middle)[:, None]], 1)


def wandering(rng: Rng, n_frames: int, side_px: int, half_px: float) -> Motion:
    """Stays in the picture by more than half; some things hardly move, the fastest cross it in about ten frames."""
    margin_px = min(0.6 * half_px, 0.45 * side_px)
    reach_px = side_px / 2 - margin_px
    swings = rng.uniform(0, 1, (2, 1)) ** 1.5 * _waves(rng, 2, n_frames)
    rest = rng.uniform(-1, 1, (2, 1))
    center_px = side_px / 2 + reach_px * np.clip(rest * (1 - np.abs(swings).max(1, keepdims=True)) + swings, -1, 1)
    angle = rng.uniform(0, 1) ** 2 * np.pi * _waves(rng, 1, n_frames)[0]
    growth = rng.uniform(0, 0.3)
    return Motion(center_px.T, angle - angle[0], np.exp(growth * (_waves(rng, 1, n_frames)[0] - 1)))


def _waves(rng: Rng, count: int, n_frames: int) -> np.ndarray:
    """(count, T) sines within -1 and 1 of a period of 16 to 60 frames."""
    period, phase = rng.uniform(16, 60, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    return np.sin(2 * np.pi * np.arange(n_frames) / period + phase)


def away(n_frames: int, first: int, count: int, ramp: int) -> np.ndarray:
    """(T,) 0 in the COUNT frames from FIRST on, 1 from RAMP frames before and after them, evenly between."""
    frames = np.arange(n_frames)
    distance = np.maximum(np.maximum(first - frames, frames - (first + count - 1)), 0)
    return np.minimum(distance / ramp, 1.0)


def direction(rng: Rng) -> np.ndarray:
    """(2,) of length 1."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle)])
