"""`sam2-backend doctor`: one line per check, what is wrong and how to mend it. Exit code 1 if anything is wrong.

Checks the machine it runs on: run it where the worker runs for torch and the checkpoint, where the web tier runs for the rest.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from backend.auth import weaknesses
from backend.config_judge import judge
from backend.dispatch import Dispatcher
from backend.embedded_redis import server_command
from backend.label_studio import LabelStudio
from sam2_backend.credentials import jwt_claims
from sam2_backend.errors import Sam2BackendError
from sam2_backend.redis_connection import redis_errors_as_ours
from sam2_backend.settings import GIB, Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found: `ok`, `note` (works, but know this) or `wrong` (with the next step)."""

    state: Literal["ok", "note", "wrong"]
    name: str
    sentence: str

    def __str__(self) -> str:
        return f"{ {'ok': '  ok ', 'note': ' note', 'wrong': 'WRONG'}[self.state] }  {self.name}: {self.sentence}"


Check = Callable[[], Iterator[Finding]]


def run_doctor(settings: Settings, project_id: int | None = None, echo: Callable[[str], None] = print) -> int:
    """Print every finding as it is made."""
    wrong = 0
    for finding in examine(settings, project_id):
        echo(str(finding))
        wrong += finding.state == "wrong"
    echo(f"{wrong} to mend." if wrong else "Everything that was checked is in order.")
    return 1 if wrong else 0


def examine(settings: Settings, project_id: int | None = None) -> Iterator[Finding]:
    """Every finding, machine first, Label Studio last. A check that fails unexpectedly is a finding, never a traceback."""
    checks: list[tuple[str, Check]] = [
        ("Python", _python),
        ("torch", lambda: _torch(settings)),
        ("checkpoint", lambda: _checkpoint(settings)),
        ("videos", _videos),
        ("data folder", lambda: _data_dir(settings)),
        ("access", lambda: _access(settings)),
        ("kept embeddings", lambda: _tiers(settings)),
        ("Redis and workers", lambda: _queue(settings)),
        ("Label Studio", lambda: _label_studio(settings, project_id)),
    ]
    for name, check in checks:
        try:
            yield from check()
        except Sam2BackendError as error:
            yield Finding("wrong", name, error.message)
        except Exception as error:
            yield Finding("wrong", name, f"this check failed itself ({type(error).__name__}: {error}). Please report it.")


def _access(settings: Settings) -> Iterator[Finding]:
    yield from (Finding("note", "access", sentence) for sentence in weaknesses(settings))


def _python() -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{sys.version.split()[0]} at {sys.executable}")


def _torch(settings: Settings) -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        yield Finding("note", "torch", "not installed here: this machine can run the web tier, not a worker (pip install '.[worker]').")
        return
    from sam2_backend.engine import device_of

    device = device_of(settings.device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory = f"{torch.cuda.get_device_name(device)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        state: Literal["ok", "wrong"] = "ok" if free > settings.device_cache_bytes + GIB else "wrong"
        advice = "" if state == "ok" else ". Free the device or lower SAM2_DEVICE_CACHE_BYTES."
        yield Finding(state, "device", f"{device}: {memory}{advice}")
    else:
        yield Finding("ok", "device", f"{device} with {torch.get_num_threads()} threads")
    yield Finding("ok", "torch", torch.__version__)


def _checkpoint(settings: Settings) -> Iterator[Finding]:
    try:
        from sam2_backend.checkpoints import load
    except ImportError:
        return
    checkpoint = load(settings)
    checkpoint.network()
    if "random-weights" in checkpoint.model_version:
        yield Finding(
            "note",
            "checkpoint",
            f"{checkpoint.model_version}: masks mean nothing. Fetch one: sam2-backend checkpoints fetch sam2.1_hiera_tiny.",
        )
    elif checkpoint.name == "demo":
        yield Finding(
            "note",
            "checkpoint",
            f"{checkpoint.model_version} is for trying things out. For real work: sam2-backend checkpoints fetch sam2.1_hiera_base_plus.",
        )
    else:
        yield Finding("ok", "checkpoint", f"{checkpoint.model_version}, sha256 {checkpoint.sha256}")


def _videos() -> Iterator[Finding]:
    try:
        import av
    except ImportError:
        yield Finding("note", "videos", "PyAV is not installed here: a worker on this machine cannot read them (pip install '.[worker]').")
        return
    codecs = [name for name in ("h264", "hevc", "vp9", "av1") if name in av.codecs_available]
    yield Finding("ok", "videos", f"PyAV {av.__version__} reads {', '.join(codecs)} and more")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data_dir):
            pass
    except OSError as error:
        yield Finding("wrong", "data folder", f"{settings.data_dir} cannot be written to ({error.strerror}). Correct SAM2_DATA_DIR.")
        return
    free = shutil.disk_usage(settings.data_dir).free
    if free < settings.media_cache_bytes:
        yield Finding(
            "wrong", "data folder", f"{free / GIB:.1f} GiB free at {settings.data_dir}. Free some, or lower SAM2_MEDIA_CACHE_BYTES."
        )
    else:
        yield Finding("ok", "data folder", f"{settings.data_dir}, {free / GIB:.1f} GiB free")


