"""A project's tasks, one at a time → what their predictions are worth: scores by label, the worst cases, and what could not be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.evaluation_pairs import Pair, pairs, prediction_of
from backend.evaluation_regions import EvaluatedRegion, Unreadable, comparable, evaluated_regions, plain
from backend.evaluation_scores import Scores, WorstCase, WorstCases
from backend.label_config import LabelConfig
from backend.task_media import image_uri
from sam2_backend.errors import Sam2BackendError
from sam2_backend.settings import Settings

LONGEST_LEAD_S = 6 * 3600.0
"""A longer lead time is a tab that was left open over night."""

_MOST_PROBLEMS_KEPT = 1000

Record = dict[str, Any]
"""One pair, JSON-ready."""


@dataclass(slots=True)
class Evaluation:
    """Grows task by task.

    Args:
        version: Only predictions of this model version count; empty: all.

    Attributes:
        versions: Annotations by the model version that they were compared with.
        n_tasks: With at least one annotation.
        n_annotations: Those that were not skipped.
        n_copied: Of these: Label Studio says that they were made from the prediction.
        n_timed: Of these: with a lead time.
        n_without_prediction: Of these: their task has no prediction; they count in nothing else.
        n_unreadable: Regions and pages that could not be compared.
        problems: The first of them, in sentences.
    """

    config: LabelConfig
    settings: Settings
    worst: WorstCases
    version: str = ""
    overall: Scores = field(default_factory=Scores)
    by_label: dict[str, Scores] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)
    n_tasks: int = 0
    n_annotations: int = 0
    n_copied: int = 0
    n_timed: int = 0
    n_without_prediction: int = 0
    n_unreadable: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def n_compared(self) -> int:
        """Annotations that were compared with a prediction."""
        return self.n_annotations - self.n_without_prediction

    def add(self, task: Mapping[str, Any]) -> Iterator[Record]:
        """Compare a task's annotations with its predictions.

        Args:
            task: With `annotations` and `predictions`.

        Yields:
            Every pair.
        """
        annotations = [item for item in _items(task, "annotations") if not item.get("was_cancelled")]
        predictions = _items(task, "predictions")
        self.n_tasks += bool(annotations)
        for annotation in annotations:
            self.n_annotations += 1
            prediction = prediction_of(annotation, predictions, self.version)
            if prediction is None:
                self.n_without_prediction += 1
            else:
                yield from self._compare(task, annotation, prediction)

    def _compare(self, task: Mapping[str, Any], annotation: Mapping[str, Any], prediction: Mapping[str, Any]) -> Iterator[Record]:
        version = plain(str(prediction.get("model_version") or ""))
        self.versions[version] += 1
        self.n_copied += annotation.get("parent_prediction") == prediction.get("id")
        annotated, problems = evaluated_regions(annotation.get("result"), self.config)
        predicted, more = evaluated_regions(prediction.get("result"), self.config)
        seconds = self._seconds(annotation, len(annotated))
        predicted, annotated, pages = comparable(predicted, annotated, [*problems, *more])
        self._note(task, annotation, problems, prediction, [*more, *pages])
        for pair in pairs(predicted, annotated):
            self.overall.add(pair, seconds)
            self.by_label.setdefault(pair.label, Scores()).add(pair, seconds)
            if self.worst.would_keep(pair):
                self.worst.add(self._case(task, annotation, pair))
            ids = {"task": task.get("id"), "annotation": annotation.get("id"), "prediction": prediction.get("id"), "model_version": version}
            yield ids | _record(pair, seconds)

    def _seconds(self, annotation: Mapping[str, Any], n_regions: int) -> float | None:
        lead_s = annotation.get("lead_time")
        if isinstance(lead_s, bool) or not isinstance(lead_s, int | float) or not 0 < lead_s <= LONGEST_LEAD_S:
            return None
        self.n_timed += 1
        return lead_s / n_regions if n_regions else None

    def _note(
        self,
        task: Mapping[str, Any],
        annotation: Mapping[str, Any],
        of_annotation: Sequence[Unreadable],
        prediction: Mapping[str, Any],
        of_prediction: Sequence[Unreadable],
    ) -> None:
        self.n_unreadable += len(of_annotation) + len(of_prediction)
        sources = [(f"annotation {annotation.get('id')}", of_annotation), (f"prediction {prediction.get('id')}", of_prediction)]
        sentences = [f"task {task.get('id')}, {name}: {problem.reason}" for name, problems in sources for problem in problems]
        self.problems += sentences[: max(_MOST_PROBLEMS_KEPT - len(self.problems), 0)]

    def _case(self, task: Mapping[str, Any], annotation: Mapping[str, Any], pair: Pair) -> WorstCase:
        region = pair.annotation or pair.prediction
        assert region is not None
        ids = int(task["id"]), int(annotation["id"])
        try:
            return WorstCase(*ids, pair, image_uri(task, self.config.object_tag(region.to_name), region.page, self.settings))
        except Sam2BackendError as error:
            return WorstCase(*ids, pair, problem=error.message)


def _items(task: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = task.get(name)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _record(pair: Pair, seconds: float | None) -> Record:
    return {
        "label": pair.label,
        "became": _became(pair),
        "predicted": _named(pair.prediction),
        "annotated": _named(pair.annotation),
        "iou": None if pair.iou is None else round(pair.iou, 4),
        "boundary_f": None if pair.boundary_f is None else round(pair.boundary_f, 4),
        "clicks": pair.clicks,
        "seconds": None if seconds is None or pair.annotation is None else round(seconds, 3),
    }


def _became(pair: Pair) -> str:
    """What people did with a prediction, in a word."""
    if pair.prediction is None:
        return "added"
    if pair.annotation is None:
        return "deleted"
    if pair.is_unchanged:
        return "unchanged"
    return "relabelled" if pair.iou == 1.0 else "corrected"


def _named(region: EvaluatedRegion | None) -> dict[str, Any] | None:
    return {"id": region.region_id, "label": region.label, "to_name": region.to_name, "page": region.page} if region else None
