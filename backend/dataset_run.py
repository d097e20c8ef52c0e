"""Tasks through many hands: a bounded number at a time, as many as the live workers can use; failures are kept, stopping is orderly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from backend import logs
from backend.alone import Stopped
from backend.dispatch import Dispatcher
from backend.progress import Progress
from backend.task_runner import Outcome
from sam2_backend.errors import Sam2BackendError
from sam2_backend.settings import Settings

MOST_HANDS = 64
_LOOK_EVERY_S = 0.5
HOPELESS = 50
"""When so many tasks have failed for one reason and none was done, the others are not begun."""
_MOST_REMARKS = 20
"""Said while it runs; all failures are listed at the end."""


@dataclass(slots=True)
class DatasetRun:
    """One command over a project's tasks.

    Args:
        work: Does one task; called from several threads.
        stopped: Set: no further task is begun, and those in hand end soon.

    Attributes:
        failed: (task id, why), in the order in which they failed.
        remarks: So many sentences were said of single tasks.
        is_hopeless: All fail alike; not all were begun.
    """

    settings: Settings
    dispatcher: Dispatcher
    work: Callable[[Mapping[str, Any]], Outcome]
    progress: Progress
    stopped: threading.Event
    failed: list[tuple[int, str]] = field(default_factory=list)
    remarks: int = 0
    is_hopeless: bool = False
    _in_hand: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def run(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Do every task; returns when the last is done.

        Raises:
            Sam2BackendError: listing the tasks failed; those in hand are finished first.
        """
        with ThreadPoolExecutor(MOST_HANDS, "task") as pool:
            for row in rows:
                if not self._free_hand():
                    break
                pool.submit(self._do, row)
            with self._changed:
                while self._in_hand:
                    self._changed.wait(_LOOK_EVERY_S)  # in pieces, so that a signal comes through

    def _free_hand(self) -> bool:
        """Wait until another task may begin; False: stopped."""
        with self._changed:
            while self._in_hand >= self._hands() and not self.stopped.is_set():
                self._changed.wait(_LOOK_EVERY_S)
            if self.stopped.is_set() or self.is_hopeless:
                return False
            self._in_hand += 1
            return True

    def _await_all(self) -> None:
        with self._changed:
            while self._in_hand:
                self._changed.wait(_LOOK_EVERY_S)  # in pieces, so that Ctrl-C comes through

    def _hands(self) -> int:
        """So many tasks at a time; workers that come and go change it."""
        try:
            workers = self.dispatcher.workers()
        except Sam2BackendError:
            workers = []
        return min(MOST_HANDS, max(1, len(workers)) * self.settings.preannotate_in_flight)

    def _do(self, row: Mapping[str, Any]) -> None:
        task_id = int(row["id"])
        try:
            self._note(task_id, self.work(row))
        except Stopped:
            pass
        except Sam2BackendError as error:
            if not self.stopped.is_set():
                self._fail(task_id, f"{error.message} ({error.code})")
        except Exception as error:
            self._fail(task_id, f"{type(error).__name__}: {logs.one_line(str(error), limit=200)} (a fault of sam2-backend)")
        finally:
            with self._changed:
                self._in_hand -= 1
                self._changed.notify_all()

    def _note(self, task_id: int, outcome: Outcome) -> None:
        counts = {outcome.kind: 1, "images": outcome.n_images, "hits": outcome.n_hits, "regions": outcome.n_regions}
        self.progress.add(**counts, model_ms=outcome.model_ms)
        for remark in outcome.remarks:
            self.remarks += 1
            if self.remarks <= _MOST_REMARKS:
                self.progress.say(f"task {task_id}: {remark}")

    def _fail(self, task_id: int, reason: str) -> None:
        with self._changed:
            self.failed.append((task_id, reason))
            alike = len(self.failed) >= HOPELESS and len({why for _, why in self.failed}) == 1
            self.is_hopeless = alike and not self.progress.counts.stored
        if len(self.failed) <= _MOST_REMARKS:
            self.progress.say(f"task {task_id}: FAILED, {reason}")
        self.progress.add(failed=1)
