"""Small HTTP servers on loopback that stand where a proxy, an image host or a foreign web page would."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

#: Of one connection, not of the message.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-encoding", "content-length", "host", "date", "server"}


@dataclass(slots=True)
class Served:
    """Where a server answers, and the requests that it got: (path, headers)."""

    url: str
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    @property
    def host(self) -> str:
        """host:port"""
        return self.url.removeprefix("http://")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *_arguments: object) -> None: ...

    def note(self) -> bytes:
        self.served.requests.append((self.path, dict(self.headers)))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def static_server(bodies: Mapping[str, tuple[str, bytes]]) -> Iterator[Served]:
    """Answers paths with (content type, body), GET and POST alike; looked up at each request, so a test may add some."""

    class Static(_Handler):
        def do_GET(self) -> None:
            self.note()
            kind, body = bodies.get(self.path, ("", b""))
            self.answer(200 if kind else 404, body, {"Content-Type": kind or "text/plain"})

        do_POST = do_GET

    with _serving(Static) as served:
        yield served


@contextlib.contextmanager
def sub_path_proxy(upstream_url: str, sub_path: str) -> Iterator[Served]:
    """Serves another server below `sub_path`, which it strips, as nginx would; nothing is served outside of it."""

    class Proxy(_Handler):
        def do_GET(self) -> None:
            body = self.note()
            if not self.path.startswith(f"{sub_path}/"):
                self.answer(404, b"", {})
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            url = upstream_url + self.path.removeprefix(sub_path)
            upstream = requests.request(self.command, url, data=body, headers=headers, allow_redirects=False, timeout=30)
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _HOP_BY_HOP}
            self.answer(upstream.status_code, upstream.content, kept)

        do_POST = do_GET

    with _serving(Proxy) as served:
        yield served


@contextlib.contextmanager
def _serving(handler: type[_Handler]) -> Iterator[Served]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.served = Served(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield handler.served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
