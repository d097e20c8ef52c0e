"""Fetching against a real HTTP server on loopback that resumes, breaks off, lies and refuses."""

from __future__ import annotations

import fcntl
import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sam2_backend.checkpoints import MODELS, ModelSpec, fetch
from sam2_backend.errors import BadCheckpointError

DATA = np.random.default_rng(0).bytes((3 << 20) + 7)  # the last read is a small one


class Server(ThreadingHTTPServer):
    """What it does is set by the test; what it was asked is kept."""

    data = DATA
    status = 0
    resumes = True
    breaks_off_after = 0
    ranges: list[str | None]

    def handle_error(self, request, client_address):
        """A client that goes away is part of some tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if self.server.resumes else 0
        body = self.server.data[start:]
        self.send_response(206 if self.server.resumes else 200)
        if self.server.resumes:
            self.send_header("Content-Range", f"bytes {start}-{len(self.server.data) - 1}/{len(self.server.data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_off_after or None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.ranges = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def spec_at(port: int) -> ModelSpec:
    return ModelSpec("some.pt", f"http://127.0.0.1:{port}/some.pt", len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def folder(server, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "some", spec_at(server.server_port))
    return tmp_path / "checkpoints"


@pytest.fixture
def part(folder):
    folder.mkdir()
    return folder / "some.pt.part"


def test_a_file_arrives_whole_with_progress_and_nothing_beside_it(server, folder):
    seen = []
    path = fetch("some", folder, lambda done, total: seen.append((done, total)))
    assert path == folder / "some.pt"
    assert path.read_bytes() == DATA
    assert seen == sorted(seen)
    assert len(seen) >= 3
    assert seen[-1] == (len(DATA), len(DATA))
    assert [file.name for file in folder.iterdir()] == ["some.pt"]


def test_a_file_that_is_there_is_not_asked_for_again(server, folder):
    fetch("some", folder)
    server.ranges.clear()
    fetch("some", folder)
    assert not server.ranges


def test_a_damaged_file_is_replaced(server, folder):
    fetch("some", folder).write_bytes(b"damaged")
    assert fetch("some", folder).read_bytes() == DATA


def test_an_earlier_part_is_resumed_where_it_ended(server, folder, part):
    part.write_bytes(DATA[:1_000_000])
    assert fetch("some", folder).read_bytes() == DATA
    assert server.ranges == ["bytes=1000000-"]


def test_a_complete_part_is_only_verified(server, folder, part):
    part.write_bytes(DATA)
    assert fetch("some", folder).read_bytes() == DATA
    assert not server.ranges


def test_a_server_that_cannot_resume_is_asked_once_and_starts_over(server, folder, part):
    server.resumes = False
    part.write_bytes(b"x" * 1_000_000)
    assert fetch("some", folder).read_bytes() == DATA
    assert len(server.ranges) == 1


def test_a_connection_that_breaks_off_is_taken_up_again(server, folder):
    server.breaks_off_after = 1_200_000
    assert fetch("some", folder).read_bytes() == DATA
    assert server.ranges == ["bytes=0-", "bytes=1200000-", "bytes=2400000-"]


def test_a_connection_that_brings_nothing_more_keeps_the_part_and_says_how_to_go_on(server, folder, part):
    part.write_bytes(DATA[:1000])
    server.data = DATA[:1000]
    with pytest.raises(BadCheckpointError, match=r"broke off after 1000 of 3145735 bytes\. Run it again to resume"):
        fetch("some", folder)
    assert part.read_bytes() == DATA[:1000]


@pytest.mark.parametrize("wrong", [b"\0" + DATA[1:], DATA + b"and more"])
def test_other_bytes_than_published_never_get_the_name(server, folder, wrong):
    server.data = wrong
    with pytest.raises(BadCheckpointError, match=r"other bytes than were published: their sha256 is [0-9a-f]{64}"):
        fetch("some", folder)
    assert not list(folder.iterdir())
    server.data = DATA
    assert fetch("some", folder).read_bytes() == DATA


@pytest.mark.parametrize(("status", "reason"), [(404, "answers 404 Not Found"), (403, "answers 403 Forbidden"), (503, "answers 503")])
def test_a_refusal_names_the_address_the_folder_and_the_next_step(server, folder, status, reason):
    server.status = status
    with pytest.raises(BadCheckpointError) as caught:
        fetch("some", folder)
    for said in (MODELS["some"].url, reason, f"put some.pt into {folder}"):
        assert said in caught.value.message
    assert len(server.ranges) == 1


def test_no_network_names_the_address_and_the_folder(folder, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setitem(MODELS, "some", spec_at(closed.getsockname()[1]))
        with pytest.raises(BadCheckpointError, match=rf"http://127\.0\.0\.1:\d+/some\.pt cannot be downloaded: .*refused.* into {folder}"):
            fetch("some", folder)
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_named(server, folder):
    folder.write_text("a file, not a folder")
    with pytest.raises(BadCheckpointError, match=str(folder)):
        fetch("some", folder)


def test_two_fetches_at_once_do_not_mix(server, folder, part):
    with part.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadCheckpointError, match=r"Another process is fetching some\.pt"):
            fetch("some", folder)
    assert fetch("some", folder).read_bytes() == DATA


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(BadCheckpointError, match=r"no published checkpoint sam3.*sam2\.1_hiera_tiny"):
        fetch("sam3", tmp_path)
