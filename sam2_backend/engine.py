"""SAM 2 on one device: image → embedding, embedding and prompt → masks. Knows no queue, no cache and no files but the checkpoint."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sam2_backend import checkpoints
from sam2_backend.checkpoints import Checkpoint
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.errors import BadCheckpointError, GpuMemoryError, SettingsError
from sam2_backend.network import Sam2Network
from sam2_backend.network.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, NOT_A_POINT, POSITIVE, TOP_LEFT
from sam2_backend.settings import Settings

__all__ = ["Candidates", "ImageEmbedding", "Sam2Engine", "device_errors"]

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
#: A single mask is stable where moving the threshold by this much hardly changes its area.
_STABILITY_DELTA = 0.05
_STABILITY_MIN = 0.98
_MASK_PROMPT_LOGIT = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Masks for one prompt, best first.

    Attributes:
        logits: (C, S/4, S/4) float32 on the engine's device.
        scores: (C,) float32, estimated IoU, 0 to 1.
    """

    logits: Tensor
    scores: Tensor


class Sam2Engine:
    """A loaded network on its device. Used by one thread at a time.

    The encoder runs in fp16 on CUDA and in fp32 elsewhere; the decoder, and with it every coordinate, in fp32 everywhere.

    Attributes:
        model_id: Checkpoint name and digest; what caches key by.
        model_version: What people see.
        dtype: Of the embeddings on the device.
        image_size: Side S of the square that the network sees.
        preprocessing: Version of how an image becomes that square; what caches key by.
        uses_stability: See `NetworkConfig.stability_rule`.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.model_id, self.model_version = checkpoint.model_id, checkpoint.model_version
        self.device, self.uses_stability = device, checkpoint.config.stability_rule
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.image_size = checkpoint.config.image_size
        self.preprocessing = f"antialias-{self.image_size}-v1"
        with device_errors():
            self._network = checkpoint.network().to(device).set_encoder_dtype(self.dtype)
            self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD))

    @classmethod
    def load(cls, settings: Settings) -> Sam2Engine:
        """Load what the settings name, and limit torch to this worker's share of the cores.

        Raises:
            BadCheckpointError: see `checkpoints.load`.
            SettingsError: the device does not exist here.
            GpuMemoryError: the device is too full for the weights.
        """
        device = device_of(settings.device)
        torch.set_num_threads(settings.torch_threads or max(1, (os.cpu_count() or 1) // settings.workers))
        return cls(checkpoints.load(settings), device)

    @property
    def network(self) -> Sam2Network:
        """Folded, on the device; all but the image encoder in fp32."""
        return self._network

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> ImageEmbedding:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8 RGB, upright.

        Raises:
            GpuMemoryError: the device is full.
        """
        with device_errors():
            return ImageEmbedding.rounded(self._network.encode(self._square(image).to(self.dtype)), self.dtype)

    @torch.inference_mode()
    def decode(
        self,
        embedding: ImageEmbedding,
        *,
        points_xy_px: NDArray[np.float64],
        is_positive: NDArray[np.bool_],
        box_xyxy_px: tuple[float, float, float, float] | None = None,
        mask_logits: Tensor | None = None,
        size_hw: tuple[int, int],
        multimask: bool,
    ) -> Candidates:
        """Turn an embedding and everything that was prompted for one object into candidate masks.

        Args:
            embedding: What `embed` returned, on this engine's device.
            points_xy_px: (N, 2) float, pixels of the upright image.
            is_positive: (N,) bool.
            box_xyxy_px: Left, top, right, bottom.
            mask_logits: (S/4, S/4), a mask to start from: `mask_logits_from`, or the logits of the step before.
            size_hw: Of the upright image.
            multimask: Three candidates for an ambiguous prompt; else one.

        Raises:
            GpuMemoryError: the device is full.

        Source: sam2/sam2_image_predictor.py at 2b90b9f; a mask alone is prompted as sam2_base.py does in training, by an empty point.
        """
        xy, labels = self._prompt_points(points_xy_px, is_positive, box_xyxy_px, size_hw)
        with device_errors():
            mask = None if mask_logits is None else mask_logits[None, None].to(self.device, torch.float32)
            high_res_0, high_res_1, image = (t.float() for t in embedding.maps)
            out = self._network.decode((high_res_0, high_res_1, image), xy, labels, mask)
            logits, scores = out.mask_logits[0], out.scores[0]
            if multimask:
                order = scores[1:].argsort(descending=True, stable=True) + 1
            elif self.uses_stability and not _is_stable(logits[0]):
                order = scores[1:].argmax()[None] + 1
            else:
                order = torch.zeros(1, dtype=torch.long, device=self.device)
            return Candidates(logits[order], scores[order])

    def mask_logits_from(self, mask: NDArray[np.bool_]) -> Tensor:
        """Make a mask prompt: mask (H, W) bool → (S/4, S/4) float32, -10 outside, 10 inside, between on the edge."""
        side = self.image_size // 4
        shrinks = min(mask.shape) >= side
        share = cv2.resize(
            mask.astype(np.uint8) * np.uint8(255), (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        return torch.from_numpy(share).to(self.device, torch.float32) * (2 * _MASK_PROMPT_LOGIT / 255) - _MASK_PROMPT_LOGIT

    def upsample(self, logits: Tensor, size_hw: tuple[int, int], threshold: float = 0.0) -> NDArray[np.bool_]:
        """Logits (h, w) → mask (H, W) bool, bilinear between pixel centres, mask where above the threshold."""
        full: NDArray[np.float32] = cv2.resize(logits.float().cpu().numpy(), size_hw[::-1], interpolation=cv2.INTER_LINEAR)
        above: NDArray[np.bool_] = full > threshold
        return above

    def warm_up(self) -> None:
        """Run everything once on a known image, so that the first click does not pay for it, and see that the weights make sense.

        Raises:
            BadCheckpointError: a value is not finite.
            GpuMemoryError: the device is full.
        """
        y, x = np.mgrid[:96, :128]
        disc = np.hypot(x - 64, y - 48) < 30
        image = np.stack([np.where(disc, 220, x), np.where(disc, 40, y), np.where(disc, 60, 128)], -1).astype(np.uint8)
        embedding = self.embed(image)
        for multimask in (True, False):
            found = self.decode(
                embedding, points_xy_px=np.array([[64.0, 48.0]]), is_positive=np.array([True]), size_hw=(96, 128), multimask=multimask
            )
            if not (found.logits.isfinite().all() and found.scores.isfinite().all()):
                raise BadCheckpointError(
                    f"{self.model_version} yields values that are not finite on {self.device}. Use another checkpoint."
                )
        self.upsample(found.logits[0], (96, 128))

    def _square(self, image: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 → (1, 3, S, S) float32, normalised. As Meta's SAM2Transforms: scaled to 0…1, then resized with antialiasing.

        One channel at a time: large photographs would otherwise need 12 bytes a pixel at once.
        """
        pixels = torch.tensor(image).to(self.device if self.device.type == "cuda" else "cpu")
        size = (self.image_size, self.image_size)
        channels = [
            F.interpolate(
                pixels[None, None, :, :, i].contiguous().float().div_(255), size, mode="bilinear", align_corners=False, antialias=True
            )
            for i in range(3)
        ]
        return (torch.cat(channels, 1).to(self.device) - self._mean) / self._std

    def _prompt_points(
        self,
        points_xy_px: NDArray[np.float64],
        is_positive: NDArray[np.bool_],
        box_xyxy_px: tuple[float, ...] | None,
        size_hw: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Box corners and points as (1, N, 2) float32 in model pixels, and (1, N) what they say."""
        corners = np.asarray(box_xyxy_px or (), dtype=np.float64).reshape(-1, 2)
        points = np.asarray(points_xy_px, dtype=np.float64).reshape(-1, 2)
        says = [TOP_LEFT, BOTTOM_RIGHT][: len(corners)] + [POSITIVE if positive else NEGATIVE for positive in is_positive]
        xy = np.concatenate([corners, points]) * (self.image_size / np.array(size_hw[::-1], dtype=np.float64))
        if not says:
            xy, says = np.zeros((1, 2)), [NOT_A_POINT]
        return torch.tensor(xy[None], dtype=torch.float32, device=self.device), torch.tensor([says], device=self.device)


def _is_stable(logits: Tensor) -> bool:
    inner, outer = (logits > _STABILITY_DELTA).sum(), (logits > -_STABILITY_DELTA).sum()
    return bool((outer == 0) | (inner / outer >= _STABILITY_MIN))


def device_of(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"SAM2_DEVICE={name} does not exist here (torch {torch.__version__}). Set it to auto or cpu.") from error
    return device


@contextmanager
def device_errors() -> Iterator[None]:
    """A full device becomes GpuMemoryError; what torch itself holds in reserve is given back first."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise GpuMemoryError(
            "The device has no memory left. Lower SAM2_DEVICE_CACHE_BYTES, take a smaller SAM2_MODEL, or run fewer workers on it."
        ) from error
