"""Image embedding and prompt tokens → four masks, their scores, and whether there is an object. Parameter names are Meta's.

Source: SAM 2 (arXiv 2408.00714), section 4; sam2/modeling/sam/mask_decoder.py and transformer.py at 2b90b9f.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.layers import Attention, LayerNorm2d, Mlp

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
        self.cross_attn_token_to_image = Attention(dim, N_HEADS, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp((dim, mlp_dim, dim))
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, N_HEADS, dim // 2)
        self.is_first = is_first

    def forward(self, tokens: Tensor, image: Tensor, token_positions: Tensor, image_positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.is_first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            placed = tokens + token_positions
            tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens))
        placed_image = image + image_positions
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_positions, placed_image, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(placed_image, tokens + token_positions, tokens))
        return tokens, image


class _TwoWayTransformer(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.layers = nn.ModuleList(_TwoWayLayer(dim, config.decoder_mlp_dim, is_first=i == 0) for i in range(2))
        self.final_attn_token_to_image = Attention(dim, N_HEADS, dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_positions: Tensor, prompt_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image cells (B, h·w, d) and prompt_tokens (B, N, d), which are their own positions → both after attention."""
        tokens = prompt_tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt_tokens, image_positions)
        attended = self.final_attn_token_to_image(tokens + prompt_tokens, image + image_positions, image)
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
        cells = (image + dense).flatten(2).transpose(1, 2).expand(batch, -1, -1)
        tokens, cells = self.transformer(cells, image_positions.flatten(2).transpose(1, 2), tokens)
        upscaled = self._upscale(cells.transpose(1, 2).reshape(batch, -1, height, width), high_res_0, high_res_1)
        mask_tokens = tokens[:, 2 : 2 + N_MASKS]
        weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        mask_logits = (weights @ upscaled.flatten(2)).view(batch, N_MASKS, *upscaled.shape[2:])
        return DecoderOutput(
            mask_logits, self.iou_prediction_head(tokens[:, 1]).sigmoid(), mask_tokens, self.pred_obj_score_head(tokens[:, 0])
        )

    def _upscale(self, cells: Tensor, high_res_0: Tensor, high_res_1: Tensor) -> Tensor:
        double, norm, activate, quadruple, activate_again = self.output_upscaling
        half = activate(norm(double(cells) + high_res_1))
        out: Tensor = activate_again(quadruple(half) + high_res_0)
        return out
