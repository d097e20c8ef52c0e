"""The media store against real HTTP servers on loopback, well-behaved and not, and a real Redis."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import http.server
import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2_backend import guarded_pool
from sam2_backend.credentials import OriginCredentials
from sam2_backend.errors import MediaError, MediaRefusedError, MediaTooLargeError, MediaUnreachableError, MediaUnreadableError
from sam2_backend.images import load_rgb
from sam2_backend.media import MediaStore
from sam2_backend.media_folder import image_hash
from sam2_backend.media_index import MediaIndex, index_key
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

LEGACY = "0123456789abcdef0123456789abcdef01234567"
SECRET = "X-Amz-Signature=5ecre7"
Handler = http.server.BaseHTTPRequestHandler


def jpeg(seed: int = 0, side: int = 64) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@dataclass
class Server:
    """An HTTP/1.1 server on loopback; `routes` answers by path, and every request is noted."""

    routes: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    @property
    def host(self) -> str:
        return self.url.partition("//")[2]

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


def reply(status: int, body: bytes = b"", **headers: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server()

    class AnyPath(Handler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            server.connections += 1
            super().setup()

        def do_GET(self) -> None:
            server.requests.append((self.path, dict(self.headers)))
            try:
                server.routes.get(self.path.partition("?")[0], reply(404))(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    httpd = Quiet(("127.0.0.1", 0), AnyPath)
    if context:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http{'s' if context else ''}://127.0.0.1:{httpd.server_port}"
    yield server
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def label_studio() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def bucket() -> Iterator[Server]:
    """Another host: a MinIO on the private network, say."""
    with serving() as server:
        yield server


@pytest.fixture
def base(tmp_path: Path, label_studio: Server) -> dict:
    return {
        "data_dir": tmp_path / "data",
        "label_studio_url": label_studio.url,
        "label_studio_api_key": LEGACY,
        "media_deadline_s": 2.0,
        "media_max_bytes": 200_000,
    }


@pytest.fixture
def store(base: dict) -> MediaStore:
    return MediaStore(Settings(**base), None)


def get(store: MediaStore, uri: str):
    return store.fetch(MediaRef(uri))


def on_disk(base: dict) -> dict[str, int]:
    folder = base["data_dir"] / "media"
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != ".lock"} if folder.is_dir() else {}


def assert_nothing_kept(store: MediaStore, base: dict, uri: str) -> None:
    assert on_disk(base) == {}
    assert store.lookup(MediaRef(uri)) is None


# Every source


@pytest.mark.parametrize("path", ["/data/upload/1/hash-a.jpg", "/data/local-files/?d=media/a.jpg", "/sub/path/data/upload/1/a.jpg"])
def test_label_studios_own_media_come_with_its_key(store, label_studio, path):
    data = jpeg()
    label_studio.routes[path.partition("?")[0]] = reply(200, data)
    file = get(store, label_studio.url + path)
    assert (file.data, file.path.read_bytes(), file.image_hash) == (data, data, image_hash(data))
    assert file.info.stored_size_hw == (64, 64)
    assert label_studio.requests[0][1]["Authorization"] == f"Token {LEGACY}"


def presigned(label_studio: Server, bucket: Server, data: bytes) -> str:
    label_studio.routes["/tasks/7/resolve/"] = reply(303, Location=f"{bucket.url}/bkt/a.jpg?{SECRET}")
    bucket.routes["/bkt/a.jpg"] = reply(200, data)
    return f"{label_studio.url}/tasks/7/resolve/?fileuri=czM6Ly9ia3QvYS5qcGc="


def test_the_key_does_not_follow_the_redirect_to_cloud_storage(base, label_studio, bucket):
    uri = presigned(label_studio, bucket, jpeg())
    get(MediaStore(Settings(**base, media_allow_hosts=bucket.host), None), uri)
    assert "Authorization" in label_studio.requests[0][1]
    assert bucket.paths() == [f"/bkt/a.jpg?{SECRET}"]
    assert "Authorization" not in bucket.requests[0][1]


def test_cloud_storage_on_a_private_network_has_to_be_listed(store, label_studio, bucket):
    uri = presigned(label_studio, bucket, jpeg())
    with pytest.raises(MediaRefusedError, match=f"{bucket.host}.*SAM2_MEDIA_ALLOW_HOSTS") as caught:
        get(store, uri)
    assert bucket.connections == 0
    assert SECRET not in caught.value.message


def test_the_key_comes_back_when_a_redirect_returns_to_label_studio(base, label_studio, bucket):
    label_studio.routes["/a"] = reply(302, Location=f"{bucket.url}/b")
    bucket.routes["/b"] = reply(302, Location=f"{label_studio.url}/c")
    label_studio.routes["/c"] = reply(200, jpeg())
    get(MediaStore(Settings(**base, media_allow_hosts="127.0.0.0/8"), None), f"{label_studio.url}/a")
    assert ["Authorization" in headers for _, headers in label_studio.requests + bucket.requests] == [True, True, False]


def test_a_plain_address_elsewhere_gets_no_key(base, bucket):
    bucket.routes["/a.jpg"] = reply(200, jpeg())
    get(MediaStore(Settings(**base, media_allow_hosts=bucket.host), None), f"{bucket.url}/a.jpg")
    assert "Authorization" not in bucket.requests[0][1]
    assert "Cookie" not in bucket.requests[0][1]


def test_proxies_of_the_environment_are_not_used(store, label_studio, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    label_studio.routes["/a.jpg"] = reply(200, jpeg())
    get(store, f"{label_studio.url}/a.jpg")


def test_connections_are_kept_alive_and_a_closed_one_is_opened_again(store, label_studio):
    label_studio.routes["/b"] = reply(200, jpeg())
    label_studio.routes["/a"] = reply(302, b"moved", Location="/b")
    get(store, f"{label_studio.url}/a?1")
    get(store, f"{label_studio.url}/a?2")
    assert (len(label_studio.requests), label_studio.connections) == (4, 1)

    def close_unasked(handler: Handler) -> None:
        reply(200, jpeg())(handler)
        handler.close_connection = True

    label_studio.routes["/c"] = close_unasked
    for n in range(3):
        get(store, f"{label_studio.url}/c?{n}")


def test_an_answer_may_come_in_chunks_and_compressed(store, label_studio):
    data = jpeg()

    def chunked(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        packed = gzip.compress(data)
        for at in range(0, len(packed), 1000):
            part = packed[at : at + 1000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        handler.wfile.write(b"0\r\n\r\n")

    label_studio.routes["/a"] = chunked
    assert get(store, f"{label_studio.url}/a").data == data


def test_a_blob_is_read_from_redis(base, redis_server):
    connection = redis_server.connect()
    connection.set("sam2:blob:abc", jpeg(1))
    store = MediaStore(Settings(**base), connection)
    assert get(store, "blob:abc").data == jpeg(1)
    with pytest.raises(MediaUnreachableError, match="no longer kept"):
        get(store, "blob:gone")
    connection.set("sam2:blob:big", bytes(200_001))
    with pytest.raises(MediaTooLargeError):
        get(store, "blob:big")
    connection.close()


@pytest.fixture
def local(base: dict, tmp_path: Path) -> Iterator[tuple[MediaStore, Path]]:
    root = tmp_path / "files"
    root.mkdir()
    yield MediaStore(Settings(**base, local_files_root=str(root)), None), root


def test_a_local_file_below_the_root_is_read(local):
    store, root = local
    (root / "a dir").mkdir()
    path = root / "a dir" / "grün #1.jpg"
    path.write_bytes(jpeg())
    assert get(store, path.as_uri()).data == jpeg()


def test_no_local_file_outside_the_root_is_read(local, tmp_path, base):
    store, root = local
    outside = tmp_path / "files-too.jpg"
    outside.write_bytes(jpeg())
    (root / "link.jpg").symlink_to(outside)
    (root / "linked").symlink_to(tmp_path)
    (root / "inside.jpg").write_bytes(jpeg())
    (root / "good-link.jpg").symlink_to(root / "inside.jpg")
    for uri in (
        outside.as_uri(),
        f"file://{root}/../files-too.jpg",
        f"file://{root}/%2e%2e/files-too.jpg",
        (root / "link.jpg").as_uri(),
        (root / "linked" / "files-too.jpg").as_uri(),
        f"file://evil{root}/inside.jpg",
        "file:///etc/passwd",
        "file:///a%00b",
        "file:relative.jpg",
    ):
        with pytest.raises(MediaRefusedError):
            get(store, uri)
    assert get(store, (root / "good-link.jpg").as_uri()).data == jpeg()
    with pytest.raises(MediaRefusedError, match=r"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.*not set"):
        get(MediaStore(Settings(**base), None), (root / "inside.jpg").as_uri())


def test_a_local_file_that_is_missing_too_large_or_no_file_is_refused_at_once(local):
    store, root = local
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    (root / "big").write_bytes(bytes(200_001))
    for name, error in (
        ("gone", MediaUnreachableError),
        ("pipe", MediaRefusedError),
        ("folder", MediaUnreachableError),
        ("big", MediaTooLargeError),
    ):
        began = time.monotonic()
        with pytest.raises(error):
            get(store, (root / name).as_uri())
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    "uri", ["s3://bucket/a.jpg", "ftp://host/a.jpg", "data:image/png;base64,AAAA", "gopher://x", "a.jpg", "", "javascript:1", "http:///x"]
)
def test_other_schemes_are_refused(store, uri):
    with pytest.raises(MediaRefusedError):
        get(store, uri)


# Guarding


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "2130706433:{port}", "0x7f000001:{port}", "0177.0.0.1:{port}", "127.1:{port}", "[::ffff:127.0.0.1]:{port}", "0.0.0.0:{port}"]
)  # fmt: skip
def test_a_private_server_is_not_connected_to_directly_nor_through_a_redirect(store, label_studio, bucket, host):
    bucket.routes["/a.jpg"] = reply(200, jpeg())
    target = f"http://{host.format(port=bucket.host.rpartition(':')[2])}/a.jpg"
    label_studio.routes["/jump"] = reply(302, Location=target)
    for uri in (target, f"{label_studio.url}/jump"):
        with pytest.raises(MediaRefusedError, match="SAM2_MEDIA_ALLOW_HOSTS"):
            get(store, uri)
    assert bucket.connections == 0


@pytest.mark.parametrize(
    "target",
    ["http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://[64:ff9b::a9fe:a9fe]/", "http://100.100.100.200/"],
)
def test_metadata_services_are_refused_at_once(store, label_studio, target):
    label_studio.routes["/jump"] = reply(307, Location=target)
    began = time.monotonic()
    for uri in (target, f"{label_studio.url}/jump"):
        with pytest.raises(MediaRefusedError):
            get(store, uri)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:6379/_", "unix:///x"])
def test_a_redirect_to_another_scheme_is_refused(store, label_studio, target):
    label_studio.routes["/jump"] = reply(302, Location=target)
    with pytest.raises(MediaRefusedError):
        get(store, f"{label_studio.url}/jump")


def test_a_name_that_turns_private_after_the_check_is_not_followed(store, bucket, monkeypatch):
    """DNS rebinding: the first answer is public, every later one loopback."""
    answers = iter(["192.0.2.1"])
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, **kwargs: object) -> list:
        if host != "rebind.example":
            return real(host, port, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers, "127.0.0.1"), port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = bucket.host.rpartition(":")[2]
    for _ in range(3):
        with pytest.raises(MediaError):
            get(store, f"http://rebind.example:{port}/a.jpg")
    assert bucket.connections == 0


def test_five_redirects_are_followed_and_six_are_not(store, label_studio):
    for n in range(6):
        label_studio.routes[f"/{n}"] = reply(302, Location=f"/{n + 1}")
    label_studio.routes["/6"] = reply(200, jpeg())
    assert get(store, f"{label_studio.url}/1").data == jpeg()
    with pytest.raises(MediaUnreachableError, match="more than 5 redirects"):
        get(store, f"{label_studio.url}/0")


# Limits and bad servers


def raw(*parts: bytes, pause_s: float = 0.0, repeat: bool = False) -> Callable[[Handler], None]:
    """Send bytes as they are, with a pause after each part; the last one again and again if told."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        for part in parts:
            handler.wfile.write(part)
            time.sleep(pause_s)
        end = time.monotonic() + 10
        while repeat and time.monotonic() < end:
            handler.wfile.write(parts[-1])
            time.sleep(pause_s)

    return answer


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"HTTP/1.1 200 OK\r\nX-A: ", b"a", pause_s=0.05, repeat=True),
        raw(OK + b"Content-Length: 100000\r\n\r\n", b"a", pause_s=0.05, repeat=True),
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", pause_s=0.05, repeat=True),
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x", pause_s=0.05, repeat=True),
        raw(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"x")[:10], b"\0\0\0\xff\xff", pause_s=0.05, repeat=True),
        raw(b"HTTP/1.1 302 Found\r\nLocation: /ok\r\nContent-Length: 1000\r\n\r\n", b"a", pause_s=0.05, repeat=True),
        lambda _: time.sleep(5),
    ],
    ids=["headers", "body", "chunks", "chunk header", "gzip", "redirect body", "silence"],
)
def test_a_slow_drip_ends_at_the_deadline(base, label_studio, answer):
    store = MediaStore(Settings(**base | {"media_deadline_s": 0.6}), None)
    label_studio.routes["/slow"] = answer
    began = time.monotonic()
    with pytest.raises(MediaUnreachableError, match="SAM2_MEDIA_DEADLINE_S"):
        get(store, f"{label_studio.url}/slow")
    assert time.monotonic() - began < 1.5
    assert_nothing_kept(store, base, f"{label_studio.url}/slow")


