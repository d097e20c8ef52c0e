"""Label Studio for work on whole projects: light listings, predictions stored once, and patience with a server that restarts.

Opening a task through `/api/tasks/ID` makes Label Studio ask the project's backend for a prediction; nothing here does that.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import requests

from backend.label_studio import LabelStudio, LabelStudioAwayError, LabelStudioError

PATIENCE_S = 600.0
"""How long a Label Studio that does not answer is waited for."""
LONGEST_PAUSE_S = 15.0
_STORED_TRIES = 4
_STORED_LATE_S = 1.0
"""A request whose answer was lost may still be at work."""
_BUSY = HTTPStatus.INTERNAL_SERVER_ERROR
"""As its SQLite is, where many write at a time."""
_POST_S = 120.0
_WHOLE = {"resolve_uri": "false", "fields": "all", "review": "true"}
"""Annotations, drafts and predictions, and no column of the data manager. Only a review does not make a project that evaluates predictions
automatically ask its backend about every task."""
_WHOLE_TASKS_AT_A_TIME = 25
"""With their masks, tasks take megabytes."""
_MOST_SHOWN = 500
"""Characters of a column; a longer one is cut off."""

# The columns that a listing would compute for every task although nobody asks for them.
_HIDDEN = [
    f"tasks:{name}"
    for name in (
        *("annotations_results", "predictions_results", "annotations_ids", "annotators", "predictions_score", "file_upload"),
        *("storage_filename", "completed_at", "avg_lead_time", "updated_by", "draft_exists", "comments", "reviewers", "reviewed"),
    )
]


class DatasetStudio(LabelStudio):
    """One Label Studio, as one user; safe to share between threads.

    Args:
        stopped: Ends every wait.
        tell: Called with words when the server does not answer, and when it does again.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        stopped: threading.Event,
        tell: Callable[[str], None] = lambda _words: None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        super().__init__(base_url, api_key, timeout_s=60.0)
        self._stopped, self._tell, self._patience_s = stopped, tell, patience_s
        self._is_away = False

    def rows(self, project_id: int, tab_id: int = 0) -> Iterator[dict[str, Any]]:
        """Every task without its annotations and predictions, oldest first; addresses as they are stored.

        Args:
            tab_id: Only the tasks that this tab of the data manager shows; 0: all.
        """
        query: dict[str, Any] = {"project": project_id, "resolve_uri": "false"}
        if tab_id:
            query["view"] = tab_id
        else:
            query["query"] = json.dumps({"ordering": ["tasks:id"], "hiddenColumns": {"explore": _HIDDEN, "labeling": _HIDDEN}})
        return self._pages("/api/tasks", "tasks", "total", query)

    def whole_tasks(self, project_id: int, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Tasks with their annotations, predictions, and the drafts of this user; those that are gone are left out."""
        selected = json.dumps({"selectedItems": {"all": False, "included": list(task_ids)}})
        query = {"project": project_id, "query": selected} | _WHOLE
        return list(self._pages("/api/tasks", "tasks", "total", query)) if task_ids else []

    def annotated_tasks(self, project_id: int, tab_id: int = 0) -> Iterator[dict[str, Any]]:
        """Tasks that people annotated, as `whole_tasks`, oldest first.

        Args:
            tab_id: The tasks that this tab of the data manager shows, in its order, whether annotated or not; 0: all of the project.
        """
        item = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
        query = json.dumps({"filters": {"conjunction": "and", "items": [item]}, "ordering": ["tasks:id"]})
        asked: dict[str, Any] = {"project": project_id} | _WHOLE
        asked |= {"view": tab_id} if tab_id else {"query": query}
        newest = 0
        for task in self._pages("/api/tasks", "tasks", "total", asked, page_size=_WHOLE_TASKS_AT_A_TIME):
            if tab_id or int(task["id"]) > newest:  # a task that is annotated meanwhile moves those after it to the next page
                newest = int(task["id"])
                yield task

    def predictions(self, task_id: int) -> list[dict[str, Any]]:
        """The predictions of a task, oldest first."""
        return sorted(self._list("/api/predictions", {"task": task_id}), key=lambda prediction: int(prediction["id"]))

    def store_once(
        self, task_id: int, result: Sequence[Mapping[str, Any]], score: float | None, version: str, replaces: Sequence[str] = ()
    ) -> bool:
        """See to it that a task has this prediction once, and none of those without a result that it takes the place of.

        Args:
            version: Its model version: a task that has one of it keeps that.
            replaces: Model versions of empty predictions that it replaces.

        Returns:
            Whether it was added.

        Raises:
            LabelStudioError: Label Studio refuses it, or is away for too long.
        """
        fields = {"result": list(result), "score": score, "model_version": version}
        was_sent = False
        for left in reversed(range(_STORED_TRIES)):
            try:
                is_new = self._store(task_id, fields, replaces)
                if was_sent:
                    self._drop_doubles(task_id, version)
                return is_new or was_sent
            except LabelStudioError as error:
                if not left or (error.answered != _BUSY and not isinstance(error, LabelStudioAwayError)):
                    raise
            was_sent = True  # it may have been stored before the answer was lost, or be stored now: the next try looks
            self._stopped.wait(_STORED_LATE_S)
        raise AssertionError

    def _drop_doubles(self, task_id: int, version: str) -> None:
        """Of several predictions of one version the first stays: a request whose answer a proxy gave up on may have been done after all."""
        found = [prediction["id"] for prediction in self.predictions(task_id) if prediction.get("model_version") == version]
        for prediction_id in found[1:]:
            self._delete(prediction_id)

    def _store(self, task_id: int, fields: dict[str, Any], replaces: Sequence[str]) -> bool:
        stored = self.predictions(task_id)
        is_there = any(prediction.get("model_version") == fields["model_version"] for prediction in stored)
        empty = [prediction["id"] for prediction in stored if not prediction.get("result") and prediction.get("model_version") in replaces]
        if not is_there and empty:
            self._send("PATCH", f"/api/predictions/{empty.pop(0)}", fields, timeout_s=_POST_S)
        elif not is_there:
            self._send("POST", "/api/predictions", {"task": task_id} | fields, timeout_s=_POST_S)
        for prediction_id in empty:
            self._delete(prediction_id)
        return not is_there

    def _delete(self, prediction_id: int) -> None:
        try:
            self._request("DELETE", f"/api/predictions/{prediction_id}")
        except LabelStudioError as error:
            if error.answered != HTTPStatus.NOT_FOUND:
                raise

    def _request(self, method: str, path: str, timeout_s: float | None = None, **arguments: Any) -> requests.Response:
        """A request that adds something is sent once: where its answer is lost, this returns when the server is back, with the error."""
        gives_up_at, pause_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                response = super()._request(method, path, timeout_s, **arguments)
            except LabelStudioAwayError as error:
                self._note(error.message)
                if method == "POST":
                    self._request("GET", "/api/version")
                    raise
                if time.monotonic() + pause_s > gives_up_at or self._stopped.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._note("")
                return response

    def _note(self, trouble: str) -> None:
        if bool(trouble) != self._is_away:
            self._is_away = bool(trouble)
            self._tell(f"{trouble} Waiting for it." if trouble else "Label Studio answers again.")


def versions_listed(row: Mapping[str, Any]) -> set[str] | None:
    """The model versions of a listed task's predictions; None: the listing does not tell."""
    if not row.get("total_predictions"):
        return set()
    text = row.get("predictions_model_versions")
    if not isinstance(text, str) or not text or len(text) >= _MOST_SHOWN:
        return None
    return {version.strip() for version in text.split(",")}
