"""Clicks on one object, one after the other: each step starts from the logits of the step before.

The chain is defined by the prompt alone (see `messages.ImagePrompt`), so the mask is the same on every worker. Steps that were made before
are found in a bounded cache; on a worker that has not made them they are made again, from the first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as flattened

import numpy as np
from torch import Tensor

from sam2_backend.engine import ImageEmbedding, ObjectPrompt, Sam2Engine
from sam2_backend.masks import mask_from_runs
from sam2_backend.messages import ImagePrompt, MaskOptions

#: Logits are cut to ± this before they are a prompt, as the reference does.
_PROMPT_LOGIT_MAX = 32.0


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one decode found: logits (S/4, S/4) on the device, and their score."""

    logits: Tensor
    score: float


class LogitsCache:
    """The logits of the latest steps, at most so many; the least recently used go first. Used by one thread."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._steps: OrderedDict[Hashable, Step] = OrderedDict()

    def __len__(self) -> int:
        return len(self._steps)

    def get(self, key: Hashable) -> Step | None:
        if key not in self._steps:
            return None
        self._steps.move_to_end(key)
        return self._steps[key]

    def put(self, key: Hashable, step: Step) -> None:
        self._steps[key] = step
        self._steps.move_to_end(key)
        while len(self._steps) > self._max_entries:
            self._steps.popitem(last=False)


@dataclass(frozen=True, slots=True, eq=False)
class OnImage:
    """What was prompted on one image.

    Attributes:
        embedding_key: Names the embedding, and with it image and weights, in the cache.
        size_hw: Of the upright image, which the prompts' pixels are of.
    """

    embedding: ImageEmbedding
    embedding_key: str
    prompts: Sequence[ImagePrompt]
    size_hw: tuple[int, int]
    options: MaskOptions


def segment(
    engine: Sam2Engine,
    embedding: ImageEmbedding,
    embedding_key: str,
    prompts: Sequence[ImagePrompt],
    size_hw: tuple[int, int],
    options: MaskOptions,
    cache: LogitsCache,
) -> list[Step | None]:
    """The last step of each prompt, logits and score; None for negative points alone, whose mask is empty. Arguments as in `OnImage`.

    Raises:
        GpuMemoryError: the device is full.
    """
    [[(_, steps)]] = segment_together(engine, [OnImage(embedding, embedding_key, prompts, size_hw, options)], cache)
    return steps


def segment_together(engine: Sam2Engine, asked: Sequence[OnImage], cache: LogitsCache) -> Iterator[list[tuple[int, list[Step | None]]]]:
    """What `segment` gives for each that was asked, with their place among them, as soon as all its steps are known.

    What was not made before is made in rounds, the next step of every prompt in one call: eight boxes, or the clicks of eight people, are
    one decode where the device gains by it.

    Raises:
        GpuMemoryError: the device is full.
    """
    chains = {place: [_Chain(engine, prompt, on_image) for prompt in on_image.prompts] for place, on_image in enumerate(asked)}
    for chain in flattened.from_iterable(chains.values()):
        chain.recall(cache)
    while chains:
        done = [place for place, own in chains.items() if not any(chain.todo for chain in own)]
        if done:
            yield [(place, [chain.last for chain in chains.pop(place)]) for place in done]
        waiting = [chain for chain in flattened.from_iterable(chains.values()) if chain.todo]
        found = engine.decode_many([(chain.embedding, chain.next_prompt()) for chain in waiting]) if waiting else []
        for chain, candidates in zip(waiting, found, strict=True):
            # A copy: the other candidates are not kept alive by it.
            chain.advance(Step(candidates.logits[0].clone(), float(candidates.scores[0])), cache)


class _Chain:
    """The steps of one prompt; a step is named by how many points it has seen.

    Attributes:
        last: The latest step that is known.
        todo: The steps after it, as (points seen, key), the next one first.
    """

    def __init__(self, engine: Sam2Engine, prompt: ImagePrompt, on_image: OnImage) -> None:
        self._engine, self._prompt, self._size_hw, self._options = engine, prompt, on_image.size_hw, on_image.options
        self.embedding = on_image.embedding
        steps = self._steps()
        self.todo = deque(zip(steps, self._keys(steps, on_image.embedding_key), strict=True))
        self.last: Step | None = None

    def recall(self, cache: LogitsCache) -> None:
        """Begin behind the latest step that is in the cache."""
        todo: deque[tuple[int, Hashable]] = deque()
        while self.todo:
            n_points, key = self.todo.pop()
            self.last = cache.get(key)
            if self.last is not None:
                break
            todo.appendleft((n_points, key))
        self.todo = todo

    def next_prompt(self) -> ObjectPrompt:
        n_points, box = self.todo[0][0], self._prompt.box_xyxy_px
        points = self._prompt.points[:n_points]
        mask_logits: Tensor | None = None
        if self.last is not None:
            mask_logits = self.last.logits.clamp(-_PROMPT_LOGIT_MAX, _PROMPT_LOGIT_MAX)
        elif self._prompt.mask is not None:
            mask_logits = self._engine.mask_logits_from(mask_from_runs(self._prompt.mask))
        is_ambiguous = n_points == 1 and box is None and mask_logits is None
        return ObjectPrompt(
            np.array([(point.x_px, point.y_px) for point in points], dtype=np.float64).reshape(-1, 2),
            np.array([point.is_positive for point in points], dtype=bool),
            self._size_hw,
            self._options.multimask and is_ambiguous,
            box,
            mask_logits,
        )

    def advance(self, step: Step, cache: LogitsCache) -> None:
        self.last = step
        cache.put(self.todo.popleft()[1], step)

    def _steps(self) -> range:
        n_points = len(self._prompt.points)
        if self._prompt.box_xyxy_px is not None or self._prompt.mask is not None:
            return range(n_points + 1)
        first_positive = next((i for i, point in enumerate(self._prompt.points) if point.is_positive), n_points)
        return range(first_positive + 1, n_points + 1)

    def _keys(self, steps: range, embedding_key: str) -> list[Hashable]:
        """By all that a step depends on; coordinates as the very floats that came."""
        prompt = self._prompt
        mask = prompt.mask and (prompt.mask.size_hw, hashlib.blake2b(prompt.mask.counts, digest_size=16).digest())
        start = (embedding_key, self._size_hw, self._options.multimask, prompt.box_xyxy_px, mask)
        return [(*start, prompt.points[:n_points]) for n_points in steps]
