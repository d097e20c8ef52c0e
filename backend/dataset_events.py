"""What the status page is told of commands over whole projects: counts of the project, and a line under each task.

The list of the fleet's last requests holds none of it but one line at the end of a command: thousands of tasks would push everything else out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from backend.events import Event, media_digest, stored_event
from backend.progress import Counts
from backend.task_runner import Outcome
from sam2_backend.errors import Sam2BackendError

Record = Callable[[Event], None]


def full_name(project: Mapping[str, Any]) -> str:
    """A project's name as Label Studio writes it at /setup and /predict: `<id>.<unix time of creation>`.

    Args:
        project: As Label Studio's API gives it.
    """
    try:
        created_at = datetime.fromisoformat(str(project.get("created_at")))
    except ValueError:
        return str(project["id"])
    return f"{project['id']}.{int(created_at.timestamp())}"


def told(work: Callable[[Mapping[str, Any]], Outcome], record: Record, project: str) -> Callable[[Mapping[str, Any]], Outcome]:
    """The same work, with a line for each task about what became of it."""

    def run(row: Mapping[str, Any]) -> Outcome:
        try:
            outcome = work(row)
        except Sam2BackendError as error:
            record(Event("dataset", "failed", f"Pre-annotation: {error.message}", project, str(row["id"]), code=error.code))
            raise
        record(_event(int(row["id"]), outcome, project))
        return outcome

    return run


def embedded_event(project: str, task_id: int, uris: Iterable[str]) -> Event:
    """A task's images are embedded by `warm`."""
    prepared = tuple(media_digest(uri) for uri in uris)
    words = f"Its images ({len(prepared)}) were made ready for clicks by `sam2-backend warm`."
    return Event("dataset", "prepared", words, project, str(task_id), prepared=prepared)


def summary_event(project: str, counts: Counts, n_failed: int) -> Event:
    """The end of a command."""
    words = f"A command over the project ended: {counts.stored} tasks done, {counts.had} had it, {counts.nothing} held nothing, {n_failed} failed."
    return Event("note", "noted", words, project)


def _event(task_id: int, outcome: Outcome, project: str) -> Event:
    if outcome.kind == "stored":
        return stored_event("dataset", task_id, outcome.n_regions, project)
    words = {
        "had": "Pre-annotation: it has this prediction already.",
        "nothing": " ".join(["Pre-annotation: there is nothing in it to work on.", *outcome.remarks]),
    }[outcome.kind]
    return Event("dataset", outcome.kind, words, project, str(task_id))
