"""Every setting: its name in the environment, its default and one sentence. The environment is read here and nowhere else.

Standard library only. `Settings.from_env(os.environ)` is called once per process, by the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam2_backend.errors import SettingsError

PREFIX = "SAM2_"
MIB = 1 << 20
GIB = 1 << 30


def _setting(default: Any, help_text: str, env: str = "", *, secret: bool = False) -> Any:
    return field(default=default, metadata={"help": help_text, "env": env, "secret": secret})


def _default_data_dir() -> Path:
    return Path(os.path.expanduser("~/.cache/sam2-backend"))  # noqa: PTH111  Path.expanduser raises where there is no home


def _default_checkpoints_dir() -> Path:
    checkout = Path(__file__).resolve().parent.parent / "checkpoints"
    return checkout if checkout.is_dir() else _default_data_dir() / "checkpoints"


DEFAULT_DATA_DIR = _default_data_dir()
DEFAULT_CHECKPOINTS_DIR = _default_checkpoints_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process of either tier was told. Immutable; sizes in bytes, times in seconds, sizes may carry KiB, MiB or GiB."""

    # Where things are
    redis_url: str = _setting(
        "", "Redis or Valkey to use (redis://, rediss:// or unix://); empty: `up` starts an embedded one.", secret=True
    )
    data_dir: Path = _setting(DEFAULT_DATA_DIR, "Folder for the embedded Valkey, downloaded media and the demo.")
    checkpoints_dir: Path = _setting(DEFAULT_CHECKPOINTS_DIR, "Folder with the checkpoint files.")

    # The web tier
    host: str = _setting("127.0.0.1", "Address that the web tier listens on.")
    port: int = _setting(9090, "Port that the web tier listens on.")
    web_threads: int = _setting(
        64, "Requests that the web tier answers at a time; 8 of them are kept from clicks that wait, 2 for /health."
    )
    basic_auth_user: str = _setting("", "With SAM2_BASIC_AUTH_PASSWORD: basic authentication for every endpoint but /health and /webhook.")
    basic_auth_password: str = _setting("", "See SAM2_BASIC_AUTH_USER.", secret=True)
    api_key: str = _setting("", "Accepted in the X-API-Key header in place of basic authentication.", secret=True)
    webhook_secret: str = _setting(
        "", "If set, /webhook demands it in the X-Webhook-Secret header (Label Studio sends no basic auth there).", secret=True
    )
    predict_wait_s: float = _setting(80.0, "Longest time a /predict request waits for its masks; the browser gives up at about 90 s.")
    max_request_bytes: int = _setting(512 * MIB, "Largest request body; Label Studio sends every stored mask of the task along.")
    max_prompts: int = _setting(512, "Most prompts in one context.")
    max_queued: int = _setting(256, "Interactive jobs waiting on one worker before new ones are refused with 429.")

    # Label Studio, as the workers and the web tier reach it
    label_studio_url: str = _setting("", "Address of Label Studio, sub-path included, as this machine reaches it.", "LABEL_STUDIO_URL")
    label_studio_api_key: str = _setting("", "Legacy token or personal access token, for its media.", "LABEL_STUDIO_API_KEY", secret=True)
    local_files_root: str = _setting(
        "", "Label Studio's local files root, where this machine can read it from disk.", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"
    )
    label_studio_venv: str = _setting("", "Virtual environment with Label Studio for `demo`; empty: `demo` makes one in SAM2_DATA_DIR.")

    # Media
    media_max_bytes: int = _setting(256 * MIB, "Largest image file.")
    media_max_pixels: int = _setting(100_000_000, "Most pixels in one image.")
    media_deadline_s: float = _setting(30.0, "Longest time one image may take to arrive, redirects included.")
    media_allow_hosts: str = _setting(
        "", "Private hosts that images may come from: host, host:port or network (10.0.0.0/8), comma-separated."
    )
    media_cache_bytes: int = _setting(2 * GIB, "Downloaded image files kept on disk.")
    media_index_ttl_s: int = _setting(3600, "How long a URL is trusted to name the same image before it is fetched again.")

    # Videos and medical volumes
    video_max_bytes: int = _setting(8 * GIB, "Largest video or volume file.")
    video_max_pixels: int = _setting(40_000_000, "Most pixels in one frame of a video or slice of a volume.")
    video_max_frames: int = _setting(1_000_000, "Most frames in one video, volume or image sequence.")
    video_deadline_s: float = _setting(600.0, "Longest time one video or volume may take to arrive, redirects included.")
    video_cache_bytes: int = _setting(16 * GIB, "Downloaded videos and volumes kept on disk.")

    # The model tier
    model: str = _setting(
        "auto",
        "Checkpoint: a name from `sam2-backend checkpoints list`, a .pt file, a Hugging Face folder or id, edgetam:FOLDER, random:NAME, "
        "or auto.",
    )
    device: str = _setting("auto", "auto, cpu, mps, cuda or cuda:N.")
    precision: str = _setting(
        "auto",
        "Of the image encoder: fp32, bf16 or fp16; auto: fp32 on the CPU, fp16 on CUDA. Lower ones are faster and change masks a little.",
    )
    compile: str = _setting(
        "off", "off, decoder or all: what a worker has torch compile before it is ready, which takes minutes and a C++ compiler."
    )
    workers: int = _setting(1, "Workers that `up` starts.")
    worker_name: str = _setting("", "Name of this worker; empty: one is made.")
    torch_threads: int = _setting(0, "CPU threads of one worker; 0: cores divided by workers.")
    device_cache_bytes: int = _setting(1 * GIB, "Embeddings kept on the device.")
    host_cache_bytes: int = _setting(1 * GIB, "Embeddings kept in host memory (unused where the device is the CPU).")
    redis_cache_bytes: int = _setting(1 * GIB, "Embeddings kept in Redis.")
    disk_cache_bytes: int = _setting(4 * GIB, "Embeddings kept on disk, where they outlive every process; 0: none.")
    embedding_dir: str = _setting("", "Folder for them, which workers may share; empty: `embeddings` in SAM2_DATA_DIR.")
    embedding_bucket: str = _setting(
        "", "Bucket for them as well: s3://bucket/prefix, with AWS' own variables. Needs `pip install 'sam2-label-studio[s3]'`."
    )
    detector: str = _setting(
        "", "Grounding DINO or OWLv2 for pre-annotation by text: a folder or hub id. Needs `pip install 'sam2-label-studio[detect]'`."
    )
    click_batch: int = _setting(
        8,
        "Clicks that a worker takes at a time of those that wait: images that are embedded go first, and on a GPU one decoder run answers them.",
    )
    logits_cache_entries: int = _setting(1024, "Drawings whose last logits a worker keeps for refinement.")
    heartbeat_s: float = _setting(2.0, "How often a worker says that it lives; it counts as dead after five of these.")

    warm_next_tasks: int = _setting(
        5,
        "Tasks after those that are worked on whose images are embedded before anyone opens them, more where people are quick; 0: none. "
        "Needs LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.",
    )

    # Propagations through videos
    propagate_wait_s: float = _setting(
        20.0, "Longest time a /predict request on a video waits; then it answers with what is tracked so far, and the rest is pushed."
    )
    propagate_max_objects: int = _setting(50, "Most objects in one propagation.")
    propagate_max_results: int = _setting(2_000_000, "Most frames times objects in one propagation.")
    propagate_sessions: int = _setting(200, "Propagations kept in Redis; beyond them the one unused for longest goes.")
    propagate_bytes: int = _setting(1 * GIB, "Bytes of all propagations kept in Redis; beyond them the one unused for longest goes.")
    propagate_idle_s: int = _setting(4 * 3600, "A propagation that is neither worked on nor asked for is forgotten after this.")
    propagate_checkpoint_s: float = _setting(2.0, "How often a running propagation writes down how far it is, at most.")
    propagate_turn_s: float = _setting(60.0, "How long a worker stays with one propagation while others wait.")

    # Pre-annotation
    preannotate_wait_s: float = _setting(
        3.0,
        "With model_preannotate: longest time that opening a task waits for its prediction; later ones are pushed. A batch gets as much a task.",
    )
    preannotate_in_flight: int = _setting(4, "Tasks of a dataset that are on their way to each worker at a time.")
    preannotate_limit_s: int = _setting(900, "Longest time that a worker may spend on one image of a dataset.")

    # Logs
    log_level: str = _setting("info", "debug, info, warning or error.")
    log_json: bool = _setting(False, "One JSON object a line in place of text.")  # noqa: FBT003

    @property
    def embedding_folder(self) -> Path:
        """Where embeddings are kept on disk."""
        return Path(os.path.expanduser(self.embedding_dir)) if self.embedding_dir else self.data_dir / "embeddings"  # noqa: PTH111

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read every setting from the environment.

        Raises:
            SettingsError: a SAM2_ name is unknown (the nearest is named), or a value does not parse or is out of range.
        """
        fields = {env_name(f): f for f in dataclasses.fields(cls)}
        for name in environ:
            if name.startswith(PREFIX) and name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f"Did you mean {near[0]}?" if near else f"The settings are: {', '.join(sorted(fields))}."
                raise SettingsError(f"There is no setting {name}. {hint}")
        types_by_name = typing.get_type_hints(cls)
        values = {
            f.name: _parse(name, environ[name].strip(), types_by_name[f.name])
            for name, f in fields.items()
            if environ.get(name, "").strip()
        }
        settings = cls(**values)
        settings._check()
        return settings

    def to_env(self) -> dict[str, str]:
        """The environment that makes a child process read these settings again; defaults are left out."""
        return {env_name(f): str(value) for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != f.default}

    def describe(self) -> list[tuple[str, str, str]]:
        """(name in the environment, value with secrets hidden, sentence) of every setting, in order."""
        return [
            (
                env_name(f),
                ("(set)" if getattr(self, f.name) else "") if f.metadata["secret"] else str(getattr(self, f.name)),
                f.metadata["help"],
            )
            for f in dataclasses.fields(self)
        ]

    def _check(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and (value < 0 or not math.isfinite(value)):
                raise SettingsError(f"{env_name(f)}={value} must be a number from 0 up.")
        if bool(self.basic_auth_user) != bool(self.basic_auth_password):
            raise SettingsError("SAM2_BASIC_AUTH_USER and SAM2_BASIC_AUTH_PASSWORD go together: set both or neither.")
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise SettingsError(f"SAM2_LOG_LEVEL={self.log_level} must be debug, info, warning or error.")
        for name, choices in {"precision": ("auto", "fp32", "bf16", "fp16"), "compile": ("off", "decoder", "all")}.items():
            if getattr(self, name) not in choices:
                raise SettingsError(f"{PREFIX}{name.upper()}={getattr(self, name)} must be one of {', '.join(choices)}.")
        for name in (
            "workers",
            "web_threads",
            "predict_wait_s",
            "heartbeat_s",
            "click_batch",
            "propagate_idle_s",
            "preannotate_in_flight",
            "preannotate_limit_s",
        ):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{PREFIX}{name.upper()} must be above 0.")


def env_name(setting: dataclasses.Field[Any]) -> str:
    """The name of a setting in the environment."""
    return setting.metadata["env"] or PREFIX + setting.name.upper()


_UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def _parse(name: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[text.lower()]
        if kind is int:
            unit = _UNITS.get(text[-3:].lower())
            return int(float(text[:-3]) * unit) if unit else int(text)
        return kind(text).expanduser() if kind is Path else kind(text)
    except (KeyError, ValueError, OverflowError, RuntimeError) as error:
        kinds = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path"}
        raise SettingsError(f"{name}={text!r} must be {kinds.get(kind, 'text')}.") from error
