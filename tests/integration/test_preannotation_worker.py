"""An image of a dataset through queue, worker process, media, engine and back, with a small network of random weights."""

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
import redis
from PIL import Image
from rq import Queue
from rq.serializers import JSONSerializer

from sam2_backend.dataset_messages import DatasetJob, DatasetReply, EverythingOptions, Example, LabelledBox, LabelText
from sam2_backend.errors import DetectorError, MediaUnreachableError
from sam2_backend.messages import MediaRef
from sam2_backend.queue_format import PREANNOTATE, PREANNOTATE_IMAGE, blob_key, pack_job, reply_key, unpack_dataset_answer
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import ROOT, until

SIZE_HW = (60, 90)
BOX = (0.2, 0.2, 0.8, 0.9)
MAIN = "import os, sys; from sam2_backend.settings import Settings; from sam2_backend.worker import run_worker; "
ALL = EverythingOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)


@pytest.fixture
def connection(settings: Settings, tmp_path: Path) -> Iterator[redis.Redis]:
    """Redis with a real worker behind it."""
    env = os.environ | replace(settings, model="random:nano", device="cpu", worker_name="cpu0").to_env() | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("ab") as log:
        main = MAIN + "sys.exit(run_worker(Settings.from_env(os.environ)))"
        worker = subprocess.Popen([sys.executable, "-c", main], env=env, stderr=log)
    with redis.Redis.from_url(settings.redis_url) as opened:
        yield opened
    worker.kill()
    worker.wait()


def image(connection: redis.Redis, seed: int) -> MediaRef:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)).save(out, "PNG")
    connection.set(blob_key(f"image{seed}"), out.getvalue())
    return MediaRef(f"blob:image{seed}")


def answers(connection: redis.Redis, jobs: list[DatasetJob]) -> list:
    queue = Queue(PREANNOTATE, connection=connection, serializer=JSONSerializer)
    for number, job in enumerate(jobs):
        with connection.pipeline() as pipe:
            envelope = pack_job(job, pipe)
            pipe.execute()
        queue.enqueue_call(PREANNOTATE_IMAGE, args=(envelope,), job_id=f"job{number}", timeout=60, description="x")
    data = [until(lambda key=reply_key(f"job{number}"): connection.lindex(key, 0), 60) for number in range(len(jobs))]
    return [unpack_dataset_answer(answer) for answer in data]


def test_every_mode_is_served_and_an_image_that_is_gone_takes_no_other_with_it(connection):
    first, second = image(connection, 1), image(connection, 2)
    boxes, everything, similar, text, gone = answers(
        connection,
        [
            DatasetJob(first, "boxes", boxes=(LabelledBox("b", BOX, "Cat"), LabelledBox("flat", (0.1, 0.1, 0.1, 0.5), "Cat"))),
            DatasetJob(first, "everything", everything=ALL, label="Cat"),
            DatasetJob(first, "similar", examples=(Example(second, "Cat", box=BOX),)),
            DatasetJob(first, "text", texts=(LabelText("Cat", "cat"),)),
            DatasetJob(MediaRef("blob:gone"), "everything", everything=ALL),
        ],
    )
    assert all(isinstance(reply, DatasetReply) for reply in (boxes, everything, similar))
    assert {reply.size_hw for reply in (boxes, everything, similar)} == {SIZE_HW}
    assert [mask.source for mask in boxes.masks] == ["b"]
    assert [skip.what for skip in boxes.skipped] == ["flat"]
    assert everything.masks
    assert everything.cache == "device"
    assert isinstance(text, DetectorError)
    assert isinstance(gone, MediaUnreachableError)
