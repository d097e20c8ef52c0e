"""The propagation that a worker has in hand, done a piece at a time between the jobs of people who wait.

A piece takes about as long as a frame. Before each the worker sees that the session is still its own: cancelling, or taking it over from a
worker that seemed dead, is taking it away. What was found is saved every few seconds together with all that is needed to go on, so that
another worker goes on from there, with the same results bit by bit. A session that fails says why and can be asked for again.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Protocol

import redis

from sam2_backend import liveness
from sam2_backend.errors import QueueDownError, Sam2BackendError, VideoTooLargeError
from sam2_backend.messages import WorkerStatus
from sam2_backend.propagation_claims import Claim, Claims, Progress, SessionLostError
from sam2_backend.propagation_copy import Plan, copy_known_runs
from sam2_backend.redis_connection import is_away
from sam2_backend.safe_job import without_secrets
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagateJob

log = logging.getLogger(__name__)

#: Saving may take this share of the time: a memory of many objects is large.
_MOST_SAVING = 0.05
_OPENING_POLL_S = 0.02
#: Where none is open, it is looked again after so long at the soonest: images of a dataset take milliseconds, and each look is a round trip.
_LOOK_EVERY_S = 0.2
_ROOM_WAIT_S = 15.0
_NO_ROOM = (
    "overloaded: Redis has no room for what was found. Give it more memory, or lower SAM2_PROPAGATE_BYTES or SAM2_REDIS_CACHE_BYTES, "
    "and ask again."
)


class Work(Plan, Protocol):
    """What `propagation.Propagation` does; see there."""

    @property
    def n_results(self) -> int: ...
    @property
    def size_hw(self) -> tuple[int, int]: ...
    @property
    def is_at_boundary(self) -> bool: ...
    def work(self) -> Generator[None, None, None]: ...
    def take_found(self) -> tuple[bytes, tuple[bytes, ...]]: ...
    def bank(self) -> bytes: ...
    def go_on_with(self, bank: bytes) -> bool: ...
    def close(self) -> None: ...


OpenWork = Callable[[PropagateJob], Work]


@dataclass(slots=True)
class _InHand:
    """A session that this worker holds.

    Attributes:
        bank: As it was when the session was taken up.
        progress: What is not saved yet.
        work: None while the video is being opened.
        error: `code: message` of what ended it, until that is written down.
    """

    claim: Claim
    job: PropagateJob
    bank: bytes
    progress: Progress
    opening: Future[Work]
    work: Work | None = None
    pieces: Generator[None, None, None] | None = None
    error: str = ""
    taken_at: float = field(default_factory=time.monotonic)
    saved_at: float = -math.inf
    saving_s: float = 0.0
    gives_up_at: float = math.inf

    @property
    def name(self) -> str:
        """For the log."""
        return f"{self.claim.session[:8]} ({self.job.title})"


class Propagator:
    """At most one propagation at a time. Used by the worker's main thread.

    Args:
        claims: The sessions.
        open_work: Opens a job's video; called in a thread of its own, since fetching it may take minutes.
        live_workers: Reads who lives.
        worker: Its name.
        model_version: Of the model that it works with.
    """

    def __init__(
        self,
        claims: Claims,
        open_work: OpenWork,
        live_workers: Callable[[], Sequence[WorkerStatus]],
        settings: Settings,
        worker: str,
        model_version: str,
    ) -> None:
        self._claims, self._open_work, self._live_workers, self._settings = claims, open_work, live_workers, settings
        self._worker, self._model_version = worker, model_version
        self._held: _InHand | None = None
        self._looks_again_at = -math.inf

    @property
    def is_busy(self) -> bool:
        """A propagation is in hand."""
        return self._held is not None

    def step(self, incarnation: str) -> bool:
        """Do one piece of what is in hand; with nothing in hand, take up what waits longest.

        Args:
            incarnation: Names this process among all that ever had the worker's name.

        Returns:
            There may be more to do at once.

        Raises:
            redis.RedisError: Redis does not answer; call again.
        """
        if self._held is None:
            self._take_up(incarnation)
            return self.is_busy
        held = self._held
        try:
            self._claims.check(held.claim)
            if held.error:
                self._fail(held)
            else:
                self._advance(held)
        except SessionLostError:
            log.info("propagation %s is no longer ours", held.name)
            self._let_go(held)
        except redis.OutOfMemoryError:
            self._make_room(held)
        except redis.RedisError:
            raise
        except Sam2BackendError as error:
            held.error = f"{error.code}: {error.message}"
        except Exception as error:
            log.error("propagation %s failed\n%s", held.name, without_secrets(traceback.format_exc()))  # noqa: TRY400  scrubbed
            held.error = f"internal_error: The worker failed on this video ({type(error).__name__}). Its log tells more."
        return True

    def put_down(self) -> None:
        """End the frame that was begun, save, and hand back what is in hand, so that another worker goes on at once.

        Raises:
            redis.RedisError: Redis does not answer; others notice by this worker's silence.
        """
        while (held := self._held) and not held.error and held.work and not held.work.is_at_boundary:
            self.step("")
        if held is None:
            return
        try:
            if held.error:
                self._fail(held)
            else:
                self._hand_back(held, is_next=True)
        except SessionLostError:
            self._let_go(held)

    def _take_up(self, incarnation: str) -> None:
        if time.monotonic() < self._looks_again_at:
            return
        if not self._claims.store.is_any_open():
            self._looks_again_at = time.monotonic() + _LOOK_EVERY_S
            return
        self._claims.store.requeue_lost(self._live_incarnations, free_handed=incarnation)
        if not self._claims.store.is_any_waiting():
            return
        models = {worker.model_version for worker in self._live_workers()} - {self._model_version, ""}
        claim = self._claims.take(self._worker, incarnation, models)
        if claim is None:
            return
        try:
            job, bank, facts = self._claims.load(claim)
        except SessionLostError:
            return
        except Sam2BackendError as error:
            self._claims.finish(claim, Progress(), f"{error.code}: {error.message}")
            return
        n_rows, n_chunks, mask_bytes = (int(facts.get(name, 0)) for name in ("n_done", "n_chunks", "mask_bytes"))
        saved = Progress(n_rows, n_chunks, mask_bytes)
        self._held = _InHand(claim, job, bank, saved, _in_thread(lambda: self._open_work(job)))
        log.info("propagation %s is taken up, %d results are there", self._held.name, saved.saved_rows)

    def _live_incarnations(self) -> set[str]:
        return {liveness.incarnation(worker) for worker in self._live_workers()}

    def _advance(self, held: _InHand) -> None:
        if held.work is None:
            if held.opening.done():
                self._begin(held, held.opening.result())
            else:
                time.sleep(_OPENING_POLL_S)
            return
        assert held.pieces is not None
        # Saved before more is done: while Redis is away nothing piles up.
        if held.work.is_at_boundary and self._is_save_due(held):
            self._save(held)
            if self._is_turn_over(held):
                self._hand_back(held, is_next=False)
                return
        try:
            next(held.pieces)
        except StopIteration:
            self._finish(held)
        except redis.RedisError as error:
            if is_away(error):
                # The generator has ended with it. What nobody has in hand is found to be lost, and gone on with from the last save.
                self._let_go(held)
                raise
            raise QueueDownError("Redis did not answer the worker. `sam2-backend doctor` checks it.") from error

    def _begin(self, held: _InHand, work: Work) -> None:
        progress = held.progress
        if not (held.bank and work.go_on_with(held.bank)):
            if progress.saved_rows:
                self._claims.restart(held.claim)
            progress = Progress()
            copy_known_runs(self._claims, held.claim.session, work, progress)
        height, width = work.size_hw
        progress.facts = {"n_frames": work.n_results, "height": height, "width": width, "model_version": self._model_version}
        log.info("propagation %s: of %d results %d are known", held.name, work.n_results, progress.n_rows)
        held.progress, held.work, held.pieces, held.bank = progress, work, work.work(), b""

    def _is_save_due(self, held: _InHand) -> bool:
        wait_s = max(self._settings.propagate_checkpoint_s, held.saving_s / _MOST_SAVING)
        return time.monotonic() - held.saved_at >= wait_s

    def _save(self, held: _InHand) -> None:
        started_at = time.monotonic()
        self._take_found(held)
        self._claims.save(held.claim, held.progress)
        held.progress = held.progress.saved()
        held.saved_at = time.monotonic()
        held.saving_s = held.saved_at - started_at
        if held.progress.mask_bytes > self._settings.propagate_bytes:
            raise VideoTooLargeError(
                f"The masks of this video take more than the {self._settings.propagate_bytes} bytes of SAM2_PROPAGATE_BYTES. "
                "Choose a shorter range, or raise it."
            )

    def _take_found(self, held: _InHand) -> None:
        """Move what was found, and where to go on, behind what a save that failed may have left."""
        if held.work is not None:
            rows, chunks = held.work.take_found()
            held.progress.rows += rows
            held.progress.chunks += chunks
            held.progress.bank = held.work.bank()

    def _is_turn_over(self, held: _InHand) -> bool:
        if time.monotonic() - held.taken_at < self._settings.propagate_turn_s:
            return False
        held.taken_at = time.monotonic()
        self._claims.store.requeue_lost(self._live_incarnations)
        return self._claims.store.is_any_waiting()

    def _hand_back(self, held: _InHand, *, is_next: bool) -> None:
        self._take_found(held)
        self._claims.hand_back(held.claim, held.progress, is_next=is_next)
        log.info("propagation %s is handed back, %d results", held.name, held.progress.n_rows)
        self._let_go(held)

    def _finish(self, held: _InHand) -> None:
        self._take_found(held)
        held.progress.bank = None
        self._claims.finish(held.claim, held.progress)
        log.info("propagation %s is done, %d results", held.name, held.progress.n_rows)
        self._let_go(held)

    def _fail(self, held: _InHand) -> None:
        as_saved = Progress(held.progress.saved_rows, held.progress.saved_chunks, held.progress.saved_mask_bytes)
        self._claims.finish(held.claim, as_saved, held.error)
        log.info("propagation %s failed: %s", held.name, held.error)
        self._let_go(held)

    def _make_room(self, held: _InHand) -> None:
        """Redis is full: give up this session, and all that it holds where for a while even that cannot be written down."""
        if time.monotonic() >= held.gives_up_at:
            self._claims.store.forget(held.claim.session)
            self._let_go(held)
            return
        if held.error:
            raise redis.OutOfMemoryError  # again soon: Redis frees what a refused command took with some delay
        held.error, held.gives_up_at = _NO_ROOM, time.monotonic() + _ROOM_WAIT_S
        with suppress(SessionLostError):
            self._claims.drop_bank(held.claim)

    def _let_go(self, held: _InHand) -> None:
        self._held = None
        if held.pieces:
            held.pieces.close()
        held.opening.add_done_callback(_close)


def _in_thread(open_work: Callable[[], Work]) -> Future[Work]:
    future: Future[Work] = Future()

    def run() -> None:
        try:
            future.set_result(open_work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="open-video", daemon=True).start()
    return future


def _close(opening: Future[Work]) -> None:
    if opening.exception() is None:
        opening.result().close()
