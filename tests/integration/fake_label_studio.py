"""A Label Studio of tasks and predictions over HTTP: as far as whole projects are concerned, it answers as 1.23.2 does.

It may be stopped and started again on the same port with what it stored, and may lose the answer to what it has just stored.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))
from data_manager import found

TOKEN = "0123456789abcdef0123456789abcdef01234567"
_SHOWN = 500


class Studio:
    """What it stores, and the server in front of it."""

    def __init__(self, label_config: str) -> None:
        self.project = {"id": 1, "title": "A project", "label_config": label_config, "model_version": "", "task_number": 0}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.predictions: dict[int, dict[str, Any]] = {}
        self.tabs: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.asked: list[str] = []
        self.n_added = 0
        self.loses_every = 0
        """Every nth prediction is stored and its answer never sent."""
        self.is_late_every = 0
        """Every nth prediction is stored after a proxy has given up on it."""
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_tasks(self, *datas: dict[str, Any], **more: Any) -> None:
        for data in datas:
            task_id = len(self.tasks) + 1
            self.tasks[task_id] = {"id": task_id, "project": 1, "data": data, "annotations": [], "drafts": []} | more
        self.project["task_number"] = len(self.tasks)

    def start(self) -> None:
        studio = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                """A connection that was cut is no news."""

        class Handler(_Handler):
            pass

        Handler.studio = studio
        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            self._thread.join()

    @property
    def is_up(self) -> bool:
        return self._server is not None

    def predictions_of(self, task_id: int) -> list[dict[str, Any]]:
        return [prediction for prediction in self.predictions.values() if prediction["task"] == task_id]

    def row(self, task: dict[str, Any], query: dict[str, str]) -> dict[str, Any]:
        """A task as it is listed."""
        stored = self.predictions_of(task["id"])
        asked = json.loads(query.get("query", "{}"))
        counts = {
            "total_predictions": len(stored),
            "total_annotations": len([a for a in task["annotations"] if not a.get("was_cancelled")]),
        }
        row = {name: value for name, value in task.items() if name not in {"annotations", "drafts"}} | counts
        if query.get("fields") == "all":
            return row | {"annotations": task["annotations"], "drafts": task["drafts"], "predictions": stored}
        hidden = asked.get("hiddenColumns", {}).get("explore")
        is_shown = hidden is not None and "tasks:predictions_model_versions" not in hidden
        versions = ",".join(dict.fromkeys(prediction["model_version"] for prediction in stored))
        return row | {"predictions_model_versions": versions[:_SHOWN].replace('"', "") if is_shown else ""}


def _reviewed(task: dict[str, Any]) -> dict[str, Any]:
    """A task with the columns that the next ones are chosen by."""
    n_annotations = len([a for a in task["annotations"] if not a.get("was_cancelled")])
    columns = {"is_labeled": n_annotations > 0, "total_annotations": n_annotations, "overlap": 1, "predictions_score": None}
    return {"id": task["id"], "data": task["data"]} | columns


class _Handler(BaseHTTPRequestHandler):
    studio: Studio
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.studio.is_up:
            self.close_connection = True
            return
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        with self.studio.lock:
            self.studio.asked.append(f"{self.command} {split.path}")
            status, answer = self._answer(split.path, query, json.loads(body) if body else {})
        if status == 0:
            self.close_connection = True
            return
        data = b"" if status == 204 else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def _answer(self, path: str, query: dict[str, str], body: dict[str, Any]) -> tuple[int, Any]:
        studio = self.studio
        if path != "/api/version" and self.headers.get("Authorization") != f"Token {TOKEN}":
            return 401, {"detail": "Invalid token."}
        if path == "/api/version":
            return 200, {"release": "1.23.2"}
        if path == "/api/current-user/whoami":
            return 200, {"email": "a@b.example"}
        if path == "/api/projects/1":
            studio.project |= body
            return 200, studio.project
        if path == "/api/dm/views":
            return 200, studio.tabs
        if path == "/api/tasks":
            return 200, self._page(query)
        if match := re.fullmatch(r"/api/tasks/(\d+)", path):
            task = studio.tasks.get(int(match[1]))
            return (200, task | {"predictions": studio.predictions_of(task["id"])}) if task else (404, {"detail": "Not found."})
        if path == "/api/predictions" and self.command == "GET":
            return 200, studio.predictions_of(int(query["task"]))
        if path == "/api/predictions":
            return self._add(body)
        if match := re.fullmatch(r"/api/predictions/(\d+)", path):
            prediction_id = int(match[1])
            if prediction_id not in studio.predictions:
                return 404, {"detail": "Not found."}
            if self.command == "DELETE":
                del studio.predictions[prediction_id]
                return 204, {}
            studio.predictions[prediction_id] |= body
            return 200, studio.predictions[prediction_id]
        return 404, {"detail": "Not found."}

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        asked = json.loads(query.get("query", "{}"))
        if "review" in query and query.get("fields") != "all":
            tasks = found([_reviewed(task) for task in self.studio.tasks.values()], asked)
            return {"tasks": tasks[: int(query["page_size"])], "total": len(tasks)}
        included = asked.get("selectedItems", {}).get("included")
        tasks = [task for task in self.studio.tasks.values() if included is None or task["id"] in included]
        if asked.get("filters"):
            tasks = [task for task in tasks if task["annotations"]]
        first = (int(query["page"]) - 1) * int(query["page_size"])
        page = tasks[first : first + int(query["page_size"])]
        return {"tasks": [self.studio.row(task, query) for task in page], "total": len(tasks)}

    def _add(self, body: dict[str, Any]) -> tuple[int, Any]:
        studio = self.studio
        if body["task"] not in studio.tasks:
            return 400, {"task": ["Invalid pk - object does not exist."]}
        studio.n_added += 1
        prediction_id = studio.n_added
        if studio.is_late_every and prediction_id % studio.is_late_every == 0:
            threading.Timer(0.3, self._store_late, (prediction_id, body)).start()
            return 504, {"detail": "Gateway time-out"}
        studio.predictions[prediction_id] = {"id": prediction_id} | body
        is_lost = studio.loses_every and studio.n_added % studio.loses_every == 0
        return (0 if is_lost else 201), studio.predictions[prediction_id]

    def _store_late(self, prediction_id: int, body: dict[str, Any]) -> None:
        with self.studio.lock:
            self.studio.predictions[prediction_id] = {"id": prediction_id} | body

    def log_message(self, *_: object) -> None:
        """Quiet."""
