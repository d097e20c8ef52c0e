"""The worker process: says that it lives, loads the model once, serves, and drains on SIGTERM.

torch is imported after the first sign of life: an import takes seconds, in which a waiting click must know that somebody is coming.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import redis

from sam2_backend import jobs
from sam2_backend.errors import SettingsError
from sam2_backend.jobs import Runtime
from sam2_backend.liveness import Heartbeat, live_workers
from sam2_backend.messages import WorkerStatus
from sam2_backend.process_memory import keep_freed_memory
from sam2_backend.queue_worker import QueueWorker
from sam2_backend.redis_connection import connect
from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagateJob

log = logging.getLogger(__name__)

BuildRuntime = Callable[[Settings, redis.Redis, str], Runtime]

#: The loop, the heartbeat, the cache's lock renewal, the media index and threads that fetch frames.
_CONNECTIONS = 16


def load_runtime(settings: Settings, connection: redis.Redis, name: str) -> Runtime:
    """The engine and its caches.

    Raises:
        BadCheckpointError: the checkpoint is missing, damaged, or none of SAM 2's.
        SettingsError: the bucket for embeddings cannot be one.
    """
    from sam2_backend.detector import load_detector
    from sam2_backend.embedding_cache import EmbeddingCache
    from sam2_backend.embedding_tier import lower_tiers
    from sam2_backend.engine import Sam2Engine
    from sam2_backend.example_memories import ExampleMemories
    from sam2_backend.frame_sources import open_frames
    from sam2_backend.media import MediaStore
    from sam2_backend.pictures import Atelier
    from sam2_backend.preannotation import Preannotation
    from sam2_backend.propagation import Propagation
    from sam2_backend.propagation_claims import Claims
    from sam2_backend.propagator import Propagator
    from sam2_backend.refinement import LogitsCache
    from sam2_backend.segmenter import Segmenter

    below = lower_tiers(settings)
    engine = Sam2Engine.load(settings)  # sets torch's threads, too
    engine.warm_up()
    cache = EmbeddingCache(
        connection,
        engine.device,
        engine.dtype,
        device_budget_bytes=settings.device_cache_bytes,
        # Where the device is the CPU, its tier is host memory already.
        host_budget_bytes=0 if engine.device.type == "cpu" else settings.host_cache_bytes,
        redis_budget_bytes=settings.redis_cache_bytes,
        below=below,
    )
    atexit.register(cache.close)  # a worker that drained; whoever is killed loses what waits to be written
    store = MediaStore(settings, connection)

    def open_work(job: PropagateJob) -> Propagation:
        frames = open_frames(job.source, store, settings)
        try:
            return Propagation(job, frames, engine, cache, settings.propagate_max_results)
        except BaseException:
            frames.close()
            raise

    propagator = Propagator(Claims(connection, settings), open_work, lambda: live_workers(connection), settings, name, engine.model_version)
    logits, most_px = LogitsCache(settings.logits_cache_entries), settings.media_max_pixels
    atelier = Atelier(engine, store, cache, most_px)
    detector = functools.cache(functools.partial(load_detector, settings.detector, engine.device))
    preannotation = Preannotation(atelier, name, ExampleMemories(atelier), detector)
    return Segmenter(engine, store, cache, logits, name, most_px, propagator, preannotation)


def run_worker(settings: Settings, build_runtime: BuildRuntime = load_runtime) -> int:
    """Serve until SIGTERM or SIGINT; a second SIGINT ends the process at once. Called in the main thread, once per process.

    Returns:
        0, the exit code of a drained worker.

    Raises:
        SettingsError: no Redis is set, the name is unusable, or another live worker has it.
        ModelError: the model cannot be loaded.
    """
    # Before torch is imported: its threads otherwise spin between steps, and where anything else wants the cores (a browser, a second
    # worker) a click then takes up to a hundred times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")  # unless the caller did
    for chatty in ("rq.worker", "rq.job", "rq.queue"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not settings.redis_url:
        raise SettingsError("SAM2_REDIS_URL is not set, so there is no queue to serve. Set it, or run `sam2-backend up`.")
    connection = connect(settings.redis_url, _CONNECTIONS)
    status = _first_status(settings)
    with suppress(redis.RedisError):
        _claim_name(connection, status, settings.heartbeat_s)
    stop = _StopSignals()
    worker = QueueWorker(status, connection, settings.heartbeat_s, settings.click_batch)
    heartbeat = Heartbeat(connection, settings.heartbeat_s, worker.beat)
    heartbeat.start()
    try:
        log.info("worker %s loads model %s on device %s", status.name, settings.model, settings.device)
        runtime = build_runtime(settings, connection, status.name)
        jobs.install(runtime)
        log.info("worker %s serves %s on %s", status.name, runtime.model_version, runtime.device)
        stop.ends_loading()
        worker.serve(runtime, lambda: stop.requested)
        log.info("worker %s was asked to stop", status.name)
    finally:
        heartbeat.stop()
        with suppress(redis.RedisError):
            worker.leave()
        connection.close()
    return 0


class _StopSignals:
    """SIGTERM and SIGINT as a flag. A plain attribute: a handler must not take a lock that the main thread may hold."""

    def __init__(self) -> None:
        self.requested = False
        self._is_loading = True
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._handle)

    def ends_loading(self) -> None:
        self._is_loading = False

    def _handle(self, _signum: int, _frame: FrameType | None) -> None:
        was_requested, self.requested = self.requested, True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._is_loading and not was_requested:
            raise SystemExit(0)


def _first_status(settings: Settings) -> WorkerStatus:
    hostname, started_at = socket.gethostname(), time.time()
    name = settings.worker_name or re.sub(r"[^A-Za-z0-9._-]", "-", f"{hostname}-{os.getpid()}")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
        raise SettingsError(f"SAM2_WORKER_NAME={name!r} may hold letters, digits, dot, dash and underscore, at most 100.")
    return WorkerStatus(name, os.getpid(), hostname, settings.device, "", started_at, started_at)


def _claim_name(connection: redis.Redis, status: WorkerStatus, heartbeat_s: float) -> None:
    """Return once no other process beats under this name: two would take each other's jobs for lost.

    Raises:
        SettingsError: another worker beats.
    """
    first_beat_at: float | None = None
    while True:
        holder = next((other for other in live_workers(connection) if other.name == status.name), None)
        if holder is None or (holder.hostname == status.hostname and not _is_other_process(holder.pid)):
            return
        first_beat_at = first_beat_at or holder.beat_at
        if holder.beat_at != first_beat_at:
            raise SettingsError(
                f"A worker named {status.name} already runs (process {holder.pid} on {holder.hostname}). "
                "Give this one another SAM2_WORKER_NAME."
            )
        time.sleep(heartbeat_s / 2)


def _is_other_process(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a container restarted: same host name, same process number, another life
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
