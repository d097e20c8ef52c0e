"""The decoder's small logits: which of its masks is taken, how they become masks at full size, and masks that become prompts."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import RunLengths

#: A single mask is stable where moving the threshold by this much hardly changes its area.
STABILITY_DELTA = 0.05
STABILITY_MIN = 0.98
MASK_PROMPT_LOGIT = 10.0


def is_stable(logits: Tensor) -> Tensor:
    """Logits (B, h, w) → (B,) bool. An empty mask is stable."""
    inner, outer = ((logits > threshold).flatten(1).sum(1) for threshold in (STABILITY_DELTA, -STABILITY_DELTA))
    return (outer == 0) | (inner / outer >= STABILITY_MIN)


def best_first(logits: Tensor, scores: Tensor, *, multimask: bool, uses_stability: bool) -> tuple[Tensor, Tensor]:
    """Choose among the four masks of the decoder, for each of B prompts.

    Args:
        logits: (B, 4, h, w), the single mask and three candidates.
        scores: (B, 4).
        multimask: The three candidates, by score; else one.
        uses_stability: The one is the best candidate where the single mask is unstable.

    Returns:
        (B, C, h, w) and (B, C); C is 3 or 1.
    """
    if multimask:
        order = scores[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
    elif uses_stability:
        order = torch.where(is_stable(logits[:, 0]), 0, scores[:, 1:].argmax(1) + 1)[:, None]
    else:
        order = torch.zeros(scores.shape[0], 1, dtype=torch.long, device=scores.device)
    rows = torch.arange(scores.shape[0], device=scores.device)[:, None]
    return logits[rows, order], scores[rows, order]


def prompt_logits(mask: NDArray[np.bool_], side: int) -> Tensor:
    """Make a mask prompt: mask (H, W) bool → (side, side) float32 on the CPU, -10 outside, 10 inside, between on the edge."""
    shrinks = min(mask.shape) >= side
    share = cv2.resize(mask.astype(np.uint8) * np.uint8(255), (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(share).float() * (2 * MASK_PROMPT_LOGIT / 255) - MASK_PROMPT_LOGIT


def mask_of(logits: Tensor, size_hw: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """Logits (h, w) → mask (H, W) bool: bilinear between pixel centres, mask where above the threshold."""
    if logits.device.type == "cuda":
        on_device: NDArray[np.bool_] = _full_size(logits, size_hw, threshold).cpu().numpy()
        return on_device
    full: NDArray[np.float32] = cv2.resize(logits.float().cpu().numpy(), size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    above: NDArray[np.bool_] = full > threshold
    return above


def runs_of(logits: Tensor, size_hw: tuple[int, int], threshold: float) -> RunLengths:
    """The run lengths of `mask_of`. On CUDA they are counted on the device: some kilobytes cross the bus in place of the mask."""
    if logits.device.type == "cuda":
        return device_runs(_full_size(logits, size_hw, threshold))
    return runs_from_mask(mask_of(logits, size_hw, threshold))


def device_runs(mask: Tensor) -> RunLengths:
    """As `masks.runs_from_mask`, for a mask (H, W) bool on any device, counted there."""
    flat = mask.flatten()
    before_first = flat.new_zeros(1)
    changes = (flat != torch.cat([before_first, flat[:-1]])).nonzero().flatten()
    ends = torch.cat([changes, changes.new_full((1,), flat.numel())])
    lengths = ends.diff(prepend=ends.new_zeros(1)).to(torch.int32).cpu().numpy()
    return RunLengths((mask.shape[0], mask.shape[1]), lengths.astype("<u4").tobytes())


def _full_size(logits: Tensor, size_hw: tuple[int, int], threshold: float) -> Tensor:
    full = F.interpolate(logits.float()[None, None], size_hw, mode="bilinear", align_corners=False)
    return full[0, 0] > threshold
