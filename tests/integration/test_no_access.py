"""Nothing private is reached, by whatever name, redirect or answer of a resolver: for images, videos and volumes, from the real download path.

A canary on loopback counts who comes. Connections to anywhere but this machine are noted and refused, so that nothing leaves it.
"""

from __future__ import annotations

import base64
import http.server
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from backend.app import create_app
from backend.label_config import ObjectTag
from backend.label_studio import LabelStudio, LabelStudioError
from backend.task_media import image_uri
from sam2_backend import guarded_pool
from sam2_backend.errors import MediaError, MediaRefusedError, MediaUnreachableError, TaskDataError
from sam2_backend.frame_sources import open_frames
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource

KEY = "0123456789abcdef0123456789abcdef01234567"
PUBLIC = "93.184.215.14"


@dataclass
class Visited:
    """A server on loopback: who came (path, headers), and what it answers by path (a Location, or bytes)."""

    port: int = 0
    visits: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    answers: dict[str, str | bytes] = field(default_factory=dict)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def serve() -> Iterator[Callable[[], Visited]]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start() -> Visited:
        seen = Visited()

        class Handler(http.server.BaseHTTPRequestHandler):
            def setup(self) -> None:
                seen.connections += 1
                super().setup()

            def do_GET(self) -> None:
                seen.visits.append((self.path, dict(self.headers)))
                answer = seen.answers.get(self.path.partition("?")[0], b"a secret")
                self.send_response(302 if isinstance(answer, str) else 200)
                body = b"" if isinstance(answer, str) else answer
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_: object) -> None: ...

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        seen.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def canary(serve) -> Visited:
    return serve()


@pytest.fixture
def front(serve) -> Visited:
    """A host that is allowed: where attacks by redirect begin."""
    return serve()


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """The addresses that a connection was tried to. Only loopback is really connected to."""
    addresses: list[str] = []
    connect = guarded_pool.create_connection

    def note(address: tuple[str, int], *args: object, **kwargs: object) -> socket.socket:
        addresses.append(address[0])
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError
        return connect(address, *args, **kwargs)

    monkeypatch.setattr(guarded_pool, "create_connection", note)
    return addresses


