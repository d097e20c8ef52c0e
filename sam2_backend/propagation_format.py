"""How a propagation lies in Redis: its keys, packed results and masks, and its name. Standard library and numpy; both tiers use it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sam2_backend.messages import RunLengths, to_wire
from sam2_backend.video_messages import FrameMask, FrameSource, Keyframe, Track, VideoOptions

_ROOT = "sam2:propagation:"
#: Sessions that wait for a worker, first come first; those that workers hold; all, by when they were last used (Unix seconds).
WAITING, RUNNING, USED = f"{_ROOT}waiting", f"{_ROOT}running", f"{_ROOT}used"
#: Frames times objects that were ever written, for monitoring; forgotten a month after the last.
RESULTS, RESULTS_KEPT_S = f"{_ROOT}results", 30 * 24 * 3600

#: One object at one place on the grid. The box is left, top, right, bottom in shares of the frame, NaN where the object is not seen.
ROW = np.dtype([("object_idx", "<i4"), ("grid_idx", "<i4"), ("box", "<f4", (4,)), ("score", "<f4")])
Rows = npt.NDArray[np.void]

_MASK_HEAD = struct.Struct("<iiifI")  # object_idx, first and last grid_idx, score, number of bytes behind


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one session; all end together.

    Attributes:
        job: The PropagateJob as JSON.
        state: Hash of the fields of PropagationState, `bytes`, `deaths` and `runs` (those taken over from another session).
        owner: Token of the worker that holds it; only its holder may write.
        rows: ROWs in the order in which they were found.
        masks: Hash of `pack_masks` by their number from 0, where masks are wanted.
        bank: What the worker needs to go on.
    """

    session: str

    @property
    def job(self) -> str:
        return f"{_ROOT}{self.session}:job"

    @property
    def state(self) -> str:
        return f"{_ROOT}{self.session}:state"

    @property
    def owner(self) -> str:
        return f"{_ROOT}{self.session}:owner"

    @property
    def rows(self) -> str:
        return f"{_ROOT}{self.session}:rows"

    @property
    def masks(self) -> str:
        return f"{_ROOT}{self.session}:masks"

    @property
    def bank(self) -> str:
        return f"{_ROOT}{self.session}:bank"

    @property
    def all(self) -> tuple[str, ...]:
        return self.job, self.state, self.owner, self.rows, self.masks, self.bank


def run_key(run_digest: str) -> str:
    """Names the session that holds the results of a run, see `propagation_plan.Run`."""
    return f"{_ROOT}run:{run_digest}"


def session_of(
    source: FrameSource, size_hw: tuple[int, int], keyframes: Sequence[Keyframe], options: VideoOptions, model_version: str
) -> str:
    """Names a propagation by all that its results depend on."""
    return digest_of([source, size_hw, list(keyframes), options, model_version])


def digest_of(parts: Sequence[Any]) -> str:
    """32 hex digits that name messages and plain values; equal ones have equal names."""
    text = json.dumps([to_wire(part) for part in parts], separators=(",", ":"), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def object_ids(keyframes: Iterable[Keyframe]) -> tuple[str, ...]:
    """In the order of first appearance; an object's index in rows and masks is its place here."""
    return tuple(dict.fromkeys(keyframe.object_id for keyframe in keyframes))


def unpack_rows(data: bytes) -> Rows:
    """(n,) ROW."""
    return np.frombuffer(data, ROW)


def tracks_of(rows: Rows, ids: Sequence[str]) -> tuple[Track, ...]:
    """One track per object, in the order of `ids`."""
    rows = rows[np.lexsort((rows["grid_idx"], rows["object_idx"]))]
    bounds = np.searchsorted(rows["object_idx"], np.arange(len(ids) + 1))
    parts = [rows[start:end] for start, end in pairwise(bounds)]
    return tuple(
        Track(object_id, part["grid_idx"].tobytes(), part["box"].tobytes(), part["score"].tobytes())
        for object_id, part in zip(ids, parts, strict=True)
    )


@dataclass(frozen=True, slots=True)
class PackedMask:
    """One mask that is shown at the places first to last."""

    object_idx: int
    first_grid_idx: int
    last_grid_idx: int
    score: float
    counts: bytes


def pack_masks(masks: Sequence[PackedMask]) -> bytes:
    """Masks as one compressed chunk."""
    parts = [_MASK_HEAD.pack(m.object_idx, m.first_grid_idx, m.last_grid_idx, m.score, len(m.counts)) + m.counts for m in masks]
    return zlib.compress(b"".join(parts), 1)


def unpack_masks(chunk: bytes) -> Iterator[PackedMask]:
    """What `pack_masks` packed."""
    data, at = zlib.decompress(chunk), 0
    while at < len(data):
        object_idx, first, last, score, length = _MASK_HEAD.unpack_from(data, at)
        at += _MASK_HEAD.size
        yield PackedMask(object_idx, first, last, score, data[at : at + length])
        at += length


def frame_masks(masks: Iterable[PackedMask], ids: Sequence[str], size_hw: tuple[int, int]) -> Iterator[FrameMask]:
    """One mask for each place on the grid."""
    for mask in masks:
        runs = RunLengths(size_hw, mask.counts)
        for grid_idx in range(mask.first_grid_idx, mask.last_grid_idx + 1):
            yield FrameMask(ids[mask.object_idx], grid_idx, runs, mask.score)


def with_places(mask: PackedMask, object_idx: int, first_grid_idx: int, last_grid_idx: int) -> PackedMask | None:
    """The mask for another session's object, at those of its places that lie between two; None: at none."""
    first, last = max(mask.first_grid_idx, first_grid_idx), min(mask.last_grid_idx, last_grid_idx)
    return dataclasses.replace(mask, object_idx=object_idx, first_grid_idx=first, last_grid_idx=last) if first <= last else None
