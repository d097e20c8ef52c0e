"""EdgeTAM: SAM 2's neck, prompts and decoder behind RepViT, a convolutional encoder for small devices. SAM2_MODEL=edgetam:FOLDER.

Reads a folder in the layout of Hugging Face transformers (EdgeTamModel or EdgeTamVideoModel). transformers' own class builds its encoder
with timm, which needs torchvision; the sixty lines of RepViT stand here in plain torch, by timm's parameter names, so neither is needed.
A video model tracks, see `edgetam_memory`; of an image model a propagation is refused, as of any network without memory.

Source: EdgeTAM (arXiv 2501.07256); RepViT (arXiv 2307.09283); timm 1.0.31, models/repvit.py; transformers 5.23, models/edgetam.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.checkpoints.loading import Checkpoint
from sam2_backend.checkpoints.reading import digest_of, files_of, read_safetensors
from sam2_backend.errors import BadCheckpointError
from sam2_backend.models.edgetam_memory import EdgeTamConfig, LatentMemoryNetwork, memory_sizes
from sam2_backend.network import NetworkConfig
from sam2_backend.network.hiera import ImageTrunk
from sam2_backend.network.transformers_layout import from_transformers

_BACKBONE = re.compile(r"^image_encoder\.trunk\.timm_model\.")
_MEMORY_MLP = re.compile(r"^(memory_attention\.layers\.\d+)\.mlp\.(up|down)_proj\.")


class _ConvNorm(nn.Module):
    def __init__(self, n_in: int, n_out: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(n_in, n_out, side, stride, side // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.c(x))
        return out


class _TokenMixer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(channels, channels, 3, groups=channels)
        self.conv1 = _ConvNorm(channels, channels, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.conv1(x) + x
        return out


class _SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        share: Tensor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()
        return x * share


class _ChannelMixer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _ConvNorm(channels, 2 * channels), _ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.gelu(self.conv1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, channels: int, *, squeezes: bool) -> None:
        super().__init__()
        self.token_mixer = _TokenMixer(channels)
        self.se = _SqueezeExcite(channels) if squeezes else nn.Identity()
        self.channel_mixer = _ChannelMixer(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.channel_mixer(self.se(self.token_mixer(x)))
        return out


class _Downsample(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.pre_block = _Block(n_in, squeezes=False)
        self.spatial_downsample = _ConvNorm(n_in, n_in, 3, stride=2, groups=n_in)
        self.channel_downsample = _ConvNorm(n_in, n_out)
        self.ffn = _ChannelMixer(n_out)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn(self.channel_downsample(self.spatial_downsample(self.pre_block(x))))
        return out


class _Stage(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_blocks: int) -> None:
        super().__init__()
        self.downsample = _Downsample(n_in, n_out) if n_in != n_out else nn.Identity()
        self.blocks = nn.Sequential(*(_Block(n_out, squeezes=i % 2 == 0) for i in range(n_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


class _Stem(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _ConvNorm(3, channels // 2, 3, stride=2), _ConvNorm(channels // 2, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(F.gelu(self.conv1(x)))
        return out


class RepVitTrunk(ImageTrunk):
    """RepViT: (B, 3, S, S) → four maps (B, S/4, S/4, C), … (B, S/32, S/32, 8 C), as Hiera's trunk gives them."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dims = [config.embed_dim << stage for stage in range(4)]
        self.stem = _Stem(dims[0])
        self.stages_0, self.stages_1, self.stages_2, self.stages_3 = (
            _Stage(dims[max(i - 1, 0)], dims[i], n_blocks) for i, n_blocks in enumerate(config.stages)
        )

    def steps(self) -> Iterator[nn.Module]:
        for stage in (self.stages_0, self.stages_1, self.stages_2, self.stages_3):
            yield from (stage.downsample, *stage.blocks)

    def positions(self, side: int) -> Tensor:  # noqa: ARG002  as Hiera's
        """Convolutions know where they are: there is nothing to add."""
        return torch.empty(0)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> list[Tensor]:  # noqa: ARG002  as Hiera's
        x = self.stem(x)
        maps = []
        for stage in (self.stages_0, self.stages_1, self.stages_2, self.stages_3):
            x = stage(x)
            maps.append(x.permute(0, 2, 3, 1))
        return maps


class EdgeTamNetwork(LatentMemoryNetwork):
    """SAM 2 with RepViT in place of Hiera, and with a memory of latents where it has one."""

    def __init__(self, config: EdgeTamConfig) -> None:
        super().__init__(config)
        self.image_encoder.trunk = RepVitTrunk(config)


def load(folder: Path) -> Checkpoint:
    """Read an EdgeTAM folder.

    Raises:
        BadCheckpointError: it is not there, damaged, or not EdgeTAM.
    """
    files = files_of(folder)
    try:
        tensors, _ = read_safetensors(files)
        beside = files[0].parent / "config.json"
        state_dict = _by_our_names(tensors)
        config = _config_of(state_dict, json.loads(beside.read_text()) if beside.is_file() else {})
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise BadCheckpointError(
            f"{folder} cannot be read as an EdgeTAM checkpoint ({error}). Give a folder in the layout of Hugging Face transformers."
        ) from error
    return Checkpoint(f"edgetam-{folder.stem}", digest_of(files), state_dict, config, EdgeTamNetwork)


def _by_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def ours(name: str) -> str:
        name = _BACKBONE.sub("image_encoder.trunk.", name)
        return _MEMORY_MLP.sub(lambda m: f"{m[1]}.linear{1 if m[2] == 'up' else 2}.", name)

    return {ours(name): tensor.clone() for name, tensor in from_transformers(tensors).items()}


def _config_of(state_dict: Mapping[str, Tensor], config_json: Mapping[str, Any]) -> EdgeTamConfig:
    def n_blocks(stage: int) -> int:
        prefix = f"image_encoder.trunk.stages_{stage}.blocks."
        return 1 + max(int(name[len(prefix) :].split(".", 1)[0]) for name in state_dict if name.startswith(prefix))

    image_size = config_json.get("prompt_encoder_config", {}).get("image_size", 1024)
    side = image_size if isinstance(image_size, int) else image_size[0]
    return EdgeTamConfig(
        image_size=side,
        embed_dim=state_dict["image_encoder.trunk.stem.conv2.c.weight"].shape[0],
        stages=(n_blocks(0), n_blocks(1), n_blocks(2), n_blocks(3)),
        hidden_dim=state_dict["sam_mask_decoder.iou_token.weight"].shape[1],
        decoder_mlp_dim=state_dict["sam_mask_decoder.transformer.layers.0.mlp.layers.0.weight"].shape[0],
        iou_head_dim=state_dict["sam_mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        **memory_sizes(state_dict, config_json, side),
    )