def test_redirects_share_one_deadline(base, label_studio):
    def late(handler: Handler) -> None:
        time.sleep(0.3)
        reply(302, Location=handler.path + "0")(handler)

    store = MediaStore(Settings(**base | {"media_deadline_s": 0.6}), None)
    label_studio.routes |= {"/r" + "0" * n: late for n in range(6)}
    began = time.monotonic()
    with pytest.raises(MediaUnreachableError, match="in time"):
        get(store, f"{label_studio.url}/r")
    assert time.monotonic() - began < 1.2


@pytest.mark.parametrize(
    "answer",
    [
        raw(OK + b"\r\n", bytes(1 << 16), repeat=True),
        raw(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(1 << 16) + b"\r\n", repeat=True),
        raw(OK + b"Content-Length: 200001\r\n\r\n"),
        raw(OK + b"Content-Length: 999999999999\r\n\r\n"),
        reply(200, gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"),
        reply(200, gzip.compress(gzip.compress(bytes(300_000_000), 1)), Content_Encoding="gzip, gzip"),
        reply(200, zlib.compress(bytes(50_000_000)), Content_Encoding="deflate"),
    ],
    ids=["endless", "endless chunks", "one byte more", "announced", "gzip bomb", "gzip bomb in gzip", "deflate bomb"],
)
def test_too_many_bytes_are_refused_while_they_arrive(base, store, label_studio, answer):
    label_studio.routes["/big"] = answer
    began = time.monotonic()
    with pytest.raises(MediaTooLargeError, match=r"200000 bytes.*SAM2_MEDIA_MAX_BYTES"):
        get(store, f"{label_studio.url}/big")
    assert time.monotonic() - began < 2
    assert_nothing_kept(store, base, f"{label_studio.url}/big")


def test_the_byte_limit_is_the_last_size_that_is_taken(base, label_studio):
    label_studio.routes["/a"] = reply(200, jpeg())
    get(MediaStore(Settings(**base | {"media_max_bytes": len(jpeg())}), None), f"{label_studio.url}/a")
    with pytest.raises(MediaTooLargeError):
        get(MediaStore(Settings(**base | {"media_max_bytes": len(jpeg()) - 1}), None), f"{label_studio.url}/a")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (raw(OK + b"Content-Length: 5000\r\n\r\n" + jpeg()[:2000]), MediaUnreachableError, "broke off"),
        (raw(OK + b"Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + jpeg()[:1000]), MediaUnreachableError, "broke off"),
        (raw(b"no HTTP at all\r\n\r\n"), MediaUnreachableError, "broke off"),
        (raw(b""), MediaUnreachableError, "broke off"),
        (reply(200, b"not gzip", Content_Encoding="gzip"), MediaUnreadableError, "compressed"),
        (reply(200, b""), MediaUnreadableError, "0 bytes"),
        (reply(200, b"<!doctype html><title>Log in</title>", Content_Type="image/png"), MediaUnreadableError, "login page"),
        (reply(404), MediaUnreachableError, "404"),
        (reply(500, b"boom"), MediaUnreachableError, "500"),
        (reply(206, jpeg()), MediaUnreachableError, "206"),
        (reply(302), MediaUnreachableError, "302"),
        (reply(302, Location="http://[bad"), MediaError, "bad|http"),
    ],
)
def test_a_bad_answer_is_named_and_the_next_good_one_works(base, store, label_studio, answer, error, words):
    uri = f"{label_studio.url}/a.jpg?{SECRET}"
    label_studio.routes["/a.jpg"] = answer
    with pytest.raises(error, match=words) as caught:
        get(store, uri)
    assert SECRET not in caught.value.message
    assert LEGACY not in caught.value.message
    assert_nothing_kept(store, base, uri)
    label_studio.routes["/a.jpg"] = reply(200, jpeg())
    assert get(store, uri).data == jpeg()


def test_a_body_shorter_than_the_image_is_found_when_it_is_decoded(store, label_studio):
    label_studio.routes["/a"] = raw(OK + b"\r\n" + jpeg()[:2000])
    file = get(store, f"{label_studio.url}/a")
    with pytest.raises(MediaUnreadableError, match="truncated"):
        load_rgb(file.data, "upright", 1_000_000)


def test_no_message_holds_user_password_query_or_key(store, label_studio):
    host = label_studio.host
    label_studio.routes["/private/a.jpg"] = reply(403)
    for uri in (
        f"http://user:hunter2@{host}/private/a.jpg?{SECRET}#frag",
        f"http://user:hunter2@127.0.0.1:1/a?{SECRET}",
        f"ftp://user:hunter2@x/?{SECRET}",
    ):
        with pytest.raises(MediaError) as caught:
            get(store, uri)
        for secret in ("hunter2", SECRET, "user", LEGACY, "frag"):
            assert secret not in caught.value.message.replace("its user may", "")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said_with_the_next_step(base, label_studio, bucket, status):
    label_studio.routes["/a"] = bucket.routes["/a"] = reply(status)
    with pytest.raises(MediaUnreachableError, match=f"{status}: LABEL_STUDIO_API_KEY was refused.*Legacy tokens are off by default"):
        get(MediaStore(Settings(**base), None), f"{label_studio.url}/a")
    with pytest.raises(MediaUnreachableError, match="LABEL_STUDIO_API_KEY is missing"):
        get(MediaStore(Settings(**base | {"label_studio_api_key": ""}), None), f"{label_studio.url}/a")
    with pytest.raises(MediaUnreachableError, match="signature has expired"):
        get(MediaStore(Settings(**base, media_allow_hosts="127.0.0.1"), None), f"{bucket.url}/a")


def test_a_closed_port_is_unreachable(store, label_studio):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(MediaUnreachableError, match="cannot be connected to"):
        get(MediaStore(Settings(label_studio_url=f"http://127.0.0.1:{port}"), None), f"http://127.0.0.1:{port}/a")


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "label-studio")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def fresh_tls() -> Iterator[None]:
    guarded_pool._tls_context.cache_clear()
    yield
    guarded_pool._tls_context.cache_clear()


