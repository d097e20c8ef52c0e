"""The names written on the queue, and the one runtime that they reach.

A job function is found by name from Redis, so it cannot be a method of an object that the worker made. The worker therefore installs its
runtime here once, before it serves; nothing else is shared, and nothing happens on import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sam2_backend.dataset_messages import DatasetJob, DatasetReply
from sam2_backend.errors import SupersededError
from sam2_backend.messages import ImageJob, ImageReply, WarmJob
from sam2_backend.queue_format import PREANNOTATE_IMAGE, SEGMENT_IMAGE, WARM_IMAGE, Reply


@dataclass(frozen=True, slots=True)
class Usage:
    """What a runtime holds, for the worker's sign of life. Bytes; `hits` are embedding look-ups by CacheTier."""

    device_cache_bytes: int = 0
    host_cache_bytes: int = 0
    device_used_bytes: int = 0
    device_total_bytes: int = 0
    hits: Mapping[str, float] | None = None


class LongWork(Protocol):
    """Work of minutes and hours, done in pieces between the jobs of people who wait. May raise redis.RedisError: it is called again."""

    @property
    def is_busy(self) -> bool: ...
    def step(self, incarnation: str) -> bool: ...
    def put_down(self) -> None: ...


class Runtime(Protocol):
    """What a worker serves: a loaded model and its caches. Raises errors of our tree.

    Attributes:
        prompts_together: So many prompts gain by being decoded in one call.
    """

    @property
    def model_version(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def prompts_together(self) -> int: ...
    def is_ready(self, job: ImageJob) -> bool: ...
    def segment(self, job: ImageJob, let_others: Callable[[], None]) -> ImageReply: ...
    def segment_together(self, jobs: Sequence[ImageJob]) -> Iterator[list[tuple[int, ImageReply]]]: ...
    def warm(self, job: WarmJob, let_others: Callable[[], None]) -> ImageReply: ...
    def preannotate(self, job: DatasetJob, let_others: Callable[[], None]) -> DatasetReply: ...
    def usage(self) -> Usage: ...
    @property
    def propagator(self) -> LongWork: ...


@dataclass(frozen=True, slots=True)
class Order:
    """What is known of a job besides its message.

    Attributes:
        is_superseded: A later click on its drawing came before it was begun.
        let_others: Does what people wait for, and returns; called by slow work at places where the runtime is free for them. To a click
            or a warm job, which is in the middle of an encoder run there, these are the clicks whose image is ready.
    """

    job_id: str
    queue_ms: float
    is_superseded: bool = False
    let_others: Callable[[], None] = lambda: None


_runtime: Runtime | None = None
_SUPERSEDED = "A newer click on this drawing replaced this one."


def install(runtime: Runtime) -> None:
    """Make `runtime` the one that this process serves with. Called once by the worker, before its first job."""
    global _runtime
    if _runtime is not None:
        raise RuntimeError("this process already has a runtime")
    _runtime = runtime


def _installed() -> Runtime:
    if _runtime is None:
        raise RuntimeError("no runtime was installed before the first job")
    return _runtime


def segment_image(job: ImageJob, order: Order) -> ImageReply:
    """Segment, unless a newer click on the same drawing made it pointless.

    Raises:
        SupersededError: a later click came.
    """
    if order.is_superseded:
        raise SupersededError(_SUPERSEDED)
    return _with_queue_time(_installed().segment(job, order.let_others), order)


def segment_images(jobs: Sequence[ImageJob], orders: Sequence[Order]) -> Iterator[list[tuple[int, ImageReply | SupersededError]]]:
    """Segment several images in one go; each answer, with its place, as soon as it is known. What gets none is to be asked for alone."""
    old = [place for place, order in enumerate(orders) if order.is_superseded]
    if old:
        yield [(place, SupersededError(_SUPERSEDED)) for place in old]
    places = [place for place in range(len(jobs)) if place not in old]
    for replies in _installed().segment_together([jobs[place] for place in places]):
        yield [(places[i], _with_queue_time(reply, orders[places[i]])) for i, reply in replies]


def warm_image(job: WarmJob, order: Order) -> ImageReply:
    """Make and keep the embedding of an image; clicks on images that are ready go before, between two steps of the encoder."""
    return _with_queue_time(_installed().warm(job, order.let_others), order)


def preannotate_image(job: DatasetJob, order: Order) -> DatasetReply:
    """Annotate one image of a dataset; clicks go before, between two steps."""
    return _with_queue_time(_installed().preannotate(job, order.let_others), order)


def _with_queue_time(reply: Reply, order: Order) -> Reply:
    """What a job says that it gave way for counts as waiting, too."""
    queue_ms = round(order.queue_ms + reply.timings_ms.get("queue", 0.0), 3)
    return replace(reply, timings_ms={"queue": queue_ms} | {step: ms for step, ms in reply.timings_ms.items() if step != "queue"})


#: All that a worker runs: name on the queue → (function, the message it takes).
SERVED: dict[str, tuple[Callable[[Any, Order], ImageReply | DatasetReply], type[ImageJob | WarmJob | DatasetJob]]] = {
    SEGMENT_IMAGE: (segment_image, ImageJob),
    WARM_IMAGE: (warm_image, WarmJob),
    PREANNOTATE_IMAGE: (preannotate_image, DatasetJob),
}
