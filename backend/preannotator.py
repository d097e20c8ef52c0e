"""Projects with `model_preannotate`: tasks that Label Studio asks about without a click get the mode's prediction.

What is ready within the deadline is answered; for the rest an empty prediction stands in, and what it stands for is made in the background
and takes its place through Label Studio's API. Who asks again meanwhile asks for the same jobs, and finds what is done.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend import logs
from backend.briefly import briefly
from backend.dataset_jobs import FAILED, NOT_READY, NOTHING_DRAWN, DatasetPlanner, TaskPlan, placeholder
from backend.dataset_studio import DatasetStudio
from backend.dispatch import Dispatcher
from backend.events import Problem
from backend.examples import choose_examples
from backend.owed_tasks import OwedTasks
from backend.slow_jobs import SlowJobs
from sam2_backend.dataset_messages import DatasetReply, Example
from sam2_backend.errors import LabelConfigError, QueueError, Sam2BackendError
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

log = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Tasks of one request whose jobs are on their way at a time."""

_LOOK_EVERY_S = 0.02
_EXAMPLES_S = 300.0
_SPARE_S = 0.3
_STORED_WITHIN_S = 5.0
"""Label Studio needs a moment to store an answer before anything can take its place."""


@dataclass(slots=True)
class _Asked:
    """One task of a request.

    Attributes:
        plan: None: it cannot be annotated, or its jobs were not sent.
        found: The prediction; None: it is not ready.
    """

    task: Mapping[str, Any]
    plan: TaskPlan | None = None
    found: dict[str, Any] | None = None


@dataclass(slots=True)
class Answer:
    """What a request is answered: one prediction per task, and how many are still to come."""

    predictions: list[dict[str, Any]]
    n_late: int = 0
    problems: list[Problem] = field(default_factory=list)


