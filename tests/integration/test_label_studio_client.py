"""The REST client against a server that obeys Label Studio's contract, and misbehaves as the real one or its proxies can."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backend.label_studio import LabelStudio, LabelStudioError

LEGACY_KEY = "0123456789abcdef0123456789abcdef01234567"


class FakeLabelStudio(ThreadingHTTPServer):
    """Answers what `answers` says for a path, one entry per call, the last one again and again; remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, str, str, Any]] = []
        self.redirects: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeLabelStudio

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        split = urlsplit(self.path)
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization", ""), body))
        if split.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[split.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answers = self.server.answers.get(split.path, [(404, {"detail": "Not found."})])
        status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer({name: values[0] for name, values in parse_qs(split.query).items()})
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(answer, bytes) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as fake:
        thread = threading.Thread(target=fake.serve_forever, args=(0.02,))
        thread.start()
        yield fake
        fake.shutdown()
        thread.join()


@pytest.fixture
def client(server: FakeLabelStudio) -> Iterator[LabelStudio]:
    made = LabelStudio(server.url + "/sub/path/", LEGACY_KEY, timeout_s=2)
    yield made
    made.close()


def jwt(**claims: Any) -> str:
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "HS256"}, claims)]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


def test_a_legacy_key_goes_as_token_and_the_sub_path_is_kept(server, client) -> None:
    server.answers["/sub/path/api/current-user/whoami"] = [(200, {"email": "a@b.example"})]
    assert client.whoami()["email"] == "a@b.example"
    assert server.asked == [("GET", "/sub/path/api/current-user/whoami", f"Token {LEGACY_KEY}", b"")]


def test_a_personal_access_token_is_exchanged_once_and_never_sent_as_it_is(server) -> None:
    pat, access = jwt(token_type="refresh"), jwt(token_type="access", iat=0, exp=300)
    server.answers["/api/token/refresh/"] = [(200, {"access": access})]
    server.answers["/api/current-user/whoami"] = [(200, {"email": "a@b.example"})]
    client = LabelStudio(server.url, pat)
    client.whoami()
    client.whoami()
    client.close()
    assert [(method, path, authorization) for method, path, authorization, _ in server.asked] == [
        ("POST", "/api/token/refresh/", ""),
        ("GET", "/api/current-user/whoami", f"Bearer {access}"),
        ("GET", "/api/current-user/whoami", f"Bearer {access}"),
    ]


def test_a_refused_personal_access_token_is_one_error_without_the_token(server) -> None:
    pat = jwt(token_type="refresh")
    server.answers["/api/token/refresh/"] = [(401, {"detail": "Token is invalid"})]
    client = LabelStudio(server.url, pat)
    with pytest.raises(LabelStudioError, match="personal access token") as caught:
        client.whoami()
    client.close()
    assert pat not in caught.value.message


def test_every_page_is_read_once(server, client) -> None:
    tasks = [{"id": n} for n in range(250)]

    def page(query: dict[str, str]) -> dict[str, Any]:
        first = (int(query["page"]) - 1) * int(query["page_size"])
        return {"tasks": tasks[first : first + int(query["page_size"])], "total": len(tasks)}

    server.answers["/sub/path/api/tasks"] = [(200, page)]
    assert [task["id"] for task in client.tasks(7)] == list(range(250))
    assert len(server.asked) == 3, "the page after the last one answers 404 in Label Studio"


def test_an_empty_list_is_one_request(server, client) -> None:
    server.answers["/sub/path/api/projects"] = [(200, {"results": [], "count": 0})]
    assert list(client.projects()) == []
    assert len(server.asked) == 1


def test_a_get_is_tried_again_and_a_post_is_not(server, client) -> None:
    server.answers["/sub/path/api/version"] = [(503, b"busy"), (200, {"release": "1.23.2"})]
    assert client.version() == "1.23.2"
    server.answers["/sub/path/api/projects"] = [(503, b"busy"), (201, {"id": 1})]
    with pytest.raises(LabelStudioError, match="503"):
        client.create_project("A title", "<View/>")
    assert [method for method, *_ in server.asked] == ["GET", "GET", "POST"]


@pytest.mark.parametrize(
    ("status", "answer", "says"),
    [
        (
            401,
            {"detail": "legacy token authentication has been disabled for this organization"},
            "personal access token as LABEL_STUDIO_API_KEY",
        ),
        (401, {"detail": "Invalid token."}, "Check LABEL_STUDIO_API_KEY"),
        (403, {"detail": "URL resolves to a reserved network address (block: 127.0.0.0/8)"}, "USE_DEFAULT_BANNED_SUBNETS=false"),
        (400, {"detail": "Validation error", "validation_errors": {"title": ["too short"]}, "exc_info": "Traceback"}, "title: .*too short"),
        (400, ["a list"], "a list"),
        (500, b"<html>Server Error</html>", "Internal Server Error"),
    ],
)
def test_a_refusal_is_a_sentence_with_the_next_step_and_no_trace(server, client, status, answer, says) -> None:
    server.answers["/sub/path/api/ml"] = [(status, answer)]
    with pytest.raises(LabelStudioError, match=says) as caught:
        client.connect_ml_backend(1, "http://127.0.0.1:9090", "SAM 2")
    assert "Traceback" not in caught.value.message
    assert "<html>" not in caught.value.message
    assert LEGACY_KEY not in caught.value.message


def test_a_page_that_is_no_api_is_named(server, client) -> None:
    server.answers["/sub/path/api/version"] = [(200, b"<html>Welcome to nginx</html>")]
    with pytest.raises(LabelStudioError, match="no JSON: LABEL_STUDIO_URL"):
        client.version()


def test_nobody_there_is_an_error_soon() -> None:
    client = LabelStudio("http://127.0.0.1:9", LEGACY_KEY)
    with pytest.raises(LabelStudioError, match="does not answer"):
        client.version()
    client.close()


def test_a_redirect_to_another_origin_is_not_followed(server, client) -> None:
    """A Label Studio that was taken over leads nowhere else: neither the key nor a request goes there."""
    with FakeLabelStudio() as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever, args=(0.02,))
        thread.start()
        try:
            server.redirects["/sub/path/api/version"] = f"{elsewhere.url}/taken"
            with pytest.raises(LabelStudioError, match="another address, which is not followed"):
                client.version()
            assert elsewhere.asked == []
        finally:
            elsewhere.shutdown()
            thread.join()


def test_a_redirect_within_label_studio_is_followed(server, client) -> None:
    server.redirects["/sub/path/api/version"] = f"{server.url}/sub/path/api/version/"
    server.answers["/sub/path/api/version/"] = [(200, {"release": "1.23.2"})]
    assert client.version() == "1.23.2"
