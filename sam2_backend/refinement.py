"""Clicks on one object, one after the other: each step starts from the logits of the step before.

The chain is defined by the prompt alone (see `messages.ImagePrompt`), so the mask is the same on every worker. Steps that were made before
are found in a bounded cache; on a worker that has not made them they are made again, from the first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sam2_backend.engine import ImageEmbedding, Sam2Engine
from sam2_backend.masks import mask_from_runs
from sam2_backend.messages import ImagePrompt, MaskOptions

#: Logits are cut to ± this before they are a prompt, as the reference does.
_PROMPT_LOGIT_MAX = 32.0


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    logits: Tensor
    score: float


class LogitsCache:
    """The logits of the latest steps, at most so many; the least recently used go first. Used by one thread."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._steps: OrderedDict[Hashable, _Step] = OrderedDict()

    def __len__(self) -> int:
        return len(self._steps)

    def get(self, key: Hashable) -> _Step | None:
        if key not in self._steps:
            return None
        self._steps.move_to_end(key)
        return self._steps[key]

    def put(self, key: Hashable, step: _Step) -> None:
        self._steps[key] = step
        self._steps.move_to_end(key)
        while len(self._steps) > self._max_entries:
            self._steps.popitem(last=False)


def segment(
    engine: Sam2Engine,
    embedding: ImageEmbedding,
    embedding_key: str,
    prompts: Sequence[ImagePrompt],
    size_hw: tuple[int, int],
    options: MaskOptions,
    cache: LogitsCache,
) -> list[tuple[NDArray[np.bool_], float]]:
    """One mask (H, W) bool and its score per prompt. A prompt of negative points alone has an empty mask.

    Args:
        embedding_key: Names the embedding, and with it image and weights, in the cache.
        size_hw: Of the upright image, which the prompts' pixels and the masks are of.

    Raises:
        GpuMemoryError: the device is full.
    """
    return [_Chain(engine, embedding, embedding_key, prompt, size_hw, options).mask(cache) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class _Chain:
    """The steps of one prompt; a step is named by how many points it has seen."""

    engine: Sam2Engine
    embedding: ImageEmbedding
    embedding_key: str
    prompt: ImagePrompt
    size_hw: tuple[int, int]
    options: MaskOptions

    def mask(self, cache: LogitsCache) -> tuple[NDArray[np.bool_], float]:
        steps = self._steps()
        if not steps:
            return np.zeros(self.size_hw, dtype=bool), 0.0
        keys = self._keys(steps)
        step = None
        todo: list[tuple[int, Hashable]] = []
        for n_points, key in reversed(list(zip(steps, keys, strict=True))):
            step = cache.get(key)
            if step is not None:
                break
            todo.append((n_points, key))
        for n_points, key in reversed(todo):
            step = self._decode(n_points, step)
            cache.put(key, step)
        assert step is not None
        return self.engine.upsample(step.logits, self.size_hw, self.options.mask_threshold), step.score

    def _steps(self) -> range:
        n_points = len(self.prompt.points)
        if self.prompt.box_xyxy_px is not None or self.prompt.mask is not None:
            return range(n_points + 1)
        first_positive = next((i for i, point in enumerate(self.prompt.points) if point.is_positive), n_points)
        return range(first_positive + 1, n_points + 1)

    def _keys(self, steps: range) -> list[Hashable]:
        """By all that a step depends on; coordinates as the very floats that came."""
        prompt = self.prompt
        mask = prompt.mask and (prompt.mask.size_hw, hashlib.blake2b(prompt.mask.counts, digest_size=16).digest())
        start = (self.embedding_key, self.size_hw, self.options.multimask, prompt.box_xyxy_px, mask)
        return [(*start, prompt.points[:n_points]) for n_points in steps]

    def _decode(self, n_points: int, before: _Step | None) -> _Step:
        points, box = self.prompt.points[:n_points], self.prompt.box_xyxy_px
        mask_logits: Tensor | None = None
        if before is not None:
            mask_logits = before.logits.clamp(-_PROMPT_LOGIT_MAX, _PROMPT_LOGIT_MAX)
        elif self.prompt.mask is not None:
            mask_logits = self.engine.mask_logits_from(mask_from_runs(self.prompt.mask))
        is_ambiguous = n_points == 1 and box is None and mask_logits is None
        found = self.engine.decode(
            self.embedding,
            points_xy_px=np.array([(point.x_px, point.y_px) for point in points], dtype=np.float64).reshape(-1, 2),
            is_positive=np.array([point.is_positive for point in points], dtype=bool),
            box_xyxy_px=box,
            mask_logits=mask_logits,
            size_hw=self.size_hw,
            multimask=self.options.multimask and is_ambiguous,
        )
        return _Step(found.logits[0].clone(), float(found.scores[0]))
