"""A click through queue, worker process, media, engine and back, with a small network of random weights."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.dispatch import Dispatcher
from sam2_backend.errors import MediaUnreachableError, MediaUnreadableError
from sam2_backend.masks import mask_from_runs
from sam2_backend.messages import ImageJob, ImagePrompt, MediaRef, Point, WarmJob
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import ROOT, until

SIZE_HW = (60, 90)
MAIN = "import os, sys; from sam2_backend.settings import Settings; from sam2_backend.worker import run_worker; "


@pytest.fixture
def worker_settings(settings: Settings) -> Settings:
    return replace(settings, model="random:nano", device="cpu", worker_name="cpu0")


@pytest.fixture
def start(worker_settings: Settings, tmp_path: Path) -> Iterator:
    """Starts real workers; their log is at `tmp_path / "log"`."""
    processes: list[subprocess.Popen[bytes]] = []

    def start_one(**changes) -> subprocess.Popen[bytes]:
        env = os.environ | replace(worker_settings, **changes).to_env() | {"PYTHONPATH": str(ROOT)}
        with (tmp_path / "log").open("ab") as log:
            main = MAIN + "sys.exit(run_worker(Settings.from_env(os.environ)))"
            processes.append(subprocess.Popen([sys.executable, "-c", main], env=env, stderr=log))
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def dispatcher(worker_settings: Settings) -> Iterator[Dispatcher]:
    opened = Dispatcher(worker_settings)
    yield opened
    opened.close()


def png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def click(media: MediaRef) -> ImageJob:
    return ImageJob(media, SIZE_HW, (ImagePrompt("p", (Point(30.0, 20.0),)),), drawing="1/p")


def test_a_click_becomes_a_mask_and_the_second_click_finds_the_image_ready(dispatcher, start, tmp_path):
    worker = start()
    until(dispatcher.workers)
    media = dispatcher.put_blob(png())
    [cold] = dispatcher.segment([click(media)], 60)  # also waits for the model
    [warm] = dispatcher.segment([click(media)], 20)
    assert (cold.cache, warm.cache) == ("none", "device")
    assert cold.masks == warm.masks
    assert mask_from_runs(warm.masks[0].runs).shape == SIZE_HW
    assert set(warm.timings_ms) == {"queue", "media", "embed", "decode", "runs"}
    assert warm.timings_ms["media"] + warm.timings_ms["embed"] < 20
    assert dispatcher.model_version() == cold.model_version
    assert cold.model_version.startswith("random-weights-nano@")
    worker.terminate()
    assert worker.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert f"job kind=segment image={cold.image_hash[:6]} prompts=1 cache=device media_ms=" in log
    assert "Traceback" not in log


def test_workers_give_the_same_mask_whichever_answers(dispatcher, start):
    first = start()
    until(dispatcher.workers)
    media = dispatcher.put_blob(png())
    [one] = dispatcher.segment([click(media)], 60)
    first.terminate()
    first.wait()
    start(worker_name="cpu1")
    until(lambda: [worker.name for worker in dispatcher.workers()] == ["cpu1"], 60)
    [other] = dispatcher.segment([click(media)], 60)
    assert (one.worker, other.worker) == ("cpu0", "cpu1")
    assert other.cache == "redis"
    assert other.masks == one.masks


def test_a_warmed_image_is_ready_and_bad_media_is_told_by_name(dispatcher, start):
    start()
    until(dispatcher.workers)
    media = dispatcher.put_blob(png())
    dispatcher.warm([WarmJob(media)])
    until(lambda: any(worker.hits.get("none") for worker in dispatcher.workers()), 60)
    [ready, gone, broken] = dispatcher.segment([click(media), click(MediaRef("blob:gone")), click(dispatcher.put_blob(b"<html>"))], 60)
    assert ready.cache == "device"
    assert type(gone) is MediaUnreachableError
    assert type(broken) is MediaUnreadableError


def test_a_model_that_cannot_be_loaded_ends_the_worker_in_words(dispatcher, start, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"no weights")
    assert start(model=str(tmp_path / "bad.pt")).wait(60) != 0
    assert "BadCheckpointError" in (tmp_path / "log").read_text()
    assert dispatcher.workers() == []
