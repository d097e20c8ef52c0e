"""One job that somebody waits for, and how to tell that it is lost. Knows no rq."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import redis

from sam2_backend.dataset_messages import DatasetJob, DatasetReply
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import ImageJob, ImageReply, WarmJob
from sam2_backend.queue_format import PREANNOTATE, private_queue, queue_key, reply_key, unpack_answer, unpack_dataset_answer

Message = TypeVar("Message")
Answer = TypeVar("Answer")
AnyPending = TypeVar("AnyPending", bound="Carried[Any, Any]")

#: Between two looks a job may be in nobody's hands: popped but not yet marked as started.
_LOOKS_UNTIL_LOST = 2
_MOST_DEATHS = 2


@dataclass(slots=True, eq=False)
class Carried(Generic[Message, Answer]):
    """A job on its way.

    Attributes:
        worker: Whose private queue it was put on; empty: the shared one.
        deaths: Workers that died over it.
    """

    job_id: str
    message: Message
    worker: str = ""
    answer: Answer | Sam2BackendError | None = None
    deaths: int = 0
    looks_missing: int = 0
    kind: ClassVar[str] = "interactive"
    """The shared queue, also of jobs that were handed on."""

    @property
    def queue(self) -> str:
        return private_queue(self.kind, self.worker) if self.worker else self.kind

    @property
    def reply_key(self) -> str:
        return reply_key(self.job_id)

    @property
    def record_key(self) -> str:
        """Where rq keeps the job."""
        return f"rq:job:{self.job_id}"


class Pending(Carried[ImageJob, ImageReply]):
    """A click."""

    __slots__ = ()

    def take(self, data: bytes) -> None:
        """Read the answer that a worker pushed."""
        self.answer = unpack_answer(data)


class PendingWarm(Carried[WarmJob, ImageReply]):
    """An image that is embedded ahead."""

    __slots__ = ()
    kind: ClassVar[str] = "warm"

    def take(self, data: bytes) -> None:
        """Read the answer that a worker pushed."""
        self.answer = unpack_answer(data)


class PendingDataset(Carried[DatasetJob, DatasetReply]):
    """An image of a dataset."""

    __slots__ = ()
    kind: ClassVar[str] = PREANNOTATE

    def take(self, data: bytes) -> None:
        """Read the answer that a worker pushed."""
        self.answer = unpack_dataset_answer(data)


def lost_among(connection: redis.Redis, waiting: Sequence[AnyPending], incarnations: Collection[str]) -> list[AnyPending]:
    """The jobs that nobody will answer: their worker died, or they are in no queue and in nobody's hands.

    Call it about once a second; a job in between two hands counts as lost only when it is seen so twice. A job that killed several
    workers is not lost: it gets an error as its answer.

    Args:
        incarnations: Of the live workers.
    """
    with connection.pipeline() as pipe:
        for pending in waiting:
            pipe.exists(pending.reply_key)
            pipe.hmget(pending.record_key, "status", "worker_name")
            pipe.lpos(queue_key(pending.queue), pending.job_id)
            pipe.lpos(queue_key(pending.kind), pending.job_id)
        facts = pipe.execute()
    return [
        pending for pending, *seen in zip(waiting, *(facts[i::4] for i in range(4)), strict=True) if _is_lost(pending, seen, incarnations)
    ]


def _is_lost(pending: Carried[Any, Any], seen: Sequence[Any], incarnations: Collection[str]) -> bool:
    has_reply, (status, holder), private_place, shared_place = seen
    if has_reply:
        return False
    if status == b"started":
        return (holder or b"").decode() not in incarnations and not _is_given_up(pending)
    if status is not None and (private_place is not None or shared_place is not None):
        pending.looks_missing = 0
        return False
    pending.looks_missing += 1
    return pending.looks_missing >= _LOOKS_UNTIL_LOST


def _is_given_up(pending: Carried[Any, Any]) -> bool:
    pending.deaths += 1
    if pending.deaths < _MOST_DEATHS:
        return False
    pending.answer = Sam2BackendError(
        f"{pending.deaths} workers died over this image. Their logs tell more; it may need more memory than there is."
    )
    return True
