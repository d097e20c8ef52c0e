"""`--filter`: which tasks of a project are meant, in words; all filters that are given must hold."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sam2_backend.errors import SettingsError

Predicate = Callable[[Mapping[str, Any]], bool]
_WORDS: dict[str, Predicate] = {
    "labelled": lambda row: bool(row.get("total_annotations")),
    "unlabelled": lambda row: not row.get("total_annotations"),
    "predicted": lambda row: bool(row.get("total_predictions")),
    "unpredicted": lambda row: not row.get("total_predictions"),
}
FILTERS = "labelled, unlabelled, predicted, unpredicted, id=1-100,205, data.FIELD=PATTERN or tab=ID"


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks are meant.

    Attributes:
        tab_id: A tab of the data manager, whose own filters Label Studio applies; 0: none.
    """

    predicates: tuple[Predicate, ...] = ()
    tab_id: int = 0

    def __call__(self, row: Mapping[str, Any]) -> bool:
        return all(holds(row) for holds in self.predicates)


def task_filter(texts: Sequence[str]) -> TaskFilter:
    """Read filters.

    Raises:
        SettingsError: one is none of `FILTERS`.
    """
    predicates: list[Predicate] = []
    tab_id = 0
    for text in texts:
        name, _, value = text.strip().partition("=")
        if name in _WORDS and not value:
            predicates.append(_WORDS[name])
        elif name == "tab" and value.isdecimal():
            tab_id = int(value)
        elif name == "id" and re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value):
            predicates.append(_by_id(value))
        elif name.startswith("data.") and len(name) > len("data.") and value:
            predicates.append(_by_field(name.removeprefix("data."), value))
        else:
            raise SettingsError(f"--filter {text!r} is not known. Write {FILTERS}.")
    return TaskFilter(tuple(predicates), tab_id)


def _by_id(text: str) -> Predicate:
    bounds = [part.partition("-") for part in text.split(",")]
    ranges = [range(int(first), int(last or first) + 1) for first, _, last in bounds]
    return lambda row: any(int(row["id"]) in ids for ids in ranges)


def _by_field(field: str, pattern: str) -> Predicate:
    return lambda row: fnmatch.fnmatchcase(str((row.get("data") or {}).get(field, "")), pattern)
