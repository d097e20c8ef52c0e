"""The probe of a worker's container, against a real Redis."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sam2_backend.liveness import announce
from sam2_backend.messages import WorkerStatus
from sam2_backend.redis_connection import connect
from sam2_backend.settings import Settings
from sam2_backend.worker_health import missing

ROOT = Path(__file__).resolve().parents[2]


def _probe(settings: Settings) -> subprocess.CompletedProcess[str]:
    env = os.environ | settings.to_env() | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "sam2_backend.worker_health"], env=env, capture_output=True, text=True, check=False)


def _beat(settings: Settings, state: str, hostname: str) -> None:
    now = time.time()
    with connect(settings.redis_url, 1) as connection, connection.pipeline() as pipe:
        announce(pipe, WorkerStatus("w", 1, hostname, "cpu", "m", now, now, state), 60)
        pipe.execute()


@pytest.mark.parametrize(("state", "sentence"), [("loading", "still loads"), ("idle", ""), ("busy", "")])
def test_a_worker_is_healthy_once_it_serves(settings, state, sentence):
    _beat(settings, state, "host-a")
    assert sentence in missing(connect(settings.redis_url, 1), "host-a")
    assert bool(sentence) == bool(missing(connect(settings.redis_url, 1), "host-a"))


def test_another_hosts_worker_does_not_count(settings):
    _beat(settings, "idle", "host-a")
    assert "No worker on host-b" in missing(connect(settings.redis_url, 1), "host-b")


def test_the_exit_code_says_it(settings):
    done = _probe(settings)
    assert (done.returncode, "No worker on" in done.stderr) == (1, True)
    _beat(settings, "idle", socket.gethostname())
    done = _probe(settings)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_redis_that_is_away_is_a_sentence_without_its_password(settings):
    done = _probe(replace(settings, redis_url="redis://:hunter2@127.0.0.1:1/0"))
    assert done.returncode == 1
    assert "Redis does not answer" in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_probe_imports_no_torch():
    code = "import sam2_backend.worker_health, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
