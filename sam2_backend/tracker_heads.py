"""What the network does with objects on one frame; remembers nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_backend.network import DecoderOutput, FeatureMaps, Sam2Network
from sam2_backend.network.prompt_encoder import NOT_A_POINT
from sam2_backend.network.sam2 import NO_OBJECT_LOGIT
from sam2_backend.tracker_memory import Reading

#: A drawn mask as logits.
_DRAWN_LOGIT = 10.0
#: A single mask is stable where moving the threshold by this much hardly changes its area.
_STABILITY_DELTA = 0.05
_STABILITY_MIN = 0.98
#: What a pixel's logit is lowered to where another object is surer of it.
_OVERLAP_LOGIT = -10.0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """B objects on a frame.

    Attributes:
        logits: (B, 1, S/4, S/4) float32; NO_OBJECT_LOGIT everywhere where the object is not there.
        object_logits: (B, 1) float32, above 0: the object is there.
        scores: (B,) float32, the estimated IoU.
        pointers: (B, d) float32.
    """

    logits: Tensor
    object_logits: Tensor
    scores: Tensor
    pointers: Tensor


class TrackerHeads:
    """The steps of SAM 2's tracker on one frame, each for a batch of objects.

    Source: sam2/modeling/sam2_base.py at 2b90b9f.
    """

    def __init__(self, network: Sam2Network, dtype: torch.dtype, *, n_frames: int, detects_lost: bool) -> None:
        """Memory is read and made in `dtype`; prompts and masks are fp32."""
        self._network, self._dtype, self._n_frames, self._detects_lost = network, dtype, n_frames, detects_lost

    def without_memory(self, image: Tensor) -> Tensor:
        """Embedding (1, d, h, w) → what the decoder gets of it on a frame that starts anew."""
        return image + self._network.no_mem_embed.view(1, -1, 1, 1)

    def condition(self, image: Tensor, readings: Sequence[Reading]) -> Tensor:
        """Embedding (1, d, h, w), read by B objects whose readings have one layout → (B, d, h, w) float32."""
        maps = [torch.stack(same_age).to(image.dtype) for same_age in zip(*(r.maps for r in readings), strict=True)]
        pointers = [torch.stack(same_place) for same_place in zip(*(r.pointers for r in readings), strict=True)]
        # Objects that were prompted together read one and the same distances: their positions are made once for all.
        apart = list(dict.fromkeys(r.frames_apart for r in readings))
        rows = apart if len(apart) == 1 else [r.frames_apart for r in readings]
        frames_apart = torch.tensor(rows, dtype=torch.float32).to(image.device, non_blocking=True)
        with self._memory_precision(image):
            memory = self._network.memory_tokens(maps, readings[0].ages, pointers, frames_apart, self._n_frames)
            return self._network.condition(image, memory).float()

    def track(self, features: FeatureMaps, conditioned: Tensor) -> Found:
        """Find B objects by their memory alone."""
        batch = conditioned.shape[0]
        points_xy, labels = conditioned.new_zeros(batch, 1, 2), conditioned.new_full((batch, 1), NOT_A_POINT, dtype=torch.long)
        return self._found(self._network.decode_conditioned(features, conditioned, points_xy, labels), is_ambiguous=True)

    def take_points(
        self, features: FeatureMaps, conditioned: Tensor, points_xy: Tensor, labels: Tensor, mask_logits: Tensor | None
    ) -> Found:
        """Find one object by points (n, 2) and what they say (n,), beside a mask (S/4, S/4) to start from."""
        mask = None if mask_logits is None else mask_logits[None, None].to(conditioned)
        xy, says = points_xy[None].to(conditioned), labels[None].to(conditioned.device, torch.long)
        out = self._network.decode_conditioned(features, conditioned, xy, says, mask)
        return self._found(out, is_ambiguous=labels.shape[0] <= 1)

    def take_mask(self, features: FeatureMaps, mask: Tensor) -> tuple[Found, Tensor]:
        """Take a mask (H, W) bool as what was found; only the pointer comes from the decoder. → and its logits (1, 1, S, S)."""
        network, image = self._network, features[2]
        side = network.config.image_size
        drawn = mask[None, None].to(image)
        if drawn.shape[-2:] != (side, side):
            drawn = (F.interpolate(drawn, (side, side), mode="bilinear", align_corners=False, antialias=True) >= 0.5).to(image)
        logits = drawn * (2 * _DRAWN_LOGIT) - _DRAWN_LOGIT
        points_xy, labels = image.new_zeros(1, 1, 2), image.new_full((1, 1), NOT_A_POINT, dtype=torch.long)
        out = network.decode_conditioned(features, image, points_xy, labels, network.mask_downsample(drawn))
        object_logits = torch.where(drawn.any(), _DRAWN_LOGIT, -_DRAWN_LOGIT).view(1, 1)
        is_seen = torch.minimum(object_logits, self._object_logits(out))
        small = F.interpolate(logits, (side // 4, side // 4), mode="bilinear", align_corners=False, antialias=True)
        pointers = network.pointer(out.mask_tokens[:, 0], is_seen)
        return Found(small, object_logits, torch.ones_like(out.scores[:, 0]), pointers), logits

    def remember(self, image: Tensor, mask_logits: Tensor, object_logits: Tensor, *, binarize: bool) -> Tensor:
        """See `Sam2Network.remember` → (B, memory_dim, h, w) bfloat16, as the reference keeps it."""
        with self._memory_precision(image):
            return self._network.remember(image, mask_logits, object_logits, binarize=binarize).to(torch.bfloat16)

    def _found(self, out: DecoderOutput, *, is_ambiguous: bool) -> Found:
        """Choose among the decoder's masks: the best of three for an ambiguous prompt, else the single one, where it is stable."""
        rows, best = torch.arange(out.scores.shape[0], device=out.scores.device), 1 + out.scores[:, 1:].argmax(1)
        single = torch.zeros_like(best)
        if not self._network.config.stability_rule:
            chosen = token = single
        elif is_ambiguous:
            chosen = token = best
        else:
            chosen, token = torch.where(_is_stable(out.mask_logits[:, 0]), single, best), single
        object_logits = self._object_logits(out)
        logits = torch.where(object_logits[..., None, None] > 0, out.mask_logits[rows, chosen][:, None].float(), NO_OBJECT_LOGIT)
        pointers = self._network.pointer(out.mask_tokens[rows, token], object_logits)
        return Found(logits, object_logits, out.scores[rows, chosen], pointers)

    def _object_logits(self, out: DecoderOutput) -> Tensor:
        return out.object_logits if self._detects_lost else out.object_logits.clamp(min=1.0)

    def _memory_precision(self, image: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(image.device.type, self._dtype, enabled=self._dtype != torch.float32)


def without_overlap(logits: Tensor) -> Tensor:
    """Leave each pixel of (B, h, w) to the object that is surest of it. Source: sam2_base.py, _apply_non_overlapping_constraints."""
    owner = logits.argmax(0, keepdim=True)
    is_owner = owner == torch.arange(logits.shape[0], device=logits.device)[:, None, None]
    return torch.where(is_owner, logits, logits.clamp(max=_OVERLAP_LOGIT))


def _is_stable(logits: Tensor) -> Tensor:
    """(B, h, w) → (B,) bool."""
    inner, outer = ((logits > threshold).flatten(1).sum(1) for threshold in (_STABILITY_DELTA, -_STABILITY_DELTA))
    return (outer == 0) | (inner / outer >= _STABILITY_MIN)