def test_an_unknown_certificate_is_refused_and_a_configured_one_is_trusted(tmp_path, certificate, fresh_tls, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as server:
        server.routes["/a"] = reply(200, jpeg())
        settings = Settings(data_dir=tmp_path, label_studio_url=server.url, media_deadline_s=5)
        with pytest.raises(MediaUnreachableError, match="SSL_CERT_FILE"):
            get(MediaStore(settings, None), f"{server.url}/a")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        guarded_pool._tls_context.cache_clear()
        assert get(MediaStore(settings, None), f"{server.url}/a").data == jpeg()


# The exchange of a personal access token


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2lnbmF0dXJl"


PAT = jwt(token_type="refresh")


@pytest.mark.parametrize("sub_path", ["", "/", "/label-studio", "/label-studio/"])
def test_a_personal_access_token_is_exchanged_once_below_the_sub_path(base, label_studio, sub_path):
    root = sub_path.rstrip("/")
    bodies: list[dict] = []

    def exchange(handler: Handler) -> None:
        bodies.append(json.loads(handler.body))
        reply(200, json.dumps({"access": "THE-ACCESS"}).encode(), Content_Type="application/json")(handler)

    label_studio.routes |= {f"{root}/api/token/refresh/": exchange, f"{root}/data/upload/1/a.jpg": reply(200, jpeg())}
    own = {"label_studio_url": label_studio.url + sub_path, "label_studio_api_key": PAT}
    store = MediaStore(Settings(**base | own), None)
    for n in range(3):
        get(store, f"{label_studio.url}{root}/data/upload/1/a.jpg?{n}")
    assert bodies == [{"refresh": PAT}]
    assert [headers.get("Authorization") for _, headers in label_studio.requests] == [None] + ["Bearer THE-ACCESS"] * 3


@pytest.mark.parametrize(
    "answer",
    [reply(401, b'{"detail": "Token is blacklisted"}'), reply(404), reply(302, Location="/elsewhere"), reply(200, b"<html>"), reply(200, b'{"access": 7}'), reply(200, b"[]")],
)  # fmt: skip
def test_a_refused_exchange_names_the_setting_and_not_the_token(base, label_studio, answer):
    label_studio.routes["/api/token/refresh/"] = answer
    with pytest.raises(MediaUnreachableError, match="LABEL_STUDIO_API_KEY") as caught:
        get(MediaStore(Settings(**base | {"label_studio_api_key": PAT}), None), f"{label_studio.url}/data/upload/1/a.jpg")
    assert PAT not in caught.value.message
    assert label_studio.paths() == ["/api/token/refresh/"]


def test_an_exchange_that_is_not_answered_names_the_address():
    with pytest.raises(MediaUnreachableError, match="LABEL_STUDIO_URL"):
        OriginCredentials("http://127.0.0.1:1", PAT).headers_for("http://127.0.0.1:1/a")


def test_a_user_and_password_in_label_studios_address_are_not_shown():
    with pytest.raises(MediaUnreachableError) as caught:
        OriginCredentials("http://user:hunter2@127.0.0.1:1", PAT).headers_for("http://127.0.0.1:1/a")
    assert "hunter2" not in caught.value.message


# Remembering


def test_a_second_fetch_is_answered_from_disk_with_the_same_bytes(store, base, label_studio):
    label_studio.routes["/a"] = reply(200, jpeg())
    first = get(store, f"{label_studio.url}/a")
    assert store.lookup(MediaRef(f"{label_studio.url}/a")) == (first.image_hash, first.info)
    assert get(store, f"{label_studio.url}/a") == first
    assert len(label_studio.requests) == 1
    assert on_disk(base) == {first.image_hash: len(jpeg())}


def test_lookup_knows_nothing_before_and_never_asks_the_network(store, label_studio):
    assert store.lookup(MediaRef(f"{label_studio.url}/a")) is None
    assert label_studio.requests == []


@pytest.mark.parametrize("damage", [None, b"", b"flipped"])
def test_a_file_that_vanished_or_was_damaged_is_fetched_again(store, label_studio, damage):
    label_studio.routes["/a"] = reply(200, jpeg())
    first = get(store, f"{label_studio.url}/a")
    if damage is None:
        first.path.unlink()
    else:
        first.path.write_bytes(damage and damage + jpeg()[len(damage) :])
    assert get(store, f"{label_studio.url}/a") == first
    assert first.path.read_bytes() == jpeg()
    assert len(label_studio.requests) == 2


def test_forgetting_asks_the_source_again_and_takes_the_new_image(base, redis_server, label_studio):
    connection = redis_server.connect()
    store, ref = MediaStore(Settings(**base), connection), MediaRef(f"{label_studio.url}/a")
    label_studio.routes["/a"] = reply(200, jpeg(1))
    store.fetch(ref)
    label_studio.routes["/a"] = reply(200, jpeg(2))
    assert store.fetch(ref).data == jpeg(1)
    store.forget(ref)
    assert store.lookup(ref) is None
    assert store.fetch(ref).data == jpeg(2)
    connection.close()


def test_an_address_is_trusted_for_its_time_and_no_longer(base, label_studio, monkeypatch):
    store, ref = MediaStore(Settings(**base, media_index_ttl_s=60), None), MediaRef(f"{label_studio.url}/a")
    label_studio.routes["/a"] = reply(200, jpeg())
    store.fetch(ref)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 59)
    assert store.lookup(ref)
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert store.lookup(ref) is None


