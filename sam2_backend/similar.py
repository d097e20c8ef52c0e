"""More like this: regions that people accepted on other images are the memory, and SAM 2's memory attention finds the same kind of object.

The tracker reads an example as it reads a prompted frame of a video, and the new image as the frame after. It follows one object, so that
it finds one mask per label; several objects of a kind come out as one mask, or only the one that it is surest of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from sam2_backend.dataset_messages import DatasetMask, SimilarOptions
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import BadCheckpointError
from sam2_backend.masks import mask_from_runs, runs_from_mask
from sam2_backend.messages import MaskOptions, RunLengths
from sam2_backend.network.sam2 import N_POINTERS
from sam2_backend.regions_found import full_size_runs, region
from sam2_backend.tracker import Tracker, TrackerOptions, TrackerPrompt

#: The frame after the last that can be an example.
_NEW_IMAGE_IDX = N_POINTERS
#: Parts smaller than this share of the largest are no objects of their own.
_SMALLEST_PART = 0.05


@dataclass(slots=True)
class Memory:
    """What was accepted, by label. Its size does not depend on that of the images.

    Attributes:
        tracker: One object per label; its prompted frames are the examples.
        n_examples: How many each label has.
    """

    tracker: Tracker
    n_examples: dict[str, int] = field(default_factory=dict)

    @classmethod
    def empty(cls, engine: Sam2Engine, options: SimilarOptions = SimilarOptions()) -> Memory:  # noqa: B008  immutable
        """A memory that reads `max_examples` per label.

        Raises:
            BadCheckpointError: the model has none.
        """
        if not engine.network.config.has_memory:
            raise BadCheckpointError(f"{engine.model_version} is for images alone and remembers no examples. Choose another SAM2_MODEL.")
        tracker_options = TrackerOptions(max_prompted=max(1, min(options.max_examples, N_POINTERS)))
        return cls(Tracker(engine.network, engine.device, engine.dtype, tracker_options))

    @property
    def nbytes(self) -> int:
        return self.tracker.nbytes

    def add(self, label: str, embedding: ImageEmbedding, mask: NDArray[np.bool_]) -> None:
        """Remember an accepted region: the embedding of its image, and its mask (H, W) bool."""
        n_known = self.n_examples.get(label, 0)
        self.tracker.prompt(n_known, embedding.maps, [TrackerPrompt(label, mask=torch.from_numpy(mask))])
        self.n_examples[label] = n_known + 1


def masks_like(
    engine: Sam2Engine,
    memory: Memory,
    embedding: ImageEmbedding,
    size_hw: tuple[int, int],
    options: SimilarOptions = SimilarOptions(),  # noqa: B008  immutable
    mask_options: MaskOptions = MaskOptions(),  # noqa: B008  immutable
) -> list[DatasetMask]:
    """What an image has of the remembered kinds, surest first: a mask per label that is there, or its parts where they are wanted apart.

    Args:
        embedding: Of the image.
        size_hw: Of the image as it is shown; the masks have it.

    Returns:
        Masks whose score is the model's confidence that the object is in the image, above 0.5.
    """
    try:
        found = memory.tracker.step(_NEW_IMAGE_IDX, embedding.maps)
    finally:
        memory.tracker.forget_tracked()  # also where a time limit ends this in the middle: images do not remember one another
    regions: list[DatasetMask] = []
    for label, logits, object_logit in zip(found.object_ids, found.logits, found.object_scores.sigmoid().tolist(), strict=True):
        if object_logit > 0.5:
            runs = full_size_runs(engine, logits, size_hw, mask_options)
            parts = parts_of(runs) if options.splits_parts else [runs]
            regions += [mask for part in parts if (mask := region(part, object_logit, label))]
    return sorted(regions, key=lambda mask: mask.score, reverse=True)


def parts_of(runs: RunLengths) -> list[RunLengths]:
    """The parts of a mask that do not touch, largest first, without specks."""
    mask = mask_from_runs(runs)
    n_labels, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas_px = stats[1:n_labels, cv2.CC_STAT_AREA]
    order = [i for i in np.argsort(-areas_px, kind="stable") if areas_px[i] >= _SMALLEST_PART * areas_px.max()]
    return [runs_from_mask(labels == i + 1) for i in order]
