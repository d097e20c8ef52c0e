"""The tiers below Redis for real: a folder that several processes write at once, a bucket of moto's, services and disks that fail."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer

from sam2_backend import shelves
from sam2_backend.embedding_bucket import EmbeddingBucket
from sam2_backend.embedding_cache import EmbeddingCache, EmbeddingKey
from sam2_backend.embedding_disk import EmbeddingFolder
from sam2_backend.embedding_name import place_of, preface_of
from sam2_backend.embedding_tier import LowerTier
from sam2_backend.engine import ImageEmbedding, Sam2Engine
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import ROOT, until

KEY = EmbeddingKey("image", "model", "p1", "upright")
AWS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
SIZE_HW = (60, 90)


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch) -> Callable[[str], EmbeddingBucket]:
    """Opens the bucket `embeddings` at a service's address, as AWS' own variables tell it."""

    def open_bucket(url: str) -> EmbeddingBucket:
        for name, value in (
            AWS | {"AWS_ENDPOINT_URL_S3": url, "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
        ).items():
            monkeypatch.setenv(name, value)
        return EmbeddingBucket("s3://embeddings/a/prefix/")

    return open_bucket


@pytest.fixture
def bucket(moto_url, aws) -> EmbeddingBucket:
    opened = aws(moto_url)
    with contextlib.closing(boto3.client("s3")) as s3:
        s3.create_bucket(Bucket="embeddings")
        for found in s3.list_objects_v2(Bucket="embeddings").get("Contents", []):
            s3.delete_object(Bucket="embeddings", Key=found["Key"])
    return opened


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    return Sam2Engine.load(Settings(model="random:nano", device="cpu", torch_threads=1))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)


def cache(*below: LowerTier, connection=None, host=0) -> EmbeddingCache:
    """As after a restart: nothing in memory."""
    budgets = {"device_budget_bytes": 0, "host_budget_bytes": host, "redis_budget_bytes": 1 << 30}
    return EmbeddingCache(connection, torch.device("cpu"), torch.float32, **budgets, below=below)


def on_disk(folder: Path, budget_bytes: int = 1 << 30) -> LowerTier:
    return LowerTier("disk", EmbeddingFolder(folder, budget_bytes), wait_s=30)


def in_bucket(bucket: EmbeddingBucket, wait_s: float = 30) -> LowerTier:
    return LowerTier("bucket", bucket, wait_s=wait_s, writers=2)


def must_not_make() -> ImageEmbedding:
    raise AssertionError("encoded although a tier has it")


def small(number: float = 1.0) -> ImageEmbedding:
    tensor = torch.full((1, 2, 4, 4), float(number))
    return ImageEmbedding.rounded((tensor, tensor, tensor), torch.float32)


def same(a: ImageEmbedding, b: ImageEmbedding) -> bool:
    return all(torch.equal(x, y) and x.stride()[1:] == y.stride()[1:] for x, y in zip(a.maps, b.maps, strict=True))


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.emb"))


@pytest.mark.parametrize("tier", ["host", "redis", "disk", "bucket"])
def test_a_mask_is_the_same_bytes_from_every_tier_as_from_the_encoder(tier, engine, image, redis_server, tmp_path, bucket):
    tiers = {"host": {"host": 1 << 30}, "redis": {"connection": redis_server.connect()}}
    lower = {"disk": lambda: on_disk(tmp_path), "bucket": lambda: in_bucket(bucket)}
    open_cache = lambda: cache(lower[tier]()) if tier in lower else cache(**tiers[tier])
    writing = open_cache()
    made, first = writing.get_or_make(KEY, lambda: engine.embed(image))
    if tier != "host":
        writing.close(30)
    reading = writing if tier == "host" else open_cache()
    found, second = reading.get_or_make(KEY, must_not_make)
    assert (first, second) == ("none", tier)
    assert same(found, made)
    assert found.to_bytes() == made.to_bytes()
    assert reading.stats().hits[tier] == 1
    click = {"points_xy_px": np.array([[40.0, 30.0]], np.float32), "is_positive": np.array([True]), "multimask": True}
    slow, fast = (engine.decode(embedding, size_hw=SIZE_HW, **click) for embedding in (engine.embed(image), found))
    assert torch.equal(slow.logits, fast.logits)
    assert slow.scores.tolist() == fast.scores.tolist()


def test_what_is_found_below_is_kept_above_and_what_is_found_above_below(redis_server, tmp_path, bucket):
    connection = redis_server.connect()
    first = cache(in_bucket(bucket))
    made, _ = first.get_or_make(KEY, small)
    first.close(30)
    second = cache(on_disk(tmp_path / "a"), in_bucket(bucket), connection=connection)
    found, tier = second.get_or_make(KEY, must_not_make)
    assert tier == "bucket" and same(found, made)
    second.close(30)
    assert cache(on_disk(tmp_path / "a")).get_or_make(KEY, must_not_make)[1] == "disk"
    third = cache(on_disk(tmp_path / "b"), connection=connection)
    assert third.get_or_make(KEY, must_not_make)[1] == "redis"
    third.close(30)
    assert cache(on_disk(tmp_path / "b")).get_or_make(KEY, must_not_make)[1] == "disk"


def test_another_model_or_precision_is_a_miss_in_every_tier(tmp_path, bucket):
    first = cache(on_disk(tmp_path), in_bucket(bucket))
    first.get_or_make(KEY, small)
    first.close(30)
    changed = EmbeddingKey("image", "other weights", "p1", "upright")
    assert cache(on_disk(tmp_path), in_bucket(bucket)).get_or_make(changed, small)[1] == "none"
    half = EmbeddingCache(
        None,
        torch.device("cpu"),
        torch.bfloat16,
        device_budget_bytes=0,
        host_budget_bytes=0,
        redis_budget_bytes=0,
        below=(on_disk(tmp_path), in_bucket(bucket)),
    )
    assert half.get_or_make(KEY, small)[1] == "none"


def _cut(data: bytes) -> bytes:
    return data[:-5]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _exchanged_sides(data: bytes) -> bytes:
    """Two sides of the first map the other way round: as many values, another picture."""
    at = data.index(b"S2E3") + 8
    return data[:at] + data[at + 4 : at + 8] + data[at : at + 4] + data[at + 8 :]


DAMAGES = {
    "cut": _cut,
    "empty": lambda _data: b"",
    "a value": lambda data: _flipped(data, len(data) - 1),
    "the sides": _exchanged_sides,
    "the key": lambda data: _flipped(data, 12),
    "the kind": lambda data: _flipped(data, 0),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("tier", ["disk", "bucket"])
def test_what_is_damaged_is_a_miss_and_is_replaced_never_a_wrong_mask(tier, damage, tmp_path, bucket):
    open_cache = lambda: cache(on_disk(tmp_path)) if tier == "disk" else cache(in_bucket(bucket))
    first = open_cache()
    first.get_or_make(KEY, small)
    first.close(30)
    with contextlib.closing(boto3.client("s3")) as s3:
        if tier == "disk":
            [path] = files_in(tmp_path)
            path.write_bytes(damage(path.read_bytes()))
        else:
            [kept] = s3.list_objects_v2(Bucket="embeddings")["Contents"]
            data = s3.get_object(Bucket="embeddings", Key=kept["Key"])["Body"].read()
            s3.put_object(Bucket="embeddings", Key=kept["Key"], Body=damage(data))
    with pytest.raises(ValueError, match="no image"):
        open_cache().get_or_make(KEY, lambda: (_ for _ in ()).throw(ValueError("no image")))
    assert files_in(tmp_path) == [], "it is deleted, also where nothing takes its place"
    second = open_cache()
    found, where = second.get_or_make(KEY, small)
    assert where == "none" and same(found, small())
    second.close(30)
    assert open_cache().get_or_make(KEY, must_not_make)[1] == tier


def test_a_folder_and_a_bucket_can_be_copied_to_each_other(tmp_path, bucket):
    first = cache(on_disk(tmp_path), in_bucket(bucket))
    first.get_or_make(KEY, small)
    first.close(30)
    [path] = files_in(tmp_path)
    with contextlib.closing(boto3.client("s3")) as s3:
        name = f"a/prefix/{path.relative_to(tmp_path)}"
        assert s3.get_object(Bucket="embeddings", Key=name)["Body"].read() == path.read_bytes()


@pytest.mark.parametrize("has_it", [False, True])
def test_however_many_workers_ask_an_image_is_encoded_once(redis_server, tmp_path, bucket, has_it):
    if has_it:
        earlier = cache(in_bucket(bucket))
        earlier.get_or_make(KEY, small)
        earlier.close(30)
    made, found = [], []

    def make() -> ImageEmbedding:
        time.sleep(0.2)
        made.append(1)
        return small()

    def work(folder: Path) -> None:  # no disk in common
        worker = cache(on_disk(folder), in_bucket(bucket), connection=redis_server.connect())
        found.append(worker.get_or_make(KEY, make))
        worker.close(30)

    threads = [threading.Thread(target=work, args=(tmp_path / str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tiers = sorted(tier for _, tier in found)
    assert tiers == (["bucket", "redis", "redis", "redis"] if has_it else ["none", "redis", "redis", "redis"])
    assert len(made) == (not has_it)
    assert all(same(embedding, small()) for embedding, _ in found)
    assert len(files_in(tmp_path)) == 4


def test_sharing_gives_what_is_in_memory_to_every_tier_that_lacks_it(redis_server, tmp_path, bucket):
    connection = redis_server.connect()
    warm = EmbeddingCache(
        connection,
        torch.device("cpu"),
        torch.float32,
        device_budget_bytes=1 << 20,
        host_budget_bytes=0,
        redis_budget_bytes=1 << 20,
        below=(on_disk(tmp_path), in_bucket(bucket)),
    )
    warm.share(KEY.text)  # nothing to share yet
    warm.get_or_make(KEY, small)
    until(lambda: files_in(tmp_path) and not warm._below[0]._waiting and not warm._below[1]._waiting)
    connection.flushall()
    for tier in warm._below:
        tier.forget(warm._name(KEY.text))
    assert files_in(tmp_path) == []
    warm.share(KEY.text)
    warm.close(30)
    assert cache(connection=connection).get_or_make(KEY, must_not_make)[1] == "redis"
    assert cache(on_disk(tmp_path)).get_or_make(KEY, must_not_make)[1] == "disk"
    assert cache(in_bucket(bucket)).get_or_make(KEY, must_not_make)[1] == "bucket"


class Service:
    """Something at a port that is no good bucket: answers every request with `status` and `body`, after as many bytes as `drip` says."""

    def __init__(self, status: int, body: bytes = b"", length: int | None = None, pause_s: float = 0.0) -> None:
        self.requests = 0
        self.is_stopping = threading.Event()
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                service.requests += 1
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                if self.command != "HEAD":
                    for at in range(len(body)):
                        with contextlib.suppress(OSError):
                            self.wfile.write(body[at : at + 1])
                        if pause_s and service.is_stopping.wait(pause_s):
                            return

            do_GET = do_HEAD = do_PUT = do_DELETE = answer

            def log_message(self, *_args) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.is_stopping.set()
        self._server.shutdown()
        self._server.server_close()


def _xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()


FAILURES = {
    "403": (403, _xml("AccessDenied")),
    "404 of the bucket": (404, _xml("NoSuchBucket")),
    "500": (500, _xml("InternalError")),
    "503": (503, _xml("SlowDown")),
    "cut": (200, preface_of("S2E3:float32:image0:m:p:upright") + b"S2E3", 4000),
}


@pytest.mark.parametrize("answer", FAILURES.values(), ids=FAILURES)
def test_a_service_that_fails_costs_its_tier_and_is_left_alone(answer, aws, caplog):
    with contextlib.closing(Service(*answer)) as service:
        tier = in_bucket(aws(service.url))
        clicked = cache(tier)
        for number in range(5):
            key = EmbeddingKey(f"image{number}", "m", "p", "upright")
            found, where = clicked.get_or_make(key, small)
            assert where == "none" and same(found, small())
        clicked.close(30)
        assert service.requests <= 6, "a look-up and two writes at a time, each tried twice"
        warnings = [record for record in caplog.records if record.levelname == "WARNING" and "tier" in record.getMessage()]
        assert 1 <= len(warnings) <= 2
        assert "secret" not in caplog.text


def test_an_object_that_is_not_there_is_no_failure(aws, caplog):
    with contextlib.closing(Service(404, _xml("NoSuchKey"))) as service:
        tier = in_bucket(aws(service.url))
        for number in range(5):
            assert tier.get(f"{number}") is None
        assert service.requests == 5
        assert caplog.records == []


@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_a_bucket_that_hangs_delays_one_click_and_no_other(kind, aws):
    with contextlib.ExitStack() as opened:
        if kind == "silent":
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes connections and never says a word
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        else:
            body = preface_of("S2E3:float32:" + EmbeddingKey("image0", "m", "p", "upright").text) + bytes(1000)
            url = opened.enter_context(contextlib.closing(Service(200, body, pause_s=0.2))).url
        tier = in_bucket(aws(url), wait_s=0.5)
        clicked, took_s = cache(tier), []
        for number in range(20):
            started = time.monotonic()
            assert clicked.get_or_make(EmbeddingKey(f"image{number}", "m", "p", "upright"), small)[1] == "none"
            took_s.append(time.monotonic() - started)
        assert took_s[0] >= 0.5
        assert sum(took_s) < 10, "twenty waits would be as long"
        tier.close(0)


def test_a_bucket_that_comes_back_is_used_again(moto_url, aws, bucket):
    first = cache(in_bucket(bucket))
    first.get_or_make(KEY, small)
    first.close(30)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    tier = LowerTier("bucket", aws(f"http://127.0.0.1:{port}"), wait_s=20, rest_s=0.1)
    assert cache(tier).get_or_make(KEY, small)[1] == "none"
    tier._store = aws(moto_url)
    until(lambda: cache(tier).get_or_make(KEY, small)[1] == "bucket")
    tier.close(30)


def test_a_full_disk_fails_no_click_and_is_told_once(tmp_path, caplog):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False, stderr=subprocess.DEVNULL
    ).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        clicked = cache(on_disk(tmp_path, 1 << 30))
        large = lambda: ImageEmbedding(*(torch.zeros(1, 1, 50, 50) for _ in range(3)))
        for number in range(20):
            assert clicked.get_or_make(EmbeddingKey(f"image{number}", "m", "p", "upright"), large)[1] == "none"
        clicked.close(30)
        kept = files_in(tmp_path)
        assert 0 < len(kept) < 5
        assert list(tmp_path.rglob("*.part")) == []
        [record] = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "No space left on device" in record.getMessage()
        tiers = [
            cache(on_disk(tmp_path)).get_or_make(EmbeddingKey(f"image{number}", "m", "p", "upright"), large)[1] for number in range(20)
        ]
        assert tiers.count("disk") == len(kept)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


WRITER = """
import random, sys
from pathlib import Path
from sam2_backend.embedding_disk import EmbeddingFolder
folder, seed, budget = EmbeddingFolder(Path(sys.argv[1]), int(sys.argv[3])), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
print("began", flush=True)
while True:
    number = rng.randrange(60)
    data = bytes([number]) * (10_000 + 100 * number)
    folder.put(f"k{number}", data)
    other = rng.randrange(60)
    found = folder.get(f"k{other}")
    if found not in (None, bytes([other]) * (10_000 + 100 * other)):
        sys.exit("a wrong embedding")
