"""The background of projects that are annotated ahead: what was owed is made, and pushed into Label Studio once.

A thread of each web process looks for what is due, and a few hands do it, no more tasks at a time than the workers can use.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from backend import logs
from backend.alone import Stopped
from backend.dataset_studio import DatasetStudio
from backend.dispatch import Dispatcher
from backend.events import Event, stored_event
from backend.owed_tasks import Owed
from backend.preannotator import Preannotator
from backend.slow_jobs import SlowJobs
from backend.task_runner import TaskRunner
from sam2_backend.errors import Sam2BackendError
from sam2_backend.settings import Settings

log = logging.getLogger(__name__)

MOST_HANDS = 8
LOOK_EVERY_S = 1.0
_PATIENCE_S = 60.0
_STOP_S = 10.0


class LatePredictions:
    """Makes and pushes what is owed, from `start` to `stop`."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, preannotator: Preannotator) -> None:
        self._settings, self._dispatcher, self._preannotator = settings, dispatcher, preannotator
        self._owed = preannotator.owed
        self._jobs = SlowJobs(settings, dispatcher)
        self._starting, self._stopping = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._in_hand: set[Owed] = set()
        self._counting = threading.Lock()
        self.record: Callable[[Event], None] = lambda _event: None
        """Called with what the status page is to show."""

    def start(self) -> None:
        """Look after what is owed, in threads of this process. Calling it again does nothing."""
        with self._starting:
            if self._thread is None and self._settings.label_studio_url and self._settings.label_studio_api_key:
                self._thread = threading.Thread(target=self._watch, name="late-predictions", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the threads; what they have in hand is left to others, or to the next start."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                with self._counting:
                    kept = list(self._in_hand)
                self._owed.renew()
                self._owed.keep(kept)
                for owed in self._owed.take(self._free_hands()):
                    with self._counting:
                        self._in_hand.add(owed)
                    # Daemons: a web process that ends waits for none of them.
                    threading.Thread(target=self._attend, args=(owed,), name="late-prediction", daemon=True).start()
            except Sam2BackendError as error:
                log.debug("late predictions wait: %s", error.message)
            except Exception:
                log.exception("late predictions")

    def _free_hands(self) -> int:
        n_workers = len(self._dispatcher.workers())
        with self._counting:
            return max(0, min(MOST_HANDS, n_workers * self._settings.preannotate_in_flight) - len(self._in_hand))

    def _attend(self, owed: Owed) -> None:
        try:
            self._push(owed)
            self._owed.settle(owed)
        except Stopped:
            self._owed.give_back(owed)
        except Sam2BackendError as error:
            self._later(owed, error)
        except Exception:
            log.exception("late prediction of task %d", owed.task_id)
            self._later(owed, Sam2BackendError("A fault of sam2-backend; its log tells more."))
        finally:
            with self._counting:
                self._in_hand.discard(owed)

    def _push(self, owed: Owed) -> None:
        planner = self._preannotator.planner(self._owed.label_config(owed), owed.project)
        if planner is None:
            return  # the project no longer asks for it
        if planner.needs_examples:
            self._preannotator.give_examples(planner, owed.project_id)
        settings = self._settings
        studio = DatasetStudio(settings.label_studio_url, settings.label_studio_api_key, self._stopping, patience_s=_PATIENCE_S)
        try:
            replaces = planner.own_versions(owed.model_version)
            runner = TaskRunner(self._jobs, studio, planner, owed.project_id, self._dispatcher.model_version(), self._stopping, replaces)
            outcome = runner.run({"id": owed.task_id})
        finally:
            studio.close()
        logs.event(log, "late_prediction", {"task": owed.task_id, "regions": outcome.n_regions, "outcome": outcome.kind})
        if outcome.kind == "stored":
            self.record(stored_event("push", owed.task_id, outcome.n_regions, owed.project))

    def _later(self, owed: Owed, error: Sam2BackendError) -> None:
        try:
            is_tried_again = self._owed.failed(owed)
        except Sam2BackendError:
            return  # Redis is away; the lease ends by itself
        facts = {"task": owed.task_id, "again": is_tried_again, "message": error.message}
        logs.event(log, "late_prediction_failed", facts, level=logging.WARNING)
        if not is_tried_again:
            words = f"It gets no prediction: {error.message}"
            self.record(Event("push", "failed", words, owed.project, str(owed.task_id), code=error.code))
