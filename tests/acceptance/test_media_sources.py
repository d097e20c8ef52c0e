"""Every place where Label Studio keeps images, and every kind of image, through the whole path: the mask is that of the very picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import requests
from moto.server import ThreadedMotoServer
from numpy.typing import NDArray
from PIL import Image
from rest_clicks import RestProject, click, login_header, nano_stack, personal_access_token, rest_project
from scenes import Scene, iou, one_disc
from servers import Served, static_server, sub_path_proxy
from slow_path import SlowPath
from stored import mask_of

from backend import config_generator
from backend.label_studio_process import LabelStudioProcess
from backend.supervisor import Stack
from sam2_backend.settings import Settings

Pixels = NDArray[np.uint8]

#: The picture behind a presigned address, in a bucket of its own; and one behind an address that Label Studio keeps to itself.
PRESIGNED, PROXIED = "presigned-pictures", "proxied-pictures"
WRONG_TOKEN = "0" * 40
_S3_KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


@dataclass(slots=True)
class Sources:
    """Where pictures lie: Label Studio's local files, a bucket, a web server."""

    local_files: Path
    s3_url: str
    s3: Any
    web: Served
    web_bodies: dict[str, tuple[str, bytes]]

    @property
    def allow_hosts(self) -> str:
        return f"{self.s3_url.removeprefix('http://')},{self.web.host}"

    def connect_storages(self, project: RestProject) -> None:
        """The project's storages: the folder `pictures` of the local files, and the two buckets."""
        (self.local_files / "pictures").mkdir(exist_ok=True)
        project.client.create_local_storage(project.project_id, self.local_files / "pictures", "pictures")
        for bucket in (PRESIGNED, PROXIED):
            body = {"project": project.project_id, "title": bucket, "bucket": bucket, "presign": bucket == PRESIGNED, "use_blob_urls": True}
            body |= {"s3_endpoint": self.s3_url, "region_name": "us-east-1", **_S3_KEYS}
            requests.post(
                f"{project.client.base_url}/api/storages/s3", json=body, headers=project.login_header, timeout=60
            ).raise_for_status()

    def put_local(self, name: str, data: bytes) -> str:
        (self.local_files / name).parent.mkdir(exist_ok=True)
        (self.local_files / name).write_bytes(data)
        return f"/data/local-files/?d={name}"

    def put_s3(self, bucket: str, name: str, data: bytes) -> str:
        self.s3.put_object(Bucket=bucket, Key=name, Body=data, ContentType="image/png")
        return f"s3://{bucket}/{name}"

    def put_web(self, name: str, data: bytes) -> str:
        self.web_bodies[f"/{name}"] = ("image/png", data)
        return f"{self.web.url}/{name}"


@pytest.fixture(scope="module")
def sources(media_folder: Path) -> Iterator[Sources]:
    moto, bodies = ThreadedMotoServer("127.0.0.1", 0), {}
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        s3 = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **_S3_KEYS)
        for bucket in (PRESIGNED, PROXIED):
            s3.create_bucket(Bucket=bucket)
        with static_server(bodies) as web:
            yield Sources(media_folder, f"http://{host}:{port}", s3, web, bodies)
        s3.close()
    finally:
        moto.stop()


