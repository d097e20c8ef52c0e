"""What all pairs of one label, or of a project, come to. Grows by sixteen bytes a pair at most, so that a project of any size fits."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappush, heappushpop
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.evaluation_pairs import Pair

_MOST_WORST_PER_TASK = 2
_WORST_KEPT = 4
"""So many times what is shown is kept, so that it may come from different tasks."""


def _floats() -> array[float]:
    return array("f")


@dataclass(slots=True)
class Scores:
    """Counts and measures of some pairs.

    Attributes:
        predicted, annotated: Regions on either side.
        unchanged, corrected: Pairs that agree to the pixel and in their label, and pairs that do not.
        relabelled: Of the corrected: people gave them another label.
        added, deleted: Annotated regions without a prediction, and the reverse.
        ious, boundary_fs: Of every pair.
        seconds: Of every annotated region whose annotation has a lead time: that time, shared equally among its regions.
        clicks: Of every annotated region that was made by smart clicks and says by how many.
    """

    unchanged: int = 0
    corrected: int = 0
    relabelled: int = 0
    added: int = 0
    deleted: int = 0
    ious: array[float] = field(default_factory=_floats)
    boundary_fs: array[float] = field(default_factory=_floats)
    seconds: array[float] = field(default_factory=_floats)
    clicks: array[float] = field(default_factory=_floats)

    @property
    def predicted(self) -> int:
        return len(self.ious) + self.deleted

    @property
    def annotated(self) -> int:
        return len(self.ious) + self.added

    def add(self, pair: Pair, seconds: float | None) -> None:
        """Count a pair; `seconds` is its share of the lead time, None: not known."""
        if pair.annotation is None:
            self.deleted += 1
            return
        if seconds is not None:
            self.seconds.append(seconds)
        if pair.clicks:
            self.clicks.append(pair.clicks)
        if pair.iou is None or pair.boundary_f is None:
            self.added += 1
            return
        self.ious.append(pair.iou)
        self.boundary_fs.append(pair.boundary_f)
        self.unchanged += pair.is_unchanged
        self.corrected += not pair.is_unchanged
        self.relabelled += pair.is_relabelled

    def to_json(self) -> dict[str, Any]:
        """Counts, and mean and quartiles of every measure; null where there is none."""
        counts = ("predicted", "annotated", "unchanged", "corrected", "relabelled", "added", "deleted")
        measures = {"iou": self.ious, "boundary_f": self.boundary_fs, "seconds_per_region": self.seconds}
        measures["clicks_per_clicked_region"] = self.clicks
        return {name: getattr(self, name) for name in counts} | {name: measure(values) for name, values in measures.items()}


def measure(values: array[float]) -> dict[str, float | int | None]:
    """How many values there are, their mean, and the quartiles."""
    if not values:
        return {"count": 0, "mean": None, "q1": None, "median": None, "q3": None}
    numbers = as_numbers(values)
    q1, median, q3 = (round(float(quartile), 4) for quartile in np.percentile(numbers, (25, 50, 75)))
    return {"count": len(values), "mean": round(float(numbers.mean(dtype=np.float64)), 4), "q1": q1, "median": median, "q3": q3}


def as_numbers(values: array[float]) -> NDArray[np.float32]:
    """The same (n,) float32, without a copy."""
    return np.frombuffer(values, dtype=np.float32) if values else np.empty(0, np.float32)


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A pair that agrees little.

    Attributes:
        uri: Of its image; empty: `problem` says why there is none.
    """

    task_id: int
    annotation_id: int
    pair: Pair
    uri: str = ""
    problem: str = ""


class WorstCases:
    """The pairs of the lowest IoU, at most two of a task as far as there are others.

    Args:
        count: How many are asked for.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[tuple[float, int, WorstCase]] = []
        self._seen = 0

    def would_keep(self, pair: Pair) -> bool:
        """Whether `add` would not drop it at once."""
        if not self._count or pair.iou is None or pair.iou == 1.0:
            return False
        return len(self._heap) < self._count * _WORST_KEPT or -pair.iou > self._heap[0][0]

    def add(self, case: WorstCase) -> None:
        """Keep a case unless all that are kept are worse."""
        if not self.would_keep(case.pair):
            return
        self._seen += 1
        entry = (-(case.pair.iou or 0.0), -self._seen, case)
        if len(self._heap) < self._count * _WORST_KEPT:
            heappush(self._heap, entry)
        else:
            heappushpop(self._heap, entry)

    def chosen(self) -> Sequence[WorstCase]:
        """The cases to show, worst first."""
        by_task: Counter[int] = Counter()
        first: list[WorstCase] = []
        others: list[WorstCase] = []
        for _, _, case in sorted(self._heap, key=lambda entry: entry[:2], reverse=True):
            (first if by_task[case.task_id] < _MOST_WORST_PER_TASK else others).append(case)
            by_task[case.task_id] += 1
        chosen = (first + others)[: self._count]
        return sorted(chosen, key=lambda case: case.pair.iou or 0.0)
