"""Which checkpoint a process uses, from its settings: by name, file, folder, Hugging Face id, or the best that is there."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam2_backend.checkpoints.catalog import MODELS, how_to_get
from sam2_backend.checkpoints.reading import Weights, read_weights
from sam2_backend.errors import BadCheckpointError
from sam2_backend.network import OFFICIAL_CONFIGS, NetworkConfig, Sam2Network, random_network
from sam2_backend.settings import DEFAULT_CHECKPOINTS_DIR, Settings

log = logging.getLogger(__name__)

_RANDOM = "random:"
_EDGETAM = "edgetam:"
_SEED = 0

NANO = NetworkConfig(
    image_size=256,
    embed_dim=16,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    windows=(8, 4, 8, 8),
    hidden_dim=128,
    decoder_mlp_dim=128,
    iou_head_dim=128,
    memory_layers=2,
    memory_mlp_dim=512,
)
"""Encodes in some 10 ms on one CPU core: what tests use, and what `auto` falls back to with random weights."""

RANDOM_CONFIGS: dict[str, NetworkConfig] = {**OFFICIAL_CONFIGS, "nano": NANO}


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """Weights with a name.

    Attributes:
        name: What to write into SAM2_MODEL to get it again, as far as it has a short name.
        model_id: Name and digest: what caches key by.
        model_version: What people see; says so where the weights are random.
        sha256: Of the file, or of the tensors' bytes where there is no file.
        state_dict: Float32 tensors by Meta's names, on the CPU.
        kind: What they are the weights of.
    """

    name: str
    sha256: str
    state_dict: dict[str, Tensor]
    config: NetworkConfig
    kind: type[Sam2Network] = Sam2Network

    @property
    def model_id(self) -> str:
        return f"{self.name}@{self.sha256[:12]}"

    @property
    def model_version(self) -> str:
        return self.model_id.replace(_RANDOM, "random-weights-", 1)

    def network(self) -> Sam2Network:
        """A network with these weights, folded for inference.

        Raises:
            BadCheckpointError: tensors are missing, unknown or of other shapes than the sizes say.
        """
        with torch.device("meta"):
            network = self.kind(self.config)
        try:
            network.load_state_dict(self.state_dict, strict=True, assign=True)
        except RuntimeError as error:
            lines = " ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
            raise BadCheckpointError(f"Checkpoint {self.name} does not fit SAM 2: {lines} Export it from an unchanged network.") from error
        return network.fold()


def choose(settings: Settings) -> str:
    """What SAM2_MODEL stands for here: `auto` is the best published checkpoint that was fetched, else `demo`, else random weights.

    The best is the largest where there is a GPU, and the smallest where there is none.
    """
    if settings.model != "auto":
        return settings.model
    fetched = [name for name, spec in MODELS.items() if (settings.checkpoints_dir / spec.file).is_file()]
    if fetched:
        has_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and torch.cuda.is_available())
        sizes = {name: spec.n_bytes for name, spec in MODELS.items()}
        family = "sam2.1" if any(name.startswith("sam2.1") for name in fetched) else "sam2"
        return (max if has_gpu else min)((name for name in fetched if name.startswith(f"{family}_")), key=lambda name: sizes[name])
    return "demo" if _demo_file(settings) else f"{_RANDOM}nano"


def load(settings: Settings) -> Checkpoint:
    """Load the checkpoint that the settings name.

    Raises:
        BadCheckpointError: it is not there (the message says how to get it), damaged, or not SAM 2.
    """
    name = choose(settings)
    if name.startswith(_RANDOM):
        return _random(name.removeprefix(_RANDOM), settings.checkpoints_dir)
    if name.startswith(_EDGETAM):
        from sam2_backend.models import edgetam

        return edgetam.load(Path(name.removeprefix(_EDGETAM)).expanduser())
    path = _path_of(name, settings)
    weights = read_weights(path)
    if name in MODELS:
        _check_digest(name, weights, path)
    return Checkpoint(_short_name(name, path), weights.sha256, weights.state_dict, weights.config)


def verify(target: str | Path, folder: Path) -> str:
    """Compare a checkpoint with its published digest, where there is one, and build its network. Returns what was found, a sentence.

    Args:
        target: A published name, or a file or folder.
        folder: Where published checkpoints are.

    Raises:
        BadCheckpointError: it is missing, damaged, or not SAM 2.
    """
    checkpoint = load(Settings(model=str(target), checkpoints_dir=folder))
    checkpoint.network()
    published = MODELS.get(checkpoint.name)
    same = "as published" if published else "not a published file"
    return f"{checkpoint.name} is a complete SAM 2 checkpoint, sha256 {checkpoint.sha256} ({same})."


def _random(name: str, folder: Path) -> Checkpoint:
    if name not in RANDOM_CONFIGS:
        raise BadCheckpointError(f"There is no network {name} to fill with random weights. There are: {', '.join(RANDOM_CONFIGS)}.")
    log.warning("The weights of %s are random: its masks mean nothing. %s", name, how_to_get("sam2.1_hiera_tiny", folder))
    tensors = dict(random_network(RANDOM_CONFIGS[name], _SEED).requires_grad_(requires_grad=False).state_dict())
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].numpy())
    return Checkpoint(f"{_RANDOM}{name}", digest.hexdigest(), tensors, RANDOM_CONFIGS[name])


def _path_of(name: str, settings: Settings) -> Path:
    if name in MODELS:
        path = settings.checkpoints_dir / MODELS[name].file
        if not path.is_file():
            raise BadCheckpointError(
                f"Checkpoint {name} is not in {settings.checkpoints_dir}. {how_to_get(name, settings.checkpoints_dir)}"
            )
        return path
    if name == "demo":
        demo = _demo_file(settings)
        if demo is None:
            raise BadCheckpointError(f"There is no demo checkpoint in {settings.checkpoints_dir / 'demo'}. Set SAM2_MODEL=auto.")
        return demo
    path = Path(name).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and path.suffix not in {".pt", ".pth", ".safetensors"}:
        return _from_hub(name)
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The names are: {', '.join(MODELS)}, demo, random:NAME, edgetam:FOLDER and auto."
    raise BadCheckpointError(f"There is no checkpoint {name}, neither a name nor a file. {hint}")


def _short_name(name: str, path: Path) -> str:
    """A published name, `demo` or a hub id stays; of a path its last part is shown."""
    return path.stem if name not in {"demo", *MODELS} and Path(name).expanduser() == path else name


def _demo_file(settings: Settings) -> Path | None:
    folders = (settings.checkpoints_dir, DEFAULT_CHECKPOINTS_DIR)
    return next((file for folder in folders for file in sorted((folder / "demo").glob("*.safetensors"))), None)


def _from_hub(hub_id: str) -> Path:
    by_hand = f"Download https://huggingface.co/{hub_id} elsewhere and set SAM2_MODEL to its folder."
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise BadCheckpointError(f"{hub_id} needs huggingface_hub: pip install huggingface_hub. Or: {by_hand}") from error
    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.safetensors", "config.json"]))
    except Exception as error:  # its errors have no common root
        reason = type(error).__name__
        raise BadCheckpointError(f"{hub_id} cannot be downloaded from the Hugging Face hub ({reason}). {by_hand}") from error


def _check_digest(name: str, weights: Weights, path: Path) -> None:
    if weights.sha256 != MODELS[name].sha256:
        raise BadCheckpointError(
            f"{path} is damaged or not the published {name}: its sha256 is {weights.sha256}, not {MODELS[name].sha256}. "
            f"Fetch it again, or give it another name and set SAM2_MODEL to its path."
        )
