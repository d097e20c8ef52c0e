"""The same backend served by label-studio-ml: 1.0.9 from PyPI for real, the constructor of 2.x by a stand-in; and gunicorn alone."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
BRUSH = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image" smart="false" model_mask_threshold="-32"><Label value="Cat"/></BrushLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels").replace('name="brush"', 'name="polygon"')


@pytest.fixture(scope="session")
def label_studio_ml(tmp_path_factory) -> Path:
    """label-studio-ml 1.0.9 without its pins (Flask 1, Redis 3), in a folder of its own; colorama is its only other need here."""
    folder = tmp_path_factory.mktemp("label_studio_ml")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        "label-studio-ml==1.0.9",
        "colorama",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"label-studio-ml 1.0.9 cannot be installed: {done.stderr[-300:]}")
    return folder


@pytest.fixture(scope="session")
def label_studio_ml_2x(tmp_path_factory) -> Path:
    """What matters of 2.x at d02cedf: a model per request, made of project_id and label_config; `set` and `get` on a store."""
    folder = tmp_path_factory.mktemp("label_studio_ml_2x")
    (folder / "label_studio_ml").mkdir()
    (folder / "label_studio_ml/__init__.py").touch()
    (folder / "label_studio_ml/model.py").write_text(
        textwrap.dedent("""
        STORE = {}
        class LabelStudioMLBase:
            def __init__(self, project_id=None, label_config=None):
                self.project_id = project_id or ""
                if label_config is not None and "<View" not in label_config:
                    raise ValueError("their parser")
                self.setup()
            def get(self, key): return STORE.get((self.project_id, key))
            def set(self, key, value): STORE[self.project_id, key] = value
            def set_extra_params(self, params): self.set("extra_params", params)
        """)
    )
    (folder / "label_studio_ml/api.py").write_text(
        textwrap.dedent("""
        import traceback
        from flask import Flask, jsonify, request
        server, MODEL = Flask(__name__), None
        def init_app(model_class, basic_auth_user=None, basic_auth_pass=None):
            global MODEL
            MODEL = model_class
            return server
        @server.post("/predict")
        def _predict():
            data = request.json
            try:
                model = MODEL(project_id=str(data.get("project")).split(".", 1)[0], label_config=data.get("label_config"))
                params = data.get("params", {})
                context = params.pop("context", {})
                return jsonify({"results": model.predict(data.get("tasks"), context=context, **params)})
            except Exception:
                return jsonify({"result": {"traceback": traceback.format_exc()}}), 500
        @server.post("/setup")
        def _setup():
            data = request.json
            model = MODEL(project_id=data["project"].split(".", 1)[0], label_config=data.get("schema"))
            if data.get("extra_params"):
                model.set_extra_params(data["extra_params"])
            return jsonify({"model_version": model.get("model_version")})
        @server.post("/webhook")
        def webhook():
            raise RuntimeError("must have been replaced")
        @server.get("/health")
        def health():
            return jsonify({"status": "UP", "model_class": MODEL.__name__})
        """)
    )
    return folder


@pytest.fixture
def environ(settings) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SAM2_", "LABEL_STUDIO_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")])  # label-studio-ml starts "python"
    return inherited | settings.to_env() | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def _running(command: list[str], environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all that it starts, ended with it."""
    with log.open("wb") as out, subprocess.Popen(command, cwd=ROOT, env=environ, stdout=out, stderr=out, start_new_session=True) as process:
        try:
            yield process
        finally:
            ended_early = process.poll() is not None
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(15)
                os.killpg(process.pid, signal.SIGKILL)  # whoever of its group is left
        assert not ended_early, log.read_text()


