"""What both ends of the queue must agree on: names, keys, how long things live, and the envelope around a message.

Knows no rq and no tensor. The envelope of a job is `{"sent_at", "message"}` or, where the message is long, `{"sent_at", "blob"}` with
the message beside the queue; `"alone": true` says that a worker died over it. The answer is `{"ok": true, "reply"}` or `{"ok": false, "code", "message", "retry_after_s"}`: our errors
travel as values.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import redis

from sam2_backend.dataset_messages import DatasetReply
from sam2_backend.errors import JobRefusedError, Sam2BackendError, error_from_code
from sam2_backend.messages import ImageReply, from_wire, to_wire

Reply = TypeVar("Reply", ImageReply, DatasetReply)

SEGMENT_IMAGE = "sam2_backend.jobs.segment_image"
WARM_IMAGE = "sam2_backend.jobs.warm_image"
PREANNOTATE_IMAGE = "sam2_backend.jobs.preannotate_image"

#: The queue of whole datasets, of all workers together: done where nobody waits, after propagations.
PREANNOTATE = "preannotate"

#: Messages above this are put beside the queue: rq compresses an argument and copies it at every step.
MAX_ARGUMENT_BYTES = 10_000

BLOB_TTL_S = 3600
REPLY_TTL_S = 60
#: Whoever annotates a dataset collects answers now and then.
DATASET_REPLY_TTL_S = 3600
DRAWING_TTL_S = 120
#: A private queue is refreshed at every enqueue and outlives any wait; nothing of a worker that never returns stays for ever.
QUEUE_TTL_S = 3600

WORKERS = "sam2:workers"
MODEL_VERSION = "sam2:model_version"


def private_queue(kind: str, worker: str) -> str:
    """The queue of `kind` that only `worker` serves."""
    return f"{kind}@{worker}"


def queues_served(worker: str) -> list[str]:
    """Every queue that a worker listens on, most urgent first."""
    return [*queues_of_people(worker), PREANNOTATE]


def queues_of_people(worker: str) -> list[str]:
    """The queues that somebody waits behind: what is slower gives way to them."""
    return [private_queue("interactive", worker), "interactive", private_queue("warm", worker), "warm"]


#: Kinds of queue with a private one per worker; what waits there is handed to the shared one when its worker goes.
PRIVATE_KINDS = ("interactive", "warm")
SHARED_QUEUES = (*PRIVATE_KINDS, PREANNOTATE)


def queue_key(queue: str) -> str:
    """Where rq keeps the job ids of a queue."""
    return f"rq:queue:{queue}"


def worker_key(worker: str) -> str:
    return f"sam2:worker:{worker}"


def reply_key(job_id: str) -> str:
    """The list that a worker pushes its answer to."""
    return f"sam2:reply:{job_id}"


def drawing_key(drawing: str) -> str:
    """Holds the id of the newest job of a drawing."""
    return f"sam2:drawing:{drawing}"


def warm_key(uri: str, is_urgent: bool = False) -> str:
    """Set while an image counts as asked for, so that it is asked for once; by those who look at it once more."""
    return f"sam2:warm:{'now:' if is_urgent else ''}{digest(uri)}"


def blob_key(name: str) -> str:
    return f"sam2:blob:{name}"


def digest(text: str | bytes) -> str:
    """32 hex digits that name this text."""
    return hashlib.blake2b(text.encode() if isinstance(text, str) else text, digest_size=16).hexdigest()


def call_of(job_id: str) -> str:
    """The call that a job belongs to: the jobs of one call never supersede one another."""
    return job_id.rpartition("-")[0]


def choose_worker(uri: str, names: Sequence[str]) -> str:
    """The worker that an image belongs to, by rendezvous hash: one that goes or comes moves only its own share of the images."""
    return max(names, key=lambda name: (digest(f"{uri}\0{name}"), name))


def pack_job(message: Any, pipeline: redis.client.Pipeline, *, is_alone: bool = False) -> dict[str, Any]:
    """The argument of a job; a long message is written beside the queue by `pipeline`.

    Args:
        is_alone: No other job may share what happens to it.
    """
    wire = to_wire(message)
    text = json.dumps(wire).encode()
    envelope: dict[str, Any] = {"sent_at": time.time()} | ({"alone": True} if is_alone else {})
    if len(text) <= MAX_ARGUMENT_BYTES:
        return envelope | {"message": wire}
    name = digest(text)
    pipeline.set(blob_key(name), text, ex=BLOB_TTL_S)
    return envelope | {"blob": name}


def goes_alone(envelope: Any) -> bool:
    """Whether a job is to be done by itself, as whoever packed it asked."""
    return isinstance(envelope, dict) and envelope.get("alone") is True


def unpack_job(envelope: Any, connection: redis.Redis) -> tuple[Any, float]:
    """(the message as JSON values, Unix seconds when it was sent).

    Raises:
        JobRefusedError: this is no envelope of ours, or the message beside the queue is gone.
    """
    if not isinstance(envelope, dict) or not isinstance(envelope.get("sent_at"), int | float):
        raise JobRefusedError("The queue holds a job that sam2-backend did not write. Give it a Redis database of its own.")
    if "blob" not in envelope:
        return envelope.get("message"), float(envelope["sent_at"])
    data = connection.get(blob_key(str(envelope["blob"])))
    if not isinstance(data, bytes):
        raise JobRefusedError("The prompts of this job are no longer in Redis. Send the request again.")
    return json.loads(data), float(envelope["sent_at"])


def pack_answer(answer: ImageReply | DatasetReply | Sam2BackendError) -> bytes:
    """What a worker pushes."""
    if isinstance(answer, Sam2BackendError):
        error = {"ok": False, "code": answer.code, "message": answer.message, "retry_after_s": answer.retry_after_s}
        return json.dumps(error).encode()
    return json.dumps({"ok": True, "reply": to_wire(answer)}).encode()


def unpack_answer(data: bytes) -> ImageReply | Sam2BackendError:
    """What the web tier reads; a malformed answer is an error as a value too."""
    return _unpack(data, ImageReply)


def unpack_dataset_answer(data: bytes) -> DatasetReply | Sam2BackendError:
    """As `unpack_answer`, to a DatasetJob."""
    return _unpack(data, DatasetReply)


def _unpack(data: bytes, kind: type[Reply]) -> Reply | Sam2BackendError:
    try:
        answer = json.loads(data)
        if answer["ok"]:
            return from_wire(kind, answer["reply"])
        return error_from_code(answer["code"], answer["message"], answer["retry_after_s"])
    except (KeyError, TypeError, ValueError):
        return JobRefusedError("A worker's answer is malformed. Run the same version on the web tier and the workers.")
    except JobRefusedError as error:
        return error
