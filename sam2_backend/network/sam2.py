"""SAM 2 and 2.1 in plain torch, with Meta's parameter names: an official checkpoint loads strictly and without a mapping.

Trainable as it is; `fold()` makes it an inference network with the same outputs and less work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.hiera import ImageEncoder
from sam2_backend.network.layers import Mlp
from sam2_backend.network.mask_decoder import DecoderOutput, MaskDecoder
from sam2_backend.network.memory import MemoryEncoder, MemoryPlaces, MemoryTokens, sine_positions_1d
from sam2_backend.network.memory_attention import MemoryAttention
from sam2_backend.network.prompt_encoder import PromptEncoder

N_MEMORY_MAPS = 7
N_POINTERS = 16
#: What a mask says everywhere when the object is not there.
NO_OBJECT_LOGIT = -1024.0
#: A mask of 0…1 enters the memory encoder scaled and moved to ±10.
_MEMORY_SCALE, _MEMORY_BIAS = 20.0, -10.0

#: (B, d/8, S/4, S/4), (B, d/4, S/8, S/8) and (B, d, S/16, S/16)
FeatureMaps = tuple[Tensor, Tensor, Tensor]


class _Folded(nn.Module):
    """Constants of the given weights: positions, and for each high resolution one linear map in place of two in a row."""

    def __init__(self, network: Sam2Network) -> None:
        super().__init__()
        trunk, neck, decoder = network.image_encoder.trunk, network.image_encoder.neck, network.sam_mask_decoder
        self.trunk_positions = nn.Buffer(trunk.positions(network.config.image_size // 4), persistent=False)
        grid_positions = network.sam_prompt_encoder.grid_positions()
        # Cell by cell in memory, as the decoder reads it.
        self.grid_positions = nn.Buffer(grid_positions.contiguous(memory_format=torch.channels_last), persistent=False)
        if network.config.has_memory:
            places = MemoryPlaces.of(network.config, network.config.image_size // 16)
            self.memory_rotary, self.memory_image, self.memory_maps = (
                nn.Buffer(t.to(self.grid_positions.device), persistent=False) for t in places
            )
        for stage, second in enumerate((decoder.conv_s0, decoder.conv_s1)):
            first = neck.lateral(stage)
            assert first.bias is not None
            assert second.bias is not None
            inner, outer = first.weight[:, :, 0, 0], second.weight[:, :, 0, 0]
            self.register_buffer(f"weight_{stage}", outer @ inner, persistent=False)
            self.register_buffer(f"bias_{stage}", outer @ first.bias + second.bias, persistent=False)

    def set_encoder_dtype(self, dtype: torch.dtype) -> None:
        for name, buffer in self.named_buffers():
            if name != "grid_positions" and not name.startswith("memory_"):
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
    def fold(self) -> Self:
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
        return self.decode_conditioned(features, features[2] + self.no_mem_embed.view(1, -1, 1, 1), points_xy, labels, mask_logits)

    def decode_conditioned(
        self, features: FeatureMaps, conditioned: Tensor, points_xy: Tensor, labels: Tensor, mask_logits: Tensor | None = None
    ) -> DecoderOutput:
        """As `decode`, on an embedding that has its memory in it already: conditioned (B or 1, d, h, w), see `condition`."""
        encoder = self.sam_prompt_encoder
        positions = self._folded.grid_positions if self._folded else encoder.grid_positions()
        tokens, dense = encoder.tokens(points_xy, labels), encoder.dense(mask_logits)
        out: DecoderOutput = self.sam_mask_decoder(conditioned, positions.to(conditioned.dtype), *features[:2], tokens, dense)
        return out

    def memory_tokens(
        self,
        maps: Sequence[Tensor],
        ages: Sequence[int],
        pointers: Sequence[Tensor] = (),
        frames_apart: Tensor | None = None,
        n_frames: int = N_POINTERS,
    ) -> MemoryTokens:
        """Line up what B objects remember, with what tells how long ago it was.

        Args:
            maps: What `remember` returned on earlier frames, each (B, memory_dim, h, w), or with its cells in one row.
            ages: How many frames ago each of them was, 1 to 6; 0 for a prompted frame, however far.
            pointers: What `pointer` returned on earlier frames, (B, d) each.
            frames_apart: (B or 1, len(pointers)) float, how many frames ago each of them was; prompted frames as well.
            n_frames: Length of the video, where it is shorter than 16.

        Source: sam2/modeling/sam2_base.py at 2b90b9f, _prepare_memory_conditioned_features.
        """
        config, batch = self.config, maps[0].shape[0]
        where_cells_are = self._map_positions(maps[0])
        tokens = [m.flatten(2).transpose(1, 2) for m in maps]
        positions = [where_cells_are + self.maskmem_tpos_enc[age - 1] for age in ages]
        if not pointers:
            return MemoryTokens(torch.cat(tokens, 1), torch.cat(positions, 1), 0)
        n_splits = config.hidden_dim // config.memory_dim
        tokens.append(torch.stack(tuple(pointers), 1).to(tokens[0].dtype).reshape(batch, -1, config.memory_dim))
        if config.is_v21 and frames_apart is not None:
            where = sine_positions_1d(frames_apart / max(1, min(n_frames, N_POINTERS) - 1), config.hidden_dim)
            when = self.obj_ptr_tpos_proj(where.to(self.obj_ptr_tpos_proj.weight.dtype)).repeat_interleave(n_splits, 1)
        else:
            when = positions[0].new_zeros(1, len(pointers) * n_splits, config.memory_dim)
        shared = torch.cat(positions, 1).expand(when.shape[0], -1, -1)
        return MemoryTokens(torch.cat(tokens, 1), torch.cat([shared, when], 1), len(pointers) * n_splits)

    def condition(self, image: Tensor, memory: MemoryTokens) -> Tensor:
        """Let an embedding (B or 1, d, h, w), without its no-memory vector, look at the memories of B objects → (B, d, h, w)."""
        places = self._places(image.shape[-1], image)
        cells = image.flatten(2).transpose(1, 2) + places.image
        out: Tensor = self.memory_attention(
            cells, memory.tokens, memory.positions, places.rotary, memory.n_pointer_tokens, self._key_rotary(image)
        )
        return out.transpose(1, 2).reshape(out.shape[0], *image.shape[1:])

    def remember(self, image: Tensor, mask_logits: Tensor, object_logits: Tensor, *, binarize: bool) -> Tensor:
        """Make the memory map of a frame.

        Args:
            image: (B or 1, d, h, w), without its no-memory vector.
            mask_logits: (B, 1, H, W) of any size, brought to 16 h × 16 w.
            object_logits: (B, 1), at or below 0: the object is not there, whatever the mask says.
            binarize: For prompted frames: the mask as it is seen, not as sure as it is.

        Returns:
            (B, memory_dim, h, w)

        Source: sam2/modeling/sam2_base.py at 2b90b9f, _encode_new_memory.
        """
        is_there = (object_logits > 0)[..., None, None]
        logits = torch.where(is_there, mask_logits.float(), NO_OBJECT_LOGIT)
        size = (16 * image.shape[-2], 16 * image.shape[-1])
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        mask = (logits > 0).float() if binarize else logits.sigmoid()
        out: Tensor = self.memory_encoder(image, (mask * _MEMORY_SCALE + _MEMORY_BIAS).to(image.dtype))
        if self.config.is_v21:
            out = out + (~is_there).to(out.dtype) * self.no_obj_embed_spatial[..., None, None]
        return out

    def pointer(self, mask_tokens: Tensor, object_logits: Tensor) -> Tensor:
        """Make object pointers (B, d) of the tokens (B, d) of the masks that were taken; a fixed one where object_logits (B, 1) are ≤ 0."""
        is_there = (object_logits > 0).to(mask_tokens.dtype)
        out: Tensor = is_there * self.obj_ptr_proj(mask_tokens) + (1 - is_there) * self.no_obj_ptr
        return out

    def _map_positions(self, memory_map: Tensor) -> Tensor:
        """Where the cells of a memory map are → (1, cells, memory_dim)."""
        return self._places(memory_map.shape[-1], memory_map).maps

    def _key_rotary(self, image: Tensor) -> Tensor | None:  # noqa: ARG002  a network's own
        """The rotary table of a memory map, for networks whose maps are not grids of as many cells as the image's."""
        return None

    def _places(self, side: int, like: Tensor) -> MemoryPlaces:
        folded = self._folded
        if folded and 16 * side == self.config.image_size:
            places = MemoryPlaces(folded.memory_rotary, folded.memory_image, folded.memory_maps)
        else:
            places = MemoryPlaces(*(t.to(like.device) for t in MemoryPlaces.of(self.config, side)))
        return MemoryPlaces(places.rotary, places.image.to(like.dtype), places.maps.to(like.dtype))