def test_however_many_ask_at_a_time_one_fetches(store, label_studio):
    def slow(handler: Handler) -> None:
        time.sleep(0.3)
        reply(200, jpeg())(handler)

    label_studio.routes["/a"] = slow
    files: list = []
    threads = [threading.Thread(target=lambda: files.append(get(store, f"{label_studio.url}/a"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(files) == 12
    assert {file.data for file in files} == {jpeg()}
    assert len(label_studio.requests) == 1


def test_an_error_reaches_everyone_who_waited_and_is_not_remembered(store, label_studio):
    def slow(handler: Handler) -> None:
        time.sleep(0.3)
        reply(500)(handler)

    label_studio.routes["/a"] = slow
    failures: list = []

    def ask() -> None:
        try:
            get(store, f"{label_studio.url}/a")
        except MediaUnreachableError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 6
    label_studio.routes["/a"] = reply(200, jpeg())
    assert get(store, f"{label_studio.url}/a").data == jpeg()


def test_the_disk_holds_at_most_its_budget_and_images_beyond_it_still_come(base, label_studio):
    sizes = [len(jpeg(n)) for n in range(6)]
    budget = sum(sizes[:3])
    store = MediaStore(Settings(**base, media_cache_bytes=budget), None)
    for n in range(6):
        label_studio.routes[f"/{n}"] = reply(200, jpeg(n))
        assert get(store, f"{label_studio.url}/{n}").data == jpeg(n)
        assert sum(on_disk(base).values()) <= budget
    nothing = MediaStore(Settings(**base, media_cache_bytes=0), None)
    file = get(nothing, f"{label_studio.url}/0")
    assert (file.path, file.data) == (None, jpeg(0))


def test_a_folder_that_cannot_be_written_costs_a_log_line_only(base, label_studio, caplog):
    base["data_dir"].write_text("a file where the folder should be")
    label_studio.routes["/a"] = reply(200, jpeg())
    with caplog.at_level(logging.WARNING):
        file = get(MediaStore(Settings(**base), None), f"{label_studio.url}/a")
    assert (file.path, file.data) == (None, jpeg())
    assert "SAM2_DATA_DIR" in caplog.text


# The shared index


def test_workers_share_what_one_has_seen(base, redis_server, label_studio):
    connection = redis_server.connect()
    ref = MediaRef(f"{label_studio.url}/a?{SECRET}")
    label_studio.routes["/a"] = reply(200, jpeg())
    file = MediaStore(Settings(**base), connection).fetch(ref)
    other = MediaStore(Settings(**base), connection)
    assert other.lookup(ref) == (file.image_hash, file.info)
    assert other.fetch(ref) == file
    assert len(label_studio.requests) == 1
    assert 0 < connection.ttl(index_key(ref.uri)) <= 3600
    connection.close()


def test_no_address_and_no_signature_lies_in_redis(base, redis_server, label_studio):
    connection = redis_server.connect()
    label_studio.routes["/private/a"] = reply(200, jpeg())
    MediaStore(Settings(**base), connection).fetch(MediaRef(f"{label_studio.url}/private/a?{SECRET}"))
    keys = connection.keys()
    assert len(keys) == 1
    for text in (keys[0], connection.get(keys[0])):
        for secret in (SECRET, "private", "http", LEGACY):
            assert secret.encode() not in text
    connection.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"{}", b"[1]", b"\xff\xfe", b'{"image_hash": "../../etc", "info": {}, "fresh_until": 9e9}', b'{"image_hash": 1, "info": null}'],
)
def test_a_damaged_entry_in_redis_is_a_miss(base, redis_server, label_studio, damage):
    connection = redis_server.connect()
    ref = MediaRef(f"{label_studio.url}/a")
    connection.set(index_key(ref.uri), damage)
    store = MediaStore(Settings(**base), connection)
    assert store.lookup(ref) is None
    connection.close()


def test_a_hash_that_is_none_never_becomes_a_path(base, redis_server, label_studio):
    connection = redis_server.connect()
    ref = MediaRef(f"{label_studio.url}/a")
    label_studio.routes["/a"] = reply(200, jpeg())
    info = get(MediaStore(Settings(**base), None), ref.uri).info.to_json()
    for name in ("../../../etc/passwd", "A" * 40, "a" * 39, ""):
        connection.set(index_key(ref.uri), json.dumps({"image_hash": name, "info": info, "fresh_until": time.time() + 60}))
        assert MediaStore(Settings(**base), connection).lookup(ref) is None
    connection.close()


def test_without_redis_the_store_goes_on_and_says_so_once(base, own_redis_server, label_studio, caplog):
    connection = own_redis_server.connect()
    store = MediaStore(Settings(**base), connection)
    label_studio.routes |= {"/a": reply(200, jpeg(1)), "/b": reply(200, jpeg(2))}
    get(store, f"{label_studio.url}/a")
    own_redis_server.stop()
    with caplog.at_level(logging.WARNING):
        assert store.lookup(MediaRef(f"{label_studio.url}/a"))
        assert get(store, f"{label_studio.url}/b").data == jpeg(2)
        assert store.lookup(MediaRef(f"{label_studio.url}/b"))
    assert caplog.text.count("Redis does not answer") == 1
    with pytest.raises(MediaUnreachableError, match="Redis does not answer"):
        get(store, "blob:abc")
    own_redis_server.start()
    get(store, f"{label_studio.url}/a?again")
    assert connection.exists(index_key(f"{label_studio.url}/a?again"))
    connection.close()


def test_the_index_in_memory_holds_at_most_its_entries_and_drops_the_least_used(store, label_studio):
    label_studio.routes["/a"] = reply(200, jpeg())
    info = get(store, f"{label_studio.url}/a").info
    index = MediaIndex(None, 60, max_entries=3)
    for n in range(10):
        index.put("hot", "a" * 40, info)
        index.put(str(n), "b" * 40, info)
        assert len(index) <= 3
        assert index.get("hot")
    assert index.get("8")
    assert index.get("9")
    assert index.get("7") is None
