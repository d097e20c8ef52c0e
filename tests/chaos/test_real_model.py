"""The checkpoint that ships, under the real supervisor: every mask is byte for byte the one that was found before the fault."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from annotating import Annotating
from arena import wait_for
from clicking import Annotators, Judge, click_on, judged, region
from form import CLICKS, IS_FULL, TIMES, WORK
from ledger import Ledger
from left_over import processes_of
from PIL import Image
from small_disk import SmallDisk
from worker_processes import until

from backend import brush_rle
from backend.child_process import Child
from backend.label_studio_process import free_port
from backend.supervisor import Stack
from sam2_backend.settings import MIB, Settings

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

SIZE_HW = (96, 128)
N_IMAGES, N_POINTS = 10, 3
EMBEDDING_BYTES = 512 * 1024


def picture(number: int) -> bytes:
    """A few bright discs on a gradient, another one for every number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    pixels = np.stack([x, y, x + y], -1).astype(np.uint8)
    for centre_x, centre_y, *colour in rng.integers((10, 10, 60, 60, 60), (118, 86, 255, 255, 255), (4, 5)):
        pixels[np.hypot(x - centre_x, y - centre_y) < rng.integers(8, 20)] = colour
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class _Images(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = picture(int(self.path.strip("/").split(".")[0]))
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class StackOnSmallDevice(Stack):
    """`sam2-backend up` with workers whose device can be made small."""

    def _child(self, name: str, command: Sequence[str], env: Mapping[str, str] | None, log: Path | None = None) -> Child:
        if name.startswith("worker"):
            command = [sys.executable, str(Path(__file__).parent / "worker_with_small_device.py")]
        return super()._child(name, command, env, log)


@dataclass
class Service:
    """What runs, and the masks that it found before anything happened to it."""

    stack: Stack
    disk: SmallDisk
    device: Path
    images: str
    masks: dict[tuple[int, int], Any] = field(default_factory=dict)
    datasets: dict[str, Any] = field(default_factory=dict)

    @property
    def uris(self) -> list[str]:
        return [f"{self.images}/{image}.png" for image in range(N_IMAGES)]

    def question(self, number: int) -> tuple[dict[str, Any], Judge]:
        image, point = number % N_IMAGES, number // N_IMAGES % N_POINTS
        x_px, y_px = 30.0 + 30 * point, 20.0 + 25 * point
        body = click_on(1000 + number, self.uris[image], region(f"c{number}", x_px, y_px, SIZE_HW))
        return body, lambda answer: judged(answer, self.masks[image, point])

    def learn(self) -> None:
        for number in range(N_IMAGES * N_POINTS):
            body, _ = self.question(number)
            [answer] = requests.post(f"{self.stack.url}/predict", json=body, timeout=90).json()["results"]
            rle = answer["result"][0]["value"]["rle"]
            self.masks[number % N_IMAGES, number // N_IMAGES % N_POINTS] = brush_rle.decode_mask(rle, SIZE_HW)
        with self.annotating(self.uris) as undisturbed:
            undisturbed.start()
            assert undisturbed.finish() == 0, undisturbed.said
            self.datasets = {uri: stored for uri, [stored] in zip(self.uris, undisturbed.results(), strict=True)}

    @contextmanager
    def annotating(self, uris: list[str]) -> Iterator[Annotating]:
        made = Annotating(self.stack.settings, uris)
        yield made
        made.studio.stop()

    def forget_media(self) -> None:
        """Images have to be fetched, written and embedded anew."""
        with suppress(FileNotFoundError):
            shutil.rmtree(self.stack.settings.data_dir / "media")


@pytest.fixture(scope="module")
def service(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="sam2-chaos-"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Images)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    stacks: list[Stack] = []
    disk = SmallDisk(folder / "disk", 8 * MIB, lambda: [pid for name, pid in stacks[0].pids().items() if name != "redis"])
    disk.mount()
    monkeypatch_module.setenv("DEVICE_FILE", str(folder / "device"))
    monkeypatch_module.setenv("TMPDIR", str(disk.folder))
    monkeypatch_module.setattr(tempfile, "tempdir", str(disk.folder))
    settings = Settings(
        port=free_port(0),
        workers=2,
        data_dir=disk.folder / "data",
        torch_threads=1,
        heartbeat_s=0.4,
        media_allow_hosts="127.0.0.1",
        media_index_ttl_s=3600,
        # Little is remembered, so that most clicks need the encoder and all need the decoder.
        device_cache_bytes=4 * EMBEDDING_BYTES,
        redis_cache_bytes=0,
        logits_cache_entries=0,
    )
    ending = threading.Event()
    with StackOnSmallDevice(settings, log_dir=disk.folder / "logs") as stack:
        stacks.append(stack)
        stack.wait_until_ready(120)
        until(lambda: len(requests.get(f"{stack.url}/ready", timeout=10).json()["workers"]) == 2, 120)
        supervisor = threading.Thread(target=stack.watch, args=(ending,))
        supervisor.start()
        made = Service(stack, disk, folder / "device", f"http://127.0.0.1:{server.server_address[1]}")
        made.learn()
        yield made
        ending.set()
        supervisor.join()
    server.shutdown()
    server.server_close()
    disk.unmount()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def a_worker_of_the_stack_is_killed(service: Service) -> None:
    for strike in range(TIMES):
        os.kill(service.stack.pids()[f"worker-{strike % 2}"], signal.SIGKILL)
        wait_for(3.0)


def the_embedded_redis_is_killed(service: Service) -> None:
    for _ in range(TIMES):
        os.kill(service.stack.pids()["redis"], signal.SIGKILL)
        wait_for(3.0)


def the_disk_is_full(service: Service) -> None:
    service.forget_media()
    service.disk.fill()
    for name in ("worker-0", "worker-1")[:TIMES]:  # what starts on a full disk has nothing in memory
        os.kill(service.stack.pids()[name], signal.SIGKILL)
    wait_for(3.0)
    service.disk.free()


def the_device_has_room_for_two_images(service: Service) -> None:
    service.device.write_text("2")
    wait_for(2.0)
    service.device.unlink()


def the_device_has_no_room_at_all(service: Service) -> None:
    service.device.write_text("0")
    wait_for(2.0)
    service.device.unlink()


FAULTS = [
    a_worker_of_the_stack_is_killed,
    the_disk_is_full,
    the_device_has_room_for_two_images,
    the_device_has_no_room_at_all,
]
if IS_FULL:
    FAULTS.insert(1, the_embedded_redis_is_killed)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__.replace("_", " ") for fault in FAULTS])
