"""Results that came after the answer: pushed into Label Studio as a prediction of the task, once.

Owner of `sam2:push:<name>` (the request, so that any web process can make its result again) and `sam2:pushes` (names by when they are due),
both bounded by the life of a propagation. A thread of each web process looks every few seconds; a lock gives each push to one of them, and
before pushing it looks whether the task has the prediction already, for a process may have died between pushing and noting it.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from redis import Redis, RedisError

from backend import logs
from backend.events import Event, stored_event
from backend.label_studio import LabelStudio
from backend.promises import Promises
from backend.prompt_regions import digest
from sam2_backend.errors import QueueError, Sam2BackendError
from sam2_backend.redis_connection import redis_errors_as_ours
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagationState

log = logging.getLogger(__name__)

KEY, LOCK, INDEX = "sam2:push:", "sam2:push-lock:", "sam2:pushes"
LOOK_EVERY_S = 2.0
LOCKED_S = 120
"""Longer than a push takes; when its process died, another may try after this."""
MOST_PUSHES = 1000
MOST_REMEMBERED = 256
"""Of what a process owes, so many it can write down again for a Redis that lost its data."""
MOST_ATTEMPTS = 12
LONGEST_PAUSE_S = 600.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request to track, with all that its result depends on.

    Attributes:
        task: `id` and `data`.
        model_version: Of the workers when it was asked.
        extra_params: The connection's when it was asked, as JSON text.
    """

    task: dict[str, Any]
    label_config: str
    context: dict[str, Any]
    project: str
    model_version: str
    extra_params: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Results and their score."""

    result: list[dict[str, Any]]
    score: float


class Tracking(Protocol):
    """What is asked of those who track."""

    def recent(self) -> list[PropagationState]: ...
    def begin(self, request: Request) -> None: ...
    def whole(self, request: Request) -> Prediction | None: ...


class Pushes:
    """What is owed to Label Studio."""

    def __init__(self, settings: Settings, redis: Callable[[], Redis], tracking: Tracking) -> None:
        self._settings, self._redis, self._tracking = settings, redis, tracking
        self._promises: Promises[bytes] = Promises(redis, self._are_known, MOST_REMEMBERED)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.record: Callable[[Event], None] = lambda _event: None
        """Called with what the status page is to show."""

    @property
    def can_push(self) -> bool:
        return bool(self._settings.label_studio_url and self._settings.label_studio_api_key)

    def owe(self, sessions: Sequence[str], request: Request) -> None:
        """Push the whole result once all of these propagations are done; what is owed already stays owed once."""
        if not isinstance(request.task.get("id"), int):
            return
        if not self.can_push:
            words = (
                "The rest of its track cannot be pushed into Label Studio: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY. "
                "Asking again for the track gives it, too."
            )
            logs.event(log, "not_pushed", {"task": request.task["id"], "reason": words}, level=logging.WARNING)
            self.record(Event("push", "failed", words, request.project, str(request.task["id"])))
            return
        name = digest(*sessions)
        record = zlib.compress(json.dumps({"sessions": list(sessions), "attempts": 0, "request": asdict(request)}).encode(), 1)
        self._promises.make(name, record)
        with suppress(RedisError):  # it is remembered, and written down when Redis answers again
            self._write(name, record)
        self.start()

    def settle(self, sessions: Sequence[str]) -> None:
        """Nothing is owed for these any more.

        Raises:
            QueueDownError: Redis does not answer.
        """
        with redis_errors_as_ours():
            self._forget(digest(*sessions))

    def start(self) -> None:
        """Look after what is owed, in a thread of this process. Calling it again does nothing."""
        with self._starting:
            if self._thread is None and self.can_push:
                self._thread = threading.Thread(target=self._watch, name="pushes", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread; a push in hand is finished first."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LOCKED_S)

    def look(self) -> int:
        """Push what is due and done; how many were pushed."""
        self._renew()
        client = self._redis()
        due: Any = client.zrangebyscore(INDEX, 0, time.time())
        if not due:
            return 0
        phases = {state.session: state.phase for state in self._tracking.recent()}
        return sum(self._attend(_text(name), phases) for name in due)

    def _watch(self) -> None:
        trouble = ""
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self.look()
                trouble = ""
            except (RedisError, QueueError, OSError) as error:
                if type(error).__name__ != trouble:
                    trouble = type(error).__name__
                    logs.event(log, "pushes_wait", {"reason": trouble}, level=logging.WARNING)
            except Exception:
                log.exception("pushes")

    def _renew(self) -> None:
        """What Redis has lost is tracked anew, and owed again."""
        for name, raw in self._promises.missing().items():
            record = _unpacked(raw)
            try:
                self._tracking.begin(Request(**record["request"]))
                self._write(name, raw)
            except QueueError:
                raise
            except Sam2BackendError as error:
                self._drop(name, record, error.message)

    def _write(self, name: str, record: bytes) -> None:
        client = self._redis()
        client.set(KEY + name, record, ex=self._settings.propagate_idle_s)
        client.zadd(INDEX, {name: time.time()}, nx=True)
        client.zremrangebyrank(INDEX, 0, -MOST_PUSHES - 1)
        self._promises.written([name])

    def _are_known(self, names: Sequence[str]) -> list[bool]:
        return [score is not None for score in self._redis().zmscore(INDEX, list(names))]

    def _attend(self, name: str, phases: Mapping[str, str]) -> bool:
        """Whether it was pushed now."""
        client = self._redis()
        raw: Any = client.get(KEY + name)
        if raw is None:
            client.zrem(INDEX, name)
            return False
        record = _unpacked(raw)
        found = {phases.get(session, "gone") for session in record["sessions"]}
        if "gone" in found and self._promises.are_other_data():
            return False
        if found & {"gone", "failed", "cancelled"}:
            self._drop(name, record, "its propagation is " + ", ".join(sorted(found - {"done", "waiting", "running"})))
        elif found == {"done"} and client.set(LOCK + name, 1, nx=True, ex=LOCKED_S):
            try:
                return self._push(name, record)
            finally:
                client.delete(LOCK + name)
        return False

    def _push(self, name: str, record: dict[str, Any]) -> bool:
        if not self._redis().exists(KEY + name):  # another process was faster
            return False
        request = Request(**record["request"])
        try:
            prediction = self._tracking.whole(request)
            if prediction is None and self._promises.are_other_data():
                return False
            if prediction is None:
                self._drop(name, record, "its results are gone")
                return False
            self._send(request, prediction)
        except Sam2BackendError as error:
            self._later(name, record, error)
            return False
        self._forget(name)
        logs.event(log, "pushed", {"task": request.task["id"], "regions": len(prediction.result), "session": record["sessions"][0][:8]})
        self.record(stored_event("push", int(request.task["id"]), len(prediction.result), request.project))
        return True

    def _send(self, request: Request, prediction: Prediction) -> None:
        client = LabelStudio(self._settings.label_studio_url, self._settings.label_studio_api_key)
        try:
            task_id = int(request.task["id"])
            wanted = json.loads(json.dumps(prediction.result))
            if not any(stored.get("result") == wanted for stored in client.task(task_id).get("predictions") or []):
                client.create_prediction(task_id, prediction.result, score=prediction.score, model_version=request.model_version)
        finally:
            client.close()

    def _later(self, name: str, record: dict[str, Any], error: Sam2BackendError) -> None:
        record["attempts"] += 1
        if record["attempts"] >= MOST_ATTEMPTS:
            self._drop(name, record, error.message)
            return
        pause_s = min(5.0 * 2 ** record["attempts"], LONGEST_PAUSE_S)
        self._redis().set(KEY + name, zlib.compress(json.dumps(record).encode(), 1), ex=self._settings.propagate_idle_s)
        self._redis().zadd(INDEX, {name: time.time() + pause_s})
        facts = {"task": record["request"]["task"]["id"], "attempt": record["attempts"], "again_in_s": pause_s, "message": error.message}
        logs.event(log, "push_failed", facts, level=logging.WARNING)

    def _drop(self, name: str, record: dict[str, Any], reason: str) -> None:
        self._forget(name)
        request = record["request"]
        logs.event(log, "push_dropped", {"task": request["task"]["id"], "reason": reason}, level=logging.WARNING)
        words = f"Its track is not pushed into Label Studio: {reason.rstrip('.')}."
        self.record(Event("push", "failed", words, request["project"], str(request["task"]["id"])))

    def _forget(self, name: str) -> None:
        client = self._redis()
        client.delete(KEY + name)
        client.zrem(INDEX, name)
        self._promises.settled(name)  # last: what Redis was not told is looked at again


def _unpacked(raw: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(zlib.decompress(raw))
    return record


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
