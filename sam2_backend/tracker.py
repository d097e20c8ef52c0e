"""SAM 2's tracker over a batch of objects: feature maps frame by frame → masks. Knows no files, no queue and no Label Studio."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_backend.network import FeatureMaps, Sam2Network
from sam2_backend.network.sam2 import N_POINTERS
from sam2_backend.tracker_heads import Found, TrackerHeads, without_overlap
from sam2_backend.tracker_memory import FrameMemory, ObjectMemory, Reading
from sam2_backend.tracker_state import pack, unpack

__all__ = ["FrameLogits", "Tracker", "TrackerOptions", "TrackerPrompt"]

#: The mask that was there before is read with its logits limited to this, as the reference's predictors do.
_PREVIOUS_LOGIT_LIMIT = 32.0


@dataclass(frozen=True, slots=True)
class TrackerOptions:
    """How a tracker behaves.

    Attributes:
        n_frames: Length of the video, where it is shorter than 16 frames: the model reads times as shares of it.
        max_prompted: So many prompted frames are read per object and frame, the closest ones; their cost is that of a memory map each.
        non_overlap: Each pixel belongs to the object that is surest of it. In what is returned; memories stay as they are.
        detects_lost: Where the object score says that an object is not there, its mask is empty. False: always there.
    """

    n_frames: int = N_POINTERS
    max_prompted: int = 8
    non_overlap: bool = False
    detects_lost: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class TrackerPrompt:
    """What a person said of one object on one frame: points (and the box, as two of them), or its mask.

    Attributes:
        object_id: Names the object.
        points_xy: (n, 2) float32, model pixels, 0 to S.
        labels: (n,) int, see `network.prompt_encoder`: 0 negative, 1 positive, 2 and 3 corners of a box.
        mask: (S, S) bool: becomes the object's mask as it is. Points beside it are not looked at.
        mask_logits: (S/4, S/4) float32, a mask to start from beside points. Without it, points on a frame that has been tracked
            or prompted correct the mask that was found there.
    """

    object_id: str
    points_xy: Tensor | None = None
    labels: Tensor | None = None
    mask: Tensor | None = None
    mask_logits: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FrameLogits:
    """Objects on one frame.

    Attributes:
        object_ids: B names.
        logits: (B, S/4, S/4) float32; a mask where above 0.
        object_scores: (B,) float32, above 0: the object is there.
        ious: (B,) float32, the estimated IoU, 0 to 1.
    """

    object_ids: tuple[str, ...]
    logits: Tensor
    object_scores: Tensor
    ious: Tensor


class Tracker:
    """Follows objects through a video, in both directions, in memory that does not grow with it.

    Frames are given one by one; frame_idx counts them without gaps, since the model reads memories by their distance. A frame that
    is prompted before it was tracked starts anew from the prompt; one that was tracked (`step`, then `prompt`) is corrected: it reads
    the memories and the mask found before, and is a prompted frame from then on. Used by one thread at a time.

    Source: SAM 2 (arXiv 2408.00714), sections 4 and 5; sam2/sam2_video_predictor.py at 2b90b9f with
    add_all_frames_to_correct_as_cond.
    """

    def __init__(
        self,
        network: Sam2Network,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        options: TrackerOptions | None = None,
    ) -> None:
        """`network` is folded, in fp32 and on the device; its memory parts compute in `dtype`, prompts and decoder in fp32."""
        self._network, self._device, self._options = network, device, options or TrackerOptions()
        self._heads = TrackerHeads(network, dtype, n_frames=self._options.n_frames, detects_lost=self._options.detects_lost)
        self._objects: dict[str, ObjectMemory] = {}

    @property
    def object_ids(self) -> tuple[str, ...]:
        """In the order of their first prompts."""
        return tuple(self._objects)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is remembered."""
        return sum(tensor.nbytes for memory in self._objects.values() for tensor in memory.tensors())

    @torch.inference_mode()
    def prompt(self, frame_idx: int, features: FeatureMaps, prompts: Sequence[TrackerPrompt], *, reverse: bool = False) -> FrameLogits:
        """Say where objects are on a frame; new names are new objects.

        Args:
            frame_idx: Which frame.
            features: Its feature maps, as `Sam2Network.encode` gives them.
            prompts: One for each object.
            reverse: The direction in which the frame was tracked, where it was.

        Returns:
            The prompted objects, in the order of the prompts.
        """
        features = self._ready(features)
        found = [(p.object_id, self._prompt_one(frame_idx, features, p, reverse=reverse)) for p in prompts]
        return self._answer(found)

    @torch.inference_mode()
    def step(
        self, frame_idx: int, features: FeatureMaps, *, reverse: bool = False, object_ids: Collection[str] | None = None
    ) -> FrameLogits:
        """Find the objects known so far on a frame; those that are prompted on it are as they are.

        Args:
            frame_idx: Which frame: the one after the last, or before it where time runs backwards.
            features: Its feature maps, as `Sam2Network.encode` gives them.
            reverse: Time runs backwards.
            object_ids: Only these; the others are not looked at and leave no memory.

        Returns:
            Those objects, in the order of their first prompts.
        """
        features = self._ready(features)
        frames: dict[str, FrameMemory] = {}
        groups: dict[tuple[tuple[int, ...], int], list[tuple[str, Reading]]] = {}
        for object_id, memory in self._objects.items():
            if object_ids is not None and object_id not in object_ids:
                continue
            if frame_idx in memory.prompted:
                frames[object_id] = memory.prompted[frame_idx]
            elif reading := memory.reading(frame_idx, reverse=reverse, max_prompted=self._options.max_prompted):
                groups.setdefault(reading.layout, []).append((object_id, reading))
        for group in groups.values():
            found = self._heads.track(features, self._heads.condition(features[2], [reading for _, reading in group]))
            maps = self._heads.remember(features[2], found.logits, found.object_logits, binarize=False)
            for (object_id, _), frame in zip(group, _frames(found, maps), strict=True):
                self._objects[object_id].add_tracked(frame_idx, frame, reverse=reverse)
                frames[object_id] = frame
        return self._answer([(object_id, frames[object_id]) for object_id in self._objects if object_id in frames])

    def forget_tracked(self) -> None:
        """Keep what was prompted alone: before time starts to run the other way, or elsewhere."""
        for memory in self._objects.values():
            memory.tracked.clear()

    def remove(self, object_id: str) -> None:
        self._objects.pop(object_id, None)

    def to_bytes(self) -> bytes:
        """Everything that is remembered; a tracker made of it goes on bit by bit as this one would."""
        return pack(self._objects, self._fits())

    @classmethod
    def from_bytes(
        cls,
        data: bytes | memoryview,
        network: Sam2Network,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        options: TrackerOptions | None = None,
    ) -> Tracker:
        """Go on with what `to_bytes` wrote.

        Raises:
            ValueError: the data are damaged, of another format, or of a network of other sizes.
        """
        tracker = cls(network, device, dtype, options)
        tracker._objects, fits = unpack(data, device)
        if fits != tracker._fits():
            raise ValueError("the memory belongs to a network of other sizes")
        return tracker

    def _fits(self) -> dict[str, int]:
        config = self._network.config
        return {"image_size": config.image_size, "hidden_dim": config.hidden_dim, "memory_dim": config.memory_dim}

    def _ready(self, features: FeatureMaps) -> FeatureMaps:
        high_res_0, high_res_1, image = (t.to(self._device, torch.float32) for t in features)
        return high_res_0, high_res_1, image

    def _prompt_one(self, frame_idx: int, features: FeatureMaps, prompt: TrackerPrompt, *, reverse: bool) -> FrameMemory:
        memory = self._objects.setdefault(prompt.object_id, ObjectMemory())
        seen = memory.prompted.get(frame_idx) or memory.tracked.get(frame_idx)
        was_tracked = frame_idx in memory.tracked or (seen is not None and seen.was_tracked)
        if prompt.mask is not None:
            found, mask_logits = self._heads.take_mask(features, prompt.mask)
        else:
            reading = memory.reading(frame_idx, reverse=reverse, max_prompted=self._options.max_prompted) if was_tracked else None
            found = self._decode_points(features, prompt, seen, reading)
            mask_logits = found.logits
        maps = self._heads.remember(features[2], mask_logits, found.object_logits, binarize=True)
        frame = next(_frames(found, maps, was_tracked=was_tracked))
        memory.add_prompted(frame_idx, frame)
        return frame

    def _decode_points(self, features: FeatureMaps, prompt: TrackerPrompt, seen: FrameMemory | None, reading: Reading | None) -> Found:
        if prompt.points_xy is None or prompt.labels is None:
            raise ValueError(f"the prompt of object {prompt.object_id!r} has neither points with labels nor a mask")
        mask_logits = prompt.mask_logits
        if mask_logits is None and seen is not None and seen.logits is not None:
            mask_logits = seen.logits.clamp(-_PREVIOUS_LOGIT_LIMIT, _PREVIOUS_LOGIT_LIMIT)
        image = features[2]
        conditioned = self._heads.condition(image, [reading]) if reading else self._heads.without_memory(image)
        return self._heads.take_points(features, conditioned, prompt.points_xy, prompt.labels, mask_logits)

    def _answer(self, found: Sequence[tuple[str, FrameMemory]]) -> FrameLogits:
        object_ids, frames = tuple(object_id for object_id, _ in found), [frame for _, frame in found]
        if not frames:
            nothing = torch.zeros(0, device=self._device)
            side = self._network.config.image_size // 4
            return FrameLogits((), nothing.view(0, 1, 1).expand(0, side, side), nothing, nothing)
        logits = torch.stack([frame.logits for frame in frames if frame.logits is not None])
        if self._options.non_overlap:
            logits = without_overlap(logits)
        return FrameLogits(object_ids, logits, torch.stack([f.object_logit for f in frames]), torch.stack([f.score for f in frames]))


def _frames(found: Found, maps: Tensor, *, was_tracked: bool = False) -> Iterator[FrameMemory]:
    """A batch, taken apart. Copies: a prompted frame that is kept must not keep the others of its batch."""
    for i in range(maps.shape[0]):
        yield FrameMemory(
            pointer=found.pointers[i].clone(),
            memory_map=maps[i].clone(),
            logits=found.logits[i, 0].clone(),
            object_logit=found.object_logits[i, 0].clone(),
            score=found.scores[i].clone(),
            was_tracked=was_tracked,
        )
