"""What a propagation has to do: each object's frames cut at its keyframes into runs. Plain numbers; no tensor, no Redis.

A **run** fills the places between two keyframes of one object, or up to the end of the range. It is defined by the keyframes that it is
conditioned on and by nothing else: neither by what was tracked before them nor by other objects (unless `non_overlap` is asked for). So:

- A keyframe is kept on its place, and starts its object anew from there; what went wrong before a correction is not remembered after it.
- Forward, a run starts at its keyframe and is conditioned on it and the `MOST_CONDITIONING - 1` keyframes before it. A correction on
  frame 300 therefore changes that object from frame 300 on; everything before it, and every other object, stays byte for byte.
- `between_only`: a run is conditioned on the keyframes at its two ends alone. A correction changes what lies between its neighbours.
- `both`: as forward, and from the first keyframe, on it alone, back to the start. `backward`: the mirror image of forward.
- A keyframe without prompt: the object is gone until its next keyframe. Nothing is tracked from it, forwards or backwards.
- Keyframes outside the range condition; only places inside it are filled, starting at the range's edge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sam2_backend.errors import PromptError, VideoFrameError
from sam2_backend.messages import ImagePrompt
from sam2_backend.propagation_format import object_ids
from sam2_backend.video_messages import Keyframe, PropagateJob, VideoOptions

#: As many prompted frames as SAM 2 read in training.
MOST_CONDITIONING = 4


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A keyframe with a prompt, and the frame that it is on."""

    grid_idx: int
    frame_idx: int
    prompt: ImagePrompt


@dataclass(frozen=True, slots=True)
class Run:
    """One object through neighbouring places.

    Attributes:
        object_idx: In the order of first appearance in the keyframes.
        first_grid_idx, last_grid_idx: Places to fill, both included, first ≤ last.
        first_frame_idx, last_frame_idx: In the order of work: first ≥ last where time runs backwards.
        reverse: Time runs backwards.
        conditioning: What it depends on, the keyframe that it starts from last; empty: the object is gone, nothing is tracked.
    """

    object_idx: int
    first_grid_idx: int
    last_grid_idx: int
    first_frame_idx: int
    last_frame_idx: int
    reverse: bool
    conditioning: tuple[Conditioning, ...]

    @property
    def n_places(self) -> int:
        return self.last_grid_idx - self.first_grid_idx + 1

    def holds(self, frame_idx: int) -> bool:
        return min(self.first_frame_idx, self.last_frame_idx) <= frame_idx <= max(self.first_frame_idx, self.last_frame_idx)


@dataclass(frozen=True, slots=True)
class _Gap:
    """Places from one keyframe to the next: the two ends by their index among the object's keyframes, -1 and n beyond them."""

    first: int
    last: int
    start: int
    reverse: bool


def check_job(job: PropagateJob, max_objects: int) -> None:
    """See what can be seen without the video.

    Raises:
        PromptError: no keyframe has a prompt, a prompt is empty, a place is negative, the range is empty, or there are too many objects.
    """
    count = len(object_ids(job.keyframes))
    if count > max_objects:
        raise PromptError(
            f"{count} objects are more than the {max_objects} that one propagation may have. Select fewer regions, or raise SAM2_PROPAGATE_MAX_OBJECTS."
        )
    if not any(keyframe.prompt for keyframe in job.keyframes):
        raise PromptError("There is no keyframe to start from. Draw the object on a frame.")
    for keyframe in job.keyframes:
        prompt, where = keyframe.prompt, f"The keyframe of {keyframe.object_id} on frame {keyframe.grid_idx + 1}"
        if keyframe.grid_idx < 0:
            raise PromptError(f"{where} lies before the start of the video. Delete it.")
        if prompt and not (prompt.points or prompt.box_xyxy_px or prompt.mask):
            raise PromptError(f"{where} holds neither a box nor a point nor a mask. Draw one, or delete the keyframe.")
        if prompt and not (prompt.box_xyxy_px or prompt.mask or any(point.is_positive for point in prompt.points)):
            raise PromptError(f"{where} says only where the object is not. Add a point on it.")
    options = job.options
    if options.first_grid_idx < 0 or 0 <= options.last_grid_idx < options.first_grid_idx:
        raise PromptError(f"There is no frame from {options.first_grid_idx + 1} to {options.last_grid_idx + 1}. Correct the range.")