def _tiers(settings: Settings) -> Iterator[Finding]:
    from backend.doctor_tiers import tiers

    yield from tiers(settings)


def _queue(settings: Settings) -> Iterator[Finding]:
    if not settings.redis_url:
        yield Finding("ok", "Redis", f"SAM2_REDIS_URL is not set: `sam2-backend up` starts its own ({server_command()[0]}).")
        return
    dispatcher = Dispatcher(settings)
    try:
        with redis_errors_as_ours():
            info: Any = dispatcher.redis().info("server")
        yield Finding("ok", "Redis", f"version {info.get('valkey_version') or info.get('redis_version')}")
        workers = dispatcher.workers()
        if not workers:
            yield Finding("wrong", "workers", "none is alive. Start one with `sam2-backend worker` and the same SAM2_REDIS_URL.")
        for worker in workers:
            yield Finding("ok", "worker", f"{worker.name} is {worker.state} on {worker.device} with {worker.model_version}")
    finally:
        dispatcher.close()


def _label_studio(settings: Settings, project_id: int | None) -> Iterator[Finding]:
    if not settings.label_studio_url:
        yield Finding(
            "wrong",
            "Label Studio",
            "LABEL_STUDIO_URL is not set, so uploads cannot be read and the next tasks are not embedded ahead. Set it to Label Studio's address as this machine sees it.",
        )
        return
    client = LabelStudio(settings.label_studio_url, settings.label_studio_api_key, timeout_s=10)
    try:
        yield Finding("ok", "Label Studio", f"{client.version()} at {settings.label_studio_url}")
        if not settings.label_studio_api_key:
            yield Finding(
                "wrong",
                "token",
                "LABEL_STUDIO_API_KEY is not set. Make a personal access token in Label Studio (Account & Settings) and set it.",
            )
            return
        kind = "a legacy token" if jwt_claims(settings.label_studio_api_key) is None else "a personal access token"
        yield Finding("ok", "token", f"valid, {kind} of {client.whoami().get('email', 'a user without an e-mail address')}")
        yield _next_tasks(settings)
        projects = [client.project(project_id)] if project_id is not None else list(client.projects())
        for project in projects:
            yield from _project(client, project, is_asked_for=project_id is not None)
    finally:
        client.close()


def _next_tasks(settings: Settings) -> Finding:
    if not settings.warm_next_tasks:
        return Finding("note", "next tasks", "their images are not embedded ahead, because SAM2_WARM_NEXT_TASKS is 0.")
    return Finding("ok", "next tasks", f"the images of the next {settings.warm_next_tasks} or more are embedded before anyone opens them")


def _project(client: LabelStudio, project: dict[str, Any], *, is_asked_for: bool) -> Iterator[Finding]:
    name = f"project {project['id']} ({project.get('title', '')})"
    backends = client.ml_backends(project["id"])
    if not backends:
        yield Finding("wrong" if is_asked_for else "note", name, "no ML backend is connected: Settings > Model > Connect Model.")
        return
    # The editor sends its clicks to the first that takes any.
    backend = next((backend for backend in backends if backend.get("is_interactive")), backends[0])
    if not backend.get("is_interactive"):
        yield Finding("wrong", name, "clicks are not sent: switch on 'Interactive preannotations' at Settings > Model > Edit.")
    problems = judge(project.get("label_config", ""), _extra_params(backend))
    for problem in problems:
        yield Finding("wrong", name, problem)
    if not problems:
        yield Finding("ok", name, "its labeling config can be served")
    yield from _connection(name, backend, has_problems=bool(problems))


def _connection(name: str, backend: dict[str, Any], *, has_problems: bool) -> Iterator[Finding]:
    """What Label Studio found when it called the backend, a moment ago, because the backends were listed."""
    state = backend.get("readable_state")
    if state == "Disconnected":
        yield Finding(
            "wrong",
            name,
            f"Label Studio cannot reach the backend at {backend['url']}. Start it, or correct its URL at Settings > Model > Edit.",
        )
    elif state == "Error" and not has_problems:
        yield Finding("wrong", name, f"the backend at {backend['url']} refused the project: {_one_line(backend.get('error_message'))}")
    elif state != "Error":
        yield Finding("ok", name, f"its backend at {backend['url']} is connected")


def _one_line(text: Any) -> str:
    return " ".join(str(text or "see the backend's log").split())[:300]


def _extra_params(backend: dict[str, Any]) -> dict[str, Any]:
    given = backend.get("extra_params")
    return given if isinstance(given, dict) else {}
