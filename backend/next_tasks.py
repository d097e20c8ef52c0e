"""Whoever opens the next task finds its images embedded: what Label Studio would give next is asked for, and warmed, while people work.

Told of tasks by every request that names one, and asks Label Studio in a thread of its own, a few times in two minutes for each project
that is worked on. Without an address and a token of Label Studio, and in projects without images, it does nothing.
"""

from __future__ import annotations

import itertools
import logging
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from backend import logs
from backend.dispatch import Dispatcher
from backend.events import Event, ahead_event
from backend.fast_json import loads
from backend.followed_orders import FollowedOrders, most_ahead
from backend.label_studio import LabelStudio, LabelStudioError
from backend.projects import project_name
from backend.upcoming_tasks import ProjectOrders, Upcoming
from sam2_backend.errors import MediaError, Sam2BackendError
from sam2_backend.messages import MediaRef, WarmJob
from sam2_backend.settings import Settings

log = logging.getLogger(__name__)

MOST_IMAGES_AHEAD = 64
"""Images sent to the workers at a time: a task may have hundreds of pages."""
ASK_TIMEOUT_S = 5.0
MOST_PROJECTS = 50
_MOST_WAITING = 256
_QUIET_S = 30.0
"""Clicks on one task are told of once in so long."""
_WARM_AGAIN_S = 300.0
_PAUSE_S = 30.0
"""How long a project is left alone whose questions Label Studio did not answer."""
_COMPLAIN_AGAIN_S = 600.0
_MOST_REMEMBERED = 5000
_MOST_EVENT_BYTES = 256 << 10
"""Whoever submits a larger annotation has masks in it, and so has clicked."""
_STOP_S = 10.0
_PROJECT = re.compile(r"([0-9]{1,18})(\.|$)")
WORK = frozenset({"ANNOTATION_CREATED", "ANNOTATION_UPDATED"})
"""Webhooks of somebody at a task."""


class _Project:
    """What is known of one project; of the thread alone. Times in monotonic seconds."""

    def __init__(self, project_id: int, settings: Settings) -> None:
        self.orders = ProjectOrders(project_id, settings, 2 * most_ahead(settings.warm_next_tasks))
        self.followed = FollowedOrders(settings.warm_next_tasks)
        self.warmed: OrderedDict[int, float] = OrderedDict()
        self.left_alone_until = 0.0

    def due(self, tasks: Sequence[Upcoming]) -> list[Upcoming]:
        """Those that were not sent lately."""
        now = time.monotonic()
        return [task for task in tasks if now - self.warmed.get(task.task_id, -_WARM_AGAIN_S) >= _WARM_AGAIN_S]


