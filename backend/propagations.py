"""Propagations as the web tier sees them: start, wait, read, cancel. Long work is never waited for longer than asked; it goes on without.

A session is named by what is asked (`session_of`), so asking again finds what is there. Safe to use from all threads at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from backend.dispatch import Dispatcher
from sam2_backend.errors import NoWorkerError, SessionExpiredError
from sam2_backend.liveness import incarnation, live_workers
from sam2_backend.propagation_format import RESULTS, frame_masks, session_of
from sam2_backend.propagation_plan import check_job
from sam2_backend.propagation_store import SessionStore
from sam2_backend.redis_connection import redis_errors_as_ours
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameMask, PropagateJob, PropagationState

__all__ = ["ENDED", "Propagations", "session_of"]

#: Phases in which nothing more will come by itself.
ENDED = frozenset({"done", "failed", "cancelled"})
_POLL_S = 0.15
_LOOK_EVERY_S = 1.0


class Propagations:
    """The propagations of one Redis."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher) -> None:
        self._settings, self._dispatcher = settings, dispatcher

    def start(self, job: PropagateJob) -> PropagationState:
        """Have a job worked on, unless it is already, or done; one that failed or was cancelled is taken up again. Returns at once.

        Raises:
            PromptError: the job cannot be done, see `propagation_plan.check_job`.
            NoWorkerError: there is nobody to do it.
            QueueDownError: Redis does not answer.
        """
        check_job(job, self._settings.propagate_max_objects)
        if not self._dispatcher.workers():
            raise NoWorkerError("No worker is running. Start one with `sam2-backend worker`, or see the status page.")
        with redis_errors_as_ours():
            self._store().start(job, self._dispatcher.model_version())
        return self._known(job.session)

    def wait(self, session: str, wait_s: float) -> PropagationState:
        """Wait until a session is done, failed or cancelled, for `wait_s` at most; returns what is found so far.

        Raises:
            SessionExpiredError: there is no such session, or none any more.
            QueueDownError: Redis does not answer.
        """
        deadline = look_at = time.monotonic()
        deadline += wait_s
        with redis_errors_as_ours():
            store = self._store()
            store.touch(session)
            while (phase := store.phase(session)) is not None and phase not in ENDED:
                now = time.monotonic()
                if now >= look_at:
                    store.requeue_lost(self._live_incarnations)
                    look_at = now + _LOOK_EVERY_S
                if now >= deadline:
                    break
                time.sleep(min(_POLL_S, max(0.0, deadline - now)))
        return self._known(session)

    def state(self, session: str) -> PropagationState | None:
        """A session with what is found so far; None: there is none such, or none any more.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            return self._store().read(session)

    def masks(self, session: str, object_id: str = "") -> Iterator[FrameMask]:
        """The masks found so far, of all objects or of one, in the order in which they were found; frames without the object have none.

        Raises:
            SessionExpiredError: as for `wait`.
            QueueDownError: Redis does not answer.
        """
        state = self._known(session)
        ids = [track.object_id for track in state.tracks]
        with redis_errors_as_ours():
            for mask in frame_masks(self._store().masks(session), ids, state.size_hw):
                if not object_id or mask.object_id == object_id:
                    yield mask

    def cancel(self, session: str) -> None:
        """Stop work within one frame; what was found stays, and `start` goes on from there.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            self._store().cancel(session)

    def recent(self) -> list[PropagationState]:
        """All sessions that are kept, those used last first, without their tracks.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            return self._store().recent()

    def n_results(self) -> int:
        """Frames times objects that all workers have tracked, as far as is remembered.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            return int(self._dispatcher.redis().get(RESULTS) or 0)

    def _known(self, session: str) -> PropagationState:
        state = self.state(session)
        if state is None:
            raise SessionExpiredError("This propagation is no longer kept. Ask for it again.")
        return state

    def _store(self) -> SessionStore:
        return SessionStore(self._dispatcher.redis(), self._settings)

    def _live_incarnations(self) -> set[str]:
        return {incarnation(worker) for worker in live_workers(self._dispatcher.redis())}
