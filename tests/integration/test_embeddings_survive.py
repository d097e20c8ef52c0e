"""A whole project embedded ahead, with the real worker: what it made is there after it, its Redis and its machine's memory are gone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from safetensors.torch import save_file

from backend import config_generator
from backend.dispatch import Dispatcher
from backend.preannotate import Asked, run_warm
from backend.progress import Progress
from sam2_backend import checkpoints
from sam2_backend.messages import ImageJob, ImagePrompt, Point
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from fake_label_studio import TOKEN, Studio
from worker_processes import ROOT, until

SIZE_HW = (60, 90)
IMAGES = 3
MAIN = (
    "import os, sys; from sam2_backend.settings import Settings; from sam2_backend.worker import run_worker; "
    "sys.exit(run_worker(Settings.from_env(os.environ)))"
)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def save_checkpoint(path: Path, *, changed: bool) -> None:
    nano = checkpoints.load(Settings(model="random:nano"))
    tensors = {name: tensor.contiguous() * (1.01 if changed else 1.0) for name, tensor in nano.state_dict.items()}
    save_file(tensors, path, {"config": json.dumps(nano.config.to_json())})


class Machine:
    """One worker at a time on one data folder, a Redis that forgets, a Label Studio with a project of three images."""

    def __init__(self, settings: Settings, studio: Studio, folder: Path) -> None:
        save_checkpoint(folder / "mine.safetensors", changed=False)
        self.settings = replace(
            settings,
            model=str(folder / "mine.safetensors"),
            device="cpu",
            worker_name="w0",
            label_studio_url=studio.url,
            label_studio_api_key=TOKEN,
        )
        self.folder = folder
        self.dispatcher = Dispatcher(self.settings)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = os.environ | self.settings.to_env() | {"PYTHONPATH": str(ROOT)}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([sys.executable, "-c", MAIN], env=env, stderr=log)
        until(lambda: any(w.pid == self._process.pid and w.state == "idle" for w in self.dispatcher.workers()), 120)

    def stop(self, *, hard: bool = False) -> None:
        """The worker ends, drained or killed, and Redis forgets everything."""
        if self._process is not None:
            self._process.kill() if hard else self._process.terminate()
            assert hard or self._process.wait(60) == 0
            self._process.wait()
            self._process = None
            self.dispatcher.redis().flushall()

    def warm(self) -> str:
        out = io.StringIO()
        assert run_warm(self.settings, Asked(1, mode=""), None, Progress(out=out)) == 0
        return out.getvalue()

    def click(self, number: int):
        job = ImageJob(self.dispatcher.put_blob(png(number)), SIZE_HW, (ImagePrompt("p", (Point(30.0, 20.0),)),))
        [reply] = self.dispatcher.segment([job], 60)
        return reply

    def hits(self) -> dict[str, float]:
        [worker] = self.dispatcher.workers()
        return {tier: count for tier, count in worker.hits.items() if count}

    def kept(self) -> list[Path]:
        return sorted(self.settings.embedding_folder.rglob("*.emb"))

    def close(self) -> None:
        self.stop(hard=True)
        self.dispatcher.close()


@pytest.fixture
def machine(settings: Settings, tmp_path: Path) -> Iterator[Machine]:
    studio = Studio(config_generator.generate(["Cat"]))
    studio.add_tasks(*({"image": "data:image/png;base64," + base64.b64encode(png(number)).decode()} for number in range(IMAGES)))
    studio.start()
    with contextlib.closing(Machine(settings, studio, tmp_path)) as made:
        yield made
    studio.stop()


def test_a_warmed_project_is_warm_after_every_restart_and_cold_for_another_checkpoint(machine):
    machine.start()
    machine.warm()
    first = machine.click(0)
    assert first.cache == "device"
    until(lambda: machine.hits() == {"none": 3, "device": 1})
    machine.stop()
    assert len(machine.kept()) == IMAGES, "a worker that drains writes what waits"
    machine.start()
    again = machine.click(0)
    assert again.cache == "disk"
    assert again.masks == first.masks
    assert machine.click(0).cache == "device"
    assert "100 % cached" in machine.warm()
    until(lambda: machine.hits().get("disk") == IMAGES)
    machine.stop(hard=True)
    save_checkpoint(machine.folder / "mine.safetensors", changed=True)
    machine.start()
    other = machine.click(0)
    assert other.cache == "none"
    assert other.model_version != first.model_version


def test_warming_again_fills_a_bucket_that_was_added(machine, monkeypatch):
    machine.start()
    machine.warm()
    machine.stop()
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        aws = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (aws | {"AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}).items():
            monkeypatch.setenv(name, value)
        with contextlib.closing(boto3.client("s3")) as s3:
            s3.create_bucket(Bucket="survivors")
            machine.settings = replace(machine.settings, embedding_bucket="s3://survivors/of/a/team")
            machine.start()
            assert "100 % cached" in machine.warm()
            machine.stop()
            kept = [found["Key"] for found in s3.list_objects_v2(Bucket="survivors")["Contents"]]
        assert kept == [f"of/a/team/{path.relative_to(machine.settings.embedding_folder)}" for path in machine.kept()]
        assert len(kept) == IMAGES
    finally:
        server.stop()
