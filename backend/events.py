"""What happened to requests, one `Event` each, in words for people and in a few facts that can be counted.

Nothing in an event is an address, a token or a body. `tallies` counts events, `journal` keeps them.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from backend import logs
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import CacheTier
from sam2_backend.queue_format import digest

Kind = Literal["click", "track", "open", "preannotate", "push", "dataset", "note"]
"""`open`: Label Studio asked about tasks that nobody clicked in; `push`, `dataset`: a prediction that was stored through its API."""

Outcome = Literal["answered", "nothing", "superseded", "slow", "waiting", "prepared", "ahead", "late", "stored", "had", "failed", "noted"]

TIERS: tuple[str, ...] = get_args(CacheTier)
_PLACES = {"device": "the device", "host": "host memory", "redis": "Redis", "bucket": "the bucket"}
_LONGEST_WORDS = 400
_MOST_PROBLEMS = 20
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        words: One or two sentences, without the task's number.
        project: Label Studio's `<id>.<unix time of creation>`; empty: not known.
        task: Its id; empty: none, or several.
        code: Of the error.
        worker: Who answered; several are joined by commas.
        total_ms: From the request's arrival to its answer; 0: no request.
        at: Unix seconds.
        timings_ms: By stage, of clicks. Counted, not kept.
        images: (digest of the address, tier that the embedding came from) of each image clicked on. Counted, not kept.
        prepared: Digests of the addresses of images that were sent to be embedded. Counted, not kept.
        n_predictions: With at least one region, that Label Studio got. Counted, not kept.
    """

    kind: Kind
    outcome: Outcome
    words: str
    project: str = ""
    task: str = ""
    code: str = ""
    worker: str = ""
    total_ms: float = 0.0
    at: float = field(default_factory=time.time)
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    images: tuple[tuple[str, str], ...] = ()
    prepared: tuple[str, ...] = ()
    n_predictions: int = 0

    @property
    def is_error(self) -> bool:
        return self.outcome == "failed"

    @property
    def is_quiet(self) -> bool:
        """It is counted and shown under its task, but not among the last requests, which it would push out."""
        return self.outcome == "ahead" or (self.kind == "dataset" and bool(self.task))

    @property
    def project_title(self) -> str:
        """The id that people see in Label Studio's address."""
        return self.project.split(".", 1)[0]

    def to_json(self) -> str:
        """What is kept."""
        return json.dumps({name: value for name in _KEPT if (value := getattr(self, name))}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Event:
        """Raises ValueError, TypeError: this is not what this version of `to_json` writes."""
        value = json.loads(text)
        if not isinstance(value, dict) or not value.keys() <= set(_KEPT):
            raise ValueError("not an event")
        return cls(**value)


_KEPT = ("kind", "outcome", "words", "project", "task", "code", "worker", "total_ms", "at")


def tidy(event: Event, scrub: Any = None) -> Event:
    """The event with its texts on one line, bounded, and without anything that looks like a secret."""
    words = scrub(event.words) if scrub else event.words
    return dataclasses.replace(
        event,
        words=logs.one_line(words, limit=_LONGEST_WORDS),
        project=logs.one_line(event.project, limit=_LONGEST_NAME),
        task="" if event.task == "-" else event.task,
        worker="" if event.worker == "-" else event.worker,
        total_ms=round(event.total_ms, 1),
    )


def media_digest(uri: str) -> str:
    """Names an image by its address without showing it."""
    return digest(uri)[:12]


def click_event(project: str, facts: Mapping[str, Any], timings_ms: Mapping[str, float], n_regions: int) -> Event:
    """A click that was answered, with a mask, with none, or with nothing because a newer one came.

    Args:
        facts: As `clicks.click_facts` made them.
    """
    prompts = _many(facts["points"], "point") if facts["points"] else _many(facts["objects"], "shape")
    common = {"project": project, "task": facts["task"], "worker": facts["worker"], "total_ms": timings_ms.get("total", 0.0)}
    if facts["cache"] == "superseded":
        return Event("click", "superseded", f"{prompts}: a newer click on the same drawing replaced this one.", **common)
    tiers = facts["cache"].split(",")
    found = f"{_many(n_regions, 'region')}, score {facts['score']:.2f}" if n_regions else "nothing found there"
    words = f"{prompts} → {found} ({_embedding_words(tiers)})."
    images = tuple(zip(facts.get("media", ()), tiers, strict=False))
    return Event("click", "answered" if n_regions else "nothing", words, timings_ms=timings_ms, images=images, **common)


def track_event(project: str, facts: Mapping[str, Any], timings_ms: Mapping[str, float]) -> Event:
    """A request to track, answered with what is done so far."""
    frames = f", {facts['done']} of {facts['frames']} frames done" if facts["frames"] else ""
    is_open = facts["phase"] in {"waiting", "running"}
    later = ". The rest is pushed into Label Studio when it is done." if is_open else "."
    words = f"{_many(facts['objects'], 'object')} to track → {facts['phase']}{frames}{later}"
    outcome: Outcome = "waiting" if is_open else "nothing" if facts["phase"] == "nothing drawn" else "answered"
    return Event("track", outcome, words, project, facts["task"], worker=facts["worker"], total_ms=timings_ms.get("total", 0.0))


def open_event(project: str, tasks: Sequence[Mapping[str, Any]], uris: Sequence[str], problem: Sam2BackendError | None = None) -> Event:
    """Tasks that Label Studio asked about without a click: their images are embedded ahead of it.

    Args:
        problem: Why an image cannot be.
    """
    prepared, task = tuple(media_digest(uri) for uri in uris), _only_id(tasks)
    where = "The task was opened" if task else f"{len(tasks)} tasks were asked about"
    if problem:
        words = f"{where}, but not every image can be made ready. {problem.message}"
        return Event("open", "failed", words, project, task, code=problem.code, prepared=prepared)
    words = f"{where}: {_many(len(uris), 'image')} made ready for clicks in the background." if uris else f"{where}."
    return Event("open", "prepared", words, project, task, prepared=prepared)


def ahead_event(project: str, uris: Sequence[str]) -> Event:
    """The next tasks of a project are embedded before anyone opens them."""
    words = f"{_many(len(uris), 'image')} of the next tasks made ready for clicks in the background."
    return Event("open", "ahead", words, project, prepared=tuple(media_digest(uri) for uri in uris))


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a task gets no prediction, or not all of it.

    Attributes:
        task: Its id; empty: it concerns the whole request.
        code: Of the error.
    """

    words: str
    task: str = ""
    code: str = ""


def preannotate_events(
    project: str, tasks: Sequence[Mapping[str, Any]], n_made: int, n_late: int, problems: Sequence[Problem], total_ms: float
) -> list[Event]:
    """Tasks that Label Studio asked about in a project that is annotated ahead: the request, and in a batch each task with a problem."""
    of_tasks = [problem for problem in problems if problem.task] if len(tasks) > 1 else []
    of_request = [problem for problem in problems if problem not in of_tasks]
    shown = [Event("preannotate", "failed", p.words, project, p.task, code=p.code) for p in of_tasks[:_MOST_PROBLEMS]]
    return [*shown, _preannotate_event(project, tasks, n_made, n_late, of_request, len(of_tasks), total_ms)]


def _preannotate_event(
    project: str,
    tasks: Sequence[Mapping[str, Any]],
    n_made: int,
    n_late: int,
    problems: Sequence[Problem],
    n_failed: int,
    total_ms: float,
) -> Event:
    task = _only_id(tasks)
    what = "Opened" if task else f"Predictions asked for {len(tasks)} tasks"
    late = f", {n_late} to follow when made" if n_late else ""
    failed = f", {n_failed} failed" if n_failed else ""
    words = f"{what} → {_many(n_made, 'prediction')}{late}{failed}.{''.join(f' {problem.words}' for problem in problems[:2])}"
    outcome: Outcome = "failed" if problems else "late" if n_late else "answered" if n_made else "nothing"
    code = problems[0].code if problems else ""
    return Event("preannotate", outcome, words, project, task, code, total_ms=total_ms, n_predictions=n_made)


def stored_event(kind: Literal["push", "dataset"], task_id: int, n_regions: int, project: str = "") -> Event:
    """A prediction was stored in Label Studio through its API."""
    words = f"Its prediction, {_many(n_regions, 'region')}, is now in Label Studio; reload the task to see it."
    return Event(kind, "stored", words, project, str(task_id), n_predictions=bool(n_regions))


def error_event(project: str, task: str, where: str, code: str, message: str, total_ms: float, *, is_click: bool = True) -> Event:
    """A request that failed.

    Args:
        where: What was asked of, for requests without a task.
    """
    words = message if task and task != "-" else f"{where}: {message}"
    return Event("click" if is_click else "note", "failed", words, project, task, code=code, total_ms=total_ms)


def _only_id(tasks: Sequence[Mapping[str, Any]]) -> str:
    task_id = tasks[0].get("id") if len(tasks) == 1 else None
    return logs.one_line(str(task_id), limit=40) if isinstance(task_id, int | str) else ""


def _embedding_words(tiers: Sequence[str]) -> str:
    if "none" in tiers:
        return "the image was not ready and had to be embedded first"
    return "image ready, from " + " and ".join(_PLACES.get(tier, tier) for tier in dict.fromkeys(tiers))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