"""


def test_processes_that_write_put_out_and_die_keep_the_budget_and_read_only_what_was_written(tmp_path):
    budget_bytes = 200_000
    start = lambda seed: subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(seed), str(budget_bytes)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seeds = itertools.count()
    writers = [start(next(seeds)) for _ in range(3)]
    folder, held = EmbeddingFolder(tmp_path, budget_bytes), []
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"began\n"
        for _ in range(15):
            time.sleep(0.1)
            with folder._locked():
                held.append(sum(file.n_bytes for file in shelves.files(tmp_path)))
            writers[0].kill()  # in the middle of whatever it does
            writers[0].communicate()
            writers = [*writers[1:], start(next(seeds))]
        assert all(writer.poll() is None for writer in writers), [
            writer.communicate()[1] for writer in writers if writer.poll() is not None
        ]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert max(held) <= budget_bytes
    assert min(held[1:]) > 0
    folder.put("last", b"1")
    assert folder.get("last") == b"1"
    for number in range(60):
        assert folder.get(f"k{number}") in {None, bytes([number]) * (10_000 + 100 * number)}


def test_place_and_preface_differ_for_every_key():
    keys = [f"S2E3:{dtype}:image{number}:m:p:upright" for dtype in ("float16", "float32") for number in range(50)]
    assert len({place_of(key) for key in keys}) == len({preface_of(key) for key in keys}) == 100