@pytest.fixture(scope="module")
def nano(label_studio: LabelStudioProcess, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with nano_stack(label_studio, tmp_path_factory.mktemp("nano"), media_allow_hosts=sources.allow_hosts) as running:
        yield running


@pytest.fixture(scope="module")
def project(label_studio: LabelStudioProcess, nano: Stack, sources: Sources) -> Iterator[RestProject]:
    with rest_project(label_studio, nano.url) as made:
        sources.connect_storages(made)
        yield made


@pytest.fixture(scope="module")
def nano_slow_path() -> SlowPath:
    return SlowPath(Settings(model="random:nano", torch_threads=1))


def disc(number: int) -> Scene:
    """No two numbers have the same size."""
    return one_disc(160 + 8 * number, 120 + number, (60, 50), 30)


def png_bytes(scene: Scene) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(scene.image).save(stream, "PNG")
    return stream.getvalue()


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def on_disc(image: Pixels, item_index: int | None = None) -> dict[str, Any]:
    return click(image.shape[:2], (60, 50), item_index)


def check_mask(regions: list[dict[str, Any]], image: Pixels, slow_path: SlowPath, alike: float = 0.99) -> None:
    """One region: the mask that the model gives for a click on the disc of `image`, in its size."""
    (region,) = regions
    expected = slow_path.mask(image, {"result": [on_disc(image)]})
    assert expected.any()
    answered = mask_of([region])
    assert answered.shape == image.shape[:2]
    assert iou(answered, expected) >= alike


def test_another_reading_of_the_same_file_gives_another_mask_so_that_the_right_mask_says_something(nano_slow_path) -> None:
    image = disc(0).image
    grey = np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    context = {"result": [on_disc(image)]}
    mask = nano_slow_path.mask(image, context)
    for other in (255 - image, np.full_like(image, 255), image // 2, grey):
        assert iou(mask, nano_slow_path.mask(other, context)) < 0.9


def test_an_upload(project, nano_slow_path, tmp_path) -> None:
    image = disc(1).image
    task_id = project.upload(disc(1).save(tmp_path / "upload.png"))
    assert project.data(task_id)["image"].startswith("/data/upload/")
    check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)


def test_a_local_file_through_label_studio(project, sources, nano_slow_path) -> None:
    image = disc(2).image
    task_id = project.add({"image": sources.put_local("pictures/ä picture.png", png_bytes(disc(2)))})
    check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)


def test_cloud_storage_behind_a_presigned_address(project, sources, nano_slow_path) -> None:
    image = disc(3).image
    task_id = project.add({"image": sources.put_s3(PRESIGNED, "folder/picture.png", png_bytes(disc(3)))})
    assert _resolve_status(project, task_id) == 303
    check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)


def test_cloud_storage_whose_bytes_come_through_label_studio(project, sources, nano_slow_path) -> None:
    image = disc(4).image
    task_id = project.add({"image": sources.put_s3(PROXIED, "folder/ä picture.png", png_bytes(disc(4)))})
    assert _resolve_status(project, task_id) == 200
    check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)


def _resolve_status(project: RestProject, task_id: int) -> int:
    """How Label Studio hands out the picture of a task in cloud storage."""
    uri = base64.urlsafe_b64encode(project.data(task_id)["image"].encode()).decode()
    url = f"{project.client.base_url}/tasks/{task_id}/resolve/"
    return requests.get(url, {"fileuri": uri}, headers=project.login_header, allow_redirects=False, timeout=30).status_code


def test_a_plain_web_server_never_sees_the_token(project, sources, nano_slow_path) -> None:
    image = disc(5).image
    task_id = project.add({"image": sources.put_web("picture.png?size=1", png_bytes(disc(5)))})
    check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)
    asked = [headers for path, headers in sources.web.requests if path == "/picture.png?size=1"]
    assert asked
    assert not any("authorization" in map(str.lower, headers) for headers in asked)


def test_a_data_uri(project, nano_slow_path) -> None:
    image = disc(6).image
    task_id = project.add({"image": data_uri(png_bytes(disc(6)))})
    check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)


def test_the_pages_of_one_task_may_come_from_everywhere(label_studio, nano, project, sources, nano_slow_path, tmp_path) -> None:
    images = [disc(number).image for number in range(7, 13)]
    upload = project.data(project.upload(disc(7).save(tmp_path / "page.png")))["image"]
    pages = [
        upload,
        sources.put_local("pictures/page.png", png_bytes(disc(8))),
        sources.put_s3(PRESIGNED, "page.png", png_bytes(disc(9))),
        sources.put_s3(PROXIED, "page.png", png_bytes(disc(10))),
        sources.put_web("page.png", png_bytes(disc(11))),
        data_uri(png_bytes(disc(12))),
    ]
    with rest_project(label_studio, nano.url, config_generator.generate(["Object"], pages=True)) as with_pages:
        sources.connect_storages(with_pages)
        task_id = with_pages.add({"images": pages})
        regions = with_pages.click(task_id, [on_disc(image, page) for page, image in enumerate(images)])
    assert sorted(region["item_index"] for region in regions) == list(range(6))
    for region in regions:
        check_mask([region], images[region["item_index"]], nano_slow_path)


