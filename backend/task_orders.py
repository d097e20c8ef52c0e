"""The ways in which Label Studio leads people through a project's tasks, each as a query of its data manager. Asks nothing itself.

What Label Studio 1.23.2 does, by its source:

- "Label All Tasks" asks for the next task with neither filters nor ordering (web: `invokeAction`); `projects/functions/next_task.py` then
  takes, of the tasks that are not labelled (`is_labeled`: as many annotations as the overlap asks for) and that this user has not annotated or
  put off: with several annotations per task one that others have begun, else by the project's sampling the first by id that nobody else
  has locked (sequential), any (uniform), or the one of the lowest prediction score, any where nothing is predicted (uncertainty).
- "Label Tasks As Displayed" sends the tab's filters and ordering, "Label N Tasks" its selection: then the first in that order, locks or not.
- Who clicks rows goes down the tab as it is displayed; of an ordering only its first column counts (`data_manager/managers.py`), and without one
  tasks are by id.
- Nothing of this reaches a backend: /predict names the project and the task, not the user, the tab or the button.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

STREAM = "stream"
PROJECT_FIELDS = ("label_config", "sampling", "maximum_annotations", "show_overlap_first")
"""What of a project says which orders it has."""
MOST_TABS = 8
"""Tabs with an order of their own that are looked at, the newest."""
MOST_SELECTED = 100
"""Ids that fit into an address."""

_BY_ID = ["tasks:id"]
_FILTER_KEYS = ("filter", "operator", "type", "value", "child_filter")
_SEQUENTIAL, _UNCERTAINTY = "Sequential sampling", "Uncertainty sampling"


def _item(column: str, operator: str, kind: str, value: float) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


_UNLABELLED = _item("is_labeled", "equal", "Boolean", value=False)


@dataclass(frozen=True)
class TaskOrder:
    """One way through the unlabelled tasks of a project.

    Attributes:
        group: Who goes this way: `stream`, `rows`, or `tab` and its number. A group may have several orders.
        walk: Where the next task is: `by_id`, the next greater id; `listed`, the next in the listing; `any`, anywhere.
        items: Filters that a task must pass.
        either: Filters of which one is enough; empty: none.
        ordering: Columns, as the data manager names them.
        selected: Only these tasks; empty: all.
    """

    group: str
    walk: Literal["by_id", "listed", "any"]
    items: Sequence[Mapping[str, Any]] = ()
    either: Sequence[Mapping[str, Any]] = ()
    ordering: Sequence[str] = tuple(_BY_ID)
    selected: Sequence[int] = ()

    def query(self, after_id: int = 0) -> dict[str, Any]:
        """What `/api/tasks` is asked: the unlabelled tasks in this order, those with a greater id than `after_id`."""
        if self.either:  # the data manager joins all by "and" or all by "or": each alternative carries the other condition
            filters = {"conjunction": "or", "items": [dict(item) | {"child_filter": _UNLABELLED} for item in self.either]}
        else:
            start = [_item("id", "greater", "Number", after_id)] if after_id else []
            filters = {"conjunction": "and", "items": [*self.items, _UNLABELLED, *start]}
        selected = {"selectedItems": {"all": False, "included": list(self.selected)}} if self.selected else {}
        return {"filters": filters, "ordering": list(self.ordering)} | selected


def orders_of(project: Mapping[str, Any], tabs: Sequence[Mapping[str, Any]]) -> list[TaskOrder]:
    """Every way that people may be going.

    Args:
        project: As `/api/projects/ID` has it.
        tabs: As `/api/dm/views` has them, of all users.
    """
    found = _stream(project)
    if not any(order.walk == "by_id" for order in found):
        found.append(TaskOrder("rows", "by_id"))
    newest = sorted(tabs, key=lambda tab: int(tab["id"]), reverse=True)
    return found + [order for tab in newest if (order := _of_tab(tab)) is not None][:MOST_TABS]


def _stream(project: Mapping[str, Any]) -> list[TaskOrder]:
    begun = int(project.get("maximum_annotations") or 1) > 1
    found = [TaskOrder(STREAM, "any", [_item("total_annotations", "greater", "Number", 0)])] if begun else []
    sampling = project.get("sampling") or _SEQUENTIAL
    if sampling == _SEQUENTIAL:
        first = [TaskOrder(STREAM, "by_id", [_item("overlap", "greater", "Number", 1)])] if project.get("show_overlap_first") else []
        return [*found, *first, TaskOrder(STREAM, "by_id")]
    if sampling == _UNCERTAINTY:
        found.append(TaskOrder(STREAM, "listed", ordering=["tasks:predictions_score"]))
    return [*found, TaskOrder(STREAM, "any")]


def _of_tab(tab: Mapping[str, Any]) -> TaskOrder | None:
    """None: it has no order of its own, or one that cannot be asked for together with "unlabelled"."""
    data = tab.get("data") or {}
    filters, ordering = data.get("filters") or {}, list(data.get("ordering") or _BY_ID)
    items = [{key: item[key] for key in _FILTER_KEYS if item.get(key) is not None} for item in filters.get("items") or ()]
    selected = (data.get("selectedItems") or {}).get("included") or []
    selected = selected if len(selected) <= MOST_SELECTED else []
    if not items and not selected and ordering == _BY_ID:
        return None
    is_either = len(items) > 1 and filters.get("conjunction") == "or"
    if is_either and any("child_filter" in item for item in items):
        return None
    walk: Literal["by_id", "listed"] = "by_id" if ordering == _BY_ID and not is_either else "listed"
    name = f"tab {tab['id']}"
    return TaskOrder(name, walk, () if is_either else items, items if is_either else (), ordering, selected)
