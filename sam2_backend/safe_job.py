"""The queue is an input, not code: a job runs one of our own functions on a message of ours, or is refused.

A JSON serializer alone is not enough: rq imports and calls whatever dotted name, callback or webhook a job carries.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

import redis
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.timeouts import JobTimeoutException

from sam2_backend.dataset_messages import DatasetReply
from sam2_backend.errors import JobRefusedError, QueueDownError, Sam2BackendError
from sam2_backend.jobs import SERVED, Order
from sam2_backend.messages import ImageReply, from_wire
from sam2_backend.queue_format import unpack_job

log = logging.getLogger(__name__)

#: The rest of what rq can keep of a job names code to import or addresses to call.
_BELIEVED = {b"data", b"status", b"origin", b"created_at", b"enqueued_at", b"timeout"}

_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(/[^\s?'\"]*)\?[^\s'\"]*")


class SafeJob(Job):  # type: ignore[misc]
    """A job of which little more than the function's name, its one argument and its time limit are believed."""

    def restore(self, raw_data: Any) -> None:
        """Read a job from Redis without what we never write: callbacks, webhooks, dependencies, repeats, retries."""
        super().restore({name: value for name, value in raw_data.items() if name in _BELIEVED})

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

    def _served(self, let_others: Callable[[], None]) -> ImageReply | DatasetReply:
        try:
            name, instance, args, kwargs = self.func_name, self.instance, self.args, self.kwargs
        except DeserializationError as error:
            raise JobRefusedError("The queue holds a job that is not JSON. Give sam2-backend a Redis database of its own.") from error
        if name not in SERVED or instance is not None or kwargs or len(args) != 1:
            raise JobRefusedError(f"The queue asks for {str(name)[:80]!r}, which is not served here. It was not run.")
        function, kind = SERVED[name]
        message, sent_at = unpack_job(args[0], self.connection)
        queue_ms = round(max(0.0, time.time() - sent_at) * 1000, 3)
        return function(from_wire(kind, message), Order(self.id, queue_ms, self.connection, let_others))


def without_secrets(text: str) -> str:
    """The text with user names, passwords and query strings cut from the addresses in it: they carry tokens."""
    return _QUERY.sub(r"\1", _USER.sub("", text))
