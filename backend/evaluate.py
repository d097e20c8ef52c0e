"""`sam2-backend evaluate`: what a project's predictions were worth to the people who annotated it, as a table, JSON and an HTML page.

Tasks are read page by page, and a pair of regions is forgotten once it is counted: a project of any size takes little memory. No worker,
no Redis and no model is asked.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from backend.child_process import stop_event
from backend.dataset_command import STOPPED
from backend.dataset_studio import DatasetStudio
from backend.evaluation import Evaluation, Record
from backend.evaluation_regions import plain
from backend.evaluation_scores import WorstCase, WorstCases
from backend.evaluation_table import summary, table
from backend.fast_json import dumps
from backend.label_config import LabelConfig, parse_label_config
from backend.label_studio import LabelStudio
from backend.progress import Progress
from backend.report_file import ReportFile
from backend.report_page import report_page, shown_cases
from backend.task_filters import task_filter
from sam2_backend.errors import LabelConfigError, SettingsError
from sam2_backend.settings import Settings

MOST_CASES = 200
_MOST_PROBLEMS_SAID = 20

NOTHING_COMPARED = 1
"""Exit code where there is nothing to compare."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says.

    Attributes:
        version: Only predictions of this model version; empty: each annotation's own.
        limit: At most so many annotated tasks; 0: all.
        filters: See `task_filters`.
        json_path, html_path: Files to write; None: none.
        n_worst: Worst cases to show.
    """

    project_id: int
    version: str = ""
    limit: int = 0
    filters: Sequence[str] = field(default_factory=tuple)
    json_path: Path | None = None
    html_path: Path | None = None
    n_worst: int = 24


def run_evaluate(
    settings: Settings, asked: Asked, stopped: threading.Event | None = None, progress: Progress | None = None, out: TextIO | None = None
) -> int:
    """Evaluate a project.

    Returns:
        0: something was compared; 1: there is nothing to compare; 130: it was stopped, and no file was written.

    Raises:
        SettingsError: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is missing, or a filter or number is wrong.
        LabelConfigError: the labeling config cannot be read, or has no image.
        LabelStudioError: Label Studio is away for too long, or refuses.
        ReportError: a file cannot be written.
    """
    if not settings.label_studio_url or not settings.label_studio_api_key:
        raise SettingsError("Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY: the project is read from Label Studio.")
    if not 0 <= asked.n_worst <= MOST_CASES:
        raise SettingsError(f"--worst {asked.n_worst} must be a number from 0 to {MOST_CASES}.")
    _check_key(settings)
    stopped, progress, out = stopped or stop_event(), progress or Progress(what="annotated tasks"), out or sys.stdout
    with ExitStack() as stack:
        json_file = stack.enter_context(ReportFile(asked.json_path)) if asked.json_path else None
        html_file = stack.enter_context(ReportFile(asked.html_path)) if asked.html_path else None
        studio = DatasetStudio(settings.label_studio_url, settings.label_studio_api_key, stopped, progress.say)
        stack.callback(studio.close)
        project = studio.project(asked.project_id)
        evaluation = Evaluation(_config(project), settings, WorstCases(asked.n_worst), asked.version)
        _read(studio, project, asked, evaluation, json_file, stopped, progress)
        if stopped.is_set() or not evaluation.n_compared:
            print(_why_nothing(evaluation, asked, is_stopped=stopped.is_set()), file=sys.stderr)
            return STOPPED if stopped.is_set() else NOTHING_COMPARED
        out.write(f"{_title(project)}\n\n{table(evaluation)}\n")
        cases = evaluation.worst.chosen()
        if json_file:
            json_file.write(_json_end(evaluation, project, cases))
            json_file.finish()
        if html_file:
            progress.say(f"{len(cases)} pictures of the worst cases …")
            html_file.write(report_page(evaluation, _title(project), list(shown_cases(cases, settings, asked.project_id))).encode())
            html_file.finish()
        return 0


def _check_key(settings: Settings) -> None:
    first = LabelStudio(settings.label_studio_url, settings.label_studio_api_key)
    try:
        first.whoami()  # without patience: a wrong address or token is said at once
    finally:
        first.close()


def _config(project: Mapping[str, Any]) -> LabelConfig:
    config = parse_label_config(str(project.get("label_config") or ""))
    if not config.images:
        raise LabelConfigError("The labeling config has no <Image> tag: only regions on images are compared.")
    return config


def _read(
    studio: DatasetStudio,
    project: Mapping[str, Any],
    asked: Asked,
    evaluation: Evaluation,
    json_file: ReportFile | None,
    stopped: threading.Event,
    progress: Progress,
) -> None:
    """Take every task in, and write its pairs to the JSON file."""
    wanted = task_filter(asked.filters)
    tasks = (task for task in studio.annotated_tasks(asked.project_id, wanted.tab_id) if wanted(task))
    progress.begin(asked.limit or (0 if asked.filters else int(project.get("num_tasks_with_annotations") or 0)))
    separator = b'{"regions": [\n'
    for task in itertools.islice(tasks, asked.limit or None):
        if stopped.is_set():
            return
        n_said = len(evaluation.problems)
        for record in evaluation.add(task):
            if json_file:
                json_file.write(separator + dumps(record))
                separator = b",\n"
        for problem in evaluation.problems[n_said:_MOST_PROBLEMS_SAID]:
            progress.say(problem)
        progress.add(stored=1)
    progress.close()
    if evaluation.n_unreadable > _MOST_PROBLEMS_SAID:
        progress.say(f"{evaluation.n_unreadable} regions in all could not be compared; the first {_MOST_PROBLEMS_SAID} are above.")
    if json_file and separator != b",\n":
        json_file.write(separator)


def _json_end(evaluation: Evaluation, project: Mapping[str, Any], cases: Sequence[WorstCase]) -> bytes:
    worst = [_case(case) for case in cases]
    return b'\n],\n"summary": ' + dumps(summary(evaluation, project, worst)) + b"}\n"


def _case(case: WorstCase) -> Record:
    return {"task": case.task_id, "annotation": case.annotation_id, "label": case.pair.label, "iou": round(case.pair.iou or 0.0, 4)}


def _why_nothing(evaluation: Evaluation, asked: Asked, *, is_stopped: bool) -> str:
    if is_stopped:
        return "Stopped; nothing was written."
    if not evaluation.n_annotations:
        chosen = " that the filters choose" if asked.filters else ""
        return f"Project {asked.project_id} has no annotations{chosen}: there is nothing to compare. Annotate some tasks that have predictions."
    version = f" of model version {asked.version!r}" if asked.version else ""
    return (
        f"None of the {evaluation.n_tasks} annotated tasks has a prediction{version}: there is nothing to compare. "
        "Make some with `sam2-backend preannotate`, and annotate from them."
    )


def _title(project: Mapping[str, Any]) -> str:
    return plain(f"Project {project.get('id')}: {project.get('title')}")
