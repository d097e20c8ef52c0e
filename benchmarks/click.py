"""How long does a click take, from the HTTP request to the mask, and where does the time go?

Ours (web tier, queue, worker: the processes of `sam2-backend up`) and the peer (see peer.py) answer the same clicks in turn, in one
run, on the same weights. Cold: an image that nobody has seen. Warm: the second click and later. Times are the client's, over
loopback; the split is what our answer says in Server-Timing.

    python -m benchmarks.click [--model random:sam2.1_hiera_tiny] [--clicks 20] [--cold 4] [--size 1920x1080]
"""

from __future__ import annotations

import argparse
import dataclasses
import http.server
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from backend.child_process import die_with_parent
from backend.config_generator import generate
from backend.supervisor import Stack, child_environment
from sam2_backend.settings import Settings

STAGES = ("queue", "media", "embed", "decode", "runs", "regions")
LABEL_CONFIG = generate(["Object"], "brush")


def photograph(seed: int, size_wh: tuple[int, int]) -> bytes:
    """A JPEG with structure at every scale, so that neither the decoder of JPEG nor the masks are trivial."""
    rng = np.random.default_rng(seed)
    width, height = size_wh
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        coarse = rng.uniform(0, 255, (max(2, cells * height // width), cells, 3)).astype(np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize(size_wh, Image.Resampling.BICUBIC), np.float32) / np.sqrt(cells)
    picture = Image.fromarray((255 * (total - total.min()) / np.ptp(total)).astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def serve_images(size_wh: tuple[int, int]) -> http.server.ThreadingHTTPServer:
    made: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in made:
                made[self.path] = photograph(hash(self.path) % 2**32, size_wh)
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(made[self.path])))
            self.end_headers()
            self.wfile.write(made[self.path])

        def log_message(self, *_args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def click_body(image_url: str, clicks: list[tuple[float, float]], size_wh: tuple[int, int]) -> dict:
    width, height = size_wh
    common = {"original_width": width, "original_height": height, "image_rotation": 0, "from_name": "point", "to_name": "image"}
    result = [
        {
            **common,
            "id": f"{abs(hash((image_url, clicks[0])))}-{index}",
            "type": "keypointlabels",
            "is_positive": index % 3 != 2,
            "value": {"x": x, "y": y, "width": 0.3, "keypointlabels": ["Object"], "labels": ["Object"]},
        }
        for index, (x, y) in enumerate(clicks)
    ]
    task = {"id": abs(hash(image_url)) % 10**6, "data": {"image": image_url}}
    return {"tasks": [task], "project": "1.1", "label_config": LABEL_CONFIG, "params": {"context": {"result": result}}}


def timed_post(session: requests.Session, url: str, body: dict) -> tuple[float, dict[str, float]]:
    """Wall milliseconds, and the split that the answer tells of."""
    started = time.perf_counter()
    response = session.post(f"{url}/predict", json=body, timeout=300)
    wall_ms = (time.perf_counter() - started) * 1e3
    response.raise_for_status()
    assert response.json()["results"][0]["result"] is not None
    split = {}
    for part in filter(None, response.headers.get("Server-Timing", "").split(",")):
        name, _, duration = part.strip().partition(";dur=")
        split[name] = float(duration)
    return wall_ms, split


def summary(values: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 2), "p95": round(float(np.percentile(values, 95)), 2), "n": len(values)}


def run(options: argparse.Namespace) -> dict:
    size_wh = tuple(int(part) for part in options.size.split("x"))
    rng = np.random.default_rng(0)
    images = serve_images(size_wh)
    origin = f"http://127.0.0.1:{images.server_address[1]}"
    with tempfile.TemporaryDirectory(prefix="sam2-bench-") as folder:
        settings = dataclasses.replace(
            Settings(), model=options.model, port=options.port, data_dir=Path(folder), media_allow_hosts="127.0.0.1", log_level="warning"
        )
        peer_url = f"http://127.0.0.1:{options.port + 1}"
        peer = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peer", str(options.port + 1)],
            env=child_environment(settings),
            preexec_fn=die_with_parent,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            with Stack(settings, log_dir=Path(folder) / "logs") as stack:
                stack.wait_until_ready()
                wait_for(peer_url)
                return measure(options, rng, stack.url, peer_url, origin, size_wh)
        finally:
            peer.terminate()
            peer.wait()
            images.shutdown()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            requests.get(f"{url}/health", timeout=1).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.2)
    raise TimeoutError(f"{url} did not start")


def measure(options, rng, ours_url, peer_url, origin, size_wh) -> dict:
    session = requests.Session()
    cold_ours, cold_peer, warm_ours, warm_peer, splits, cold_splits = [], [], [], [], [], []
    for number in range(options.cold + 1):
        body = click_body(f"{origin}/cold{number}.jpg", [tuple(rng.uniform(20, 80, 2))], size_wh)
        requests.get(body["tasks"][0]["data"]["image"], timeout=60)  # the picture is drawn before anyone is timed
        ours_ms, split = timed_post(session, ours_url, body)
        peer_ms, _ = timed_post(session, peer_url, body)
        if number:  # the first of all warms both processes up
            cold_ours.append(ours_ms)
            cold_peer.append(peer_ms)
            cold_splits.append(split)
    for number in range(options.clicks):
        # Drawings of up to five clicks on the image seen last; the peer cannot refine and gets the same prompts.
        if number % 5 == 0:
            clicks = []
        clicks.append(tuple(rng.uniform(20, 80, 2)))
        body = click_body(f"{origin}/cold{options.cold}.jpg", clicks, size_wh)
        ours_ms, split = timed_post(session, ours_url, body)
        warm_ours.append(ours_ms)
        splits.append(split)
        if number % options.peer_every == 0:
            warm_peer.append(timed_post(session, peer_url, body)[0])
    others = [wall - split.get("decode", 0) for wall, split in zip(warm_ours, splits, strict=True)]
    stage = {name: summary([split.get(name, 0.0) for split in splits]) for name in STAGES}
    stage["http"] = summary([wall - split.get("total", 0.0) for wall, split in zip(warm_ours, splits, strict=True)])
    return {
        "benchmark": "click",
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "model": options.model,
        "image": options.size,
        "warm_ms": {"ours": summary(warm_ours), "peer": summary(warm_peer)},
        "cold_ms": {"ours": summary(cold_ours), "peer": summary(cold_peer)},
        "warm_ratio": round(statistics.median(warm_peer) / statistics.median(warm_ours), 1),
        "cold_ratio": round(statistics.median(cold_peer) / statistics.median(cold_ours), 2),
        "warm_not_decoder_ms": summary(others),
        "warm_split_ms": stage,
        "cold_split_ms": {name: summary([split.get(name, 0.0) for split in cold_splits]) for name in STAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:sam2.1_hiera_tiny")
    parser.add_argument("--clicks", type=int, default=50)
    parser.add_argument("--cold", type=int, default=6)
    parser.add_argument("--peer-every", type=int, default=5, help="the peer is slow: it answers every n-th warm click")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--port", type=int, default=9190)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