@pytest.fixture
def names(monkeypatch) -> dict[str, list[list[str]]]:
    """What names resolve to, one list of addresses after another, the last for good; any other name: loopback. Literals are read as always."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> list:
        try:
            return real(host, port, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
        except socket.gaierror:
            answers = known.get(host, [["127.0.0.1"]])
            found = answers.pop(0) if len(answers) > 1 else answers[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


KINDS = ("image", "video", "volume", "pages")


def fetch(settings: Settings, uri: str, kind: str) -> None:
    """What a worker does with an address of that kind of task."""
    store = MediaStore(settings, None)
    if kind == "image":
        store.fetch(MediaRef(uri))
    else:
        open_frames(FrameSource((MediaRef(uri),), kind, 25.0, 0), store, settings).close()


@pytest.fixture
def settings(tmp_path, front) -> Settings:
    return Settings(
        data_dir=tmp_path, media_allow_hosts=f"127.0.0.1:{front.port}", media_deadline_s=5.0, video_deadline_s=5.0, label_studio_api_key=KEY
    )


HOSTS = {
    "dotted": "127.0.0.1", "decimal": "2130706433", "octal": "0177.0.0.1", "long octal": "000000177.0.0.1", "one octal": "017700000001", "hex": "0x7f000001",
    "hex parts": "0x7f.0x0.0x0.0x1", "two parts": "127.1", "three parts": "127.0.1", "mixed": "0x7f.1", "another of the block": "127.8.9.10", "zero": "0",
    "all": "0.0.0.0", "trailing dot": "127.0.0.1.", "v6": "[::1]", "v6 long": "[0:0:0:0:0:0:0:1]", "v6 any": "[::]", "mapped": "[::ffff:127.0.0.1]",
    "mapped hex": "[::ffff:7f00:1]", "compatible": "[::127.0.0.1]", "translated": "[64:ff9b::7f00:1]", "local translated": "[64:ff9b:1::7f00:1]",
    "6to4": "[2002:7f00:1::]", "Teredo": "[2001:0:7f00:1::ffff:80ff:fffe]", "ISATAP": "[fe80::5efe:127.0.0.1]", "unique local": "[fd00:ec2::254]",
    "link-local with zone": "[fe80::1%25lo]", "localhost": "localhost", "LOCALHOST.": "LOCALHOST.", "a name below localhost": "a.localhost",
    "a public name of it": "127.0.0.1.nip.example", "full-width digits": "１２７.０.０.１", "circled digits": "①②⑦.⓪.⓪.①", "ideographic dots": "127。0。0。1",
    "encoded": "%31%32%37.0.0.1", "encoded dot": "127%2e0%2e0%2e1", "user": "images.example@127.0.0.1", "user and password": "a:b@127.0.0.1", "NUL": "127.0.0.1%00.example",
    "metadata": "169.254.169.254", "metadata in decimal": "2852039166", "metadata in hex": "0xa9fea9fe", "mapped metadata": "[::ffff:a9fe:a9fe]",
    "Alibaba's": "100.100.100.200", "10/8": "10.0.0.1", "172.16/12": "172.16.5.4", "192.168/16": "192.168.0.1", "broadcast": "255.255.255.255", "multicast": "224.0.0.1",
    "documentation": "192.0.2.1", "benchmark": "198.18.0.1", "reserved": "240.0.0.1",
}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_no_spelling_of_a_private_address_is_connected_to(settings, canary, tried, names, host):
    for kind in KINDS:
        for scheme in ("http", "https", "HTTP"):
            with pytest.raises((MediaRefusedError, MediaUnreachableError)):
                fetch(settings, f"{scheme}://{host}:{canary.port}/latest/meta-data/", kind)
    assert (tried, canary.connections) == ([], 0)


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_no_redirect_leads_there_at_once_or_after_some_others(settings, front, canary, tried, names, host):
    front.answers |= {"/1": "/2", "/2": f"{front.url}/3", "/3": f"http://{host}:{canary.port}/secret"}
    for kind in KINDS:
        for start in ("/1", "/3"):
            with pytest.raises((MediaRefusedError, MediaUnreachableError)):
                fetch(settings, front.url + start, kind)
    assert canary.connections == 0
    assert set(tried) == {"127.0.0.1"}  # the front


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "unix:///run/redis.sock",
        "blob:1",
        "data:,x",
        "jar:http://127.0.0.1!/",
        "//[",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_redirect_changes_to_another_scheme(settings, front, tried, names, kind, target):
    front.answers["/a"] = target
    with pytest.raises(MediaError):
        fetch(settings, f"{front.url}/a", kind)
    assert [path for path, _ in front.visits] == ["/a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_turns_private_between_check_and_connection_gains_nothing(settings, canary, tried, names, kind):
    """DNS rebinding: public when it is asked first, loopback ever after. It is asked once for each connection, and that answer is used."""
    names["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    with pytest.raises(MediaUnreachableError):
        fetch(settings, f"http://rebind.example:{canary.port}/", kind)
    with pytest.raises(MediaRefusedError, match="private or reserved"):
        fetch(settings, f"http://rebind.example:{canary.port}/", kind)
    assert (tried, canary.connections) == ([PUBLIC], 0)


def test_a_second_hop_is_resolved_and_checked_anew(settings, front, canary, tried, names):
    names["rebind.example"] = [["127.0.0.1"]]
    front.answers["/a"] = f"http://rebind.example:{canary.port}/"
    with pytest.raises(MediaRefusedError, match=r"rebind\.example"):
        fetch(settings, f"{front.url}/a", "image")
    assert canary.connections == 0


def test_of_several_addresses_only_the_public_ones_are_tried(settings, canary, tried, names):
    names["mixed.example"] = [["10.0.0.1", PUBLIC, "127.0.0.1", "169.254.169.254"]]
    with pytest.raises(MediaUnreachableError):
        fetch(settings, f"http://mixed.example:{canary.port}/", "image")
    assert (tried, canary.connections) == ([PUBLIC], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_proxies_of_the_environment_are_never_asked(settings, serve, canary, tried, names, monkeypatch, kind):
    proxy = serve()
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    monkeypatch.setenv("no_proxy", "")
    names["images.example"] = [[PUBLIC]]
    for url in ("http://images.example/a", "https://images.example/a", f"http://127.0.0.1:{canary.port}/"):
        with pytest.raises(MediaError):
            fetch(settings, url, kind)
    assert (proxy.connections, canary.connections) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_goes_to_label_studio_alone_also_after_redirects(tmp_path, serve, tried, names, kind):
    label_studio, bucket = serve(), serve()
    settings = Settings(
        data_dir=tmp_path, label_studio_url=label_studio.url, label_studio_api_key=KEY, media_allow_hosts=f"127.0.0.1:{bucket.port}"
    )
    label_studio.answers["/a"] = f"{bucket.url}/b"
    bucket.answers["/b"] = f"http://user:password@127.0.0.1:{bucket.port}/c"
    with pytest.raises(MediaError):
        fetch(settings, f"{label_studio.url}/a", kind)
    assert label_studio.visits[0][1]["Authorization"] == f"Token {KEY}"
    assert [path for path, _ in bucket.visits] == ["/b", "/c"]
    for _, headers in bucket.visits:
        assert not {"authorization", "cookie", "proxy-authorization", "referer"} & {name.lower() for name in headers}
        assert KEY not in str(headers)


def test_the_exchange_of_a_token_follows_no_redirect(tmp_path, serve, canary, tried, names):
    part = base64.urlsafe_b64encode(json.dumps({"token_type": "refresh"}).encode()).decode().rstrip("=")
    label_studio, token = serve(), f"{part}.{part}.c2ln"
    label_studio.answers["/api/token/refresh/"] = f"{canary.url}/"
    settings = Settings(data_dir=tmp_path, label_studio_url=label_studio.url, label_studio_api_key=token)
    with pytest.raises(MediaUnreachableError) as caught:
        fetch(settings, f"{label_studio.url}/data/upload/1/a.png", "image")
    assert token not in caught.value.message
    assert canary.connections == 0


VALUES = [
    "file:///etc/passwd", "FILE:///etc/passwd", "blob:0123", "ftp://127.0.0.1/a", "gopher://x", "unix:///x", "jar:file:///x", "javascript:alert(1)", "/../../etc/passwd",
    "/data/local-files/?d=../../../../etc/passwd", "/data/local-files/?d=%2e%2e/%2e%2e/etc/passwd", "/data/local-files/?d=/etc/passwd", "/data/local-files/?d=a\0b",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_a_tasks_value_becomes_no_address_of_a_file_or_of_what_lies_in_redis(tmp_path, value):
    """Only this backend makes file: and blob: addresses, and file: ones below Label Studio's root alone."""
    settings = Settings(label_studio_url="http://studio.example/ls", local_files_root=str(tmp_path))
    try:
        uri = image_uri({"id": 1, "data": {"image": value}}, ObjectTag("image", "Image", "image"), None, settings)
    except TaskDataError:
        return
    assert uri.startswith("http://studio.example/ls/")


