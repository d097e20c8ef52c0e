"""The image embedding of a frame looks at what earlier frames left behind. Parameter names are Meta's.

Nine tenths of a tracked frame are spent here, in 4096 cells that look at seven times as many memories. Values are the memories
themselves, 64 channels wide, and weights that sum to 1 carry a linear map through unchanged; so on the CPU the weighted sum is taken
first and projected to 256 channels after it, which is exact in real numbers and five eighths of the work.

Source: SAM 2 (arXiv 2408.00714), section 4; sam2/modeling/memory_attention.py at 2b90b9f.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.layers import Attention

#: Attention weights that are held at once, and how few rows of them are worth a matrix product.
_MAX_WEIGHTS, _MIN_ROWS = 1 << 24, 64


class _SelfAttention(Attention):
    """Cells look at each other."""

    def look(self, x: Tensor, rotary: Tensor) -> Tensor:
        """(B, N, dim) → (B, N, dim); rotary as in `rotary_table`."""
        if not _is_plain(x):
            return self.forward(x, x, x, rotary)
        q, k = rotated(self.q_proj(x), rotary), rotated(self.k_proj(x), rotary)
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(q[:, None], k[:, None], self.v_proj(x)[:, None])[:, 0])
        return out


class _MemoryReading(Attention):
    """Cells look at memories."""

    def look(
        self, x: Tensor, placed_memory: Tensor, memory: Tensor, rotary: Tensor, n_pointer_tokens: int, key_rotary: Tensor | None
    ) -> Tensor:
        """Cells (B or 1, N, dim), memory (B, M, memory_dim), placed_memory being the same with its positions → (B, N, dim)."""
        if not _is_plain(x):
            return self.forward(x, placed_memory, memory, rotary, n_pointer_tokens, key_rotary)
        q, k = rotated(self.q_proj(x), rotary), self.k_proj(placed_memory)
        rotated(k[:, : k.shape[1] - n_pointer_tokens], rotary if key_rotary is None else key_rotary)
        out: Tensor = self.out_proj(self.v_proj(attend_narrow(q, k, memory)))
        return out


def _is_plain(x: Tensor) -> bool:
    """Single precision on the CPU without gradients: what is written out below in place of torch's attention is faster there."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and x.dtype == torch.float32


def rotated(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn x (B, K · n, C) float32 in place by rotary (n, C/2, 2), which repeats; pairs of adjacent channels are complex numbers."""
    n, half, _ = rotary.shape
    torch.view_as_complex(x.view(x.shape[0], -1, n, half, 2)).mul_(torch.view_as_complex(rotary))
    return x


def attend_narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention whose values are narrower than its keys: q (B or 1, N, C), k (B, M, C), v (B, M, c) → (B, N, c)."""
    (batch, n_keys, _), n_cells = k.shape, q.shape[1]
    out = v.new_empty(batch, n_cells, v.shape[2])
    n_rows = min(n_cells, max(_MIN_ROWS, _MAX_WEIGHTS // n_keys))
    n_objects = min(batch, max(1, _MAX_WEIGHTS // (n_rows * n_keys)))
    buffer = v.new_empty(n_objects * n_rows * n_keys)  # used again and again: fresh memory of this size costs a third of the time
    q = q / math.sqrt(q.shape[2])
    for first in range(0, batch, n_objects):
        some = slice(first, min(batch, first + n_objects))
        keys, queries = k[some].transpose(1, 2), q if q.shape[0] == 1 else q[some]
        for top in range(0, n_cells, n_rows):
            asked = queries[:, top : top + n_rows].expand(keys.shape[0], -1, -1)
            weights = buffer[: keys.shape[0] * asked.shape[1] * n_keys].view(keys.shape[0], asked.shape[1], n_keys)
            torch.softmax(torch.bmm(asked, keys, out=weights), -1, out=weights)
            torch.bmm(weights, v[some], out=out[some, top : top + n_rows])
    return out


class _MemoryLayer(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.self_attn = _SelfAttention(dim, heads=1)
        self.cross_attn_image = _MemoryReading(dim, heads=1, memory_dim=config.memory_dim)
        self.linear1 = nn.Linear(dim, config.memory_mlp_dim)
        self.linear2 = nn.Linear(config.memory_mlp_dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self, x: Tensor, placed_memory: Tensor, memory: Tensor, rotary: Tensor, n_pointer_tokens: int, key_rotary: Tensor | None
    ) -> Tensor:
        x = x + self.self_attn.look(self.norm1(x), rotary)
        x = x + self.cross_attn_image.look(self.norm2(x), placed_memory, memory, rotary, n_pointer_tokens, key_rotary)
        out: Tensor = x + self.linear2(F.relu(self.linear1(self.norm3(x)), inplace=True))
        return out


class MemoryAttention(nn.Module):
    """Lets the image embedding of a frame look at the memories of B objects."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_MemoryLayer(config) for _ in range(config.memory_layers))
        self.norm = nn.LayerNorm(config.hidden_dim)

    def forward(
        self,
        image: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        rotary: Tensor,
        n_pointer_tokens: int,
        key_rotary: Tensor | None = None,
    ) -> Tensor:
        """Condition an embedding on memories.

        Args:
            image: (B or 1, h·w, d) plus a tenth of its sine positions. A batch of 1 stays one until the first cross attention, since
                nothing before that depends on the object.
            memory: (B, M, memory_dim): whole memory maps of h·w tokens each, then pointer tokens.
            memory_positions: (B or 1, M, memory_dim).
            rotary: (h·w, d/2, 2), see `rotary_table`.
            n_pointer_tokens: How many tokens at the end of `memory` carry no place.
            key_rotary: (n, d/2, 2), where memory maps are of n tokens that are not the cells of `image`.

        Returns:
            (B, h·w, d)
        """
        placed_memory = memory + memory_positions
        for layer in self.layers:
            image = layer(image, placed_memory, memory, rotary, n_pointer_tokens, key_rotary)
        out: Tensor = self.norm(image)
        return out