class Ahead:
    """Embeds the next tasks of the projects that are worked on. `seen`, `connected` and `heard` return at once, from any thread."""

    def __init__(
        self,
        settings: Settings,
        dispatcher: Dispatcher,
        media_ref: Callable[[str], MediaRef],
        connect: Callable[[Settings], LabelStudio] | None = None,
    ) -> None:
        """Starts nothing and connects to nothing yet.

        Args:
            media_ref: Makes of an address what workers can fetch.
            connect: Makes the client of Label Studio.
        """
        self._settings, self._dispatcher, self._media_ref = settings, dispatcher, media_ref
        self._connect = connect or _connect
        self._is_on = bool(settings.warm_next_tasks and settings.label_studio_url and settings.label_studio_api_key)
        self._waiting: queue.Queue[tuple[int, int] | bytes | None] = queue.Queue(_MOST_WAITING)  # (project, task), or a webhook's body
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._told: OrderedDict[tuple[int, int], float] = OrderedDict()
        self._names: OrderedDict[int, str] = OrderedDict()
        self._projects: OrderedDict[int, _Project] = OrderedDict()
        self._complained: OrderedDict[str, float] = OrderedDict()
        self.record: Callable[[Event], None] = lambda _event: None
        """Called with what the status page is to show."""

    def seen(self, project: str, task_id: Any) -> None:
        """Somebody opened a task, or drew on it.

        Args:
            project: `<id>.<unix time>`, as in /predict.
            task_id: As it came; what is no id is passed over.
        """
        match = _PROJECT.match(project)
        if self._is_on and match and isinstance(task_id, int) and not isinstance(task_id, bool) and 0 < task_id < 1 << 63:
            self._tell(project, int(match[1]), task_id)

    def connected(self, project: str) -> None:
        """A project was connected, or its tasks are looked at: the first ones are next."""
        match = _PROJECT.match(project)
        if self._is_on and match:
            self._tell(project, int(match[1]), 0)

    def heard(self, event: bytes) -> None:
        """A webhook's body, unread: somebody may have submitted a task. Only projects that are known from /setup or /predict count."""
        if self._is_on and len(event) <= _MOST_EVENT_BYTES:
            self._put(event)

    def stop(self) -> None:
        """End the thread; what waits is dropped."""
        with self._lock:
            self._is_on, thread = False, self._thread
        if thread is not None:
            self._waiting.put(None, timeout=_STOP_S)
            thread.join(_STOP_S)

    def _tell(self, project: str, project_id: int, task_id: int) -> None:
        now, key = time.monotonic(), (project_id, task_id)
        with self._lock:
            _remember(self._names, project_id, project_name(project))
            if now - self._told.get(key, -_QUIET_S) < _QUIET_S:
                return
            _remember(self._told, key, now)
        self._put(key)

    def _put(self, item: tuple[int, int] | bytes) -> None:
        with self._lock:
            if self._is_on and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="next-tasks", daemon=True)
                self._thread.start()
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            log.debug("next tasks: too much waits")

    def _work(self) -> None:
        studio = self._connect(self._settings)
        try:
            while (item := self._waiting.get()) is not None:
                if not self._is_on:
                    continue
                try:
                    self._listen(item) if isinstance(item, bytes) else self._attend(studio, *item)
                except Exception:
                    log.exception("next tasks")
        finally:
            studio.close()

    def _listen(self, event: bytes) -> None:
        """What a webhook says of a task, as if it had been seen."""
        try:
            body = loads(event)
        except (ValueError, RecursionError):
            return
        annotation = body.get("annotation") if isinstance(body, dict) and body.get("action") in WORK else None
        if not isinstance(annotation, dict) or not isinstance(annotation.get("project"), int):
            return
        with self._lock:
            name = self._names.get(annotation["project"])
        if name is not None:
            self.seen(name, annotation.get("task"))

    def _attend(self, studio: LabelStudio, project_id: int, task_id: int) -> None:
        started, project = time.monotonic(), self._project(project_id)
        if started < project.left_alone_until:
            return
        try:
            tasks = project.due(self._next_tasks(studio, project, task_id))
            uris = self._warm(tasks)
        except Sam2BackendError as error:
            project.left_alone_until = time.monotonic() + _PAUSE_S
            self._complain(project_id, error)
            return
        for task in tasks:
            _remember(project.warmed, task.task_id, started)
        if uris:
            facts = {"project": project_id, "task": task_id or "-", "tasks": len(tasks), "images": len(uris)}
            logs.event(log, "warm_ahead", facts | {"asked_ms": round((time.monotonic() - started) * 1e3, 1)})
            self.record(ahead_event(self._name(project_id), uris))

    def _next_tasks(self, studio: LabelStudio, project: _Project, task_id: int) -> list[Upcoming]:
        try:
            return project.followed.come_to(task_id, project.orders.current(studio))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LabelStudioError(f"Label Studio's answer is not understood ({type(error).__name__}: {error}).") from error

    def _warm(self, tasks: Sequence[Upcoming]) -> list[str]:
        """Send images of tasks to the workers, the first page of each first; returns their addresses."""
        pages = itertools.chain.from_iterable(itertools.zip_longest(*(task.uris for task in tasks)))
        uris = list(itertools.islice(dict.fromkeys(uri for uri in pages if uri), MOST_IMAGES_AHEAD))
        jobs = [WarmJob(media) for uri in uris if (media := self._media(uri)) is not None]
        if jobs:
            self._dispatcher.warm(jobs)
        return [job.media.uri for job in jobs]

    def _media(self, uri: str) -> MediaRef | None:
        try:
            return self._media_ref(uri)
        except MediaError:  # whoever opens the task is told
            return None

    def _project(self, project_id: int) -> _Project:
        if project_id not in self._projects:
            self._projects[project_id] = _Project(project_id, self._settings)
        self._projects.move_to_end(project_id)
        while len(self._projects) > MOST_PROJECTS:
            self._projects.popitem(last=False)
        return self._projects[project_id]

    def _complain(self, project_id: int, error: Sam2BackendError) -> None:
        """Once in a while, however often it happens."""
        now, words = time.monotonic(), f"The next tasks are not embedded ahead: {error.message}"
        if now - self._complained.get(words, -_COMPLAIN_AGAIN_S) >= _COMPLAIN_AGAIN_S:
            _remember(self._complained, words, now)
            logs.event(log, "not_warmed_ahead", {"project": project_id, "code": error.code, "message": words}, level=logging.WARNING)
            self.record(Event("note", "failed", words, self._name(project_id), code=error.code))

    def _name(self, project_id: int) -> str:
        with self._lock:
            return self._names.get(project_id, str(project_id))


def _connect(settings: Settings) -> LabelStudio:
    return LabelStudio(settings.label_studio_url, settings.label_studio_api_key, timeout_s=ASK_TIMEOUT_S)


def _remember(known: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    """Keep it as the newest of a bounded number."""
    known[key] = value
    known.move_to_end(key)
    while len(known) > _MOST_REMEMBERED:
        known.popitem(last=False)
