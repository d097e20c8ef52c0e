"""What an error means for the person in front of the editor: who can put it right, and what to do meanwhile.

The error's own sentence names the thing and the next step of whoever can mend it; what stands here is the same for all errors of a mender.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backend.events import Event
from sam2_backend.errors import ERRORS_BY_CODE, GpuMemoryError, MediaUnreachableError, Mender, QueueError

_WHO: dict[Mender, str] = {
    "annotator": "You can put this right.",
    "project owner": "The project's owner can put this right, in Label Studio's project settings.",
    "task data": "Whoever imported this task can put it right: its data is at fault.",
    "operator": "Whoever runs this backend can put it right.",
}
_MEANWHILE: dict[Mender, str] = {
    "annotator": "Undo the last drawing and try again.",
    "project owner": "Tell them this sentence; until then draw by hand.",
    "task data": "Tell them the task's number and this sentence, and go on with the next task.",
    "operator": "Tell them this sentence. What you drew is kept.",
}
_TEMPORARY = (QueueError, GpuMemoryError, MediaUnreachableError)
_TASKS_NAMED = 5


def who(code: str) -> str:
    """Who can put an error right, in a sentence. A code that is not in the tree is the operator's."""
    return _WHO[_mender(code)]


def meanwhile(code: str) -> str:
    """What an annotator does until then."""
    error = ERRORS_BY_CODE.get(code)
    if error is not None and issubclass(error, _TEMPORARY):
        return "It may pass by itself: click again in a moment. If it lasts, tell them this sentence. What you drew is kept."
    return _MEANWHILE[_mender(code)]


def _mender(code: str) -> Mender:
    error = ERRORS_BY_CODE.get(code)
    return error.mender if error else "operator"


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """Failures of one kind.

    Attributes:
        count: How many are known.
        newest: The last of them.
        tasks: Some of the tasks that it happened in, the last first.
    """

    count: int
    newest: Event
    tasks: tuple[str, ...] = field(default=())

    @property
    def code(self) -> str:
        return self.newest.code


def grouped(errors: Sequence[Event]) -> list[ErrorGroup]:
    """Failures by code, or by their words where they have none; the kind that happened last comes first.

    Args:
        errors: Newest first.
    """
    groups: dict[str, list[Event]] = {}
    for event in errors:
        groups.setdefault(event.code or event.words, []).append(event)
    return [
        ErrorGroup(len(events), events[0], tuple(dict.fromkeys(event.task for event in events if event.task))[:_TASKS_NAMED])
        for events in groups.values()
    ]
