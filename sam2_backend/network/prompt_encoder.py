"""Points, boxes and masks → tokens and a dense map for the mask decoder. Parameter names are Meta's.

Source: SAM (arXiv 2304.02643), appendix A; sam2/modeling/sam/prompt_encoder.py at 2b90b9f.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.layers import LayerNorm2d

#: What a prompt point says. A box is its two corners.
NOT_A_POINT, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3


class _RandomFrequencies(nn.Module):
    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, dim // 2))


class PromptEncoder(nn.Module):
    """Encodes what a person pointed at."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.image_size = config.image_size
        self.pe_layer = _RandomFrequencies(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.no_mask_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2), LayerNorm2d(4), nn.GELU(), nn.Conv2d(4, 16, 2, 2), LayerNorm2d(16), nn.GELU(), nn.Conv2d(16, dim, 1)
        )

    def positions(self, xy: Tensor) -> Tensor:
        """Encode points (…, 2), 0 to 1 across the image → (…, d) float32. Half precision would move a click by up to 2 px."""
        waves = (2 * xy.float() - 1) @ self.pe_layer.positional_encoding_gaussian_matrix.float() * (2 * math.pi)
        return torch.cat([waves.sin(), waves.cos()], -1)

    def grid_positions(self) -> Tensor:
        """Positions of the image embedding's cells → (1, d, S/16, S/16) float32. Constant for given weights."""
        side = self.image_size // 16
        along = (torch.arange(side, device=self.pe_layer.positional_encoding_gaussian_matrix.device) + 0.5) / side
        return self.positions(torch.stack(torch.meshgrid(along, along, indexing="xy"), -1)).permute(2, 0, 1)[None]

    def tokens(self, points_xy: Tensor, labels: Tensor) -> Tensor:
        """Points (B, N, 2) in model pixels and what they say (B, N), NOT_A_POINT … BOTTOM_RIGHT → tokens (B, N + 1, d).

        One padding token that says NOT_A_POINT is added, as the reference does.
        """
        points_xy = torch.cat([points_xy, points_xy.new_zeros(points_xy.shape[0], 1, 2)], 1)
        labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), NOT_A_POINT)], 1).long()
        table = torch.cat([self.not_a_point_embed.weight, *(p.weight for p in self.point_embeddings)])  # type: ignore[list-item]
        where = self.positions((points_xy + 0.5) / self.image_size)
        where = where.masked_fill((labels == NOT_A_POINT)[..., None], 0.0)
        return where.to(table.dtype) + table[labels + 1]

    def dense(self, mask_logits: Tensor | None) -> Tensor:
        """A mask prompt (B, 1, S/4, S/4), as logits, or none → (B or 1, d, S/16, S/16), or (1, d, 1, 1) where there is none."""
        if mask_logits is None:
            return self.no_mask_embed.weight[:, :, None, None]
        out: Tensor = self.mask_downscaling(mask_logits)
        return out
