"""Layers that several parts of the network share. Parameter names are Meta's."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Mlp(nn.Module):
    """Linear layers with an activation between each two."""

    def __init__(self, dims: tuple[int, ...], activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(dims))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = self.activation(layer(x))
        out: Tensor = last(x)
        return out


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, NORM_EPS).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its input; with rotary positions where they are given."""

    def __init__(self, dim: int, heads: int, inner_dim: int = 0, memory_dim: int = 0) -> None:
        super().__init__()
        inner_dim, memory_dim = inner_dim or dim, memory_dim or dim
        self.q_proj = nn.Linear(dim, inner_dim)
        self.k_proj = nn.Linear(memory_dim, inner_dim)
        self.v_proj = nn.Linear(memory_dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, dim)
        self.heads = heads

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, rotary: Tensor | None = None, n_unrotated: int = 0, key_rotary: Tensor | None = None
    ) -> Tensor:
        """Attend from q (B, N, dim) to k, v (B, M, memory_dim) → (B, N, dim).

        Args:
            q, k, v: Queries, keys and values before their projections; a batch of 1 is broadcast.
            rotary: (N, inner_dim / heads / 2, 2) float32 cosine and sine, see `rotary_table`; keys repeat it.
            n_unrotated: So many keys at the end carry no position (object pointers).
            key_rotary: Where keys are, if not where queries are; repeated as well.
        """
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        if rotary is not None:
            q, turns = rotate(q, rotary), rotary if key_rotary is None else key_rotary
            n = k.shape[2] - n_unrotated
            k = torch.cat([rotate(k[:, :, :n], turns.repeat(n // turns.shape[0], 1, 1)), k[:, :, n:]], 2)
        batch = max(q.shape[0], k.shape[0])
        q, k, v = (t.expand(batch, -1, -1, -1) for t in (q, k, v))
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn pairs of adjacent channels of x (…, N, C) by the angles of rotary (N, C/2, 2)."""
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = rotary.unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)


def rotary_table(side: int, dim: int) -> Tensor:
    """Rotary positions of a side × side grid in row-major order → (side², dim/2, 2) float32: x in the first half, y in the second."""
    frequency = 1 / (10000 ** (torch.arange(0, dim, 4).float() / dim))
    index = torch.arange(side * side)
    angle = torch.cat([(index % side)[:, None] * frequency, (index // side)[:, None] * frequency], -1)
    return torch.stack([angle.cos(), angle.sin()], -1)


def sine_positions_2d(channels: int, side: int) -> Tensor:
    """DETR's normalised sine positions of a side × side grid → (1, side², channels) float32: y in the first half, x in the second."""
    half = channels // 2
    along = torch.arange(1, side + 1).float() / (side + 1e-6) * (2 * math.pi)
    angle = along[:, None] / 10000 ** (2 * (torch.arange(half) // 2).float() / half)
    wave = torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), -1).flatten(1)
    y, x = wave[:, None].expand(side, side, half), wave[None].expand(side, side, half)
    return torch.cat([y, x], -1).reshape(1, side * side, channels)
