"""What a person drew on a keyframe, in pixels or shares, as the tracker wants it and as it is reported."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import torch

from sam2_backend.engine import Sam2Engine
from sam2_backend.masks import Mask, mask_from_runs
from sam2_backend.messages import ImagePrompt
from sam2_backend.network.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, POSITIVE, TOP_LEFT
from sam2_backend.tracker import TrackerPrompt

Box = tuple[float, float, float, float]
NOWHERE: Box = (float("nan"), float("nan"), float("nan"), float("nan"))


def tracker_prompt(object_id: str, prompt: ImagePrompt, size_hw: tuple[int, int], engine: Sam2Engine) -> TrackerPrompt:
    """A mask alone becomes the object's mask as it is; beside points or a box it is what they start from.

    Args:
        object_id: Names the object to the tracker.
        size_hw: What the prompt's coordinates are pixels of; (1, 1): they are shares.

    Raises:
        JobRefusedError: the mask's runs do not add up to its size.
    """
    mask = mask_from_runs(prompt.mask) if prompt.mask else None
    corners = np.asarray(prompt.box_xyxy_px or (), dtype=np.float64).reshape(-1, 2)
    points = np.array([(point.x_px, point.y_px) for point in prompt.points], dtype=np.float64).reshape(-1, 2)
    if mask is not None and not len(corners) and not len(points):
        return TrackerPrompt(object_id, mask=torch.from_numpy(mask).to(engine.device))
    labels = [TOP_LEFT, BOTTOM_RIGHT][: len(corners)] + [POSITIVE if point.is_positive else NEGATIVE for point in prompt.points]
    model_xy = np.concatenate([corners, points]) * (engine.image_size / np.array(size_hw[::-1], dtype=np.float64))
    return TrackerPrompt(
        object_id,
        torch.tensor(model_xy, dtype=torch.float32, device=engine.device),
        torch.tensor(labels, device=engine.device),
        mask_logits=None if mask is None else engine.mask_logits_from(mask),
    )


def drawn_box(prompt: ImagePrompt, size_hw: tuple[int, int]) -> Box | None:
    """The box as drawn, in shares, where the person gave it and nothing else; None: the mask tells."""
    if prompt.box_xyxy_px is None or prompt.points or prompt.mask:
        return None
    left, top, right, bottom = prompt.box_xyxy_px
    height, width = size_hw
    return left / width, top / height, right / width, bottom / height


def drawn_mask(prompt: ImagePrompt, size_hw: tuple[int, int]) -> Mask | None:
    """The mask (H, W) as drawn, where the person gave it and nothing else, at the size of the video; None: the model tells."""
    if prompt.mask is None or prompt.points or prompt.box_xyxy_px:
        return None
    mask = mask_from_runs(prompt.mask)
    if mask.shape == size_hw:
        return mask
    resized: Mask = cv2.resize(mask.view(np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.bool_)
    return resized


def shares_of(box_xyxy_px: tuple[int, int, int, int] | None, size_hw: tuple[int, int]) -> Box:
    """A box in shares of the frame; NOWHERE where there is none."""
    if box_xyxy_px is None:
        return NOWHERE
    (left, top, right, bottom), (height, width) = box_xyxy_px, size_hw
    return left / width, top / height, right / width, bottom / height


def without_name(prompt: ImagePrompt) -> ImagePrompt:
    """All of a prompt that its mask depends on."""
    return dataclasses.replace(prompt, prompt_id="")
