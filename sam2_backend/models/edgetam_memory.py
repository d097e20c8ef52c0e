"""EdgeTAM's memory of a video: a perceiver keeps a few hundred latents of each memory map, and frames look at those instead of all its cells.

A memory map becomes two rows of latents. Those of the first row look at the whole map and have no place. Those of the second form a
grid, look at one window each, and keep its place: they are turned like cells of a small map, while the others stay unturned.

Source: EdgeTAM (arXiv 2501.07256), section 3; transformers 5.23, models/edgetam_video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.network import NetworkConfig, Sam2Network
from sam2_backend.network.layers import rotary_table, sine_positions_2d

_PERCEIVER = "spatial_perceiver."
#: What tensors do not tell, and the only values of it that are known to exist.
_FIXED = {
    "memory_attention_num_attention_heads": 1,
    "memory_attention_downsample_rate": 1,
    "perceiver_resampler_num_attention_heads": 1,
    "num_maskmem": 7,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTamConfig(NetworkConfig):
    """The sizes of an EdgeTAM network; the defaults of what SAM 2 lacks are the published ones.

    Attributes:
        n_latents: Latents that look at a whole memory map.
        n_windows: Windows along each side of a memory map; a latent for each.
        perceiver_layers: Layers of the perceiver.
        perceiver_mlp_dim: Width of its MLPs.
    """

    n_latents: int = 256
    n_windows: int = 16
    perceiver_layers: int = 2
    perceiver_mlp_dim: int = 256


def memory_sizes(state_dict: Mapping[str, Tensor], config_json: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """Read the sizes of the memory off the tensors, as fields of `EdgeTamConfig`; without a memory it says that.

    Raises:
        KeyError: a tensor is missing.
        ValueError: the sizes do not fit each other, or are of a kind that is not known.
    """
    if not any(name.startswith(_PERCEIVER) for name in state_dict):
        return {"has_memory": False, "is_v21": False}
    for name, known in _FIXED.items():
        if config_json.get(name, known) != known:
            raise ValueError(f"{name} is {config_json[name]}, and only {known} is known")
    n_windows = math.isqrt(state_dict[f"{_PERCEIVER}latents_2d"].shape[0])
    grid = list(config_json.get("memory_attention_rope_k_sizes") or [n_windows, n_windows])
    if grid != [n_windows, n_windows] or n_windows**2 != state_dict[f"{_PERCEIVER}latents_2d"].shape[0] or image_size // 16 % n_windows:
        raise ValueError(f"its windowed latents do not divide a memory map of {image_size // 16} × {image_size // 16} cells")
    return {
        "has_memory": True,
        "is_v21": "obj_ptr_tpos_proj.weight" in state_dict,
        "memory_dim": state_dict["memory_encoder.out_proj.weight"].shape[0],
        "memory_layers": _n_layers(state_dict, "memory_attention.layers."),
        "memory_mlp_dim": state_dict["memory_attention.layers.0.linear1.weight"].shape[0],
        "n_latents": state_dict[f"{_PERCEIVER}latents_1d"].shape[0],
        "n_windows": n_windows,
        "perceiver_layers": _n_layers(state_dict, f"{_PERCEIVER}layers."),
        "perceiver_mlp_dim": state_dict[f"{_PERCEIVER}layers.0.mlp.up_proj.weight"].shape[0],
    }


def _n_layers(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(name[len(prefix) :].split(".", 1)[0]) for name in state_dict if name.startswith(prefix))


class _Look(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor, positions: Tensor | None = None) -> Tensor:
        k, v = self.k_proj(seen), self.v_proj(seen)
        if positions is not None:
            k, v = k + positions, v + positions
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(self.q_proj(x)[:, None], k[:, None], v[:, None])[:, 0])
        return out


class _LatentMlp(nn.Module):
    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up_proj, self.down_proj = nn.Linear(dim, inner_dim, bias=False), nn.Linear(inner_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down_proj(F.gelu(self.up_proj(self.norm(x))))
        return out


class _PerceiverLayer(nn.Module):
    def __init__(self, config: EdgeTamConfig) -> None:
        super().__init__()
        dim = config.memory_dim
        self.cross_attention, self.self_attention = _Look(dim), _Look(dim)
        self.mlp, self.self_mlp = (_LatentMlp(dim, config.perceiver_mlp_dim) for _ in range(2))
        self.layer_norm_input, self.layer_norm_latents, self.layer_norm_self = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, latents: Tensor, cells: Tensor, positions: Tensor | None) -> Tensor:
        latents = latents + self.cross_attention(self.layer_norm_latents(latents), self.layer_norm_input(cells), positions)
        latents = self.mlp(latents)
        normed = self.layer_norm_self(latents)
        out: Tensor = self.self_mlp(latents + self.self_attention(normed, normed))
        return out


class SpatialPerceiver(nn.Module):
    """Keeps of a memory map what its latents see of it. Both rows of latents go through the same layers."""

    def __init__(self, config: EdgeTamConfig) -> None:
        super().__init__()
        dim, self.n_windows = config.memory_dim, config.n_windows
        self.latents_1d = nn.Parameter(torch.zeros(config.n_latents, dim))
        self.latents_2d = nn.Parameter(torch.zeros(config.n_windows**2, dim))
        self.layers = nn.ModuleList(_PerceiverLayer(config) for _ in range(config.perceiver_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, memory_map: Tensor, positions: Tensor) -> Tensor:
        """Memory map (B, memory_dim, h, w), positions of its cells (1, h·w, memory_dim) → latents (B, n_latents + n_windows², memory_dim)."""
        batch, dim, height, width = memory_map.shape
        everywhere = self._seen(self.latents_1d.expand(batch, -1, -1), memory_map.flatten(2).transpose(1, 2), positions)
        windows = memory_map.view(batch, dim, self.n_windows, height // self.n_windows, self.n_windows, width // self.n_windows)
        windows = windows.permute(0, 2, 4, 3, 5, 1).reshape(batch * self.n_windows**2, -1, dim)
        local = self._seen(self.latents_2d.repeat(batch, 1)[:, None], windows, None)
        return torch.cat([everywhere, local.view(batch, -1, dim)], 1)

    def _seen(self, latents: Tensor, cells: Tensor, positions: Tensor | None) -> Tensor:
        for layer in self.layers:
            latents = layer(latents, cells, positions)
        out: Tensor = self.norm(latents)
        return out


class LatentMemoryNetwork(Sam2Network):
    """SAM 2 that remembers latents: `remember` gives (B, memory_dim, n_latents + n_windows²)."""

    config: EdgeTamConfig
    _latent_rotary: Tensor | None
    _latent_positions: Tensor | None

    def __init__(self, config: EdgeTamConfig) -> None:
        super().__init__(config)
        self.register_buffer("_latent_rotary", None, persistent=False)
        self.register_buffer("_latent_positions", None, persistent=False)
        if config.has_memory:
            self.spatial_perceiver = SpatialPerceiver(config)

    @torch.no_grad()
    def fold(self) -> Self:
        super().fold()
        if self.config.has_memory:
            device = self.spatial_perceiver.latents_1d.device
            self._latent_rotary, self._latent_positions = rotary_of(self.config).to(device), positions_of(self.config).to(device)
        return self

    def remember(self, image: Tensor, mask_logits: Tensor, object_logits: Tensor, *, binarize: bool) -> Tensor:
        """See `Sam2Network.remember` → (B, memory_dim, n_latents + n_windows²)."""
        memory_map = super().remember(image, mask_logits, object_logits, binarize=binarize)
        latents: Tensor = self.spatial_perceiver(memory_map, super()._map_positions(memory_map))
        return latents.transpose(1, 2)

    def _map_positions(self, memory_map: Tensor) -> Tensor:
        positions = self._latent_positions
        return (positions_of(self.config) if positions is None else positions).to(memory_map)

    def _key_rotary(self, image: Tensor) -> Tensor:
        rotary = self._latent_rotary
        return (rotary_of(self.config) if rotary is None else rotary).to(image.device)


def positions_of(config: EdgeTamConfig) -> Tensor:
    """Where the latents of a memory map are → (1, n_latents + n_windows², memory_dim) float32; zeros for those that are nowhere."""
    nowhere = torch.zeros(1, config.n_latents, config.memory_dim)
    return torch.cat([nowhere, sine_positions_2d(config.memory_dim, config.n_windows)], 1)


def rotary_of(config: EdgeTamConfig) -> Tensor:
    """How far keys of those latents are turned → (n_latents + n_windows², hidden_dim/2, 2), see `rotary_table`; not at all if nowhere."""
    unturned = torch.tensor([1.0, 0.0]).expand(config.n_latents, config.hidden_dim // 2, 2)
    return torch.cat([unturned, rotary_table(config.n_windows, config.hidden_dim)])
