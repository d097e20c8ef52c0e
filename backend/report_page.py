"""An evaluation as one HTML file: a table, plots and the worst cases as pictures. It shows without any network, and runs no script."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from backend.case_pictures import CasePicture, CasePictures, no_picture
from backend.evaluation import Evaluation
from backend.evaluation_scores import WorstCase, as_numbers, measure
from backend.evaluation_table import MOST_LABELS_SHOWN, by_size, cells, remarks, shown_label
from backend.report_plots import MOST_ROWS, histogram, quartiles
from sam2_backend.errors import Sam2BackendError
from sam2_backend.settings import Settings

_MOST_PROBLEMS_SHOWN = 100


@dataclass(frozen=True, slots=True)
class ShownCase:
    """A worst case on the page.

    Attributes:
        link: Leads to its task in Label Studio.
        why_none: Why there is no picture; empty: there is one.
    """

    number: int
    task_id: int
    link: str
    label: str
    predicted_label: str
    iou: float
    boundary_f: float
    picture: CasePicture | None
    why_none: str = ""


def shown_cases(cases: Sequence[WorstCase], settings: Settings, project_id: int) -> Iterator[ShownCase]:
    """The worst cases with their pictures, one after the other; one whose image cannot be had says why."""
    pictures = CasePictures(settings)
    for number, case in enumerate(cases, start=1):
        picture, why_none = None, ""
        try:
            picture = pictures.picture(case)
        except Sam2BackendError as error:
            why_none = no_picture(error)
        link = f"{settings.label_studio_url.rstrip('/')}/projects/{project_id}/data?task={case.task_id}"
        prediction = case.pair.prediction
        predicted_label = shown_label(prediction.label) if prediction and case.pair.is_relabelled else ""
        iou, outline = case.pair.iou or 0.0, case.pair.boundary_f or 0.0
        yield ShownCase(number, case.task_id, link, shown_label(case.pair.label), predicted_label, iou, outline, picture, why_none)


def report_page(evaluation: Evaluation, title: str, cases: Sequence[ShownCase]) -> str:
    """The page as text."""
    labels = by_size(evaluation)
    compared = [(shown_label(label), as_numbers(scores.ious)) for label, scores in labels if scores.ious]
    overall = evaluation.overall
    return _template().render(
        title=title,
        made_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        versions=evaluation.versions.most_common(10),
        tiles=list(_tiles(evaluation)),
        histogram=histogram(as_numbers(overall.ious), "IoU of prediction and annotation"),
        by_label=quartiles(compared[:MOST_ROWS], "IoU"),
        n_hidden_rows=max(len(compared) - MOST_ROWS, 0),
        rows=[(shown_label(label), cells(scores)) for label, scores in labels[:MOST_LABELS_SHOWN]],
        total=cells(overall),
        n_hidden_labels=max(len(labels) - MOST_LABELS_SHOWN, 0),
        remarks=list(remarks(evaluation)),
        cases=cases,
        problems=evaluation.problems[:_MOST_PROBLEMS_SHOWN],
        n_problems=evaluation.n_unreadable,
    )


def _tiles(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """The numbers to see first, each with what it is."""
    overall = evaluation.overall
    iou, seconds, clicks = measure(overall.ious), measure(overall.seconds), measure(overall.clicks)
    yield _number(iou["mean"], 3), "mean IoU"
    yield _share(overall.unchanged, overall.predicted), "of predictions stayed as they were"
    yield _share(overall.deleted, overall.predicted), "of predictions were deleted"
    yield _share(overall.added, overall.annotated), "of regions were added by people"
    yield _number(seconds["median"], 1, " s"), "per region (median)"
    yield _number(clicks["mean"], 2), f"clicks for each of {len(overall.clicks)} regions made by smart clicks"


def _number(value: Any, digits: int, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("backend"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("evaluation.html")
