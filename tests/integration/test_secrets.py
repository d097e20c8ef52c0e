"""A Redis with TLS and a password, and secrets in every setting: clicks work, and nobody who reads a log, a page or a list of processes learns one."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis
import requests
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from tls_redis import TlsRedis, certificate
from worker_processes import until

from backend.config_generator import generate
from backend.supervisor import Stack, child_environment
from sam2_backend.errors import QueueDownError
from sam2_backend.redis_connection import connect, redis_errors_as_ours
from sam2_backend.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
REDIS_PASSWORD, AUTH_PASSWORD, API_KEY, WEBHOOK = "redis-pw-7Qx", "auth-pw-3Zk ü", "api-key-9Lm", "webhook-5Rt"
STUDIO_KEY, ACCESS_TOKEN, SIGNATURE, IMAGE_PASSWORD = "studio-key-1Vb", "setup-token-8Hd", "signature-4Nc", "image-pw-6Ws"
SECRETS = (REDIS_PASSWORD, AUTH_PASSWORD, API_KEY, WEBHOOK, STUDIO_KEY, ACCESS_TOKEN, SIGNATURE, IMAGE_PASSWORD)
ALSO_AS = [form(secret) for secret in SECRETS for form in (str, quote, lambda text: base64.b64encode(f"ls:{text}".encode()).decode())]
NOT_IN_REDIS = [
    secret for secret in SECRETS if secret not in {SIGNATURE, IMAGE_PASSWORD}
]  # they are part of the address that a worker fetches


class Images(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), "red").save(buffer, "PNG")
        self.send_response(200 if "/good" in self.path else 403)
        self.end_headers()
        self.wfile.write(buffer.getvalue())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def images() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tls() -> Iterator[TlsRedis]:
    with tempfile.TemporaryDirectory(prefix="sam2-tls-") as folder, TlsRedis(Path(folder), REDIS_PASSWORD) as server:
        yield server


def url_of(tls: TlsRedis, password: str = REDIS_PASSWORD, ca: Path | None = None) -> str:
    return f"rediss://:{password}@127.0.0.1:{tls.port}/0?ssl_ca_certs={ca or tls.ca}"


@pytest.fixture(scope="module")
def settings(tls, images, tmp_path_factory) -> Settings:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Settings(
        redis_url=url_of(tls),
        data_dir=tmp_path_factory.mktemp("data"),
        port=port,
        model="random:nano",
        torch_threads=1,
        media_allow_hosts=f"127.0.0.1:{images}",
        media_deadline_s=5.0,
        basic_auth_user="ls",
        basic_auth_password=AUTH_PASSWORD,
        api_key=API_KEY,
        webhook_secret=WEBHOOK,
        label_studio_url="http://127.0.0.1:9",
        label_studio_api_key=STUDIO_KEY,
        log_level="debug",
        heartbeat_s=0.4,
    )


@pytest.fixture(scope="module")
def stack(settings, tmp_path_factory) -> Iterator[Stack]:
    with Stack(settings, log_dir=tmp_path_factory.mktemp("logs")) as running:
        running.wait_until_ready(120)
        yield running


def ask(stack: Stack, path: str, body: object = None, **headers: str) -> requests.Response:
    auth = (b"ls", AUTH_PASSWORD.encode())
    if body is None:
        return requests.get(stack.url + path, auth=auth, headers=headers, timeout=60)
    return requests.post(stack.url + path, json=body, auth=auth, headers=headers, timeout=60)


def click(stack: Stack, image: str) -> requests.Response:
    region = {
        "id": "p", "type": "keypointlabels", "to_name": "image", "from_name": "point", "original_width": 64, "original_height": 48, "is_positive": True,
        "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    task = {"id": 7, "data": {"image": image}}
    return ask(
        stack,
        "/predict",
        {"tasks": [task], "project": "1.1", "label_config": generate(["Cat"]), "params": {"context": {"result": [region]}}},
    )


def leaks(text: str, secrets: list[str] = ALSO_AS) -> list[str]:
    return [secret for secret in secrets if secret in text]


def test_a_click_goes_through_a_redis_with_tls_and_a_password(stack, images):
    answer = click(stack, f"http://127.0.0.1:{images}/good.png")
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["model_version"].startswith("random-weights")


def test_no_secret_is_in_an_answer_a_page_a_log_a_list_of_processes_or_a_command(stack, settings, images, tmp_path):
    said = [
        click(stack, f"http://u:{IMAGE_PASSWORD}@127.0.0.1:{images}/good.png?X-Amz-Signature={SIGNATURE}"),
        click(stack, f"http://u:{IMAGE_PASSWORD}@127.0.0.1:{images}/refused.png?X-Amz-Signature={SIGNATURE}"),
        click(stack, f"http://u:{IMAGE_PASSWORD}@10.0.0.1/private.png?X-Amz-Signature={SIGNATURE}"),
        click(stack, f"ftp://u:{IMAGE_PASSWORD}@x/?X-Amz-Signature={SIGNATURE}"),
        click(stack, "/data/upload/1/a.png"),
        ask(
            stack,
            "/setup",
            {"project": "1.1", "schema": generate(["Cat"]), "access_token": ACCESS_TOKEN, "hostname": f"http://u:{IMAGE_PASSWORD}@x"},
        ),
        ask(stack, "/webhook", {"action": "ANNOTATION_CREATED", "x": ACCESS_TOKEN}, **{"X-Webhook-Secret": WEBHOOK + "x"}),
        requests.get(f"{stack.url}/ready", headers={"X-API-Key": API_KEY + "x"}, auth=("ls", AUTH_PASSWORD[:-1].encode()), timeout=10),
        *(ask(stack, path) for path in ("/", "/ready", "/metrics", "/versions", "/propagations", "/tasks?task=7", "/projects/1.1")),
        *(ask(stack, path, Accept="text/html") for path in ("/", "/tasks?task=7", "/projects/1.1")),
    ]
    assert [answer.status_code for answer in said[:2]] == [200, 502]
    for answer in said:
        assert leaks(answer.text + str(answer.headers) + str(answer.reason)) == [], answer.url
    for pid in [os.getpid(), *stack.pids().values()]:
        process = psutil.Process(pid)
        commands = [process.cmdline(), *(child.cmdline() for child in process.children(recursive=True))]
        assert leaks(str(commands)) == []
    for arguments in (["settings"], ["doctor"], ["settings", "--no-such-option"]):
        done = subprocess.run(
            [sys.executable, "-m", "backend.cli", *arguments],
            env=child_environment(settings),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert leaks(done.stdout + done.stderr) == [], arguments
    assert leaks(logs_of(stack)) == []


def logs_of(stack: Stack) -> str:
    text = "".join(path.read_text() for path in sorted(stack._log_dir.iterdir()))
    assert "click task=7" in text and "media_unreachable" in text
    return text


def test_what_lies_in_redis_names_no_secret_of_ours(stack, settings, images):
    click(stack, f"http://127.0.0.1:{images}/good.png?X-Amz-Signature={SIGNATURE}")
    with redis.Redis.from_url(settings.redis_url) as client:
        for key in client.scan_iter(count=1000):
            held = client.dump(key) or b""
            assert leaks((key + held).decode("latin-1"), NOT_IN_REDIS) == [], key
            if client.type(key) == b"hash":
                assert leaks(str(client.hget(key, "description"))) == []
            assert key.startswith(b"rq:job:") or leaks((key + held).decode("latin-1"), [SIGNATURE]) == [], key


def test_a_wrong_password_or_certificate_is_said_without_the_secret(tls, tmp_path):
    cases = {url_of(tls, "wrong-pw-2Yp"): "password", url_of(tls, ca=certificate(tmp_path, "another")): "does not answer"}
    cases |= {f"redis://:{REDIS_PASSWORD}@127.0.0.1:{tls.port}/0": "does not answer"}
    for url, words in cases.items():
        with pytest.raises(QueueDownError, match=words) as caught, redis_errors_as_ours(), connect(url, 1) as client:
            client.ping()
        assert leaks(caught.value.message, [REDIS_PASSWORD, "wrong-pw-2Yp"]) == []


MALFORMED = (
    "rediss://:{}@127.0.0.1:notaport/0", "rediss://:{}/x@127.0.0.1/0", "nonsense://:{}@127.0.0.1/0", "redis://:{}@[::1/0", "rediss://:{}@127.0.0.1:1/0?ssl_ca_certs=/nowhere",
)  # fmt: skip


@pytest.mark.parametrize(("command", "url"), [*(("worker", url) for url in MALFORMED), ("doctor", MALFORMED[3]), ("web", MALFORMED[3])])
def test_a_malformed_address_is_said_without_its_password(settings, command, url):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = dataclasses.replace(settings, redis_url=url.format(REDIS_PASSWORD), port=probe.getsockname()[1])
    arguments = [sys.executable, "-m", "backend.cli", command]
    process = subprocess.Popen(
        arguments, env=child_environment(settings), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        if command == "web":
            until(lambda: _health(settings), 60)
            assert leaks(requests.get(f"http://127.0.0.1:{settings.port}/ready", headers={"X-API-Key": API_KEY}, timeout=20).text) == []
            process.terminate()
        said, _ = process.communicate(timeout=6 if command == "worker" else 60)
    except subprocess.TimeoutExpired:  # a worker waits for a Redis that may come
        process.terminate()
        said, _ = process.communicate(timeout=30)
    assert leaks(said) == []
    assert command == "web" or (said and "Traceback" not in said)


def _health(settings: Settings) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{settings.port}/health", timeout=1).ok
    except requests.RequestException:
        return False


def test_a_redis_that_goes_away_is_logged_without_its_password(stack, tls, images):
    tls.close_door()
    answer = click(stack, f"http://127.0.0.1:{images}/good.png")
    assert answer.json()["error"]["code"] == "queue_down"
    assert leaks(answer.text) == []
    until(lambda: "Redis does not answer" in logs_of(stack), 30)
    assert leaks(logs_of(stack)) == []
