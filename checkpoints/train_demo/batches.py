"""Batches for training: fresh scenes mixed with recent ones, mirrored and turned, and for each some objects to ask for."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from checkpoints.train_demo.assets import Assets
from checkpoints.train_demo.scenes import Scene, render

#: What SAM 2's encoder expects: RGB / 255, less the mean, over the deviation.
MEAN_RGB, STD_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Of the objects, the others are drawings, which take longer to learn.
SHAPE_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Batch:
    images: Tensor  # (B, 3, S, S) float32, normalised
    masks: Tensor  # (B · prompts_per_image, S, S) bool; the prompts of one image follow one another


def normalised(images: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 RGB -> (B, 3, S, S) float32."""
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN_RGB).view(1, 3, 1, 1)) / torch.tensor(STD_RGB).view(1, 3, 1, 1)


def turned(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One of the eight mirrorings and quarter turns."""
    image, owner = scene.image, scene.owner
    if rng.random() < 0.5:
        image, owner = image.transpose(1, 0, 2), owner.T
    flips = (slice(None, None, rng.choice([-1, 1])), slice(None, None, rng.choice([-1, 1])))
    return image[flips], owner[flips]


@dataclass(frozen=True, slots=True)
class BatchSize:
    """`fresh_images` of a batch are new scenes, the rest were seen lately: drawing costs as much as learning."""

    side_px: int
    images: int
    prompts_per_image: int
    fresh_images: int


class BatchMaker:
    """Draws batches and keeps the last scenes of the size at hand."""

    def __init__(self, assets: Assets, seed: int, kept_scenes: int = 3000) -> None:
        self.assets, self.seed = assets, seed
        self.kept: deque[Scene] = deque(maxlen=kept_scenes)

    def batch(self, step: int, size: BatchSize) -> Batch:
        """Batch STEP; the same for the same seed and history."""
        rng = np.random.default_rng((self.seed, step, 1))
        if self.kept and len(self.kept[0].owner) != size.side_px:
            self.kept.clear()
        n_fresh = size.fresh_images if len(self.kept) >= 20 * size.images else size.images
        scenes = [render(self.assets, self.seed, step * 100 + i, side_px=size.side_px, shape_share=SHAPE_SHARE) for i in range(n_fresh)]
        scenes += [self.kept[i] for i in rng.integers(0, max(1, len(self.kept)), size.images - n_fresh)]
        self.kept.extend(scenes[:n_fresh])
        pictures, masks = zip(*(_asked(*turned(scene, rng), size.prompts_per_image, rng) for scene in scenes), strict=True)
        return Batch(normalised(np.stack(pictures)), torch.from_numpy(np.concatenate(masks)))


def _asked(image: np.ndarray, owner: np.ndarray, n_prompts: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and (n_prompts, S, S) bool masks of objects in it; all of them before one comes again."""
    present = np.unique(owner)
    chosen = np.resize(rng.permutation(present[present > 0]), n_prompts)
    return image, owner[None] == chosen[:, None, None]
