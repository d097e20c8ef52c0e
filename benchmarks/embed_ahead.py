"""What do images that are embedded ahead cost those who click meanwhile? A real worker on the CPU, one after the other in two ways.

`python -m benchmarks.embed_ahead --model random:sam2.1_hiera_tiny`: while five images are embedded ahead, somebody clicks on an image that is ready,
twice a second. `between`: such clicks are answered between two blocks of the encoder, as they are; `after`: they wait for the end of its run.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backend.dispatch import Dispatcher
from backend.embedded_redis import server_arguments, server_command
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MediaRef, Point, WarmJob
from sam2_backend.settings import Settings

SIZE_HW = (400, 600)
N_AHEAD, N_QUIET = 5, 5
NEVER_S = 1e9
ROOT = Path(__file__).resolve().parents[1]
_WORKER = (
    "import os, sys; from sam2_backend import courtesy; courtesy._LOOK_EVERY_S = float(sys.argv[1]) or courtesy._LOOK_EVERY_S; "
    "from sam2_backend.settings import Settings; from sam2_backend.worker import run_worker; sys.exit(run_worker(Settings.from_env(os.environ)))"
)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    server = subprocess.Popen([*server_command(), *server_arguments(folder / "redis.sock")], stdout=subprocess.DEVNULL)
    try:
        while not (folder / "redis.sock").exists():
            time.sleep(0.05)
        yield f"unix://{folder / 'redis.sock'}"
    finally:
        server.kill()
        server.wait()


@contextmanager
def worker(settings: Settings, look_every_s: float) -> Iterator[Dispatcher]:
    environ = os.environ | settings.to_env() | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", _WORKER, str(look_every_s)], env=environ, stderr=subprocess.DEVNULL)
    dispatcher = Dispatcher(settings)
    try:
        while not any(status.state in {"idle", "busy"} for status in dispatcher.workers()):
            if process.poll() is not None:
                raise SystemExit("the worker ended; is the model's name right?")
            time.sleep(0.2)
        yield dispatcher
    finally:
        dispatcher.close()
        process.terminate()
        process.wait()


def click_ms(dispatcher: Dispatcher, media: MediaRef, number: int) -> float:
    """How long a click on an image that is ready takes."""
    job = ImageJob(media, SIZE_HW, (ImagePrompt("p", (Point(300.0 + number, 200.0),)),), drawing=f"1/{number}")
    started = time.perf_counter()
    [reply] = dispatcher.segment([job], 80)
    if not isinstance(reply, ImageReply):
        raise reply
    return (time.perf_counter() - started) * 1e3


def measure(settings: Settings, look_every_s: float, first_seed: int) -> dict[str, Any]:
    with worker(settings, look_every_s) as dispatcher:
        ready, *ahead = (dispatcher.put_blob(picture(first_seed + index)) for index in range(1 + N_AHEAD))
        click_ms(dispatcher, ready, 0)
        quiet = [click_ms(dispatcher, ready, number) for number in range(N_QUIET)]
        dispatcher.warm([WarmJob(media) for media in ahead])
        meanwhile: list[float] = []
        while not meanwhile or dispatcher.queue_lengths().get(f"warm@{settings.worker_name}", 0):
            time.sleep(0.5)
            meanwhile.append(click_ms(dispatcher, ready, N_QUIET + len(meanwhile)))
    figures = {"quiet_ms_median": quiet, "meanwhile_ms_median": meanwhile}
    return {"clicks": len(meanwhile), "meanwhile_ms_max": round(max(meanwhile), 1)} | {
        name: round(float(np.median(values)), 1) for name, values in figures.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ahead-"))
    try:
        with redis_server(folder) as url:
            settings = replace(
                Settings(), redis_url=url, data_dir=folder, model=arguments.model, device="cpu", torch_threads=1, worker_name="cpu0"
            )
            rows = {name: measure(settings, look, seed) for name, look, seed in (("between", 0.0, 0), ("after", NEVER_S, 100))}
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"benchmark": "embed_ahead", "model": arguments.model, "load": round(os.getloadavg()[0], 1), **rows}))


if __name__ == "__main__":
    main()
