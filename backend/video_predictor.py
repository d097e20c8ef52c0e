"""A request to track → a propagation started or looked up, waited for briefly, and shown as far as it is.

Asking again returns more, or everything. Where the answer was not the whole, the whole is pushed once it is there (`pushes`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from redis import Redis

from backend.clicks import Click, task_name
from backend.label_config import parse_label_config
from backend.prompt_regions import digest
from backend.pushes import Prediction, Pushes, Request
from backend.tracking_plans import Asked, Plan, Planner, asks_for_tracking
from sam2_backend.errors import Sam2BackendError, error_from_code
from sam2_backend.redis_connection import redis_errors_as_ours
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagateJob, PropagationState

KEY = "sam2:track:"
"""What an object is tracked by now, by project, task and object: a newer request makes the older propagation pointless."""


class PropagationsLike(Protocol):
    """What is used of `backend.propagations.Propagations`."""

    def start(self, job: PropagateJob) -> PropagationState: ...
    def wait(self, session: str, wait_s: float) -> PropagationState: ...
    def state(self, session: str) -> PropagationState | None: ...
    def masks(self, session: str, object_id: str = "") -> Any: ...
    def cancel(self, session: str) -> None: ...
    def recent(self) -> list[PropagationState]: ...
    def n_results(self) -> int: ...


class VideoPredictor:
    """Answers requests on videos and on sequences of pages."""

    def __init__(
        self,
        settings: Settings,
        propagations: PropagationsLike,
        planner: Planner,
        redis: Callable[[], Redis],
        model_version: Callable[[], str],
        extra_params: Callable[[str], str],
    ) -> None:
        self._settings = settings
        self._planner = planner
        self._redis = redis
        self._model_version = model_version
        self._extra_params = extra_params
        self.propagations = propagations
        self.pushes = Pushes(settings, redis, self)

    def concerns(self, label_config: str, context: Mapping[str, Any], project: str) -> bool:
        """Whether a context is answered here.

        Raises:
            LabelConfigError: the labeling config is not XML.
        """
        return asks_for_tracking(context, parse_label_config(label_config), self._extra_params(project))

    def track(self, task: Mapping[str, Any], label_config: str, context: Mapping[str, Any], project: str) -> Click:
        """Answer with what is done within `SAM2_PROPAGATE_WAIT_S`; one prediction.

        Raises:
            RequestError: a region, the task or the labeling config cannot be used.
            MediaError, QueueError, ModelError: as the worker or the queue says.
        """
        asked = {"id": task.get("id"), "data": task.get("data")}, label_config, dict(context), project
        request = Request(*asked, self._model_version(), self._extra_params(project))
        plans = self._plans(request)
        deadline = time.monotonic() + min(self._settings.propagate_wait_s, self._settings.predict_wait_s)
        jobs = [plan.job for plan in plans if plan.job]
        for job in jobs:
            self._retire(job, request)
            self.propagations.start(job)
        states = [self.propagations.wait(job.session, max(0.0, deadline - time.monotonic())) for job in jobs]
        _raise_failure(states)
        by_session = {state.session: state for state in states}
        prediction = self._shown(plans, by_session)
        if all(state.phase == "done" for state in states):
            self.pushes.settle(list(by_session))
        elif any(state.phase in {"waiting", "running"} for state in states):
            self.pushes.owe(list(by_session), request)
        return Click([{"result": prediction.result, "score": prediction.score}], facts=_facts(request, plans, states, prediction))

    def recent(self) -> list[PropagationState]:
        """All propagations that are kept, without their tracks."""
        return self.propagations.recent()

    def begin(self, request: Request) -> None:
        """Have a request's propagations worked on, or on; returns at once. Errors as `track`."""
        for plan in self._plans(request):
            if plan.job:
                self.propagations.start(plan.job)

    def whole(self, request: Request) -> Prediction | None:
        """What a request gives now that its propagations are done; None: they are not, or their results are gone."""
        plans = self._plans(request)
        states = [self.propagations.state(plan.job.session) for plan in plans if plan.job]
        done = {state.session: state for state in states if state and state.phase == "done"}
        return self._shown(plans, done) if len(done) == len(states) and states else None

    def _plans(self, request: Request) -> list[Plan]:
        config, params = parse_label_config(request.label_config), request.extra_params
        return self._planner.plans(Asked(request.task, config, request.context, request.project, params, request.model_version))

    def _shown(self, plans: Sequence[Plan], states: Mapping[str, PropagationState]) -> Prediction:
        result: list[dict[str, Any]] = []
        scores: list[float] = []
        for plan in plans:
            session = plan.job.session if plan.job else ""
            state = states.get(session, PropagationState(session, "waiting"))
            masks = self.propagations.masks(session) if plan.job and plan.job.options.wants_masks else iter(())
            result += plan.show(state, masks)
            scores += [plan.score(state)] if plan.job else []
        return Prediction(result, round(sum(scores) / len(scores), 4) if scores else 0.0)

    def _retire(self, job: PropagateJob, request: Request) -> None:
        """Cancel what older states of the same drawing started: sessions all of whose objects are in this job, and asked otherwise now."""
        objects = list(dict.fromkeys(keyframe.object_id for keyframe in job.keyframes))
        record = json.dumps([job.session, objects])
        with redis_errors_as_ours():
            client = self._redis()
            keys = [KEY + digest(request.project, task_name([request.task]), object_id) for object_id in objects]
            records: list[Any] = [client.set(key, record, ex=self._settings.propagate_idle_s, get=True) for key in keys]
        older = {session: known for session, known in map(json.loads, filter(None, records)) if session != job.session}
        for session, known in older.items():
            if set(known) <= set(objects):
                self.pushes.settle([session])
                self.propagations.cancel(session)


def _raise_failure(states: Sequence[PropagationState]) -> None:
    failed = next((state for state in states if state.phase == "failed"), None)
    if failed:
        raise failure(failed)


def failure(state: PropagationState) -> Sam2BackendError:
    """Why a propagation failed, as an error of ours."""
    code, _, message = state.error.partition(": ")
    return error_from_code(code, message or state.error or "The propagation failed; the worker's log says why.")


def _facts(request: Request, plans: Sequence[Plan], states: Sequence[PropagationState], prediction: Prediction) -> dict[str, Any]:
    """What was asked and how far it is, for the log and the status page."""
    phases = [state.phase for state in states]
    return {
        "task": task_name([request.task]),
        "objects": sum(plan.n_objects for plan in plans),
        "phase": next((phase for phase in ("cancelled", "waiting", "running") if phase in phases), "done" if phases else "nothing drawn"),
        "done": sum(state.n_done for state in states),
        "frames": sum(state.n_frames for state in states),
        "session": ",".join(state.session[:8] for state in states) or "-",
        "worker": ",".join(dict.fromkeys(state.worker for state in states if state.worker)) or "-",
        "score": prediction.score,
        "model_version": next((state.model_version for state in states if state.model_version), request.model_version),
    }
