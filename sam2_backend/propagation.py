"""One propagation on its way through a video: from keyframes to boxes and masks, frame by frame, in memory that does not grow.

What depends on what stands in `propagation_plan`: the work is a set of runs, each an object of the tracker on its own, so that runs of
several objects go through the frames as one batch, and each run ends without a trace in the next. Frames are gone through once forward, for
all runs that go forward, and once backward; frames that no run needs are skipped. Every frame of the file between is tracked, and what is
found is given for every place on the grid that shows it.

A run that an earlier session has found already, as far as this one needs it, is copied from there: after a correction only what it changes
is made again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sam2_backend import preprocessing
from sam2_backend.devices import device_errors
from sam2_backend.embedding_cache import EmbeddingCache
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import BadCheckpointError, VideoTooLargeError
from sam2_backend.frame_features import FrameFeatures
from sam2_backend.frame_sources import Frames
from sam2_backend.network import FeatureMaps
from sam2_backend.propagation_format import digest_of
from sam2_backend.propagation_plan import Run, plan_runs
from sam2_backend.propagation_prompts import tracker_prompt, without_name
from sam2_backend.propagation_results import Found
from sam2_backend.tracker import FrameLogits, Tracker, TrackerOptions, TrackerPrompt
from sam2_backend.video_messages import PropagateJob

_LENGTH = struct.Struct("<I")
#: Raise it where the same keyframes come to mean other results: what was found before is then neither continued nor copied.
_METHOD = 1


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The last frame that is done, and in which direction; None before the first."""

    reverse: bool = False
    frame_idx: int | None = None


