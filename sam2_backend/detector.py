"""Words → boxes, by an open-vocabulary detector of transformers: Grounding DINO or OWLv2, from a folder or by hub id.

Images are prepared here, as the two papers do: transformers' own image processors need torchvision or scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_backend.box_overlap import without_duplicates
from sam2_backend.dataset_messages import Box, LabelText
from sam2_backend.devices import device_errors
from sam2_backend.errors import DetectorError
from sam2_backend.text_tokens import caption_groups

#: Of two boxes of one label that overlap by more, the one with the lower score is dropped.
_SAME_OBJECT_IOU = 0.5
_GREY = 128
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Detection:
    """A box that a detector found: shares of the image, cut to it; score 0 to 1."""

    label: str
    box: Box
    score: float


class Detector(Protocol):
    """Finds boxes for texts. Used by one thread.

    Attributes:
        name: For people.
        min_score: Boxes below it are noise: used where a job names no score.
    """

    name: str
    min_score: float

    def find(self, image: NDArray[np.uint8], texts: Sequence[LabelText], min_score: float) -> list[Detection]:
        """Boxes of (H, W, 3) uint8 RGB, best first; of each object one per label.

        Raises:
            GpuMemoryError: the device is full.
        """


class GroundingDino:
    """All texts in one caption; a box belongs to the text whose tokens it fits best. Source: arXiv 2303.05499."""

    min_score = 0.3

    def __init__(self, name: str, model: Any, tokenizer: Any, sides_px: tuple[int, int] = (800, 1333)) -> None:
        """sides_px: The shorter side becomes the first, unless the longer one would exceed the second."""
        self.name, self._model, self._tokenizer, self._sides_px = name, model, tokenizer, sides_px

    @torch.inference_mode()
    def find(self, image: NDArray[np.uint8], texts: Sequence[LabelText], min_score: float) -> list[Detection]:
        found: list[Detection] = []
        with device_errors():
            pixels = _normalized(image, self._size_hw(image), _IMAGENET).to(self._model.device)
            mask = torch.ones(1, *pixels.shape[-2:], dtype=torch.long, device=pixels.device)
            for group, ids, places in caption_groups(texts, self._tokenizer, self._model.config.max_text_len):
                tokens = torch.tensor([ids], device=pixels.device)
                out = self._model(pixel_values=pixels, pixel_mask=mask, input_ids=tokens, attention_mask=torch.ones_like(tokens))
                by_token = out.logits[0].float().sigmoid()
                scores = torch.stack([by_token[:, list(place)].amax(1) for place in places], 1)
                found += _detections(group, scores, out.pred_boxes[0].float(), (1.0, 1.0), min_score)
        return sorted(found, key=lambda detection: -detection.score)

    def _size_hw(self, image: NDArray[np.uint8]) -> tuple[int, int]:
        height, width = image.shape[:2]
        shorter, longest = self._sides_px
        scale = min(shorter / min(height, width), longest / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


class Owlv2:
    """Each text by itself; the image is padded to a square on the right and below. Source: arXiv 2306.09683."""

    min_score = 0.2

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name, self._model, self._tokenizer = name, model, tokenizer

    @torch.inference_mode()
    def find(self, image: NDArray[np.uint8], texts: Sequence[LabelText], min_score: float) -> list[Detection]:
        height, width = image.shape[:2]
        longer, side = max(height, width), self._model.config.vision_config.image_size
        n_tokens = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            [text.text for text in texts], padding="max_length", max_length=n_tokens, truncation=True, return_tensors="pt"
        )
        with device_errors():
            square = np.full((longer, longer, 3), _GREY, dtype=np.uint8)
            square[:height, :width] = image
            out = self._model(
                input_ids=tokens["input_ids"].to(self._model.device),
                attention_mask=tokens["attention_mask"].to(self._model.device),
                pixel_values=_normalized(square, (side, side), _CLIP).to(self._model.device),
            )
            scores = out.logits[0].float().sigmoid()[:, : len(texts)]
            found = _detections(texts, scores, out.pred_boxes[0].float(), (longer / width, longer / height), min_score)
        return sorted(found, key=lambda detection: -detection.score)


def load_detector(name: str, device: torch.device) -> Detector:
    """Load the detector that SAM2_DETECTOR names: a folder with the model and its tokenizer, or a hub id.

    Raises:
        DetectorError: none is set, transformers is not installed, or it is no detector of the two kinds.
    """
    if not name:
        raise DetectorError(
            "No detector is set. Install `pip install 'sam2-label-studio[detect]'` on the workers and set SAM2_DETECTOR to a folder or a "
            "hub id, such as IDEA-Research/grounding-dino-tiny or google/owlv2-base-patch16-ensemble."
        )
    try:
        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoTokenizer
    except ImportError:
        raise DetectorError(
            "Looking for text needs transformers. Install `pip install 'sam2-label-studio[detect]'` on the workers."
        ) from None
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind not in {"grounding-dino", "owlv2"}:
            raise DetectorError(f"SAM2_DETECTOR={name} is a model of kind {kind}. Use one of Grounding DINO or OWLv2.")
        model = AutoModelForZeroShotObjectDetection.from_pretrained(name).eval().requires_grad_(requires_grad=False)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"SAM2_DETECTOR={name} cannot be loaded ({type(error).__name__}). It must be a folder with model and tokenizer, or a hub id."
        ) from error
    with device_errors():
        model = model.to(device)
    return GroundingDino(name, model, tokenizer) if kind == "grounding-dino" else Owlv2(name, model, tokenizer)


def _normalized(image: NDArray[np.uint8], size_hw: tuple[int, int], mean_and_std: tuple[tuple[float, ...], ...]) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, h, w) float32 on the CPU."""
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size_hw, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in mean_and_std)
    return (resized.float() / 255 - mean) / std


def _detections(
    texts: Sequence[LabelText], scores: Tensor, boxes_cxcywh: Tensor, stretch_xy: tuple[float, float], min_score: float
) -> list[Detection]:
    """Scores (Q, T) of Q boxes (Q, 4) for T texts → what is good enough, each object once per label."""
    best = scores.max(1)
    keep = best.values >= min_score
    scores_kept, texts_kept = best.values[keep].double().cpu().numpy(), best.indices[keep].cpu().numpy()
    x, y, width, height = boxes_cxcywh[keep].double().cpu().numpy().reshape(-1, 4).T
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1) * (stretch_xy * 2)
    boxes = boxes.clip(0, 1)
    found: list[Detection] = []
    for text_idx, text in enumerate(texts):
        of_text = np.flatnonzero(texts_kept == text_idx)
        for i in of_text[without_duplicates(boxes[of_text], scores_kept[of_text], _SAME_OBJECT_IOU)]:
            left, top, right, bottom = boxes[i].tolist()
            found.append(Detection(text.label, (left, top, right, bottom), float(scores_kept[i])))
    return found
