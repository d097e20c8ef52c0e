"""Prompts as a person gave them → batches as the network takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_backend.embedding import ImageEmbedding
from sam2_backend.network import FeatureMaps
from sam2_backend.network.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, NOT_A_POINT, POSITIVE, TOP_LEFT


@dataclass(frozen=True, slots=True, eq=False)
class ObjectPrompt:
    """Everything that was prompted for one object.

    Attributes:
        points_xy_px: (N, 2) float, pixels of the upright image.
        is_positive: (N,) bool.
        size_hw: Of the upright image.
        multimask: Three candidates for an ambiguous prompt; else one.
        box_xyxy_px: Left, top, right, bottom.
        mask_logits: (S/4, S/4), a mask to start from: `Sam2Engine.mask_logits_from`, or the logits of the step before.
    """

    points_xy_px: NDArray[np.float64]
    is_positive: NDArray[np.bool_]
    size_hw: tuple[int, int]
    multimask: bool
    box_xyxy_px: tuple[float, float, float, float] | None = None
    mask_logits: Tensor | None = None

    def model_points(self, image_size: int) -> tuple[NDArray[np.float64], list[int]]:
        """Box corners and points (N, 2) in model pixels, and what they say (N,); one empty point where there are none."""
        corners = np.asarray(self.box_xyxy_px or (), dtype=np.float64).reshape(-1, 2)
        points = np.asarray(self.points_xy_px, dtype=np.float64).reshape(-1, 2)
        says = [TOP_LEFT, BOTTOM_RIGHT][: len(corners)] + [POSITIVE if positive else NEGATIVE for positive in self.is_positive]
        if not says:
            return np.zeros((1, 2)), [NOT_A_POINT]
        return np.concatenate([corners, points]) * (image_size / np.array(self.size_hw[::-1], dtype=np.float64)), says


@dataclass(frozen=True, slots=True, eq=False)
class DecoderBatch:
    """B prompts of one shape, on one image or on an image each.

    Attributes:
        positions: (B,), where they stood among all that was asked.
        embeddings: Of each prompt's image.
        points_xy: (B, N, 2) float32, model pixels.
        labels: (B, N), see `prompt_encoder`.
        mask_logits: (B, 1, S/4, S/4).
        multimask: Of all of them.
    """

    positions: list[int]
    embeddings: list[ImageEmbedding]
    points_xy: Tensor
    labels: Tensor
    mask_logits: Tensor | None
    multimask: bool

    def features(self) -> FeatureMaps:
        """Float32 maps (B or 1, …), made when they are asked for: batches that wait hold no copies."""
        first = self.embeddings[0]
        if all(embedding is first for embedding in self.embeddings):
            high_res_0, high_res_1, image = first.maps
        else:
            high_res_0, high_res_1, image = (torch.cat(maps) for maps in zip(*(e.maps for e in self.embeddings), strict=True))
        return high_res_0.float(), high_res_1.float(), image.float()


def batches(
    asked: Sequence[tuple[ImageEmbedding, ObjectPrompt]], image_size: int, max_prompts: int, device: torch.device
) -> Iterator[DecoderBatch]:
    """Put prompts of one shape together: as many points, all with a mask or none, all or none ambiguous.

    Padding the shorter ones to one length would make fewer batches, and other masks: their mean IoU is then 0.96.
    """
    alike: dict[tuple[int, bool, bool], list[int]] = {}
    points = [prompt.model_points(image_size) for _, prompt in asked]
    for position, (_, prompt) in enumerate(asked):
        alike.setdefault((len(points[position][1]), prompt.mask_logits is not None, prompt.multimask), []).append(position)
    for positions in alike.values():
        for start in range(0, len(positions), max_prompts):
            some = positions[start : start + max_prompts]
            masks = [mask for mask in (asked[i][1].mask_logits for i in some) if mask is not None]
            yield DecoderBatch(
                some,
                [asked[i][0] for i in some],
                torch.tensor(np.stack([points[i][0] for i in some]), dtype=torch.float32, device=device),
                torch.tensor([points[i][1] for i in some], device=device),
                torch.stack(masks)[:, None].to(device, torch.float32) if masks else None,
                asked[some[0]][1].multimask,
            )
