"""Which of a project's orders its people follow, told by the tasks that they come to; and so which tasks to have ready. Used by one thread.

An order that foretold a task that was come to is followed. Until one is, that is the label stream; of the others the very next task is made
ready, so that whoever begins to follow one is noticed.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from backend.task_orders import STREAM
from backend.upcoming_tasks import Upcoming, UpcomingTasks

_PASSED_S = 600.0
"""A task that was come to is not made ready again for so long."""
_PACE_S = 60.0
_MOST_TIMES_AHEAD, _MOST_AHEAD = 10, 50
_REMEMBERED_STEPS = 20
_REMEMBERED_PROMISES = 8
_MOST_PASSED = 5000


def most_ahead(n_ahead: int) -> int:
    """The most tasks of one order that are made ready at a time, however fast people are."""
    return min(n_ahead * _MOST_TIMES_AHEAD, max(n_ahead, _MOST_AHEAD))


@dataclass(slots=True)
class FollowedOrders:
    """One project.

    Args:
        n_ahead: Tasks to have ready in an order that is followed; more where more were come to in the last minute.
    """

    n_ahead: int
    _passed: OrderedDict[int, float] = field(default_factory=OrderedDict)
    _proofs: deque[set[str]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_STEPS))
    _promises: dict[str, deque[set[int]]] = field(default_factory=dict)

    def come_to(self, task_id: int, orders: Sequence[UpcomingTasks]) -> list[Upcoming]:
        """Somebody is at a task; which tasks are to be ready, the most likely first.

        Args:
            task_id: 0: nobody yet, the project was connected or its tasks are looked at.
            orders: All of the project.

        Raises:
            LabelStudioError: Label Studio does not answer, or refuses.
        """
        if task_id:
            self._note(task_id)
        followed = self._followed(orders)
        chosen: dict[int, Upcoming] = {}
        n_hedged = 0
        for upcoming in sorted(orders, key=lambda one: one.order.group not in followed):
            group = upcoming.order.group
            count = most_ahead(self.n_ahead) if upcoming.order.walk == "any" else self._count()
            tasks = upcoming.after(task_id, count, self._passed)
            if upcoming.order.walk != "any":
                self._promises.setdefault(group, deque(maxlen=_REMEMBERED_PROMISES)).append({task.task_id for task in tasks})
            if group not in followed:
                tasks = tasks[: min(1, self.n_ahead - n_hedged)]
                n_hedged += len(tasks)
            chosen |= {task.task_id: task for task in tasks if task.task_id not in chosen}
        return list(chosen.values())

    def _note(self, task_id: int) -> None:
        now = time.monotonic()
        if task_id not in self._passed:
            foretold = {group for group, steps in self._promises.items() if any(task_id in step for step in steps)}
            self._proofs.append({STREAM} if STREAM in foretold else foretold)
        self._passed.setdefault(task_id, now)
        while self._passed and (now - next(iter(self._passed.values())) > _PASSED_S or len(self._passed) > _MOST_PASSED):
            self._passed.popitem(last=False)

    def _followed(self, orders: Sequence[UpcomingTasks]) -> Container[str]:
        proven: set[str] = set().union(*self._proofs)
        # Where the next task is anywhere, none can be foretold.
        anywhere = {upcoming.order.group for upcoming in orders if upcoming.order.walk == "any"}
        return (proven or {STREAM}) | anywhere

    def _count(self) -> int:
        """As many as people get through in a minute, within limits."""
        now = time.monotonic()
        n_lately = sum(now - at < _PACE_S for at in self._passed.values())
        return min(max(self.n_ahead, n_lately), most_ahead(self.n_ahead))
