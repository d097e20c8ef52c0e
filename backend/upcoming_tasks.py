"""The next tasks of a project's orders, as Label Studio listed them a short while ago. Used by one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.label_config import LabelConfig, parse_label_config
from backend.label_studio import LabelStudio
from backend.task_media import image_uris
from backend.task_orders import PROJECT_FIELDS, TaskOrder, orders_of
from sam2_backend.errors import MediaError, RequestError
from sam2_backend.settings import Settings

KEEP_S = 120.0
"""How long a listing is trusted: what was labelled since is listed still, and does no harm."""
_END_KEPT_S = 20.0
"""The same where the listing reaches the end of the project: tasks may have been added."""
_ASK_EVERY_S = 5.0
_MOST_KEPT_CHARACTERS = 64 * 1024
"""Of the addresses of one task; longer ones hold the images themselves."""
_MOST_WINDOWS = 4
"""Places of a project where people are at work that are kept; beyond them the one unused for longest is asked for again."""


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A task that may be opened soon, and the addresses of its images."""

    task_id: int
    uris: tuple[str, ...]

    @classmethod
    def listed(cls, row: Mapping[str, Any], config: LabelConfig, settings: Settings) -> Upcoming:
        """A task as it is listed; without addresses where its data holds the images themselves or cannot be used, which is told when it is opened."""
        try:
            uris = tuple(uri for tag in config.images for uri in image_uris(row, tag, settings))
        except (RequestError, MediaError):
            uris = ()
        return cls(int(row["id"]), uris if sum(map(len, uris)) <= _MOST_KEPT_CHARACTERS else ())


Listing = tuple[Sequence[Upcoming], bool]
"""The first tasks that a query finds, and whether these are all."""


@dataclass(frozen=True, slots=True)
class _Window:
    """What was listed at a time (monotonic seconds), of ids greater than `after_id`."""

    after_id: int
    tasks: Sequence[Upcoming]
    is_all: bool
    read_at: float


class UpcomingTasks:
    """What comes next in one order; asks Label Studio when a listing is used up or old.

    Args:
        order: Which.
        ask: Sends a query to Label Studio.
    """

    def __init__(self, order: TaskOrder, ask: Callable[[Mapping[str, Any]], Listing]) -> None:
        self.order, self._ask = order, ask
        self._windows: list[_Window] = []

    def after(self, task_id: int, count: int, passed: Container[int]) -> list[Upcoming]:
        """The next tasks.

        Args:
            task_id: The one that is being worked on; 0: the beginning.
            count: At most so many.
            passed: Tasks that are in work already, or done.

        Raises:
            LabelStudioError: Label Studio does not answer, or refuses.
        """
        for window in self._windows:
            left = self._left(window, task_id, passed)
            if self._suffices(window, task_id, len(left), count):
                self._keep(window)
                return left[:count]
        after_id = task_id if self.order.walk == "by_id" else 0
        tasks, is_all = self._ask(self.order.query(after_id))
        window = _Window(after_id, tasks, is_all, time.monotonic())
        self._keep(window)
        return self._left(window, task_id, passed)[:count]

    def _left(self, window: _Window, task_id: int, passed: Container[int]) -> list[Upcoming]:
        return [task for task in self._following(window.tasks, task_id) if task.task_id not in passed]

    def _following(self, tasks: Sequence[Upcoming], task_id: int) -> Sequence[Upcoming]:
        """Where a task is not in its listing any more it has been labelled, and the first is the next."""
        if self.order.walk == "by_id":
            return [task for task in tasks if task.task_id > task_id]
        place = next((place for place, task in enumerate(tasks) if task.task_id == task_id), -1)
        return tasks if self.order.walk == "any" else tasks[place + 1 :]

    def _suffices(self, window: _Window, task_id: int, n_left: int, count: int) -> bool:
        age_s = time.monotonic() - window.read_at
        if age_s > KEEP_S or (self.order.walk == "by_id" and task_id < window.after_id):
            return False
        would_be_same = self.order.walk != "by_id" or task_id == window.after_id
        return n_left >= count or (window.is_all and age_s < _END_KEPT_S) or (would_be_same and age_s < _ASK_EVERY_S)

    def _keep(self, window: _Window) -> None:
        """The one used last stands first."""
        others = [kept for kept in self._windows if kept is not window and time.monotonic() - kept.read_at < KEEP_S]
        self._windows = [window, *others][:_MOST_WINDOWS]


class ProjectOrders:
    """The orders of one project; asks Label Studio again now and then, because people make tabs and change settings.

    Args:
        n_listed: Tasks of a listing.
    """

    def __init__(self, project_id: int, settings: Settings, n_listed: int) -> None:
        self._project_id, self._settings, self._n_listed = project_id, settings, n_listed
        self._orders: list[UpcomingTasks] = []
        self._config_text = ""
        self._read_at = -KEEP_S

    def current(self, studio: LabelStudio) -> list[UpcomingTasks]:
        """Every order; none where the labeling config has no image.

        Raises:
            LabelStudioError: Label Studio does not answer, or refuses.
            LabelConfigError: the labeling config cannot be read.
        """
        if time.monotonic() - self._read_at >= KEEP_S:
            self._read(studio)
        return self._orders

    def _read(self, studio: LabelStudio) -> None:
        fields = studio.project_fields(self._project_id, *PROJECT_FIELDS)
        text = str(fields.get("label_config") or "")
        config = parse_label_config(text)
        found = orders_of(fields, studio.tabs(self._project_id)) if config.images else []
        before = self._orders if text == self._config_text else []

        def ask(query: Mapping[str, Any]) -> Listing:
            rows, total = studio.first_tasks(self._project_id, query, self._n_listed)
            return [Upcoming.listed(row, config, self._settings) for row in rows], len(rows) >= total

        # Listings stay with the orders that are as they were.
        kept = {index: upcoming for index, order in enumerate(found) for upcoming in before if upcoming.order == order}
        self._orders = [kept.get(index) or UpcomingTasks(order, ask) for index, order in enumerate(found)]
        self._config_text, self._read_at = text, time.monotonic()