class Propagation:
    """Advance it with `work`, and take away what it finds with `take_found`. Used by one thread.

    Attributes:
        frames: Closed with this.
        runs: All there is to do.
        n_results: Rows that it will have found in the end.
        is_at_boundary: Between two frames: `bank` may be asked for.
    """

    def __init__(self, job: PropagateJob, frames: Frames, engine: Sam2Engine, embeddings: EmbeddingCache, max_results: int) -> None:
        """Plan the work; nothing is tracked yet.

        Raises:
            BadCheckpointError: the model has no memory, so it cannot track.
            VideoFrameError: a keyframe lies past the end.
            VideoTooLargeError: there is more to fill than `max_results`.
        """
        if not engine.network.config.has_memory:
            raise BadCheckpointError(f"{engine.model_version} is for images alone and cannot follow objects. Choose another SAM2_MODEL.")
        self.runs = plan_runs(job.keyframes, job.options, frames.n_grid, frames.frame_of_grid)
        self.n_results = sum(run.n_places for run in self.runs)
        if self.n_results > max_results:
            raise VideoTooLargeError(
                f"{self.n_results} frames times objects are more than the {max_results} of SAM2_PROPAGATE_MAX_RESULTS. "
                "Select fewer regions, or a shorter range."
            )
        self.frames, self._job, self._engine, self._embeddings = frames, job, engine, embeddings
        self._features = FrameFeatures(engine, frames, embeddings)
        self._tracker = Tracker(engine.network, engine.device, self._dtype, self._options)
        self._copied: set[int] = set()
        self._cursor = _Cursor()
        self._found = Found(job, frames, engine)
        self.is_at_boundary = True

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the video as shown."""
        return self.frames.size_hw

    def take_found(self) -> tuple[bytes, tuple[bytes, ...]]:
        """What was found since this was asked last, see `Found.take`."""
        return self._found.take()

    def close(self) -> None:
        self.frames.close()

    def bank(self) -> bytes:
        """All that is needed to go on elsewhere."""
        cursor = self._cursor
        header = {
            "identity": self._identity(),
            "reverse": cursor.reverse,
            "frame_idx": cursor.frame_idx,
            "copied": sorted(self._copied),
        }
        text = json.dumps(header).encode()
        return _LENGTH.pack(len(text)) + text + self._tracker.to_bytes()

    def go_on_with(self, bank: bytes) -> bool:
        """Go on where `bank` was taken; False: it belongs to another file or model, or is damaged."""
        try:
            (length,) = _LENGTH.unpack_from(bank)
            header = json.loads(bank[_LENGTH.size : _LENGTH.size + length])
            if header["identity"] != self._identity():
                return False
            memory = memoryview(bank)[_LENGTH.size + length :]
            tracker = Tracker.from_bytes(memory, self._engine.network, self._engine.device, self._dtype, self._options)
        except (struct.error, ValueError, KeyError):
            return False
        self._tracker, self._copied = tracker, set(header["copied"])
        self._cursor = _Cursor(header["reverse"], header["frame_idx"])
        return True

    def run_digest(self, run: Run) -> str:
        """Names what a run finds, wherever it ends and whatever its object is called; empty: it depends on other objects as well."""
        job, options = self._job, self._job.options
        if options.non_overlap:
            return ""
        start = run.last_grid_idx if run.reverse else run.first_grid_idx
        conditioning = [[c.grid_idx, c.frame_idx, without_name(c.prompt)] for c in run.conditioning]
        what = [options.mask, options.wants_masks, job.source.framerate, job.size_hw]
        return digest_of([self._identity(), what, run.reverse, start, run.first_frame_idx, conditioning])

    def mark_copied(self, run_idx: int) -> None:
        """The results of this run are there already. Before `work` begins."""
        self._copied.add(run_idx)

    def work(self) -> Generator[None, None, None]:
        """Do all that is left, piece by piece, each of about one frame's time.

        Raises:
            VideoError, MediaError: the frames cannot be had.
            GpuMemoryError: the device is full, also after the image cache left it.
        """
        if self._cursor.frame_idx is None:
            for i, run in enumerate(self.runs):
                if not run.conditioning and i not in self._copied:
                    self._found.add_gone(run)
        for reverse in (False, True):
            todo = [i for i, run in enumerate(self.runs) if run.reverse == reverse and run.conditioning and i not in self._copied]
            for first, last in spans([self.runs[i] for i in todo]):
                yield from self._through(todo, *self._left_of(first, last, reverse=reverse), reverse=reverse)

    def _left_of(self, first: int, last: int, *, reverse: bool) -> tuple[int, int]:
        """The frames first to last without those that are done; first above last: none."""
        done = self._cursor
        if done.frame_idx is None or (reverse and not done.reverse):
            return first, last
        if done.reverse and not reverse:
            return 0, -1
        return (first, min(last, done.frame_idx - 1)) if reverse else (max(first, done.frame_idx + 1), last)

    def _through(self, todo: Sequence[int], first: int, last: int, *, reverse: bool) -> Iterator[None]:
        if first > last:
            return
        with closing(self.frames.stream(first, last, reverse=reverse)) as stream:
            for frame_idx, image in stream:
                self.is_at_boundary = False
                active = [i for i in todo if self.runs[i].holds(frame_idx)]
                yield from self._start([i for i in active if self.runs[i].first_frame_idx == frame_idx], reverse=reverse)
                self._track(active, frame_idx, self._features.of(frame_idx, image), reverse=reverse)
                for i in active:
                    if self.runs[i].last_frame_idx == frame_idx:
                        self._tracker.remove(str(i))
                self._cursor, self.is_at_boundary = _Cursor(frame_idx=frame_idx, reverse=reverse), True
                yield

    def _start(self, starting: Sequence[int], *, reverse: bool) -> Iterator[None]:
        """Prompt what the runs are conditioned on, a frame at a time."""
        prompts: dict[int, list[TrackerPrompt]] = {}
        for i in starting:
            for conditioning in self.runs[i].conditioning:
                prompt = tracker_prompt(str(i), conditioning.prompt, self._job.size_hw, self._engine)
                prompts.setdefault(conditioning.frame_idx, []).append(prompt)
        for frame_idx in sorted(prompts, reverse=reverse):
            features = self._features.out_of_turn(frame_idx)
            for prompt in prompts[frame_idx]:
                self._prompt(frame_idx, features, prompt, reverse=reverse)
            yield

    def _prompt(self, frame_idx: int, features: FeatureMaps, prompt: TrackerPrompt, *, reverse: bool) -> None:
        def one() -> None:
            with device_errors():
                self._tracker.prompt(frame_idx, features, [prompt], reverse=reverse)

        self._embeddings.with_room(one)

    def _track(self, active: Sequence[int], frame_idx: int, features: FeatureMaps, *, reverse: bool) -> None:
        with_room, names = self._embeddings.with_room, {str(i) for i in active}

        def step() -> FrameLogits:
            with device_errors():
                return self._tracker.step(frame_idx, features, reverse=reverse, object_ids=names)

        def add(run: Run, logits: Tensor, score: float) -> None:
            with device_errors():
                self._found.add(run, frame_idx, logits, score)

        answer = with_room(step)
        scores = (answer.ious.clamp(0, 1) * answer.object_scores.sigmoid()).tolist()
        for name, logits, score in zip(answer.object_ids, answer.logits, scores, strict=True):
            with_room(partial(add, self.runs[int(name)], logits, score))

    def _identity(self) -> list[str | int | list[str]]:
        """What a bank, and what was found with it, belong to."""
        source, frames = self._job.source, self.frames
        pages = [page.uri for page in source.media] if source.kind == "pages" else []  # the hash is that of the first page
        # Not the precision: workers on other devices may go on, which is worth more than the last bits.
        return [_METHOD, preprocessing.METHOD, frames.image_hash, self._engine.model_id, frames.n_frames, frames.n_grid, pages]

    @property
    def _dtype(self) -> torch.dtype:
        is_half = self._engine.device.type == "cuda" and self._engine.dtype != torch.float32
        return torch.bfloat16 if is_half else torch.float32

    @property
    def _options(self) -> TrackerOptions:
        return TrackerOptions(n_frames=self.frames.n_frames, non_overlap=self._job.options.non_overlap)


def spans(runs: Sequence[Run]) -> list[tuple[int, int]]:
    """(first, last) of the stretches of frames that the runs go through, which all go the same way; in their direction, apart."""
    ends = sorted((min(run.first_frame_idx, run.last_frame_idx), max(run.first_frame_idx, run.last_frame_idx)) for run in runs)
    merged: list[tuple[int, int]] = []
    for first, last in ends:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged[::-1] if runs and runs[0].reverse else merged
