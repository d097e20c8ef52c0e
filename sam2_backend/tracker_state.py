"""The memory of a tracker as bytes: a header that describes itself, then the values as they are; no pickle."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_backend.tracker_memory import FrameMemory, ObjectMemory

_MAGIC = b"S2T1"
_PREFIX = struct.Struct("<4sII")  # magic, crc32 of everything behind the prefix, bytes of the header
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_TENSORS = ("pointer", "memory_map", "logits", "object_logit", "score")


def pack(objects: Mapping[str, ObjectMemory], network: Mapping[str, Any]) -> bytes:
    """Write what objects remember; `network` says what it fits, and comes back from `unpack`.

    The header is JSON: {"network", "objects": [{"id", "prompted": [frame…], "tracked": [frame…]}]}; a frame gives its frame_idx,
    was_tracked, and of each tensor that it has the dtype and shape. Values follow in that order, little-endian.
    """
    values: list[bytes] = []
    described = [
        {
            "id": object_id,
            "prompted": [_describe(i, frame, values) for i, frame in memory.prompted.items()],
            "tracked": [_describe(i, frame, values) for i, frame in memory.tracked.items()],
        }
        for object_id, memory in objects.items()
    ]
    header = json.dumps({"network": dict(network), "objects": described}, separators=(",", ":")).encode()
    body = b"".join([header, *values])
    return _PREFIX.pack(_MAGIC, zlib.crc32(body), len(header)) + body


def unpack(data: bytes | memoryview, device: torch.device) -> tuple[dict[str, ObjectMemory], dict[str, Any]]:
    """Read what `pack` wrote → the objects, and what their network was.

    Raises:
        ValueError: the data are damaged or of another format.
    """
    if len(data) < _PREFIX.size or bytes(data[:4]) != _MAGIC:
        raise ValueError("not the memory of a tracker")
    _, crc32, header_bytes = _PREFIX.unpack_from(data)
    body = memoryview(data)[_PREFIX.size :]
    if zlib.crc32(body) != crc32:
        raise ValueError("the memory of the tracker is damaged")
    header = json.loads(bytes(body[:header_bytes]))
    values = _Values(body[header_bytes:], device)
    objects = {
        described["id"]: ObjectMemory(
            prompted={frame["frame_idx"]: _frame(frame, values) for frame in described["prompted"]},
            tracked={frame["frame_idx"]: _frame(frame, values) for frame in described["tracked"]},
        )
        for described in header["objects"]
    }
    return objects, header["network"]


def _describe(frame_idx: int, frame: FrameMemory, values: list[bytes]) -> dict[str, Any]:
    described: dict[str, Any] = {"frame_idx": frame_idx, "was_tracked": frame.was_tracked}
    for name in _TENSORS:
        tensor: Tensor | None = getattr(frame, name)
        if tensor is not None:
            described[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            values.append(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return described


class _Values:
    """Takes tensors off the front of a buffer."""

    def __init__(self, data: memoryview, device: torch.device) -> None:
        self._data, self._device, self._offset = data, device, 0

    def take(self, dtype_name: str, shape: list[int]) -> Tensor:
        dtype = _DTYPES[dtype_name]
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        flat = torch.from_numpy(np.frombuffer(self._data, np.uint8, count, self._offset).copy())
        self._offset += count
        return flat.view(dtype).view(shape).to(self._device)


def _frame(described: Mapping[str, Any], values: _Values) -> FrameMemory:
    tensors = {name: values.take(*described[name]) if name in described else None for name in _TENSORS}
    return FrameMemory(**tensors, was_tracked=described["was_tracked"])  # type: ignore[arg-type]
