"""What a frame of a video leaves behind, and where it was. Parameter names are Meta's.

Source: SAM 2 (arXiv 2408.00714), section 4; sam2/modeling/memory_encoder.py at 2b90b9f.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.layers import LayerNorm2d, rotary_table, sine_positions_2d


class MemoryTokens(NamedTuple):
    """What B objects remember, as the memory attention reads it.

    Attributes:
        tokens: (B, M, memory_dim), whole memory maps of h·w tokens each, then pointer tokens.
        positions: (B or 1, M, memory_dim).
        n_pointer_tokens: How many tokens at the end carry no place.
    """

    tokens: Tensor
    positions: Tensor
    n_pointer_tokens: int


class MemoryPlaces(NamedTuple):
    """Positions of a grid of h·w cells; constants.

    Attributes:
        rotary: (h·w, d/2, 2), see `rotary_table`.
        image: (1, h·w, d), a tenth of the sine positions.
        maps: (1, h·w, memory_dim), the sine positions of a memory map.
    """

    rotary: Tensor
    image: Tensor
    maps: Tensor

    @classmethod
    def of(cls, config: NetworkConfig, side: int) -> MemoryPlaces:
        image = 0.1 * sine_positions_2d(config.hidden_dim, side)
        return cls(rotary_table(side, config.hidden_dim), image, sine_positions_2d(config.memory_dim, side))


def sine_positions_1d(where: Tensor, channels: int) -> Tensor:
    """Sine positions of numbers (…) → (…, channels) float32: sines, then cosines. Source: sam2_utils.get_1d_sine_pe."""
    half = channels // 2
    steps = torch.arange(half, device=where.device, dtype=torch.float32)
    angle = where.float()[..., None] / 10000 ** (2 * (steps // 2) / half)
    return torch.cat([angle.sin(), angle.cos()], -1)


class _MaskDownsampler(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 4, 16, 64):
            layers += [nn.Conv2d(channels, 4 * channels, 3, 2, 1), LayerNorm2d(4 * channels), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(256, dim, 1))


class _FuserBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        out: Tensor = x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)
        return out


class _Fuser(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_FuserBlock(dim) for _ in range(2))


class MemoryEncoder(nn.Module):
    """Fuses an image embedding with the mask found on it into one memory map."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.mask_downsampler = _MaskDownsampler(dim)
        self.pix_feat_proj = nn.Conv2d(dim, dim, 1)
        self.fuser = _Fuser(dim)
        self.out_proj = nn.Conv2d(dim, config.memory_dim, 1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """Embedding (B or 1, d, h, w) without its no-memory vector, and mask (B, 1, 16 h, 16 w), scaled → (B, memory_dim, h, w)."""
        x = self.pix_feat_proj(image) + self.mask_downsampler.encoder(mask)
        for block in self.fuser.layers:
            x = block(x)
        out: Tensor = self.out_proj(x)
        return out
