"""Whether the worker on this host serves: `python -m sam2_backend.worker_health`, for a container's health or readiness probe.

A worker listens on no port; it says that it lives in Redis. The one asked about is the one of this host name, which in a container
is the only one. Imports no torch, since a probe runs every few seconds.
"""

from __future__ import annotations

import os
import socket
import sys

import redis

from sam2_backend.errors import Sam2BackendError
from sam2_backend.liveness import live_workers
from sam2_backend.redis_connection import connect, redis_errors_as_ours
from sam2_backend.settings import Settings


def missing(connection: redis.Redis, hostname: str) -> str:
    """What keeps the worker of this host from serving, a sentence; "": nothing does.

    Raises:
        QueueDownError: Redis does not answer.
    """
    with redis_errors_as_ours():
        here = [worker for worker in live_workers(connection) if worker.hostname == hostname]
    if not here:
        return f"No worker on {hostname} says that it lives. Its first log lines say what keeps it from starting."
    loading = [worker.name for worker in here if worker.state == "loading"]
    return f"Worker {loading[0]} still loads its model." if loading else ""


def main() -> int:
    """0: it serves; 1: it does not, and why is printed."""
    try:
        connection = connect(Settings.from_env(os.environ).redis_url, 1)
        sentence = missing(connection, socket.gethostname())
    except Sam2BackendError as error:
        sentence = error.message
    if sentence:
        print(sentence, file=sys.stderr)
    return 1 if sentence else 0


if __name__ == "__main__":
    sys.exit(main())
