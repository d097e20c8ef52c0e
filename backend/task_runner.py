"""One task of a dataset from start to end: jobs sent and awaited, the prediction stored once. Safe to call from many threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backend.dataset_jobs import DatasetPlanner, TaskPlan
from backend.dataset_studio import DatasetStudio
from backend.patience import while_redis_is_away
from backend.slow_jobs import SlowJobs
from sam2_backend.dataset_messages import DatasetReply
from sam2_backend.errors import ModelError, TaskDataError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Attributes:
        kind: `stored`; `had`: it has this prediction already; `nothing`: there is nothing in it to work on.
        n_hits: Images whose embedding was there.
        model_ms: Spent by the model.
        remarks: What was left out, in sentences.
    """

    kind: Literal["stored", "had", "nothing"]
    n_regions: int = 0
    n_images: int = 0
    n_hits: int = 0
    model_ms: float = 0.0
    remarks: tuple[str, ...] = ()


class TaskRunner:
    """Annotates tasks of one project with one model version.

    Args:
        project_id: In Label Studio.
        stopped: Ends every wait.
        replaces: Model versions of empty predictions that stand in for those that are made.
    """

    def __init__(
        self,
        jobs: SlowJobs,
        studio: DatasetStudio,
        planner: DatasetPlanner,
        project_id: int,
        model_version: str,
        stopped: threading.Event,
        replaces: Sequence[str] = (),
    ) -> None:
        self._jobs, self._studio, self._planner = jobs, studio, planner
        self._project_id, self._model_version, self._stopped = project_id, model_version, stopped
        self.version = planner.version(model_version)
        self._replaces = [*planner.replaced_versions(model_version), *replaces]

    def run(self, row: Mapping[str, Any]) -> Outcome:
        """Annotate one task.

        Args:
            row: The task as it is listed; what people drew is read anew where the mode needs it.

        Raises:
            Stopped: the event was set; nothing was stored.
            RequestError, MediaError, ModelError: the task cannot be annotated.
            QueueDownError, LabelStudioError: Redis or Label Studio is away for too long, or refuses.
        """
        return while_redis_is_away(lambda: self._run(row), self._stopped)

    def _run(self, row: Mapping[str, Any]) -> Outcome:
        plan = self._planner.plan(self._whole(row), self._model_version)
        if not plan.pages:
            return Outcome("nothing", remarks=plan.problems)
        replies = self._replies(plan)
        prediction = self._planner.prediction(plan, replies)
        score = prediction.score if prediction.result else None
        with self._jobs.locks.alone(f"{self._studio.base_url} {plan.task_id}", self._stopped):
            is_new = self._studio.store_once(plan.task_id, prediction.result, score, self.version, self._replaces)
        self._jobs.forget([page.pending for page in plan.pages])
        return Outcome(
            "stored" if is_new else "had",
            n_regions=sum(len(reply.masks) for reply in replies),
            n_images=len(replies),
            n_hits=sum(reply.cache != "none" for reply in replies),
            model_ms=sum(ms for reply in replies for step, ms in reply.timings_ms.items() if step in {"embed", "detect", "decode"}),
            remarks=(*plan.problems, *(f"{skipped.what}: {skipped.reason}" for reply in replies for skipped in reply.skipped)),
        )

    def _whole(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._planner.needs_drawings and "data" in row:
            return row
        found = self._studio.whole_tasks(self._project_id, [int(row["id"])])
        if not found:
            raise TaskDataError("It is no longer in Label Studio.")
        return found[0]

    def _replies(self, plan: TaskPlan) -> list[DatasetReply]:
        """All pages side by side."""
        for page in plan.pages:
            self._jobs.send(page.pending)
        replies = [self._jobs.dataset(page.pending, self._stopped) for page in plan.pages]
        self._check(replies)
        return replies

    def _check(self, replies: Sequence[DatasetReply]) -> None:
        others = {reply.model_version for reply in replies} - {self._model_version}
        if others:
            raise ModelError(f"A worker answered with {others.pop()}, not {self._model_version}. Run the same model on all workers.")