def plan_runs(keyframes: Sequence[Keyframe], options: VideoOptions, n_grid: int, frame_of_grid: Callable[[int], int]) -> tuple[Run, ...]:
    """Every run of a job, objects in order.

    Raises:
        VideoFrameError: a keyframe or the range lies past the end.
    """
    latest = max([options.first_grid_idx, *(keyframe.grid_idx for keyframe in keyframes)])
    if latest >= n_grid:
        raise VideoFrameError(f"Frame {latest + 1} lies past the end: the video has {n_grid} frames. Delete that keyframe.")
    by_object: defaultdict[str, dict[int, Keyframe]] = defaultdict(dict)
    for keyframe in keyframes:
        by_object[keyframe.object_id][keyframe.grid_idx] = keyframe
    planner = _Planner(options, n_grid, frame_of_grid)
    return tuple(run for index, keys in enumerate(by_object.values()) for run in planner.of_object(index, [keys[g] for g in sorted(keys)]))


@dataclass(frozen=True, slots=True)
class _Planner:
    options: VideoOptions
    n_grid: int
    frame_of_grid: Callable[[int], int]

    def of_object(self, object_idx: int, keys: Sequence[Keyframe]) -> list[Run]:
        runs = (self._run(object_idx, keys, gap) for gap in self._gaps(keys))
        return [run for run in runs if run]

    def _gaps(self, keys: Sequence[Keyframe]) -> list[_Gap]:
        places = [key.grid_idx for key in keys]
        if self.options.direction != "backward":
            gaps = [_Gap(first, following - 1, i, reverse=False) for i, (first, following) in enumerate(pairwise([*places, self.n_grid]))]
            back = [_Gap(0, places[0] - 1, 0, reverse=True)] if self.options.direction == "both" and keys[0].prompt else []
            return gaps + back
        gaps = []
        for i, (before, last) in enumerate(pairwise([-1, *places])):
            was_gone = i > 0 and keys[i - 1].prompt is None
            if was_gone:
                gaps.append(_Gap(before, last - 1, i - 1, reverse=False))
            if keys[i].prompt:
                gaps.append(_Gap(last if was_gone else before + 1, last, i, reverse=True))
        if keys[-1].prompt is None:
            gaps.append(_Gap(places[-1], self.n_grid - 1, len(keys) - 1, reverse=False))
        return gaps

    def _run(self, object_idx: int, keys: Sequence[Keyframe], gap: _Gap) -> Run | None:
        end = self.n_grid - 1 if self.options.last_grid_idx < 0 else min(self.options.last_grid_idx, self.n_grid - 1)
        first, last = max(gap.first, self.options.first_grid_idx), min(gap.last, end)
        if first > last:
            return None
        frames = self.frame_of_grid(first), self.frame_of_grid(last)
        return Run(object_idx, first, last, *(frames[::-1] if gap.reverse else frames), gap.reverse, self._conditioning(keys, gap))

    def _conditioning(self, keys: Sequence[Keyframe], gap: _Gap) -> tuple[Conditioning, ...]:
        """The keyframe that the gap starts from comes last."""
        if keys[gap.start].prompt is None:
            return ()
        ahead = -1 if gap.reverse else 1
        if self.options.between_only or (gap.reverse and self.options.direction == "both"):
            other = gap.start + ahead
            with_other_end = self.options.between_only and 0 <= other < len(keys)
            chosen = [keys[other], keys[gap.start]] if with_other_end else [keys[gap.start]]
        else:
            passed = keys[gap.start :][::-1] if gap.reverse else keys[: gap.start + 1]
            chosen = [key for key in passed if key.prompt][-MOST_CONDITIONING:]
        by_frame: dict[int, Conditioning] = {}
        for key in chosen:
            if key.prompt:
                frame_idx = self.frame_of_grid(key.grid_idx)
                by_frame.pop(frame_idx, None)  # where places are closer together than frames, the one nearer to the start counts
                by_frame[frame_idx] = Conditioning(key.grid_idx, frame_idx, key.prompt)
        return tuple(by_frame.values())
