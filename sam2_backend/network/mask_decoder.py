"""Image embedding and prompt tokens → four masks, their scores, and whether there is an object. Parameter names are Meta's.

Source: SAM 2 (arXiv 2408.00714), section 4; sam2/modeling/sam/mask_decoder.py and transformer.py at 2b90b9f.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.cross_attention import CellsToTokens, TokensToCells
from sam2_backend.network.layers import NORM_EPS, Attention, LayerNorm2d, Mlp

N_HEADS = 8
N_MASKS = 4


class DecoderOutput(NamedTuple):
    """What the decoder says of B prompts. Index 0 is the single mask, 1 to 3 the candidates for an ambiguous prompt.

    Attributes:
        mask_logits: (B, 4, S/4, S/4).
        scores: (B, 4), estimated IoU, 0 to 1.
        mask_tokens: (B, 4, d), where object pointers come from.
        object_logits: (B, 1), above 0: the object is in the image.
    """

    mask_logits: Tensor
    scores: Tensor
    mask_tokens: Tensor
    object_logits: Tensor


class _TwoWayLayer(nn.Module):
    """Tokens look at themselves and at the image, then the image looks at the tokens."""

    def __init__(self, dim: int, mlp_dim: int, *, is_first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, N_HEADS)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = TokensToCells(dim, N_HEADS, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp((dim, mlp_dim, dim))
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = CellsToTokens(dim, N_HEADS, dim // 2)
        self.is_first = is_first

    def forward(self, tokens: Tensor, image: Tensor, token_positions: Tensor, image_positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            placed = tokens + token_positions
            tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens))
        placed_image = image + image_positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.look(tokens + token_positions, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(self.cross_attn_image_to_token.add_look(image, placed_image, tokens + token_positions, tokens))
        return tokens, image


class _TwoWayTransformer(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.layers = nn.ModuleList(_TwoWayLayer(dim, config.decoder_mlp_dim, is_first=i == 0) for i in range(2))
        self.final_attn_token_to_image = TokensToCells(dim, N_HEADS, dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_positions: Tensor, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image cells (B or 1, h·w, d) and prompt_tokens (B, N, d), which are their own positions → both after attention."""
        tokens = prompt_tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt_tokens, image_positions)
        attended = self.final_attn_token_to_image.look(tokens + prompt_tokens, image + image_positions, image)
        return self.norm_final_attn(tokens + attended), image


class MaskDecoder(nn.Module):
    """Turns tokens into masks by a two-way transformer and one small network per mask."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.transformer = _TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(N_MASKS, dim)
        self.obj_score_token = nn.Embedding(1, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.conv_s0 = nn.Conv2d(dim, dim // 8, 1)
        self.conv_s1 = nn.Conv2d(dim, dim // 4, 1)
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp((dim, dim, dim, dim // 8)) for _ in range(N_MASKS))
        self.iou_prediction_head = Mlp((dim, config.iou_head_dim, config.iou_head_dim, N_MASKS))
        self.pred_obj_score_head = Mlp((dim, dim, dim, 1))

    def forward(
        self, image: Tensor, image_positions: Tensor, high_res_0: Tensor, high_res_1: Tensor, prompt_tokens: Tensor, dense: Tensor
    ) -> DecoderOutput:
        """Decode B prompts on B images, or on one image, which is broadcast and never copied.

        Args:
            image: (B or 1, d, h, w), the embedding with its memory (or its no-memory vector) added.
            image_positions: (1, d, h, w).
            high_res_0: (B or 1, d/8, 4 h, 4 w).
            high_res_1: (B or 1, d/4, 2 h, 2 w).
            prompt_tokens: (B, N, d).
            dense: (B or 1, d, h, w) or (1, d, 1, 1).
        """
        batch, (height, width) = prompt_tokens.shape[0], image.shape[-2:]
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, -1, -1), prompt_tokens], 1)
        cells = (image + dense).flatten(2).transpose(1, 2)
        tokens, cells = self.transformer(cells, image_positions.flatten(2).transpose(1, 2), tokens)
        mask_tokens = tokens[:, 2 : 2 + N_MASKS]
        weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        by_cell = weights @ self._upscale(cells, high_res_0, high_res_1).transpose(1, 2)
        # The 16 pixels of a cell lie together: rows and columns of cells, of their quarters, of the pixels in those.
        by_cell = by_cell.view(batch, N_MASKS, height, width, 2, 2, 2, 2)
        mask_logits = by_cell.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(batch, N_MASKS, 4 * height, 4 * width)
        return DecoderOutput(
            mask_logits, self.iou_prediction_head(tokens[:, 1]).sigmoid(), mask_tokens, self.pred_obj_score_head(tokens[:, 0])
        )

    def _upscale(self, cells: Tensor, high_res_0: Tensor, high_res_1: Tensor) -> Tensor:
        """Cells (B, h·w, d) → (B, 16 h·w, d/8), cell by cell.

        A 2 × 2 convolution transposed with stride 2 is one matrix for each cell; kept in that order, nothing has to be moved in between.
        """
        double, norm, quadruple = (self.output_upscaling[i] for i in (0, 1, 3))
        assert isinstance(double, nn.ConvTranspose2d)
        assert isinstance(norm, LayerNorm2d)
        assert isinstance(quadruple, nn.ConvTranspose2d)
        height, width = high_res_1.shape[-2] // 2, high_res_1.shape[-1] // 2
        halves = high_res_1.permute(0, 2, 3, 1).reshape(-1, height, 2, width, 2, high_res_1.shape[1])
        halves = halves.permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2)
        x = _upscale_onto(halves, cells, double).view(cells.shape[0], -1, double.out_channels)
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, NORM_EPS))
        quarters = high_res_0.permute(0, 2, 3, 1).reshape(-1, height, 2, 2, width, 2, 2, high_res_0.shape[1])
        quarters = quarters.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 4).flatten(2)
        return F.gelu(_upscale_onto(quarters, x, quadruple)).view(cells.shape[0], -1, quadruple.out_channels)


def _upscale_onto(target: Tensor, cells: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """Add to target (B or 1, M, 4 · out) cells (B, M, in) through a 2 × 2 convolution transposed → (B, M, 4 · out)."""
    matrix = conv.weight.permute(2, 3, 1, 0).reshape(-1, conv.in_channels)
    assert conv.bias is not None
    return F.linear(cells, matrix).add_(target).add_(conv.bias.repeat(4))
