"""Checkpoint files → tensors by Meta's names, and the sizes of their network. Nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from sam2_backend.checkpoints.catalog import sha256_of
from sam2_backend.errors import BadCheckpointError
from sam2_backend.network import NetworkConfig, infer_config
from sam2_backend.network.transformers_layout import from_transformers, is_transformers_layout, known_sizes


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a file or folder holds.

    Attributes:
        state_dict: Float32 tensors by Meta's names, on the CPU.
        sha256: Of the file's bytes; of several files: of their digests.
    """

    state_dict: dict[str, Tensor]
    config: NetworkConfig
    sha256: str


def read_weights(path: Path) -> Weights:
    """Read a .pt file in Meta's layout, a .safetensors file, or a folder in the layout of Hugging Face transformers.

    Raises:
        BadCheckpointError: it is no checkpoint of SAM 2, or is damaged.
    """
    files = files_of(path)
    try:
        tensors, config_json = _read_pickle(files[0]) if files[0].suffix in {".pt", ".pth"} else read_safetensors(files)
        if is_transformers_layout(tensors):
            beside = files[0].parent / "config.json"
            known = known_sizes(json.loads(beside.read_text()) if beside.is_file() else {})
            tensors = from_transformers(tensors)
            config = infer_config(tensors, **known)
        else:
            config = NetworkConfig.from_json(config_json) if config_json else infer_config(tensors)
    except (OSError, EOFError, ValueError, TypeError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise BadCheckpointError(
            f"{path} cannot be read as a SAM 2 checkpoint: {_first_line(error)}. Download or export it again."
        ) from error
    # Fresh copies: what a file maps into memory may lie unaligned, and then torch sums in another order.
    aligned = {name: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return Weights(aligned, config, digest_of(files))


def files_of(path: Path) -> list[Path]:
    """The file itself, or the weights in a folder.

    Raises:
        BadCheckpointError: there are none.
    """
    if path.is_file():
        return [path]
    for pattern in ("*.safetensors", "*.pt"):
        if files := sorted(path.glob(pattern)):
            return files
    raise BadCheckpointError(f"{path} holds no .safetensors or .pt file. Give the folder that does.")


def _read_pickle(file: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    content = torch.load(file, map_location="cpu", weights_only=True)
    tensors = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError("it holds no tensors by name, neither directly nor under `model`")
    return tensors, {}


def read_safetensors(files: list[Path]) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The tensors of all files, and the sizes that ours have in their metadata."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    with safetensors.safe_open(files[0], framework="pt") as first:
        metadata = first.metadata() or {}
    return tensors, json.loads(metadata.get("config", "{}"))


def digest_of(files: list[Path]) -> str:
    """The sha256 of a file; of several the sha256 of theirs."""
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
