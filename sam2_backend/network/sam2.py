"""SAM 2 and 2.1 in plain torch, with Meta's parameter names: an official checkpoint loads strictly and without a mapping.

Trainable as it is; `fold()` makes it an inference network with the same outputs and less work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.hiera import ImageEncoder
from sam2_backend.network.layers import Mlp
from sam2_backend.network.mask_decoder import DecoderOutput, MaskDecoder
from sam2_backend.network.memory import MemoryAttention, MemoryEncoder
from sam2_backend.network.prompt_encoder import PromptEncoder

N_MEMORY_MAPS = 7

#: (B, d/8, S/4, S/4), (B, d/4, S/8, S/8) and (B, d, S/16, S/16)
FeatureMaps = tuple[Tensor, Tensor, Tensor]


class _Folded(nn.Module):
    """Constants of the given weights: positions, and for each high resolution one linear map in place of two in a row."""

    def __init__(self, network: Sam2Network) -> None:
        super().__init__()
        trunk, neck, decoder = network.image_encoder.trunk, network.image_encoder.neck, network.sam_mask_decoder
        self.trunk_positions = nn.Buffer(trunk.positions(network.config.image_size // 4), persistent=False)
        self.grid_positions = nn.Buffer(network.sam_prompt_encoder.grid_positions().contiguous(), persistent=False)
        for stage, second in enumerate((decoder.conv_s0, decoder.conv_s1)):
            first = neck.lateral(stage)
            assert first.bias is not None
            assert second.bias is not None
            inner, outer = first.weight[:, :, 0, 0], second.weight[:, :, 0, 0]
            self.register_buffer(f"weight_{stage}", outer @ inner, persistent=False)
            self.register_buffer(f"bias_{stage}", outer @ first.bias + second.bias, persistent=False)

    def set_encoder_dtype(self, dtype: torch.dtype) -> None:
        for name, buffer in self.named_buffers():
            if name != "grid_positions":
                setattr(self, name, buffer.to(dtype))

    def high_res(self, stage: int, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.get_buffer(f"weight_{stage}"), self.get_buffer(f"bias_{stage}")).permute(0, 3, 1, 2)


class Sam2Network(nn.Module):
    """Image encoder, prompt encoder, mask decoder and memory of SAM 2."""

    _folded: _Folded | None

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.register_module("_folded", None)
        dim = config.hidden_dim
        self.image_encoder = ImageEncoder(config)
        self.sam_prompt_encoder = PromptEncoder(config)
        self.sam_mask_decoder = MaskDecoder(config)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, dim))
        if config.has_memory:
            self._add_memory(config, dim)

    def _add_memory(self, config: NetworkConfig, dim: int) -> None:
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.obj_ptr_proj = Mlp((dim, dim, dim, dim))
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(N_MEMORY_MAPS, 1, 1, config.memory_dim))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, dim))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, dim))
        if config.is_v21:
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, config.memory_dim))
            self.obj_ptr_tpos_proj = nn.Linear(dim, config.memory_dim)

    @torch.no_grad()
    def fold(self) -> Sam2Network:
        """Make the constants of these weights once. For inference only: later changes of the weights are not seen. Returns itself."""
        self._folded = None
        self._folded = _Folded(self)
        return self.eval().requires_grad_(requires_grad=False)

    def set_encoder_dtype(self, dtype: torch.dtype) -> Sam2Network:
        """Let a folded network encode in another precision; prompts and decoder stay as they are. Returns itself."""
        self.image_encoder.to(dtype)
        if self._folded:
            self._folded.set_encoder_dtype(dtype)
        return self

    def encode(self, images: Tensor) -> FeatureMaps:
        """Encode normalised images (B, 3, S, S) → the feature maps, without the no-memory vector (the video tracker wants them raw)."""
        folded, neck, decoder = self._folded, self.image_encoder.neck, self.sam_mask_decoder
        maps = self.image_encoder.trunk(images, folded.trunk_positions if folded else None)
        if folded:
            high_res_0, high_res_1 = folded.high_res(0, maps[0]), folded.high_res(1, maps[1])
        else:
            high_res_0 = decoder.conv_s0(neck.lateral(0)(maps[0].permute(0, 3, 1, 2)))
            high_res_1 = decoder.conv_s1(neck.lateral(1)(maps[1].permute(0, 3, 1, 2)))
        coarse = F.interpolate(neck.lateral(3)(maps[3].permute(0, 3, 1, 2)), scale_factor=2.0, mode="nearest")
        return high_res_0, high_res_1, neck.lateral(2)(maps[2].permute(0, 3, 1, 2)) + coarse

    def decode(self, features: FeatureMaps, points_xy: Tensor, labels: Tensor, mask_logits: Tensor | None = None) -> DecoderOutput:
        """Decode B prompts on the feature maps of B images, or of one.

        Args:
            features: What `encode` returned.
            points_xy: (B, N, 2) float32, model pixels (0 to S); a box is two points.
            labels: (B, N) int, see `prompt_encoder`: -1 none, 0 negative, 1 positive, 2 and 3 corners of a box.
            mask_logits: (B, 1, S/4, S/4), a mask to start from.

        Source: sam2/sam2_image_predictor.py at 2b90b9f.
        """
        high_res_0, high_res_1, image = features
        encoder = self.sam_prompt_encoder
        positions = self._folded.grid_positions if self._folded else encoder.grid_positions()
        image = image + self.no_mem_embed.view(1, -1, 1, 1)
        tokens, dense = encoder.tokens(points_xy, labels), encoder.dense(mask_logits)
        out: DecoderOutput = self.sam_mask_decoder(image, positions.to(image.dtype), high_res_0, high_res_1, tokens, dense)
        return out
