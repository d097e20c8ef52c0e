"""Who is alive: each worker writes its WorkerStatus under a key that ends by itself, and the dead are buried by whoever notices.

The key's end of life is the only clock, so machines need not agree on the time.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable

import redis

from sam2_backend.errors import JobRefusedError
from sam2_backend.messages import WorkerStatus, from_wire, to_wire
from sam2_backend.queue_format import MODEL_VERSION, PRIVATE_KINDS, SHARED_QUEUES, WORKERS, private_queue, queue_key, worker_key
from sam2_backend.redis_connection import as_bytes

log = logging.getLogger(__name__)

BEATS_UNTIL_DEAD = 5


def incarnation(status: WorkerStatus) -> str:
    """Names one process among all that ever had this worker's name: a restarted worker does not hold its predecessor's job."""
    return f"{status.name}:{status.pid}:{status.started_at:.3f}"


def announce(pipeline: redis.client.Pipeline, status: WorkerStatus, heartbeat_s: float) -> None:
    """Say that a worker lives; from then on it counts as dead after `BEATS_UNTIL_DEAD` heartbeats of silence."""
    pipeline.set(worker_key(status.name), json.dumps(to_wire(status)), px=int(heartbeat_s * BEATS_UNTIL_DEAD * 1000))
    pipeline.sadd(WORKERS, status.name)
    if status.state != "loading":
        pipeline.set(MODEL_VERSION, status.model_version)


def live_workers(connection: redis.Redis) -> list[WorkerStatus]:
    """The live workers by name, those that still load among them. Whoever is listed but dead is buried."""
    names = sorted(as_bytes(name).decode() for name in connection.smembers(WORKERS))
    if not names:
        return []
    live = []
    for name, record in zip(names, connection.mget([worker_key(name) for name in names]), strict=True):
        if record is None:
            bury(connection, name)
        elif (status := _read(name, as_bytes(record))) is not None:
            live.append(status)
    return live


def bury(connection: redis.Redis, name: str) -> None:
    """Forget a worker and hand what waits on its private queues to the shared ones, oldest first.

    Idempotent, and harmless where the worker returns meanwhile: a moved job is then served from the shared queue.
    """
    lengths = [int(connection.llen(queue_key(private_queue(kind, name)))) for kind in PRIVATE_KINDS]
    with connection.pipeline() as pipe:
        pipe.srem(WORKERS, name)
        for kind, length in zip(PRIVATE_KINDS, lengths, strict=True):
            private = private_queue(kind, name)
            for _ in range(length):
                pipe.lmove(queue_key(private), queue_key(kind), "LEFT", "RIGHT")
            if length:
                pipe.sadd("rq:queues", queue_key(kind))
            pipe.srem("rq:queues", queue_key(private))
            pipe.delete(f"rq:workers:{private}")
        was_listed = pipe.execute()[0]
    if was_listed:
        log.info("worker %s is gone; %d waiting jobs were handed on", name, sum(lengths))


def forget_registered(connection: redis.Redis) -> None:
    """Take workers that died off rq's lists: it lists each process for ever, and nothing else would."""
    lists = ["rq:workers", *(f"rq:workers:{queue}" for queue in SHARED_QUEUES)]
    listed = [as_bytes(key) for key in connection.smembers(lists[0])]
    with connection.pipeline(transaction=False) as pipe:
        for key in listed:
            pipe.exists(key)
        dead = [key for key, is_there in zip(listed, pipe.execute(), strict=True) if not is_there]
    if dead:
        with connection.pipeline(transaction=False) as pipe:
            for key in dead:
                name = key.decode().removeprefix("rq:worker:").partition(":")[0]
                for each in (*lists, *(f"rq:workers:{private_queue(kind, name)}" for kind in PRIVATE_KINDS)):
                    pipe.srem(each, key)
            pipe.execute()


def _read(name: str, record: bytes) -> WorkerStatus | None:
    try:
        return from_wire(WorkerStatus, json.loads(record))
    except (ValueError, JobRefusedError):
        log.warning("the record of worker %s is of another version and is passed over", name)
        return None


class Heartbeat:
    """Beats until stopped, from a thread of its own, so that a long job does not look like death. Redis being away only skips beats.

    Args:
        beat: Writes one sign of life; may raise redis.RedisError.
    """

    def __init__(self, connection: redis.Redis, heartbeat_s: float, beat: Callable[[], None]) -> None:
        self._redis, self._heartbeat_s, self._beat = connection, heartbeat_s, beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when no further beat can be written."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        beats = 0
        while True:
            try:
                self._beat()
                beats += 1
                if beats % BEATS_UNTIL_DEAD == 0:
                    live_workers(self._redis)
                    forget_registered(self._redis)
            except redis.RedisError as error:
                log.debug("a heartbeat was skipped: %s", type(error).__name__)
            except Exception:
                # A worker that works must not look dead because its own statistics failed.
                log.exception("a heartbeat failed")
            if self._stop.wait(self._heartbeat_s):
                return
