"""SAM 2 on one device: image → embedding, embedding and prompt → masks. Knows no queue, no cache and no files but the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_backend import checkpoints, preprocessing
from sam2_backend.checkpoints import Checkpoint
from sam2_backend.compilation import CompiledNetwork
from sam2_backend.decoder_batches import DecoderBatch, ObjectPrompt, batches
from sam2_backend.devices import device_errors, device_of, dtype_of
from sam2_backend.embedding import ImageEmbedding
from sam2_backend.errors import BadCheckpointError
from sam2_backend.mask_logits import best_first, mask_of, prompt_logits, runs_of
from sam2_backend.messages import RunLengths
from sam2_backend.network import Sam2Network
from sam2_backend.settings import Settings
from sam2_backend.side_by_side import SideBySide

__all__ = ["Candidates", "ImageEmbedding", "ObjectPrompt", "Sam2Engine", "device_errors", "device_of"]

#: On a GPU so many prompts, or images, are one batch: bounds the memory of the decoder's activations, some 50 MB a prompt.
_GPU_PROMPTS = 32
_GPU_IMAGES = 8
#: On the CPU a network of up to this side spends more on calls than on the work in them: 4.6 ms a point alone, 1.7 in batches of 16.
_SMALL_SIDE, _SMALL_BATCH = 512, 16


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

    The encoder runs in `dtype`; the decoder, and with it every coordinate, in fp32 everywhere.

    Args:
        dtype: None: fp16 on CUDA, fp32 elsewhere.
        compile_what: "off", "decoder" or "all": compiled by `warm_up`.

    Attributes:
        model_id: Checkpoint name and digest; what caches key by.
        model_version: What people see.
        dtype: Of the embeddings on the device.
        image_size: Side S of the square that the network sees.
        preprocessing: Version of how an image becomes that square; what caches key by.
        uses_stability: See `NetworkConfig.stability_rule`.
        prompts_per_batch, images_per_batch: At most so many go through the network at a time. 1 on the CPU, where larger batches are
            not faster (their memory is fresh each time) and one at a time gives the same bytes however they were asked for.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None, compile_what: str = "off") -> None:
        self.model_id, self.model_version = checkpoint.model_id, checkpoint.model_version
        self.device, self.uses_stability = device, checkpoint.config.stability_rule
        self.dtype = dtype or dtype_of("auto", device)
        self.image_size = checkpoint.config.image_size
        compiled = "-compiled" if compile_what == "all" else ""  # sums in another order: another embedding, in its last bits
        self.preprocessing = f"{preprocessing.METHOD}-{self.image_size}{compiled}"
        self.prompts_per_batch, self.images_per_batch = (1, 1) if device.type == "cpu" else (_GPU_PROMPTS, _GPU_IMAGES)
        with device_errors():
            self._network = checkpoint.network().to(device).set_encoder_dtype(self.dtype)
            self._normalized = preprocessing.Normalization(device)
        self._compile_what = compile_what
        self._side_by_side = SideBySide()
        self._forward: Sam2Network | CompiledNetwork = self._network

    @classmethod
    def load(cls, settings: Settings) -> Sam2Engine:
        """Load what the settings name, and limit torch to this worker's share of the cores.

        Raises:
            BadCheckpointError: see `checkpoints.load`.
            SettingsError: the device does not exist here, or does not compute in the precision.
            GpuMemoryError: the device is too full for the weights.
        """
        device = device_of(settings.device)
        torch.set_num_threads(settings.torch_threads or max(1, (os.cpu_count() or 1) // settings.workers))
        return cls(checkpoints.load(settings), device, dtype_of(settings.precision, device), settings.compile)

    @property
    def network(self) -> Sam2Network:
        """Folded, on the device; all but the image encoder in fp32."""
        return self._network

    def embed(self, image: NDArray[np.uint8], let_others: Callable[[], None] | None = None) -> ImageEmbedding:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            let_others: Called again and again on the way, where that takes seconds: on the CPU. It may decode, and changes nothing here.

        Raises:
            GpuMemoryError: the device is full.
        """
        if let_others is None or self.device.type != "cpu":
            return self.embed_many([image])[0]
        with ExitStack() as hooks:
            for step in self._network.image_encoder.trunk.steps():
                hooks.callback(step.register_forward_pre_hook(lambda *_: let_others()).remove)
            return self.embed_many([image])[0]

    @torch.inference_mode()
    def embed_many(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageEmbedding]:
        """Encode images of any sizes, in order.

        The same bytes as one at a time on the CPU. On a GPU a batch may be summed in another order; values are rounded to fp16, so that
        few of them differ, by one rounding step.

        Raises:
            GpuMemoryError: the device is full.
        """
        found: list[ImageEmbedding] = []
        for start in range(0, len(images), self.images_per_batch):
            squares = torch.cat([self.square(image) for image in images[start : start + self.images_per_batch]])
            with device_errors():
                maps = self._forward.encode(self._normalized(squares).to(self.dtype))
                found += [ImageEmbedding.rounded((a[None], b[None], c[None]), self.dtype) for a, b, c in zip(*maps, strict=True)]
        return found

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
        """Turn an embedding and everything that was prompted for one object into candidate masks. For the arguments see `ObjectPrompt`.

        Raises:
            GpuMemoryError: the device is full.
        """
        prompt = ObjectPrompt(points_xy_px, is_positive, size_hw, multimask, box_xyxy_px, mask_logits)
        return self.decode_many([(embedding, prompt)])[0]

    @torch.inference_mode()
    def decode_many(self, asked: Sequence[tuple[ImageEmbedding, ObjectPrompt]], *, exact: bool = True) -> list[Candidates]:
        """Candidate masks for prompts on one image or on several, in order.

        On the CPU the bytes are those of one prompt at a time. On a GPU prompts of one shape (as many points, a mask or none) are one
        batch, whose logits agree with one at a time to about 1e-5 of their spread: masks differ where a pixel lies that close to the edge.

        Args:
            asked: What `embed` returned, on this engine's device, and a prompt on it.
            exact: False: on the CPU, too, whatever is fastest for many prompts, at the same differences: side by side on its cores, and in
                batches where the network is small.

        Raises:
            GpuMemoryError: the device is full.

        Source: sam2/sam2_image_predictor.py at 2b90b9f; a mask alone is prompted as sam2_base.py does in training, by an empty point.
        """
        is_free = self.device.type == "cpu" and not exact
        most = _SMALL_BATCH if is_free and self.image_size <= _SMALL_SIDE else self.prompts_per_batch
        todo = batches(asked, self.image_size, most, self.device)
        found: dict[int, Candidates] = {}
        for part in self._side_by_side.map(self._decode_batch, todo) if is_free else map(self._decode_batch, todo):
            found |= part
        return [found[position] for position in range(len(asked))]

    @torch.inference_mode()  # of each thread
    def _decode_batch(self, batch: DecoderBatch) -> dict[int, Candidates]:
        with device_errors():
            out = self._forward.decode(batch.features(), batch.points_xy, batch.labels, batch.mask_logits)
            logits, scores = best_first(out.mask_logits, out.scores, multimask=batch.multimask, uses_stability=self.uses_stability)
            return {position: Candidates(logits[i], scores[i]) for i, position in enumerate(batch.positions)}

    def mask_logits_from(self, mask: NDArray[np.bool_]) -> Tensor:
        """Make a mask prompt: mask (H, W) bool → (S/4, S/4) float32, -10 outside, 10 inside, between on the edge."""
        return prompt_logits(mask, self.image_size // 4).to(self.device)

    def upsample(self, logits: Tensor, size_hw: tuple[int, int], threshold: float = 0.0) -> NDArray[np.bool_]:
        """Logits (h, w) → mask (H, W) bool, bilinear between pixel centres, mask where above the threshold."""
        return mask_of(logits, size_hw, threshold)

    def runs(self, logits: Tensor, size_hw: tuple[int, int], threshold: float = 0.0) -> RunLengths:
        """The run lengths of what `upsample` returns."""
        return runs_of(logits, size_hw, threshold)

    def square(self, image: NDArray[np.uint8]) -> Tensor:
        """Resize (H, W, 3) uint8 RGB, upright → (1, 3, S, S) uint8 on the CPU: what the network sees, before it is normalised."""
        return preprocessing.square(image, self.image_size)

    def warm_up(self) -> None:
        """Compile what is to be, and run everything once on a known image, so that the first click does not pay for it; see that the
        weights make sense.

        Raises:
            BadCheckpointError: a value is not finite.
            GpuMemoryError: the device is full.
        """
        if self._compile_what != "off":
            compiled = CompiledNetwork(self._network, self.dtype)
            with torch.inference_mode(), device_errors():
                compiled.compile(encoder=self._compile_what == "all")
            self._forward = compiled
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