class Preannotator:
    """Answers for projects that are annotated ahead; used by all threads of a web process."""

    def __init__(
        self, settings: Settings, dispatcher: Dispatcher, media_ref: Callable[[str], MediaRef], extra_params: Callable[[str], str]
    ) -> None:
        self._settings, self._dispatcher = settings, dispatcher
        self._media_ref, self._extra_params = media_ref, extra_params
        self._jobs = SlowJobs(settings, dispatcher)
        self._examples: dict[int, tuple[float, list[Example]]] = {}
        self.owed = OwedTasks(dispatcher.redis)
        self.started: Callable[[], None] = lambda: None
        """Called where something is owed."""

    def planner(self, label_config: str, project: str, extra_params: Any = None) -> DatasetPlanner | None:
        """How a project's tasks are annotated ahead; None: they are not.

        Args:
            extra_params: The connection's, where they are at hand.
        """
        params = extra_params if extra_params is not None else self._extra_params(project)
        try:
            return DatasetPlanner(self._settings, self._media_ref, label_config, params)
        except LabelConfigError:
            return None

    def answer(
        self,
        planner: DatasetPlanner,
        tasks: Sequence[Mapping[str, Any]],
        label_config: str,
        project: str,
        model: str,
        *,
        may_wait: bool = True,
    ) -> Answer:
        """Exactly one prediction per task, within `SAM2_PREANNOTATE_WAIT_S` for each, `SAM2_PREDICT_WAIT_S` in all. Never fails.

        Args:
            may_wait: False: all predictions come later.
        """
        wait_s = min(self._settings.preannotate_wait_s * len(tasks), self._settings.predict_wait_s) if may_wait else 0.0
        version, deadline = planner.version(model), time.monotonic() + wait_s
        asked = [_Asked(task) for task in tasks]
        answer = Answer([])

        def work() -> bool:
            self._collect(planner, asked, model, deadline, answer.problems)
            return True

        if not briefly(work, otherwise=False, wait_s=wait_s + _SPARE_S):
            answer.problems.append(Problem("Redis does not answer in time."))
        found = [one.found for one in asked]  # once: what is found from now on is late
        answer.predictions = [prediction or placeholder(version, NOT_READY) for prediction in found]
        ids = [task.get("id") for task, prediction in zip(tasks, found, strict=True) if prediction is None]
        late = [task_id for task_id in ids if isinstance(task_id, int) and not isinstance(task_id, bool)]
        answer.n_late = len(late)
        if late:
            briefly(lambda: self._owe(late, project, label_config, model, answer.problems), None)
        return answer

    def _collect(self, planner: DatasetPlanner, asked: Sequence[_Asked], model: str, deadline: float, problems: list[Problem]) -> None:
        """Send jobs, so many at a time, and take what is answered until the deadline."""
        waiting: list[_Asked] = []
        try:
            if planner.needs_examples:
                self.give_examples(planner, int(asked[0].task.get("project") or 0))
            left = iter(self._planned(planner, asked, model, problems))
            is_more = True
            while time.monotonic() < deadline:
                while is_more and len(waiting) < MOST_AT_ONCE:
                    one = next(left, None)
                    is_more = one is not None
                    waiting += [one] if one else []
                if not waiting:
                    return
                self._jobs.look([page.pending for one in waiting if one.plan for page in one.plan.pages if page.pending.answer is None])
                waiting = [one for one in waiting if not self._take(planner, one, model, problems)]
                time.sleep(_LOOK_EVERY_S if waiting else 0)
        except Sam2BackendError as error:
            problems.append(Problem(error.message, code=error.code))

    def _planned(self, planner: DatasetPlanner, asked: Sequence[_Asked], model: str, problems: list[Problem]) -> Iterator[_Asked]:
        """Tasks whose jobs are on their way; those that cannot be annotated get their prediction at once."""
        version = planner.version(model)
        for one in asked:
            try:
                plan = planner.plan(one.task, model)
                for page in plan.pages:
                    self._jobs.send(page.pending, is_urgent=True)
            except QueueError:
                raise
            except (Sam2BackendError, KeyError, TypeError, ValueError) as error:
                reason = error.message if isinstance(error, Sam2BackendError) else "it is no task of Label Studio's."
                code = error.code if isinstance(error, Sam2BackendError) else ""
                problems.append(Problem(reason, logs.one_line(str(one.task.get("id")), limit=40), code))
                one.found = placeholder(version, FAILED)
                continue
            problems += [Problem(problem, str(plan.task_id)) for problem in plan.problems]
            if not plan.pages:
                one.found = placeholder(version, NOTHING_DRAWN)
                continue
            one.plan = plan
            yield one

    def _take(self, planner: DatasetPlanner, one: _Asked, model: str, problems: list[Problem]) -> bool:
        """Whether a task needs no more waiting."""
        pendings = [page.pending for page in one.plan.pages] if one.plan else []
        errors = [pending.answer for pending in pendings if isinstance(pending.answer, Sam2BackendError)]
        replies = [pending.answer for pending in pendings if isinstance(pending.answer, DatasetReply)]
        version = planner.version(model)
        if errors:
            self._jobs.forget(pendings)  # asked again, it is tried again
            problems.append(Problem(errors[0].message, str(one.task["id"]), errors[0].code))
            one.found = placeholder(version, FAILED)
        elif one.plan and len(replies) == len(pendings):
            prediction = planner.prediction(one.plan, replies)
            one.found = {"result": prediction.result, "model_version": version} | ({"score": prediction.score} if prediction.result else {})
        return one.found is not None

    def _owe(self, late: Sequence[int], project: str, label_config: str, model: str, problems: list[Problem]) -> None:
        if not self._settings.label_studio_url or not self._settings.label_studio_api_key:
            words = (
                f"{len(late)} task(s) were not annotated in time, and cannot be later: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY. "
                "Retrieving predictions again gives what is ready by then."
            )
            problems.append(Problem(words))
            return
        try:
            n_lost = self.owed.owe(late, project, label_config, model, _STORED_WITHIN_S + 0.02 * len(late))
        except Sam2BackendError as error:
            problems.append(Problem(error.message, code=error.code))
            n_lost = 0  # it is remembered, and noted when Redis answers again
        if n_lost:
            words = f"{n_lost} tasks are not annotated: too many wait already. Use `sam2-backend preannotate` for large projects."
            problems.append(Problem(words))
        self.started()

    def give_examples(self, planner: DatasetPlanner, project_id: int) -> None:
        """What people accepted in the project, as of a few minutes ago at most.

        Raises:
            LabelStudioError: Label Studio does not answer, or refuses.
        """
        read_at, examples = self._examples.get(project_id, (-_EXAMPLES_S, []))
        if time.monotonic() - read_at > _EXAMPLES_S:
            url, key = self._settings.label_studio_url, self._settings.label_studio_api_key
            studio = DatasetStudio(url, key, threading.Event(), patience_s=0)
            try:
                tasks = studio.annotated_tasks(project_id)
                examples = choose_examples(tasks, planner.config, planner.needs_examples, self._media_ref, self._settings)
            finally:
                studio.close()
            self._examples = {project_id: (time.monotonic(), examples)}
        planner.with_examples(examples)
