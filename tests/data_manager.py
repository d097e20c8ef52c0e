"""Tasks and the queries of Label Studio's data manager on them, as far as `backend.task_orders` uses them: filters, ordering, selection.

`tests/acceptance/test_next_tasks.py` holds it to the real one.
"""

from __future__ import annotations

from typing import Any


def task(task_id: int, **fields: Any) -> dict[str, Any]:
    """A task as it is listed; its image is `http://images.test/<id>.png`, and what is in `data` beside it comes by name."""
    columns = {"is_labeled": False, "total_annotations": 0, "overlap": 1, "predictions_score": None}
    return {"id": task_id, **columns, **{name: fields.pop(name) for name in list(fields) if name in columns}} | {
        "data": {"image": f"http://images.test/{task_id}.png"} | fields
    }


def found(tasks: list[dict[str, Any]], query: dict[str, Any]) -> list[dict[str, Any]]:
    """What a query finds, in its order."""
    filters = query.get("filters") or {"conjunction": "and", "items": []}
    of_all = any if filters["conjunction"] == "or" else all
    passed = [row for row in tasks if not filters["items"] or of_all(_passes(row, item) for item in filters["items"])]
    selected = query.get("selectedItems")
    if selected and not selected["all"]:
        passed = [row for row in passed if row["id"] in selected["included"]]
    column = (query.get("ordering") or ["tasks:id"])[0]
    name = column.replace("-", "").removeprefix("tasks:")
    known = [row for row in passed if _value(row, name) is not None]
    return sorted(known, key=lambda row: _value(row, name), reverse="-" in column) + [row for row in passed if row not in known]


def _passes(row: dict[str, Any], item: dict[str, Any]) -> bool:
    value, wanted = _value(row, item["filter"].removeprefix("filter:tasks:")), item["value"]
    is_so = {"equal": lambda: value == wanted, "greater": lambda: value > wanted, "less": lambda: value < wanted}[item["operator"]]()
    return is_so and ("child_filter" not in item or _passes(row, item["child_filter"]))


def _value(row: dict[str, Any], name: str) -> Any:
    return row["data"].get(name.removeprefix("data.")) if name.startswith("data.") else row[name]


class Studio:
    """`backend.label_studio.LabelStudio` of one project, without HTTP; counts what it is asked."""

    def __init__(self, label_config: str, tasks: list[dict[str, Any]], **settings: Any) -> None:
        self.fields = {"label_config": label_config, "sampling": "Sequential sampling", "maximum_annotations": 1} | settings
        self.tasks, self.listed_tabs = tasks, []
        self.asked: list[str] = []
        self.fails: Exception | None = None
        self.is_closed = False

    def tab(
        self, tab_id: int, ordering: str = "", conjunction: str = "and", items: list[dict[str, Any]] = (), selected: list[int] = ()
    ) -> None:
        """Add a tab, as `/api/dm/views` lists it."""
        data: dict[str, Any] = {"title": f"tab {tab_id}"}
        data |= {"ordering": [ordering]} if ordering else {}
        data |= {"filters": {"conjunction": conjunction, "items": list(items)}} if items else {}
        data |= {"selectedItems": {"all": False, "included": list(selected)}} if selected else {}
        self.listed_tabs.append({"id": tab_id, "data": data, "order": 0, "user": 1, "project": 1})

    def label(self, *task_ids: int) -> None:
        for row in self.tasks:
            row["is_labeled"] = row["is_labeled"] or row["id"] in task_ids

    def project_fields(self, project_id: int, *names: str) -> dict[str, Any]:
        self._ask("project")
        return {name: self.fields.get(name) for name in names}

    def tabs(self, _project_id: int) -> list[dict[str, Any]]:
        self._ask("tabs")
        return self.listed_tabs

    def first_tasks(self, _project_id: int, query: dict[str, Any], count: int) -> tuple[list[dict[str, Any]], int]:
        self._ask("tasks")
        rows = found(self.tasks, query)
        return rows[:count], len(rows)

    def close(self) -> None:
        self.is_closed = True

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.fails:
            raise self.fails


def like(column: str, operator: str, value: Any, kind: str = "String") -> dict[str, Any]:
    """A filter of a tab."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