def test_what_label_studio_or_anybody_says_in_setup_and_webhooks_is_not_visited(_session_redis, tmp_path, canary, tried, names):
    settings = Settings(redis_url=_session_redis.url, data_dir=tmp_path, label_studio_url="", label_studio_api_key=KEY)
    client = create_app(settings).test_client()
    schema = f'<View><Image name="image" value="{canary.url}/x.png"/><BrushLabels name="b" toName="image"><Label value="a"/></BrushLabels></View>'
    client.post(
        "/setup",
        json={"project": "1.1", "schema": schema, "hostname": canary.url, "access_token": "t", "extra_params": {"url": canary.url}},
    )
    event = {
        "action": "ANNOTATION_CREATED",
        "task": {"id": 1, "data": {"image": canary.url}},
        "annotation": {"project": 1, "task": 1},
        "project": {"id": 1, "url": canary.url},
    }
    client.post("/webhook", json=event)
    client.post("/webhook", json=event | {"action": "START_TRAINING"})
    assert canary.connections == 0


def test_pushes_and_exports_go_to_label_studio_alone(serve, canary):
    label_studio = serve()
    studio = LabelStudio(label_studio.url, KEY)
    for path in ("/api/predictions", "/api/projects/1", "/api/tasks", "/api/annotations/1/"):
        label_studio.answers[path] = f"{canary.url}{path}"
    for ask in (
        lambda: studio.create_prediction(1, [], score=None, model_version="m"),
        lambda: studio.project(1),
        lambda: list(studio.tasks(1)),
    ):
        with pytest.raises(LabelStudioError, match="another address"):
            ask()
    studio.close()
    assert canary.connections == 0
