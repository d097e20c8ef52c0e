"""What is missing, in sentences, for /ready and the status page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redis import RedisError

from backend.dispatch import Dispatcher
from backend.projects import Project, ProjectStore
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import WorkerStatus
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagationState

PROPAGATIONS_SHOWN = 20
_PHASES_FIRST = {"running": 0, "waiting": 1}
RANDOM_WEIGHTS = "random-weights"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a click can be answered now.

    Attributes:
        missing: What keeps every click from being answered.
        warnings: What is unwise, or concerns single projects.
        propagations: Those that run, then those that wait, then those used last; not all.
        n_tracks_waiting: How many wait in all.
    """

    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    workers: tuple[WorkerStatus, ...]
    queues: dict[str, int]
    projects: tuple[Project, ...]
    model_version: str
    propagations: tuple[PropagationState, ...] = ()
    n_tracks_waiting: int = 0
    redis_answers: bool = True

    @property
    def is_ready(self) -> bool:
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        return {
            "status": "ready" if self.is_ready else "not ready",
            "missing": list(self.missing),
            "warnings": list(self.warnings),
            "model_version": self.model_version,
            "workers": [worker_facts(worker) for worker in self.workers],
            "queues": self.queues,
            "projects": [{"project": p.name, "unusable": p.unusable, "problems": list(p.problems)} for p in self.projects],
            "propagations": [propagation_facts(state) for state in self.propagations],
        }


class Listed(Protocol):
    """What is asked of the propagations."""

    def recent(self) -> list[PropagationState]: ...


def worker_facts(worker: WorkerStatus) -> dict[str, Any]:
    """What a worker says of itself, for the API."""
    names = ("name", "state", "device", "model_version", "jobs_done", "jobs_failed", "device_used_bytes", "device_total_bytes")
    caches = {"device_cache_bytes": worker.device_cache_bytes, "host_cache_bytes": worker.host_cache_bytes}
    return {name: getattr(worker, name) for name in names} | caches | {"embedding_lookups": dict(worker.hits)}


def propagation_facts(state: PropagationState) -> dict[str, Any]:
    """How far a propagation is, for the API."""
    names = ("session", "title", "phase", "n_done", "n_frames", "worker", "model_version", "error", "started_at", "updated_at")
    return {name: getattr(state, name) for name in names}


def readiness(settings: Settings, dispatcher: Dispatcher, projects: ProjectStore, propagations: Listed) -> Readiness:
    """Look at Redis, the workers, the model, the projects and what is tracked; never waits for a worker."""
    try:
        queues = dispatcher.queue_lengths()
        workers = tuple(dispatcher.workers())
        tracked = sorted(propagations.recent(), key=lambda state: _PHASES_FIRST.get(state.phase, len(_PHASES_FIRST)))
    except (Sam2BackendError, RedisError, OSError):
        missing = ("Redis does not answer. Start it, or set SAM2_REDIS_URL to the one that the workers use.",)
        return Readiness(missing, (), (), {}, (), "", redis_answers=False)
    seen, n_waiting = tuple(projects.newest()), sum(state.phase == "waiting" for state in tracked)
    warnings = [*_random_weights(workers), *_label_studio(settings, seen), *_project_warnings(seen)]
    return Readiness(
        tuple(_workers_missing(workers)),
        tuple(warnings),
        workers,
        queues,
        seen,
        dispatcher.model_version(),
        tuple(tracked[:PROPAGATIONS_SHOWN]),
        n_waiting,
    )


def _workers_missing(workers: Sequence[WorkerStatus]) -> list[str]:
    if not workers:
        return ["No worker is alive. Start one with `sam2-backend worker`; its first log lines say what keeps it from starting."]
    if all(worker.state == "loading" for worker in workers):
        return [f"Worker {worker.name} is still loading its model. Wait; its log shows how far it is." for worker in workers]
    return []


def _random_weights(workers: Sequence[WorkerStatus]) -> list[str]:
    return [
        f"Worker {worker.name} uses random weights ({worker.model_version}): its masks mean nothing. "
        "Fetch a checkpoint with `sam2-backend checkpoints fetch sam2.1_hiera_tiny` and restart the worker."
        for worker in workers
        if worker.model_version.startswith(RANDOM_WEIGHTS)
    ]


def _label_studio(settings: Settings, projects: Sequence[Project]) -> list[str]:
    if projects and not settings.label_studio_url:
        return [
            "LABEL_STUDIO_URL is not set: uploaded and cloud images of the connected projects cannot be fetched, and the next tasks are not embedded ahead. Set it to an address of Label Studio that this machine reaches, and LABEL_STUDIO_API_KEY to a token."
        ]
    if settings.label_studio_url and not settings.label_studio_api_key:
        return [
            "LABEL_STUDIO_API_KEY is not set: Label Studio will refuse to hand out uploaded images and to say which tasks come next. Set it to an access token."
        ]
    return []


def _project_warnings(projects: Sequence[Project]) -> list[str]:
    return [f"Project {p.title}: {sentence}" for p in projects for sentence in ((p.unusable,) if p.unusable else p.problems)]