@contextmanager
def _served(command: list[str], environ: dict[str, str], log: Path) -> Iterator[str]:
    """The address of a server started with `-p PORT`, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with _running([part.replace("PORT", str(port)) for part in command], environ, log) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"{url}/health", timeout=1)
            except (requests.ConnectionError, requests.Timeout):
                time.sleep(0.1)
            else:
                yield url
                return
        pytest.fail(log.read_text())


@pytest.fixture
def worker(environ, redis_server, tmp_path) -> Iterator[None]:
    command = [sys.executable, "-m", "backend.cli", "worker"]
    with _running(command, environ | {"SAM2_MODEL": "random:nano"}, tmp_path / "worker.log"):
        yield


def _click(config: str, project: str = "7.1700000000", **region) -> dict:
    picture = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(picture).ellipse((60, 20, 120, 80), fill="red")
    data = io.BytesIO()
    picture.save(data, "PNG")
    point = {
        "id": "p1", "from_name": "point", "to_name": "image", "type": "keypointlabels", "original_width": 200, "original_height": 100,
        "is_positive": True, "value": {"x": 45, "y": 50, "width": 0.3, "keypointlabels": ["Cat"]},
    } | region  # fmt: skip
    task = {"id": 17, "data": {"image": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()}}
    params = {"login": None, "password": None, "context": {"result": [point]}}
    return {"tasks": [task], "project": project, "label_config": config, "params": params}


def _check_click(url: str, config: str) -> None:
    answer = requests.post(f"{url}/predict", json=_click(config), timeout=90)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    assert LabelInterface(config).validate_prediction(prediction, return_errors=True) == []
    assert set(prediction) == {"result", "score", "model_version"}
    assert [region["from_name"] for region in prediction["result"]]


def _check_errors(url: str) -> None:
    """Our sentence in the reason phrase, and no traceback in any answer."""
    refused = requests.post(f"{url}/predict", json=_click(BRUSH, original_width="wide"), timeout=30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "bad_prompt")
    assert refused.reason == refused.json()["error"]["message"]
    unusable = requests.post(f"{url}/setup", json={"project": "9.1", "schema": "<Vie"}, timeout=10)
    assert (unusable.status_code, unusable.json()["error"]["code"]) == (422, "no_control_tag")
    for path, body in (("predict", b"{"), ("predict", b'{"params": [1]}'), ("setup", b"[]"), ("setup", b"{}"), ("webhook", b"{")):
        answer = requests.post(f"{url}/{path}", data=body, headers={"Content-Type": "application/json"}, timeout=10)
        assert "Traceback" not in answer.text
        assert str(ROOT) not in answer.text


def test_label_studio_ml_1_0_9_serves_the_backend(label_studio_ml, environ, settings, worker, tmp_path):
    environ = environ | {"PYTHONPATH": str(label_studio_ml)}
    command = [sys.executable, "-m", "label_studio_ml.server", "start", "backend", "-p", "PORT"]
    before = set((ROOT / "backend").iterdir())
    with _served(command, environ, tmp_path / "web.log") as url:
        health = requests.get(f"{url}/health", timeout=1).json()
        assert (health["status"], "model_dir" in health) == ("UP", True)  # their server, not ours
        _check_click(url, BRUSH)  # before any /setup, as after a restart
        for project, config in (("7.1700000000", BRUSH), ("8.1700000000", POLYGON)):
            body = {"project": project, "schema": config, "hostname": "http://localhost:8080", "access_token": "t", "extra_params": None}
            assert requests.post(f"{url}/setup", json=body, timeout=3).json()["model_version"] not in ("", "INITIAL", None)
        _check_click(url, BRUSH)  # and not with the config of the project that was set up last
        _check_errors(url)
        event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": 7}}
        assert requests.post(f"{url}/webhook", json=event, timeout=1).status_code == 201
    assert set((ROOT / "backend").iterdir()) - before <= {ROOT / "backend/__pycache__"}
    assert not list((settings.data_dir / "label-studio-ml").iterdir())


def test_the_constructor_of_2x_is_served_too(label_studio_ml_2x, environ, worker, tmp_path):
    command = [sys.executable, "backend/_wsgi.py", "-p", "PORT", "--basic-auth-user", "ls", "--basic-auth-pass", "pw"]
    with _served(command, environ | {"PYTHONPATH": str(label_studio_ml_2x)}, tmp_path / "web.log") as url:
        assert requests.post(f"{url}/predict", json=_click(BRUSH), timeout=5).status_code == 401
        url = url.replace("http://", "http://ls:pw@")
        _check_click(url, BRUSH)
        body = {"project": "7.1", "schema": BRUSH, "extra_params": {"model_fill_holes": 5}}
        assert requests.post(f"{url}/setup", json=body, timeout=3).json()["model_version"]
        _check_errors(url)
        assert requests.post(f"{url}/webhook", json={"action": "ANNOTATIONS_DELETED"}, timeout=1).status_code == 201


@pytest.mark.parametrize("application", ["backend._wsgi:app", "backend.app:from_environ()"])
def test_gunicorn_serves_our_own_app_where_label_studio_ml_is_not_installed(application, environ, tmp_path):
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-k",
        "gthread",
        "-w",
        "1",
        "--threads",
        "8",
        "--no-control-socket",
        "-b",
        "127.0.0.1:PORT",
    ]
    with _served([*command, application], environ, tmp_path / "web.log") as url:
        assert requests.get(f"{url}/health", timeout=1).json()["model_class"] == "Sam2Backend"
        refused = requests.post(f"{url}/setup", json={"project": "7.1", "schema": "<View/>"}, timeout=3)
        assert (refused.status_code, refused.reason) == (422, refused.json()["error"]["message"])
        assert requests.get(f"{url}/ready", timeout=3).status_code == 503
