"""The queue is an input, not code: a job runs one of our own functions on a message of ours, or is refused.

A JSON serializer alone is not enough: rq imports and calls whatever dotted name, callback or webhook a job carries.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.timeouts import JobTimeoutException

from sam2_backend.dataset_messages import DatasetJob, DatasetReply
from sam2_backend.errors import JobRefusedError, QueueDownError, Sam2BackendError
from sam2_backend.jobs import SERVED, Order
from sam2_backend.messages import ImageJob, ImageReply, WarmJob, from_wire
from sam2_backend.queue_format import call_of, goes_alone, unpack_job

log = logging.getLogger(__name__)

#: The rest of what rq can keep of a job names code to import or addresses to call.
_BELIEVED = {b"data", b"status", b"origin", b"created_at", b"enqueued_at", b"timeout"}

_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(/[^\s?'\"]*)\?[^\s'\"]*")


@dataclass(frozen=True, slots=True)
class _Call:
    """What a job asks for. `sent_at` in Unix seconds."""

    function: Callable[[Any, Order], ImageReply | DatasetReply]
    message: ImageJob | WarmJob | DatasetJob
    sent_at: float
    is_alone: bool


class SafeJob(Job):  # type: ignore[misc]
    """A job of which little more than the function's name, its one argument and its time limit are believed."""

    def restore(self, raw_data: Any) -> None:
        """Read a job from Redis without what we never write: callbacks, webhooks, dependencies, repeats, retries."""
        super().restore({name: value for name, value in raw_data.items() if name in _BELIEVED})
        self._call: _Call | None = None
        #: The id of the newest click on its drawing, read when it was begun.
        self.newest: bytes | None = None

    def click(self) -> ImageJob | None:
        """What to segment, where this is a click that may be done together with others; None: it is something else, or goes alone.

        Whatever is wrong with it, `answer` says.
        """
        try:
            call = self._read()
        except Exception:
            return None
        return call.message if isinstance(call.message, ImageJob) and not call.is_alone else None

    @property
    def drawing(self) -> str:
        """What it is a click on; empty: nothing that a later click would make it pointless by."""
        try:
            message = self._read().message
        except Exception:
            return ""  # as for `click`
        return message.drawing if isinstance(message, ImageJob) else ""

    def perform(self) -> Any:
        """Refused: rq's own way would import the function that the job names."""
        raise JobRefusedError("A job is answered, never performed.")

    def answer(self, let_others: Callable[[], None] = lambda: None) -> ImageReply | DatasetReply | Sam2BackendError:
        """Do the work. Every failure becomes an error as a value; only the log sees a traceback.

        Args:
            let_others: See `jobs.Order`.

        Raises:
            JobTimeoutException: the alarm that the worker set went off.
        """
        try:
            return self._served(let_others)
        except Sam2BackendError as error:
            log.info("job %s answers %s: %s", self.id, error.code, error.message)
            return error
        except JobTimeoutException:
            raise
        except redis.RedisError as error:
            log.warning("job %s met a Redis that fails: %s", self.id, type(error).__name__)
            return QueueDownError("Redis did not answer the worker. `sam2-backend doctor` checks it.")
        except Exception as error:
            log.error("job %s failed\n%s", self.id, without_secrets(traceback.format_exc()))  # noqa: TRY400  the traceback is scrubbed
            return Sam2BackendError(f"The worker failed on this job ({type(error).__name__}). Its log tells more under job {self.id}.")

    def order(self, let_others: Callable[[], None] = lambda: None) -> Order:
        """What its function is told besides the message; the time that it waited ends here."""
        queue_ms = round(max(0.0, time.time() - self._read().sent_at) * 1000, 3)
        is_superseded = self.newest is not None and call_of(self.newest.decode(errors="replace")) != call_of(self.id)
        return Order(self.id, queue_ms, is_superseded, let_others)

    def _served(self, let_others: Callable[[], None]) -> ImageReply | DatasetReply:
        call = self._read()
        return call.function(call.message, self.order(let_others))

    def _read(self) -> _Call:
        """The call that it asks for; read once.

        Raises:
            JobRefusedError: it is none of ours.
        """
        if self._call is None:
            self._call = self._parsed()
        return self._call

    def _parsed(self) -> _Call:
        try:
            name, instance, args, kwargs = self.func_name, self.instance, self.args, self.kwargs
        except DeserializationError as error:
            raise JobRefusedError("The queue holds a job that is not JSON. Give sam2-backend a Redis database of its own.") from error
        if name not in SERVED or instance is not None or kwargs or len(args) != 1:
            raise JobRefusedError(f"The queue asks for {str(name)[:80]!r}, which is not served here. It was not run.")
        function, kind = SERVED[name]
        message, sent_at = unpack_job(args[0], self.connection)
        return _Call(function, from_wire(kind, message), sent_at, goes_alone(args[0]))


def without_secrets(text: str) -> str:
    """The text with user names, passwords and query strings cut from the addresses in it: they carry tokens."""
    return _QUERY.sub(r"\1", _USER.sub("", text))
