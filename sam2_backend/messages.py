"""What crosses the queue: plain dataclasses, JSON in both directions. Label Studio's words stop left of this file, tensors right of it.

Standard library only. Coordinates are float pixels of the image as the browser shows it (upright, `size_hw`), x to the right,
y down, the top-left corner of the top-left pixel at (0, 0). `to_wire` and `from_wire` are the only codec.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sam2_backend.errors import JobRefusedError

T = TypeVar("T")

CacheTier = Literal["device", "host", "redis", "disk", "bucket", "none"]
"""Where the embedding was found; `none`: the image was encoded."""


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Where the bytes of an image are, for a process that knows no Label Studio.

    Attributes:
        uri: `http(s)://…`, `file:///…` (only below the configured local files root) or `blob:KEY` (bytes put into Redis by the web tier).
    """

    uri: str


@dataclass(frozen=True, slots=True)
class Point:
    """One click, in pixels of the upright image."""

    x_px: float
    y_px: float
    is_positive: bool = True


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A bool mask (H, W) as row-major run lengths, the first run counting False (possibly 0 long).

    Attributes:
        size_hw: Height and width.
        counts: Little-endian uint32, one per run; they sum to H · W.
    """

    size_hw: tuple[int, int]
    counts: bytes


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """Every prompt given for one object.

    The mask of a prompt is defined step by step, so that it does not depend on what a worker remembers: the first step takes the
    box and mask, or the points up to the first positive one; every later step adds one point and the logits of the step before.

    Attributes:
        prompt_id: The id of the drawing: its oldest region's id. Names the object in the reply.
        points: Oldest first.
        box_xyxy_px: Left, top, right, bottom.
        mask: A mask to start from (a brush, polygon or ellipse region), at the job's `size_hw`.
        clip_xy_px: Corners of a convex polygon that the mask is cut to (a rotated box); empty: no cut.
    """

    prompt_id: str
    points: tuple[Point, ...] = ()
    box_xyxy_px: tuple[float, float, float, float] | None = None
    mask: RunLengths | None = None
    clip_xy_px: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """What a project asks of every mask.

    Attributes:
        multimask: One ambiguous click chooses the best of three candidates; False: the single-mask output.
        fill_holes_px: Holes up to this many pixels are filled.
        remove_sprinkles_px: Islands up to this many pixels are removed.
        mask_threshold: Logits above it are mask.
    """

    multimask: bool = True
    fill_holes_px: int = 0
    remove_sprinkles_px: int = 0
    mask_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class ImageJob:
    """Segment objects on one image.

    Attributes:
        media: The image.
        size_hw: Height and width as the browser shows it; the masks come back in this size.
        prompts: One per object, at least one.
        drawing: A newer job with the same drawing makes a waiting older one pointless; empty: never superseded.
    """

    media: MediaRef
    size_hw: tuple[int, int]
    prompts: tuple[ImagePrompt, ...]
    options: MaskOptions = MaskOptions()
    drawing: str = ""


@dataclass(frozen=True, slots=True)
class WarmJob:
    """Make and keep the embedding of an image, before anyone clicks."""

    media: MediaRef


@dataclass(frozen=True, slots=True)
class ObjectMask:
    """The mask of one prompt. An empty mask (one run) means that nothing was found."""

    prompt_id: str
    runs: RunLengths
    score: float


@dataclass(frozen=True, slots=True)
class ImageReply:
    """What a worker answers to an ImageJob (masks in the order of its prompts) or a WarmJob (no masks).

    Attributes:
        timings_ms: `queue`, `media`, `embed`, `decode`, `runs`, as far as they happened; milliseconds.
    """

    image_hash: str
    model_version: str
    worker: str
    cache: CacheTier
    masks: tuple[ObjectMask, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a live worker says of itself, every heartbeat. Times are Unix seconds."""

    name: str
    pid: int
    hostname: str
    device: str
    model_version: str
    started_at: float
    beat_at: float
    state: Literal["loading", "idle", "busy"] = "loading"
    jobs_done: int = 0
    jobs_failed: int = 0
    device_cache_bytes: int = 0
    host_cache_bytes: int = 0
    hits: dict[str, float] = field(default_factory=dict)
    """Embedding look-ups by CacheTier."""
    device_used_bytes: int = 0
    device_total_bytes: int = 0


def to_wire(message: Any) -> Any:
    """A message as JSON-ready values; bytes become base64 text."""
    if dataclasses.is_dataclass(message) and not isinstance(message, type):
        return {f.name: to_wire(getattr(message, f.name)) for f in dataclasses.fields(message)}
    if isinstance(message, bytes):
        return base64.b64encode(message).decode("ascii")
    if isinstance(message, tuple | list):
        return [to_wire(item) for item in message]
    return message


def from_wire(kind: type[T], value: Any) -> T:
    """Read a message of a known kind.

    Raises:
        JobRefusedError: a field is missing, unknown, of another type, or a number is not finite.
    """
    return typing.cast("T", _read(kind, value, kind.__name__))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, args, fields = _parts(kind)
    if fields is not None:
        return _read_dataclass(kind, fields, value, where)
    if origin is types.UnionType:
        return None if value is None else _read(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) == len(value):
            return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    elif origin is dict and isinstance(value, dict):
        return {str(k): _read(args[1], v, f"{where}.{k}") for k, v in value.items()}
    elif origin is Literal and value in args:
        return value
    elif kind is bytes and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error:
            pass
    elif (kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)) or (
        kind in {int, bool, str} and type(value) is kind
    ):
        return kind(value)
    raise JobRefusedError(f"{where} is not what this version of sam2-backend sends. Run the same version on the web tier and the workers.")


@dataclass(frozen=True, slots=True)
class _Fields:
    """What a dataclass is read by: the kind of each field, and those that have no default."""

    kinds: dict[str, Any]
    required: frozenset[str]


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...], _Fields | None]:
    """(origin, arguments, fields of a dataclass); the kinds of messages are few, and looked at once."""
    fields = None
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        missing = dataclasses.MISSING
        required = frozenset(f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing)
        hints = typing.get_type_hints(kind)
        fields = _Fields({f.name: hints[f.name] for f in dataclasses.fields(kind)}, required)
    return typing.get_origin(kind), typing.get_args(kind), fields


def _read_dataclass(kind: Any, fields: _Fields, value: Any, where: str) -> Any:
    if not isinstance(value, dict) or not fields.required <= value.keys() <= fields.kinds.keys():
        raise JobRefusedError(f"{where} lacks a field or has an unknown one. Run the same version on the web tier and the workers.")
    return kind(**{name: _read(fields.kinds[name], item, f"{where}.{name}") for name, item in value.items()})