@pytest.mark.parametrize("mode", ["16-bit grey", "palette", "palette with a transparent colour", "RGBA", "CMYK JPEG", "animated GIF"])
def test_a_kind_of_image_is_understood_as_it_is_shown(mode, project, nano_slow_path, tmp_path) -> None:
    path, shown = _written(mode, tmp_path)
    task_id = project.upload(path)
    check_mask(project.click(task_id, [on_disc(shown)]), shown, nano_slow_path, alike=0.9 if "JPEG" in mode else 0.99)


def _written(mode: str, folder: Path) -> tuple[Path, Pixels]:
    """A file of this kind, and its pixels as a person sees them, known from how it was made."""
    image = disc(13).image
    height, width = image.shape[:2]
    if mode == "16-bit grey":
        grey = np.asarray(Image.fromarray(image).convert("L"))
        deep = (grey.astype(np.uint16) * 257 + np.random.default_rng(1).integers(-100, 100, grey.shape)).clip(0, 65535).astype(np.uint16)
        Image.fromarray(deep).save(folder / "deep.png")
        return folder / "deep.png", np.dstack([np.rint(deep / 257).astype(np.uint8)] * 3)
    if mode.startswith("palette"):
        indexed = Image.fromarray(image).quantize(16)
        shown = np.asarray(indexed.convert("RGB")).copy()
        transparent = int(np.asarray(indexed)[50, 60])
        if mode != "palette":
            shown[np.asarray(indexed) == transparent] = 255
        indexed.save(folder / "palette.png", **({} if mode == "palette" else {"transparency": transparent}))
        return folder / "palette.png", shown
    if mode == "RGBA":
        alpha = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width))
        Image.fromarray(np.dstack([image, alpha])).save(folder / "rgba.png")
        share = alpha[..., None] / 255
        return folder / "rgba.png", np.rint(image * share + 255 * (1 - share)).astype(np.uint8)
    if mode == "CMYK JPEG":
        Image.fromarray(image).convert("CMYK").save(folder / "cmyk.jpg", quality=98, subsampling=0)
        return folder / "cmyk.jpg", image
    frames = [Image.fromarray(pixels).quantize(64) for pixels in (image, 255 - image)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    return folder / "moving.gif", np.asarray(frames[0].convert("RGB"))


@pytest.fixture(scope="module")
def on_disk(label_studio: LabelStudioProcess, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestProject]:
    """The backend reads Label Studio's local files from disk, and has a wrong token."""
    given = {"local_files_root": str(sources.local_files), "label_studio_api_key": WRONG_TOKEN}
    with nano_stack(label_studio, tmp_path_factory.mktemp("on-disk"), **given) as stack, rest_project(label_studio, stack.url) as made:
        yield made


def test_local_files_on_this_machine_s_disk_need_neither_storage_nor_token(project, on_disk, sources, nano_slow_path) -> None:
    image = disc(14).image
    data = {"image": sources.put_local("outside/picture.png", png_bytes(disc(14)))}
    check_error(project.answer_of_backend(project.add(data), [on_disc(image)]), 502, "media_unreachable", "/data/local-files/")
    check_mask(on_disk.click(on_disk.add(data), [on_disc(image)]), image, nano_slow_path)
    outside = on_disk.add({"image": "/data/local-files/?d=../../etc/passwd"})
    check_error(on_disk.answer_of_backend(outside, [on_disc(image)]), 502, "media_unreachable", "/data/local-files/")


def check_error(answer: requests.Response, status: int, code: str, part: str) -> None:
    """An error of the backend's, in its body and, because Label Studio logs only that, in its reason phrase."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert part in error["message"]
    assert part in answer.reason


def test_a_wrong_legacy_token_is_named_by_the_backend(on_disk, tmp_path) -> None:
    _check_that_an_upload_is_refused(on_disk, disc(17).save(tmp_path / "upload.png"), WRONG_TOKEN)


def test_a_wrong_personal_access_token_is_named_by_the_backend(label_studio, tmp_path) -> None:
    with personal_access_token(label_studio) as token:
        header, claims, signature = token.split(".")
    wrong = f"{header}.{claims}.{signature[::-1]}"
    with nano_stack(label_studio, tmp_path, label_studio_api_key=wrong) as stack, rest_project(label_studio, stack.url) as project:
        _check_that_an_upload_is_refused(project, disc(17).save(tmp_path / "upload.png"), wrong)


def _check_that_an_upload_is_refused(project: RestProject, path: Path, token: str) -> None:
    task_id, clicks = project.upload(path), [on_disc(disc(17).image)]
    through_label_studio = project.answer_through_label_studio(task_id, clicks)
    assert through_label_studio["errors"]
    assert not through_label_studio.get("data")
    refused = project.answer_of_backend(task_id, clicks)
    check_error(refused, 502, "media_unreachable", "LABEL_STUDIO_API_KEY")
    assert token not in refused.text + refused.reason


def test_a_personal_access_token_opens_what_a_legacy_token_opens(label_studio, sources, nano_slow_path, tmp_path) -> None:
    image, elsewhere = disc(15).image, disc(16).image
    with (
        personal_access_token(label_studio) as token,
        nano_stack(label_studio, tmp_path, label_studio_api_key=token) as stack,
        rest_project(label_studio, stack.url) as project,
    ):
        sources.connect_storages(project)
        uploaded = project.upload(disc(15).save(tmp_path / "upload.png"))
        proxied = project.add({"image": sources.put_s3(PROXIED, "token.png", png_bytes(disc(15)))})
        for task_id in (uploaded, proxied):
            check_mask(project.click(task_id, [on_disc(image)]), image, nano_slow_path)
        # The bucket's host is private, and nobody allowed it here.
        presigned = project.add({"image": sources.put_s3(PRESIGNED, "elsewhere.png", png_bytes(disc(16)))})
        check_error(project.answer_of_backend(presigned, [on_disc(elsewhere)]), 403, "media_refused", "SAM2_MEDIA_ALLOW_HOSTS")


def test_label_studio_under_a_sub_path(label_studio, sources, nano_slow_path, tmp_path) -> None:
    image, other = disc(18).image, disc(19).image
    with (
        personal_access_token(label_studio) as token,
        sub_path_proxy(label_studio.url, "/ls") as proxy,
        nano_stack(label_studio, tmp_path, label_studio_url=f"{proxy.url}/ls", label_studio_api_key=token) as stack,
        rest_project(label_studio, stack.url) as project,
    ):
        sources.connect_storages(project)
        plain = project.upload(disc(18).save(tmp_path / "plain.png"))
        prefixed = project.upload(disc(19).save(tmp_path / "prefixed.png"))
        value = project.data(prefixed)["image"]
        prefixed = project.add({"image": f"/ls{value}"})
        local = project.add({"image": "/ls" + sources.put_local("pictures/sub-path.png", png_bytes(disc(18)))})
        cloud = project.add({"image": sources.put_s3(PROXIED, "sub-path.png", png_bytes(disc(19)))})
        for task_id, pixels in ((plain, image), (prefixed, other), (local, image), (cloud, other)):
            check_mask(project.click(task_id, [on_disc(pixels)]), pixels, nano_slow_path)
    paths = [path.partition("?")[0] for path, _headers in proxy.requests]
    assert "/ls/api/token/refresh/" in paths
    assert f"/ls{value}" in paths
    assert all(path.startswith("/ls/") and not path.startswith("/ls/ls/") for path in paths)
    assert login_header(label_studio)["Authorization"] not in [headers.get("Authorization") for _path, headers in proxy.requests]
