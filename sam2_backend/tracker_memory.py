"""What tracked objects leave behind frame by frame, and which of it a frame may read: bounded, however long the video is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from sam2_backend.network.sam2 import N_MEMORY_MAPS, N_POINTERS

#: Prompted frames that are kept per object; beyond them the one farthest from the newest is forgotten.
MAX_PROMPTED_FRAMES = 32


@dataclass(frozen=True, slots=True, eq=False)
class FrameMemory:
    """One object on one frame.

    Attributes:
        pointer: (d,) float32.
        memory_map: What the network remembers of it, (memory_dim, h, w) or (memory_dim, latents) bfloat16, as the reference keeps it; None
            once no frame can read it.
        logits: (S/4, S/4) float32, of a prompted frame or of the newest tracked one: what a correction starts from. Else None.
        object_logit: () float32, above 0: the object is there.
        score: () float32, the estimated IoU.
        was_tracked: A prompted frame that had been tracked before: a correction, which read memory.
    """

    pointer: Tensor
    memory_map: Tensor | None
    logits: Tensor | None
    object_logit: Tensor
    score: Tensor
    was_tracked: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one object reads on one frame.

    Attributes:
        maps: Memory maps.
        ages: How many frames ago each was, 1 to 6; 0 for prompted frames.
        pointers: Object pointers.
        frames_apart: How many frames ago each was.
    """

    maps: tuple[Tensor, ...]
    ages: tuple[int, ...]
    pointers: tuple[Tensor, ...]
    frames_apart: tuple[int, ...]

    @property
    def layout(self) -> tuple[tuple[int, ...], int]:
        """Objects whose readings have the same layout can be one batch."""
        return self.ages, len(self.pointers)


@dataclass(slots=True)
class ObjectMemory:
    """The frames of one object: prompted ones, at most MAX_PROMPTED_FRAMES, and the last 16 tracked ones, 7 of them with their map."""

    prompted: dict[int, FrameMemory] = field(default_factory=dict)
    tracked: dict[int, FrameMemory] = field(default_factory=dict)

    def reading(self, frame_idx: int, *, reverse: bool, max_prompted: int) -> Reading | None:
        """What frame_idx reads of the other frames; None where no frame was prompted, or no other.

        Args:
            frame_idx: The frame that is to be found.
            reverse: Time runs backwards: earlier frames are those with a higher number.
            max_prompted: So many prompted frames are read.

        Source: sam2/modeling/sam2_base.py at 2b90b9f, _prepare_memory_conditioned_features.
        """
        sign = -1 if reverse else 1
        prompted = {i: frame for i, frame in self.prompted.items() if i != frame_idx}
        if not prompted:
            return None
        chosen = closest(frame_idx, list(prompted), max_prompted)
        maps = [(0, prompted[i]) for i in chosen]
        passed_over = {i: frame for i, frame in prompted.items() if i not in chosen}
        for age in range(N_MEMORY_MAPS - 1, 0, -1):
            frame = self.tracked.get(frame_idx - sign * age) or passed_over.get(frame_idx - sign * age)
            if frame and frame.memory_map is not None:
                maps.append((age, frame))
        pointers = [(sign * (frame_idx - i), prompted[i]) for i in chosen if sign * (frame_idx - i) >= 0]
        before = ((apart, self.tracked.get(frame_idx - sign * apart)) for apart in range(1, N_POINTERS))
        pointers += [(apart, frame) for apart, frame in before if frame]
        return Reading(
            maps=tuple(frame.memory_map for _, frame in maps if frame.memory_map is not None),
            ages=tuple(age for age, _ in maps),
            pointers=tuple(frame.pointer for _, frame in pointers),
            frames_apart=tuple(apart for apart, _ in pointers),
        )

    def add_prompted(self, frame_idx: int, frame: FrameMemory) -> None:
        self.tracked.pop(frame_idx, None)
        self.prompted[frame_idx] = frame
        if len(self.prompted) > MAX_PROMPTED_FRAMES:
            del self.prompted[max(self.prompted, key=lambda i: abs(i - frame_idx))]

    def add_tracked(self, frame_idx: int, frame: FrameMemory, *, reverse: bool) -> None:
        """Keep a tracked frame, and forget what neither this frame, should it be corrected, nor a later one can read."""
        sign = -1 if reverse else 1
        kept = {i: self._aged(old, sign * (frame_idx - i)) for i, old in self.tracked.items() if 0 < sign * (frame_idx - i) < N_POINTERS}
        self.tracked = {**kept, frame_idx: frame}

    @staticmethod
    def _aged(frame: FrameMemory, age: int) -> FrameMemory:
        return replace(frame, logits=None, memory_map=frame.memory_map if age < N_MEMORY_MAPS else None)

    def tensors(self) -> Iterator[Tensor]:
        for frame in (*self.prompted.values(), *self.tracked.values()):
            yield from (t for t in (frame.pointer, frame.memory_map, frame.logits, frame.object_logit, frame.score) if t is not None)


def closest(frame_idx: int, prompted: list[int], count: int) -> list[int]:
    """Choose prompted frames: the closest before, the closest from here on, then those nearest in time; in the order of `prompted`.

    Source: sam2/modeling/sam2_utils.py at 2b90b9f, select_closest_cond_frames.
    """
    if len(prompted) <= count:
        return prompted
    before = max((i for i in prompted if i < frame_idx), default=None)
    after = min((i for i in prompted if i >= frame_idx), default=None)
    chosen = [i for i in (before, after) if i is not None][:count]
    others = sorted((i for i in prompted if i not in chosen), key=lambda i: abs(i - frame_idx))
    chosen += others[: count - len(chosen)]
    return [i for i in prompted if i in chosen]
