"""Everything that can be wrong with a click, through HTTP, queue and worker: its own error, in bounded time, and the next good click works."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import io
import os
import signal
import socket
import threading
import time

import pytest
import requests
from PIL import Image

from backend.config_generator import generate
from backend.supervisor import Stack
from sam2_backend.settings import Settings

LABEL_CONFIG = generate(["Cat"], "brush")
SIZE_WH = (64, 48)
LONGEST_S = 25.0


def png(size_wh=SIZE_WH, mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size_wh, 1 if mode == "1" else "red").save(buffer, "PNG")
    return buffer.getvalue()


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(SIZE_WH).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


class Source(http.server.BaseHTTPRequestHandler):
    """A web server with every bad habit."""

    def do_GET(self):
        bodies = {
            "/good.png": (200, png()),
            "/huge.png": (200, png((20_000, 10_000), "1")),
            "/truncated.jpg": (200, jpeg()[:300]),
            "/page.png": (200, b"<!doctype html><html><title>Log in</title></html>"),
            "/empty.png": (200, b""),
            "/missing.png": (404, b"no"),
            "/broken.png": (500, b"no"),
        }
        if self.path == "/metadata.png":
            self.send_response(302)
            self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            self.end_headers()
        elif self.path in {"/endless.png", "/slow.png"}:
            self.stream(0.2 if self.path == "/slow.png" else 0)
        else:
            status, body = bodies.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def stream(self, pause_s):
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100_000):
                self.wfile.write(png()[:8] if pause_s else bytes(65536))
                time.sleep(pause_s)
        except OSError:
            pass

    def log_message(self, *_args):
        pass


@pytest.fixture(scope="module")
def origin():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Source)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory, origin):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("stack")
    settings = dataclasses.replace(
        Settings(),
        port=port,
        data_dir=folder,
        model="random:nano",
        media_allow_hosts=origin.removeprefix("http://"),
        media_deadline_s=6.0,
        media_max_bytes=8 << 20,
        predict_wait_s=18.0,
        heartbeat_s=0.4,
        torch_threads=1,
        label_studio_url=origin + "/label-studio",
        label_studio_api_key="s3cret-key",
    )
    with Stack(settings, log_dir=folder / "logs") as running:
        running.wait_until_ready(120)
        yield running
        logs = "".join(path.read_text() for path in (folder / "logs").iterdir())
        assert "s3cret-key" not in logs


def prompt(**changes):
    region = {
        "id": "p1", "type": "keypointlabels", "from_name": "point", "to_name": "image", "original_width": SIZE_WH[0], "original_height": SIZE_WH[1],
        "image_rotation": 0, "is_positive": True, "value": {"x": 50.0, "y": 50.0, "width": 0.3, "keypointlabels": ["Cat"]},
    }  # fmt: skip
    value = region["value"] | changes.pop("value", {})
    return region | changes | {"value": value}


def body(image, *prompts, **changes):
    task = {"id": 1, "data": {"image": image}}
    context = {"result": list(prompts or [prompt()])}
    return {"tasks": [task], "project": "1.1", "label_config": LABEL_CONFIG, "params": {"context": context}} | changes


def post(stack, request_body):
    started = time.monotonic()
    raw = {"data": request_body} if isinstance(request_body, str) else {"json": request_body}
    answer = requests.post(f"{stack.url}/predict", timeout=60, **raw)
    assert time.monotonic() - started < LONGEST_S
    return answer


def good_click_works(stack, origin):
    answer = post(stack, body(f"{origin}/good.png"))
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    assert isinstance(prediction["result"], list)
    assert prediction["model_version"].startswith("random-weights")


BAD = {
    "a truncated JPEG": (lambda o: body(f"{o}/truncated.jpg"), 422, "media_unreadable"),
    "200 megapixels in a small file": (lambda o: body(f"{o}/huge.png"), 413, "media_too_large"),
    "HTML instead of an image": (lambda o: body(f"{o}/page.png"), 422, "media_unreadable"),
    "an empty file": (lambda o: body(f"{o}/empty.png"), 422, "media_unreadable"),
    "an image that is gone": (lambda o: body(f"{o}/missing.png"), 502, "media_unreachable"),
    "a source that is broken": (lambda o: body(f"{o}/broken.png"), 502, "media_unreachable"),
    "an endless body": (lambda o: body(f"{o}/endless.png"), 413, "media_too_large"),
    "a slow drip": (lambda o: body(f"{o}/slow.png"), 502, "media_unreachable"),
    "a redirect to the cloud's metadata": (lambda o: body(f"{o}/metadata.png"), 403, "media_refused"),
    "the cloud's metadata": (lambda _: body("http://169.254.169.254/latest/meta-data/"), 403, "media_refused"),
    "a private address": (lambda _: body("http://10.0.0.1/cat.png"), 403, "media_refused"),
    "a private address in decimal": (lambda _: body("http://2130706433:1/cat.png"), 403, "media_refused"),
    "a file of this machine": (lambda _: body("file:///etc/passwd"), None, None),
    "a click outside the image": (lambda o: body(f"{o}/good.png", prompt(value={"x": 140.0})), 422, "bad_prompt"),
    "a click at NaN": (lambda o: body(f"{o}/good.png", prompt(value={"x": float("nan")})), 422, "bad_prompt"),
    "a click that is a word": (lambda o: body(f"{o}/good.png", prompt(value={"x": "left"})), 422, "bad_prompt"),
    "an image of another shape": (lambda o: body(f"{o}/good.png", prompt(original_height=640)), 422, "media_unreadable"),
    "a task without its image": (lambda _: body("") | {"tasks": [{"id": 1, "data": {}}]}, 422, "bad_task"),
    "a task that is a number": (lambda o: body(f"{o}/good.png", tasks=[7]), 400, "bad_request"),
    "no tasks": (lambda o: body(f"{o}/good.png", tasks=[]), 400, "bad_request"),
    "a config without a control tag": (lambda o: body(f"{o}/good.png", label_config='<View><Image name="image" value="$image"/></View>'), 422, "no_control_tag"),
    "a config that is no XML": (lambda o: body(f"{o}/good.png", label_config="<View"), 422, "no_control_tag"),
    "malformed JSON": (lambda _: '{"tasks": [', 400, "bad_request"),
    "JSON that is a list": (lambda _: "[]", 400, "bad_request"),
    "a damaged data URI": (lambda _: body("data:image/png;base64,%%%"), 422, None),
}  # fmt: skip


def json_nan(request_body):
    """What a careless client sends: Python's json writes NaN, requests' does not."""
    import json

    return json.dumps(request_body) if "NaN" in json.dumps(request_body) else request_body


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_its_own_error_with_a_next_step_and_the_next_click_works(stack, origin, case):
    make, status, code = BAD[case]
    answer = post(stack, json_nan(make(origin)))
    assert 400 <= answer.status_code < 600
    error = answer.json()["error"]
    assert status is None or answer.status_code == status, answer.text
    assert code is None or error["code"] == code, answer.text
    assert error["code"] != "internal_error"
    assert error["message"].rstrip().endswith((".", "?"))
    assert error["message"][:40].encode("latin-1", "replace").decode("latin-1") in answer.reason
    assert "Traceback" not in answer.text and "s3cret" not in answer.text
    good_click_works(stack, origin)


def test_an_empty_context_is_answered_with_an_empty_result(stack, origin):
    request_body = body(f"{origin}/good.png")
    request_body["params"]["context"] = {"result": []}
    assert post(stack, request_body).json()["results"][0]["result"] == []


def test_a_good_data_uri_works(stack):
    answer = post(stack, body("data:image/png;base64," + base64.b64encode(png()).decode()))
    assert answer.status_code == 200, answer.text


def test_a_task_without_clicks_is_answered_at_once_also_while_its_image_drips(stack, origin):
    request_body = body(f"{origin}/slow.png")
    request_body["params"]["context"] = None
    started = time.monotonic()
    (prediction,) = post(stack, request_body).json()["results"]
    assert prediction["result"] == []
    assert time.monotonic() - started < 1


def test_unknown_paths_answer_json(stack):
    answer = requests.get(f"{stack.url}/nothing/here", timeout=5)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_a_stopped_worker_is_an_error_in_bounded_time_and_its_restart_mends_it(stack, origin):
    os.kill(stack.pids()["worker-0"], signal.SIGKILL)
    answer = post(stack, body(f"{origin}/good.png"))
    assert answer.status_code in {503, 504}
    assert answer.json()["error"]["code"] in {"no_worker", "job_timed_out"}
    assert "worker" in answer.json()["error"]["message"]
    stack.mend()
    time.sleep(1.1)
    stack.mend()
    stack.wait_until_ready(120)
    good_click_works(stack, origin)


def test_redis_down_is_an_error_in_bounded_time_and_its_return_mends_it(stack, origin):
    os.kill(stack.pids()["redis"], signal.SIGKILL)
    time.sleep(0.2)
    answer = post(stack, body(f"{origin}/good.png"))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "queue_down"
    assert requests.get(f"{stack.url}/health", timeout=1).status_code == 200
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and requests.get(f"{stack.url}/ready", timeout=10).status_code != 200:
        stack.mend()
        time.sleep(0.2)
    good_click_works(stack, origin)
