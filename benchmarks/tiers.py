"""What does a look-up in each tier of the embedding cache cost, against encoding the image?

One image, its real embedding. Every row is `EmbeddingCache.get_or_make` in a cache whose upper tiers hold nothing, to the embedding ready
for the decoder; tiers take turns, so that a busy machine is busy for all. Redis is a real one on a Unix socket; the disk is read from the
page cache and, after the kernel was told to drop the file, from the device; the bucket is moto's server in a process of its own on
loopback. `below redis` is the same with an empty Redis above it, which is filled behind the look-up's back, as `write` is what happens there too.
`nowhere` is what all tiers together add to an image that none has: three questions, and the bytes to write.
Caveats: a real bucket adds its network's time to each way and moto, in Python, is slower than a real service; a GPU encodes far faster
than the CPU here, and no GPU was measured.

    python -m benchmarks.tiers [--model random:sam2.1_hiera_tiny] [--repeats 20] [--folder DIR] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our worker does, before torch is imported

import boto3
import numpy as np
import redis
import torch

from backend.child_process import die_with_parent
from backend.embedded_redis import server_arguments, server_command
from benchmarks.click import photograph
from sam2_backend.embedding_bucket import EmbeddingBucket
from sam2_backend.embedding_cache import EmbeddingCache, EmbeddingKey
from sam2_backend.embedding_disk import EmbeddingFolder
from sam2_backend.embedding_name import place_of
from sam2_backend.embedding_redis import RedisTier
from sam2_backend.embedding_tier import LowerTier
from sam2_backend.engine import ImageEmbedding, Sam2Engine
from sam2_backend.images import load_rgb
from sam2_backend.settings import GIB, Settings

BUCKET = "embeddings"
ENCODINGS = 5


def until(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 60
    while not is_true():
        if time.monotonic() > ends_at:
            raise SystemExit("a server did not start")
        time.sleep(0.01)


@contextmanager
def process(command: list[str]) -> Iterator[None]:
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
    try:
        yield
    finally:
        child.kill()
        child.wait()


@contextmanager
def redis_server(folder: Path) -> Iterator[redis.Redis]:
    with process([*server_command(), *server_arguments(folder / "redis.sock")]):
        until((folder / "redis.sock").exists)
        with redis.Redis.from_url(f"unix://{folder / 'redis.sock'}") as connection:
            yield connection


@contextmanager
def bucket() -> Iterator[EmbeddingBucket]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]):

        def answers() -> bool:
            try:
                return urllib.request.urlopen(f"{url}/moto-api/", timeout=1).status == 200
            except OSError:
                return False

        until(answers)
        secrets = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL_S3": url}
        os.environ |= secrets
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield EmbeddingBucket(f"s3://{BUCKET}/tiers")


class Bench:
    """Caches with one tier each; all hold the same embedding."""

    def __init__(self, engine: Sam2Engine, connection: redis.Redis, folder: Path, remote: EmbeddingBucket) -> None:
        self.engine, self.connection, self.folder = engine, connection, folder
        self.key = EmbeddingKey("image", engine.model_id, engine.preprocessing, "upright")
        self.disk, self.remote = EmbeddingFolder(folder, GIB), remote
        on_disk, in_bucket = (LowerTier(name, store, wait_s=60) for name, store in (("disk", self.disk), ("bucket", remote)))
        self.caches = {
            "device": self._cache(device=1),
            "host": self._cache(host=1),
            "redis": self._cache(redis=1),
            "disk": self._cache(below=(on_disk,)),
            "disk, from the device": self._cache(below=(on_disk,)),
            "disk, below redis": self._cache(redis=1, below=(on_disk,)),
            "bucket": self._cache(below=(in_bucket,)),
            "nowhere": self._cache(redis=1, below=(on_disk, in_bucket)),
        }
        self.before: dict[str, Callable[[], object]] = {
            "disk, from the device": self._drop_pages,
            "disk, below redis": connection.flushall,
            "redis": self._fill_redis,
            "nowhere": self._empty,
        }

    def _cache(self, *, device: int = 0, host: int = 0, redis: int = 0, below: tuple[LowerTier, ...] = ()) -> EmbeddingCache:
        budgets = {"device_budget_bytes": device * GIB, "host_budget_bytes": host * GIB, "redis_budget_bytes": redis * GIB}
        return EmbeddingCache(self.connection, self.engine.device, self.engine.dtype, **budgets, below=below)

    def fill(self, embedding: ImageEmbedding) -> None:
        self.embedding, self.data = embedding, embedding.to_bytes()
        for cache in self.caches.values():
            self.connection.flushall()
            cache.get_or_make(self.key, lambda: embedding)
            self._settle(cache)
        self.name = self.caches["device"]._name(self.key.text)
        until(lambda: self.disk.has(self.name) and self.remote.has(self.name))

    def look_up(self, tier: str) -> float:
        """Milliseconds of one look-up, and the embedding is the one that was made."""
        self.before.get(tier, lambda: None)()
        make = (lambda: self.embedding) if tier == "nowhere" else _must_not_make
        started = time.perf_counter()
        found, _ = self.caches[tier].get_or_make(self.key, make)
        spent_ms = (time.perf_counter() - started) * 1e3
        self._settle(self.caches[tier])
        if not all(map(torch.equal, found.maps, self.embedding.maps)):
            raise SystemExit(f"{tier} gave another embedding")
        return spent_ms

    def write(self, tier: str) -> float:
        store = {"redis": RedisTier(self.connection, GIB), "disk": self.disk, "bucket": self.remote}[tier]
        started = time.perf_counter()
        store.put(self.name, self.data)
        return (time.perf_counter() - started) * 1e3

    def _fill_redis(self) -> None:
        if not self.connection.keys("sam2:emb:blob:*"):
            self.caches["redis"].get_or_make(self.key, lambda: self.embedding)
            self._settle(self.caches["redis"])

    def _empty(self) -> None:
        self.connection.flushall()
        for tier in self.caches["nowhere"]._below:
            tier.forget(self.name)

    @staticmethod
    def _settle(cache: EmbeddingCache) -> None:
        """Nothing is on its way any more."""
        if cache._in_redis:
            cache._in_redis.settle()
        until(lambda: not any(tier._waiting for tier in cache._below))

    def _drop_pages(self) -> None:
        descriptor = os.open(self.folder.joinpath(*place_of(self.name)), os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _must_not_make() -> ImageEmbedding:
    raise SystemExit("a tier had forgotten the embedding")


def summary(values: list[float]) -> dict[str, float]:
    return {"p50_ms": round(statistics.median(values), 2), "p95_ms": round(float(np.percentile(values, 95)), 2)}


def measure(bench: Bench, jpeg: bytes, repeats: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {"encode": []}
    for _ in range(ENCODINGS + 1):  # the first warms up
        started = time.perf_counter()
        embedding = bench.engine.embed(load_rgb(jpeg, "upright", 10**8))
        times["encode"].append((time.perf_counter() - started) * 1e3)
    bench.fill(embedding)
    for number in range(repeats + 1):
        for tier in bench.caches:
            times.setdefault(tier, []).append(bench.look_up(tier))
        for tier in ("redis", "disk", "bucket"):
            times.setdefault(f"write to {tier}", []).append(bench.write(tier))
        print(f"round {number} of {repeats}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return {name: summary(values[1:]) for name, values in times.items()}


def run(options: argparse.Namespace) -> dict:
    engine = Sam2Engine.load(Settings(model=options.model, device="cpu", torch_threads=options.threads))
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory(prefix="sam2-tiers-", dir=options.folder) as folder, bucket() as remote:
        Path(folder, "redis").mkdir()
        with redis_server(Path(folder, "redis")) as connection:
            bench = Bench(engine, connection, Path(folder, "embeddings"), remote)
            rows = measure(bench, photograph(1, (1920, 1080)), options.repeats)
            n_bytes = bench.folder.joinpath(*place_of(bench.name)).stat().st_size
    print("\n".join(f"{name:24}{row['p50_ms']:10.2f}{row['p95_ms']:10.2f}" for name, row in rows.items()), file=sys.stderr)
    machine = {
        "cpus": os.cpu_count(),
        "threads": options.threads,
        "load": load,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return {
        "benchmark": "tiers",
        "model": options.model,
        "bytes_per_image": n_bytes,
        "repeats": options.repeats,
        "rows": rows,
        "machine": machine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:sam2.1_hiera_tiny")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default=None, help="where the disk tier lies; default: the system's temporary folder")
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
