"""Videos and volumes from a real HTTP server on loopback, with a real Redis: fetched once, verified, kept by hash, never in memory whole."""

from __future__ import annotations

import dataclasses
import http.server
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sam2_backend.errors import MediaRefusedError, MediaTooLargeError, MediaUnreachableError, VideoUnreadableError
from sam2_backend.media import BLOB_PREFIX, MediaStore
from sam2_backend.media_files import HeldFile
from sam2_backend.media_folder import LEDGER, image_hash
from sam2_backend.messages import MediaRef
from sam2_backend.settings import MIB, Settings

VIDEO = b"pretend this is a video " * 1000
PAGE = b"<html>login</html>"


class Server:
    """Answers every path with `body`, in pieces, and counts."""

    def __init__(self) -> None:
        self.body, self.n_requests = VIDEO, 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.url = ""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.n_requests += 1
            server.go_on.wait(20)
            self.send_response(200)
            self.end_headers()
            try:
                for start in range(0, len(server.body), MIB):
                    self.wfile.write(server.body[start : start + MIB])
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_: object) -> None: ...

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    yield server
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def reaching(settings: Settings, server: Server) -> Settings:
    return dataclasses.replace(settings, media_allow_hosts="127.0.0.1")


@pytest.fixture
def connection(redis_server):
    with redis_server.connect() as connection:
        yield connection


def is_video(held: HeldFile) -> None:
    if held.file.read(6) == b"<html>":
        raise VideoUnreadableError(f"{held.name} is a page.")


def content(held: HeldFile) -> bytes:
    with held:
        held.file.seek(0)
        return held.file.read()


def kept(settings: Settings) -> set[str]:
    folder = settings.data_dir / "videos"
    return {path.name for path in folder.iterdir() if path.name != LEDGER} if folder.is_dir() else set()


def test_a_video_is_fetched_once_and_kept_under_its_hash(reaching, connection, server):
    ref = MediaRef(f"{server.url}/video.mp4?X-Amz-Signature=secret")
    held = MediaStore(reaching, connection).open_file(ref, is_video)
    assert held.file_hash == image_hash(VIDEO)
    assert "secret" not in held.name
    assert content(held) == VIDEO
    assert content(MediaStore(reaching, connection).open_file(ref, is_video)) == VIDEO
    assert server.n_requests == 1
    assert kept(reaching) == {image_hash(VIDEO)}
    assert not any(b"secret" in key for key in connection.keys())  # noqa: SIM118  Redis, no dictionary


def test_a_damaged_copy_is_fetched_again(reaching, connection, server):
    store, ref = MediaStore(reaching, connection), MediaRef(f"{server.url}/video.mp4")
    store.open_file(ref, is_video).close()
    (reaching.data_dir / "videos" / image_hash(VIDEO)).write_bytes(VIDEO[:-1] + b"?")
    assert content(store.open_file(ref, is_video)) == VIDEO
    assert server.n_requests == 2


def test_what_the_check_refuses_is_not_kept(reaching, connection, server):
    store, ref = MediaStore(reaching, connection), MediaRef(f"{server.url}/video.mp4")
    server.body = PAGE
    with pytest.raises(VideoUnreadableError, match="is a page"):
        store.open_file(ref, is_video)
    assert kept(reaching) == set()
    server.body = VIDEO
    assert content(store.open_file(ref, is_video)) == VIDEO


def test_an_open_video_is_read_on_when_its_copy_was_put_out(reaching, connection, server):
    store = MediaStore(dataclasses.replace(reaching, video_cache_bytes=len(VIDEO)), connection)
    held = store.open_file(MediaRef(f"{server.url}/one"), is_video)
    server.body = VIDEO[::-1]
    store.open_file(MediaRef(f"{server.url}/two"), is_video).close()
    assert kept(reaching) == {image_hash(VIDEO[::-1])}
    assert content(held) == VIDEO


def test_more_than_the_whole_budget_is_opened_and_leaves_nothing_behind(reaching, connection, server):
    store = MediaStore(dataclasses.replace(reaching, video_cache_bytes=len(VIDEO) - 1), connection)
    assert content(store.open_file(MediaRef(f"{server.url}/one"), is_video)) == VIDEO
    assert kept(reaching) == set()


def test_many_who_ask_at_once_cause_one_download(reaching, connection, server):
    store, ref = MediaStore(reaching, connection), MediaRef(f"{server.url}/video.mp4")
    server.go_on.clear()
    with ThreadPoolExecutor(8) as pool:
        opened = [pool.submit(store.open_file, ref, is_video) for _ in range(8)]
        server.go_on.set()
        assert [content(held.result()) for held in opened] == [VIDEO] * 8
    assert server.n_requests == 1


def test_without_redis_videos_still_open(reaching, server):
    store = MediaStore(reaching, None)
    assert content(store.open_file(MediaRef(f"{server.url}/a"), is_video)) == VIDEO


def test_a_redis_that_fails_costs_a_download_and_no_more(reaching, own_redis_server, server):
    with own_redis_server.connect() as connection:
        store = MediaStore(reaching, connection)
        own_redis_server.stop()
        assert content(store.open_file(MediaRef(f"{server.url}/a"), is_video)) == VIDEO


def test_what_came_with_the_request_is_opened_too(reaching, connection):
    connection.set(BLOB_PREFIX + "k", VIDEO)
    assert content(MediaStore(reaching, connection).open_file(MediaRef("blob:k"), is_video)) == VIDEO


def test_too_many_bytes_are_refused_by_the_videos_limit(reaching, server):
    assert len(VIDEO) > 10
    images_small = dataclasses.replace(reaching, media_max_bytes=10, video_max_bytes=len(VIDEO))
    assert content(MediaStore(images_small, None).open_file(MediaRef(f"{server.url}/a"), is_video)) == VIDEO
    with pytest.raises(MediaTooLargeError, match="SAM2_VIDEO_MAX_BYTES"):
        MediaStore(dataclasses.replace(reaching, video_max_bytes=len(VIDEO) - 1), None).open_file(MediaRef(f"{server.url}/a"), is_video)
    assert kept(reaching) <= {image_hash(VIDEO)}


def test_a_video_that_does_not_arrive_in_time_is_told_by_the_videos_deadline(reaching, server):
    server.go_on.clear()
    store = MediaStore(dataclasses.replace(reaching, video_deadline_s=0.2), None)
    with pytest.raises(MediaUnreachableError, match="SAM2_VIDEO_DEADLINE_S"):
        store.open_file(MediaRef(f"{server.url}/a"), is_video)
    server.go_on.set()
    assert kept(reaching) == set()


def test_private_addresses_are_refused_for_videos_as_for_images(settings, server):
    with pytest.raises(MediaRefusedError):
        MediaStore(settings, None).open_file(MediaRef(f"{server.url}/a"), is_video)
    assert server.n_requests == 0


def test_a_large_video_is_never_in_memory_whole(reaching, connection, server):
    server.body = bytes(48 * MIB)
    store, ref = MediaStore(reaching, connection), MediaRef(f"{server.url}/a")
    tracemalloc.start()
    try:
        store.open_file(ref, lambda _: None).close()
        store.open_file(ref, lambda _: None).close()
        assert tracemalloc.get_traced_memory()[1] < 12 * MIB
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_told(reaching, server, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(MediaUnreachableError, match=r"No space left.*SAM2_VIDEO_CACHE_BYTES"):
        MediaStore(reaching, None).open_file(MediaRef(f"{server.url}/a"), is_video)
