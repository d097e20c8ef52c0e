"""Clips for training: new ones mixed with recent ones, mirrored and turned, and in each some objects that its first frame shows."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from checkpoints.train_demo.assets import Assets
from checkpoints.train_demo.batches import normalised
from checkpoints.train_demo.clips import Clip, ClipSize, Event, render_clip

EVENTS: tuple[Event, ...] = ("none", "covered", "gone")
EVENT_SHARES = (0.55, 0.35, 0.1)


@dataclass(frozen=True, slots=True)
class ClipBatch:
    images: Tensor  # (C, T, 3, S, S) float32, normalised
    masks: Tensor  # (B, T, S, S) bool, one for each object that is followed
    clip_of_track: Tensor  # (B,) which clip it is in


@dataclass(frozen=True, slots=True)
class ClipBatchSize:
    """`fresh_clips` of a batch are new, the rest were seen lately; at most `tracks_per_clip` objects of each are followed."""

    clip: ClipSize
    clips: int
    fresh_clips: int
    tracks_per_clip: int


class ClipBatchMaker:
    """Draws batches and keeps the last clips of the size at hand."""

    def __init__(self, assets: Assets, seed: int, kept_clips: int = 400) -> None:
        self.assets, self.seed = assets, seed
        self.kept: deque[Clip] = deque(maxlen=kept_clips)

    def batch(self, step: int, size: ClipBatchSize) -> ClipBatch:
        """Batch STEP; the same for the same seed and history."""
        rng = np.random.default_rng((self.seed, step, 2))
        if self.kept and self.kept[0].owner.shape[:2] != (size.clip.frames, size.clip.side_px):
            self.kept.clear()
        n_fresh = size.fresh_clips if len(self.kept) >= 10 * size.clips else size.clips
        clips = [self._fresh(step * 100 + i, size.clip, rng) for i in range(n_fresh)]
        clips += [self.kept[i] for i in rng.integers(0, max(1, len(self.kept)), size.clips - n_fresh)]
        self.kept.extend(clips[:n_fresh])
        return joined([turned(clip, rng) for clip in clips], size.tracks_per_clip, rng)

    def _fresh(self, index: int, size: ClipSize, rng: np.random.Generator) -> Clip:
        event = EVENTS[rng.choice(len(EVENTS), p=EVENT_SHARES)]
        hidden_frames = int(rng.integers(1, size.frames // 2))
        return render_clip(self.assets, self.seed, index, size, n_objects=int(rng.integers(1, 4)), event=event, hidden_frames=hidden_frames)


def turned(clip: Clip, rng: np.random.Generator) -> Clip:
    """One of the eight mirrorings and quarter turns, the same for all frames."""
    images, owner = clip.images, clip.owner
    if rng.random() < 0.5:
        images, owner = images.transpose(0, 2, 1, 3), owner.transpose(0, 2, 1)
    flips = (slice(None), slice(None, None, rng.choice([-1, 1])), slice(None, None, rng.choice([-1, 1])))
    return Clip(np.ascontiguousarray(images[flips]), np.ascontiguousarray(owner[flips]))


def joined(clips: list[Clip], tracks_per_clip: int, rng: np.random.Generator) -> ClipBatch:
    """The clips side by side, and of each up to so many of the objects that its first frame shows; the one with the event first."""
    masks, places = [], []
    for place, clip in enumerate(clips):
        present = clip.visible(0)
        others = rng.permutation(present[present > 1])
        chosen = np.concatenate([present[present == 1], others])[:tracks_per_clip]
        masks.append(np.moveaxis(clip.owner[..., None] == chosen, -1, 0))
        places += [place] * len(chosen)
    images = torch.stack([normalised(clip.images) for clip in clips])
    return ClipBatch(images, torch.from_numpy(np.concatenate(masks)), torch.tensor(places))
