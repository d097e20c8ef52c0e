"""An evaluation as a text table, and as the summary that goes into JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from backend import logs
from backend.evaluation import Evaluation
from backend.evaluation_scores import Scores, measure

MOST_LABELS_SHOWN = 200
_WIDEST_LABEL = 28
_HEADINGS = (
    "predicted",
    "annotated",
    "unchanged",
    "corrected",
    "added",
    "deleted",
    "mean IoU",
    "median IoU",
    "boundary F",
    "s/region",
    "clicks",
)


def shown_label(label: str) -> str:
    """A label as people read it."""
    return logs.one_line(label, limit=80) or "(no label)"


def by_size(evaluation: Evaluation) -> list[tuple[str, Scores]]:
    """The labels, that with the most regions first."""
    return sorted(evaluation.by_label.items(), key=lambda entry: (-entry[1].annotated - entry[1].deleted, entry[0]))


def cells(scores: Scores) -> list[str]:
    """What stands under `_HEADINGS`; "-": not known."""
    iou, outline, seconds, clicks = (measure(m) for m in (scores.ious, scores.boundary_fs, scores.seconds, scores.clicks))
    counts = (scores.predicted, scores.annotated, scores.unchanged, scores.corrected, scores.added, scores.deleted)
    measures = [(iou["mean"], 3), (iou["median"], 3), (outline["mean"], 3), (seconds["median"], 1), (clicks["mean"], 2)]
    return [*map(str, counts), *("-" if value is None else f"{value:.{digits}f}" for value, digits in measures)]


def table(evaluation: Evaluation) -> str:
    """A row for every label and one for all, then what is to be known about the numbers."""
    labels = by_size(evaluation)
    rows = [("label", list(_HEADINGS))]
    rows += [(logs.one_line(shown_label(label), limit=_WIDEST_LABEL), cells(scores)) for label, scores in labels[:MOST_LABELS_SHOWN]]
    rows += [("all", cells(evaluation.overall))]
    width = max(len(name) for name, _ in rows)
    widths = [max(len(row[i]) for _, row in rows) for i in range(len(_HEADINGS))]
    lines = ["  ".join([name.ljust(width), *(cell.rjust(w) for cell, w in zip(row, widths, strict=True))]) for name, row in rows]
    lines.insert(len(lines) - 1, "-" * len(lines[0]))
    hidden = len(labels) - MOST_LABELS_SHOWN
    return "\n".join([*lines, *([f"{hidden} more labels are in --json."] if hidden > 0 else []), "", *remarks(evaluation)])


def remarks(evaluation: Evaluation) -> Iterator[str]:
    """What is to be known about the numbers, in sentences."""
    overall, n_compared = evaluation.overall, evaluation.n_compared
    yield f"Annotations that were compared: {n_compared}, of which {evaluation.n_copied} were made from their prediction, as Label Studio says."
    if len(evaluation.versions) > 1:
        yield f"They were compared with {len(evaluation.versions)} model versions; --model-version takes one alone."
    if evaluation.n_without_prediction:
        yield f"Annotations of tasks without a prediction, which count in nothing above: {evaluation.n_without_prediction}."
    if overall.relabelled:
        yield f"Regions that were given another label: {overall.relabelled}. They count as corrected, under the label that people gave."
    yield (
        f"Seconds: the median; the lead time of an annotation is shared equally among its regions. Known of {len(overall.seconds)} regions."
        if overall.seconds
        else "Seconds per region are not known: no annotation has a lead time, which Label Studio writes for those that are submitted in its editor."
    )
    yield (
        f"Clicks: the mean of the {len(overall.clicks)} regions made by smart clicks, which say their number. "
        if overall.clicks
        else "Clicks are not known: no region was made by smart clicks. "
    ) + f"The {overall.unchanged} that stayed as predicted took none; of the others Label Studio keeps no number."
    if evaluation.n_unreadable:
        yield f"Regions that could not be compared: {evaluation.n_unreadable}."


def summary(evaluation: Evaluation, project: Mapping[str, Any], worst: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All but the single pairs, JSON-ready."""
    names = ("n_tasks", "n_annotations", "n_compared", "n_copied", "n_timed", "n_without_prediction", "n_unreadable")
    return {
        "project": {"id": project.get("id"), "title": project.get("title")},
        **{name: getattr(evaluation, name) for name in names},
        "model_versions": dict(evaluation.versions.most_common()),
        "overall": evaluation.overall.to_json(),
        "labels": {label: scores.to_json() for label, scores in by_size(evaluation)},
        "worst": list(worst),
        "problems": evaluation.problems,
    }