def test_every_mask_is_the_one_found_before(service: Service, ledger: Ledger, fault: Callable[[Service], None]) -> None:
    annotators = Annotators(service.stack.url, ledger, CLICKS, service.question)
    with service.annotating([service.uris[n % N_IMAGES] for n in range(WORK.jobs)]) as dataset:
        annotators.start()
        dataset.start()
        try:
            until(lambda: ledger.right > 3 and dataset.studio.predictions, 60)
            fault(service)
            code = dataset.finish()
            if fault is the_device_has_no_room_at_all:
                assert code == 0 or "(gpu_out_of_memory)" in dataset.said
                dataset.start()
                code = dataset.finish()
        finally:
            annotators.finish()
        assert code == 0, dataset.said
        dataset.judge(ledger, service.datasets)
    ledger.check()
    if fault is the_device_has_no_room_at_all:
        assert set(ledger.in_words) == {"gpu_out_of_memory"}
    elif fault in {the_device_has_room_for_two_images, the_disk_is_full}:
        assert not ledger.in_words, "nobody was told of it"
    if fault is the_device_has_room_for_two_images:
        logs = [path.read_text() for path in (service.disk.folder / "logs").glob("worker-*.log")]
        assert any("is tried once more" in log for log in logs)
    own = set(service.stack.pids().values())
    grandchildren = {child.pid for pid in own if psutil.pid_exists(pid) for child in psutil.Process(pid).children(recursive=True)}
    running = processes_of(service.stack.settings.data_dir)
    assert service.stack.pids()["web"] in running
    assert running <= own | grandchildren
