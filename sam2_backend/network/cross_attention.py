"""Attention between few tokens and many image cells, for the mask decoder. Parameter names are Meta's.

The reference projects every cell to keys, values or queries: 4096 cells times two square matrices, each time, whatever was clicked.
The tokens are a handful, so the projections are moved to their side, which is exact in real numbers and half the work: with q·(W x) =
(Wᵀq)·x a token is compared with the raw cells, and the weighted sum over the cells is projected after it was taken. What is constant
over all keys drops out of a softmax, and weights that sum to 1 carry a bias through unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sam2_backend.network.layers import Attention


class TokensToCells(Attention):
    """Tokens look at the image."""

    def look(self, tokens: Tensor, placed_cells: Tensor, cells: Tensor) -> Tensor:
        """Attend from tokens (B, N, dim) to cells (B or 1, M, dim), placed_cells being the same with their positions → (B, N, dim)."""
        batch, n_tokens, _ = tokens.shape
        q = self.q_proj(tokens).view(batch, n_tokens, self.heads, -1)
        q = torch.einsum("bnhd,hdc->bhnc", q, _by_head(self.k_proj.weight, self.heads)) / math.sqrt(q.shape[-1])
        weights = _times_shared(q.flatten(1, 2), placed_cells.transpose(1, 2)).softmax(-1)
        seen = _times_shared(weights, cells).view(batch, self.heads, n_tokens, -1)
        values = torch.einsum("bhnc,hdc->bnhd", seen, _by_head(self.v_proj.weight, self.heads)).flatten(2) + self.v_proj.bias
        out: Tensor = self.out_proj(values)
        return out


class CellsToTokens(Attention):
    """The image looks at the tokens."""

    def add_look(self, cells: Tensor, placed_cells: Tensor, placed_tokens: Tensor, tokens: Tensor) -> Tensor:
        """Attend from placed_cells (B or 1, M, dim) to tokens (B, N, dim), and add what is seen to cells (B or 1, M, dim) → (B, M, dim)."""
        batch, n_tokens, _ = tokens.shape
        k = self.k_proj(placed_tokens).view(batch, n_tokens, self.heads, -1) / math.sqrt(self.k_proj.out_features // self.heads)
        v = self.v_proj(tokens).view(batch, n_tokens, self.heads, -1)
        keys = torch.einsum("bnhd,hdc->bhnc", k, _by_head(self.q_proj.weight, self.heads)).flatten(1, 2)
        key_bias = torch.einsum("bnhd,hd->bhn", k, self.q_proj.bias.view(self.heads, -1)).flatten(1, 2)
        logits = _times_shared(keys, placed_cells.transpose(1, 2)) + key_bias[..., None]
        weights = logits.view(batch, self.heads, n_tokens, -1).softmax(2).flatten(1, 2)
        values = torch.einsum("bnhd,hdc->bhnc", v, _by_head(self.out_proj.weight.t(), self.heads)).flatten(1, 2)
        values = values + self.out_proj.bias / self.heads  # each head's weights sum to 1
        return torch.baddbmm(cells.expand(batch, -1, -1), weights.transpose(1, 2), values)


def _by_head(weight: Tensor, heads: int) -> Tensor:
    """(heads · d, C) → (heads, d, C)."""
    return weight.reshape(heads, -1, weight.shape[1])


def _times_shared(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a (B, N, K) by b (B or 1, K, M) → (B, N, M); one product where b is shared, which matmul would copy B times."""
    if b.shape[0] == 1:
        return (a.reshape(1, -1, a.shape[-1]) @ b).view(a.shape[0], a.shape[1], -1)
    return a @ b
