"""`sam2-backend preannotate` and `warm`: a whole project's images through the workers, before anyone opens a task.

Both take every live worker, bear the death of workers, Redis and Label Studio, and when started again do what is left.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend.child_process import stop_event
from backend.dataset_command import STOPPED, DatasetCommand, Row, dataset_command
from backend.dataset_events import embedded_event, full_name, told
from backend.dataset_jobs import DatasetPlanner
from backend.examples import choose_examples
from backend.label_config import parse_label_config
from backend.patience import while_redis_is_away
from backend.preannotation_options import MODE_OPTION
from backend.progress import Progress
from backend.projects import MOST_PROJECTS, ProjectStore
from backend.slow_jobs import SlowJobs, warm_job
from backend.task_media import image_uris
from backend.task_runner import Outcome, TaskRunner
from sam2_backend.dataset_messages import Example
from sam2_backend.errors import LabelConfigError, Sam2BackendError, SettingsError, TaskDataError
from sam2_backend.messages import MediaRef, WarmJob
from sam2_backend.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says.

    Attributes:
        mode: Empty: as the project's labeling config or extra parameters say.
        options: Names with or without `model_`, and their values.
        limit: At most so many tasks are worked on; 0: all.
        filters: See `task_filters`.
        is_dry: Say what would be done, and do nothing.
        shows: Have Label Studio show these predictions to annotators.
    """

    project_id: int
    mode: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    limit: int = 0
    filters: Sequence[str] = ()
    is_dry: bool = False
    shows: bool = False


def run_preannotate(settings: Settings, asked: Asked, stopped: threading.Event | None = None, progress: Progress | None = None) -> int:
    """Annotate a project's tasks; 1 if a task failed, 130 if it was stopped.

    Raises:
        SettingsError: LABEL_STUDIO_URL or LABEL_STUDIO_API_KEY is missing, or an option is unknown.
        LabelConfigError: the labeling config is of no use.
        LabelStudioError, QueueError: Label Studio, Redis or all workers are away.
    """
    with dataset_command(settings, stopped or stop_event(), progress or Progress()) as command:
        return _preannotate(command, asked)


def run_warm(settings: Settings, asked: Asked, stopped: threading.Event | None = None, progress: Progress | None = None) -> int:
    """Embed a project's images, each on the worker that its clicks will go to; results and errors as `run_preannotate`."""
    with dataset_command(settings, stopped or stop_event(), progress or Progress()) as command:
        return _warm(command, asked)


def _preannotate(command: DatasetCommand, asked: Asked) -> int:
    say, project = command.progress.say, command.studio.project(asked.project_id)
    planner = _planner(command, project, asked)
    if planner.needs_examples and not asked.is_dry:
        planner = planner.with_examples(_examples(command, planner, asked.project_id))
    model_version = command.model_version()
    version = planner.version(model_version)
    say(f"project {asked.project_id}: mode {planner.mode}, predictions are of model version {version!r}")
    for problem in planner.problems:
        say(problem)
    rows = command.rows(project, asked.filters, asked.limit, version)
    if asked.is_dry:
        return _dry(command, rows, planner, model_version)
    jobs = SlowJobs(command.settings, command.dispatcher)
    runner, name = TaskRunner(jobs, command.studio, planner, asked.project_id, model_version, command.stopped), full_name(project)
    code = command.run(rows, told(runner.run, command.record, name), name)
    if asked.shows:
        command.studio.update_project(asked.project_id, show_collab_predictions=True, model_version=version)
    elif command.progress.counts.stored and project.get("model_version") != version:
        say(f"To have annotators start from them, choose {version!r} in the project's settings (Prelabeling), or add --show.")
    return code


def _warm(command: DatasetCommand, asked: Asked) -> int:
    project = command.studio.project(asked.project_id)
    config = parse_label_config(project["label_config"])
    if not config.images:
        raise LabelConfigError("The labeling config has no <Image> tag: there is nothing to embed.")
    command.model_version()
    jobs, name = SlowJobs(command.settings, command.dispatcher), full_name(project)

    def embed(row: Row) -> Outcome:
        return while_redis_is_away(lambda: embed_all(row), command.stopped)

    def embed_all(row: Row) -> Outcome:
        uris = dict.fromkeys(uri for tag in config.images for uri in image_uris(row, tag, command.settings))
        replies = [jobs.warm(warm_job(WarmJob(command.media_ref(uri))), command.stopped) for uri in uris]
        hits, spent_ms = sum(reply.cache != "none" for reply in replies), sum(reply.timings_ms.get("embed", 0.0) for reply in replies)
        command.record(embedded_event(name, int(row["id"]), uris))
        return Outcome("stored", n_images=len(replies), n_hits=hits, model_ms=spent_ms)

    return command.run(command.rows(project, asked.filters, asked.limit), embed, name)


def _planner(command: DatasetCommand, project: Mapping[str, Any], asked: Asked) -> DatasetPlanner:
    overrides = {f"model_{name.removeprefix('model_')}": value for name, value in asked.options.items()}
    overrides |= {MODE_OPTION: asked.mode} if asked.mode else {}
    media_ref = MediaRef if asked.is_dry else command.media_ref
    params = _extra_params(command, asked.project_id)
    planner = DatasetPlanner(command.settings, media_ref, project["label_config"], params, overrides)
    wrong = [problem for problem in planner.problems if problem.startswith("The command line")]
    if wrong:
        raise SettingsError(wrong[0])
    return planner


def _extra_params(command: DatasetCommand, project_id: int) -> str:
    """Those of the project's connection, as its last /setup told the web tier."""
    known = ProjectStore(command.dispatcher.redis).newest(MOST_PROJECTS)
    return next((seen.extra_params for seen in known if seen.title == str(project_id)), "")


def _examples(command: DatasetCommand, planner: DatasetPlanner, project_id: int) -> list[Example]:
    tasks = command.studio.annotated_tasks(project_id)
    found = choose_examples(tasks, planner.config, planner.needs_examples, command.media_ref, command.settings)
    if not found:
        raise TaskDataError("Mode similar looks for what people accepted, and nobody has yet. Annotate a few tasks first.")
    command.progress.say(f"{len(found)} examples of {', '.join(dict.fromkeys(example.label for example in found))}")
    return found


def _dry(command: DatasetCommand, rows: Iterable[Row], planner: DatasetPlanner, model_version: str) -> int:
    """Say what would be done; nothing is sent and nothing stored."""
    n_tasks = n_images = n_boxes = n_bad = 0
    say, project_of = command.progress.say, command.studio.whole_tasks
    for row in rows:
        if command.stopped.is_set():
            return STOPPED
        tasks = project_of(int(row["project"]), [int(row["id"])]) if planner.needs_drawings else [row]
        try:
            plan = planner.plan(tasks[0] if tasks else row, model_version)
        except Sam2BackendError as error:
            n_bad += 1
            say(f"task {row['id']}: would fail, {error.message}")
            continue
        n_tasks += bool(plan.pages)
        n_images += len(plan.pages)
        n_boxes += sum(len(page.labels) for page in plan.pages)
    boxes = f" with {n_boxes} boxes" if planner.needs_drawings else ""
    had = command.progress.counts.had
    say(f"{n_images} images of {n_tasks} tasks{boxes} would be annotated; {had} tasks have it, {n_bad} would fail")
    return 1 if n_bad else 0
