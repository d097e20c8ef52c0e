"""Checkpoints in the layout of Hugging Face transformers → Meta's parameter names and our sizes.

Source: transformers 5.23, models/sam2 and models/sam2_video; its convert_sam2_to_hf.py, read backwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sam2_backend.network.config import NetworkConfig

_HEAD_LAYERS = {"proj_in": 0, "layers.0": 1, "proj_out": 2}
_MASK_EMBED = {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6}
_UPSCALE = {"conv1": 0, "layer_norm": 1, "conv2": 3}
_HEADS = r"(output_hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head|object_pointer_proj)"

# Each rule sees what the rules before it made of the whole name.
_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^vision_encoder\.neck\.convs\.(\d)\.", r"image_encoder.neck.convs.\1.conv."),
        (r"patch_embed\.projection\.", "patch_embed.proj."),
        (_HEADS + r"\.(proj_in|layers\.0|proj_out)\.", lambda m: f"{m[1]}.layers.{_HEAD_LAYERS[m[2]]}."),
        (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
        (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
        (r"mask_embed\.(conv\d|layer_norm\d)\.", lambda m: f"mask_downscaling.{_MASK_EMBED[m[1]]}."),
        (r"upscale_(conv\d|layer_norm)\.", lambda m: f"output_upscaling.{_UPSCALE[m[1]]}."),
        (r"mask_downsampler\.layers\.(\d)\.conv\.", lambda m: f"mask_downsampler.encoder.{3 * int(m[1])}."),
        (r"mask_downsampler\.layers\.(\d)\.layer_norm\.", lambda m: f"mask_downsampler.encoder.{3 * int(m[1]) + 1}."),
        (r"mask_downsampler\.final_conv\.", "mask_downsampler.encoder.12."),
        (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
        (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
        (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
        (r"\.scale$", ".gamma"),
        (r"\.depthwise_conv\.", ".dwconv."),
        (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
        (r"shared_embedding\.positional_embedding$", "pe_layer.positional_encoding_gaussian_matrix"),
        (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
        (r"^object_pointer_proj\.", "obj_ptr_proj."),
        (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
        (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
        (r"^no_memory_embedding$", "no_mem_embed"),
        (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
        (r"^no_object_pointer$", "no_obj_ptr"),
        (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
        (r"\.o_proj\.", ".out_proj."),
        (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
        (r"\.layer_norm(\d?)\.", r".norm\1."),
    )
]


def is_transformers_layout(state_dict: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("vision_encoder.") for name in state_dict)


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a Sam2Model or Sam2VideoModel to Meta's names. Values stay as they are."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        for pattern, to in _RULES:
            name = pattern.sub(to, name)
        renamed[name] = tensor
    points = renamed.pop("sam_prompt_encoder.point_embed.weight", torch.empty(0))
    renamed |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(points)}
    return renamed


def known_sizes(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """What a transformers config.json tells and tensors do not, as arguments for `infer_config`.

    What the file leaves out has transformers' default, which is SAM 2.1 tiny's as ours is.
    """
    default = NetworkConfig()
    hiera = config_json.get("vision_config", {}).get("backbone_config", {})
    image_size = config_json.get("prompt_encoder_config", {}).get("image_size", default.image_size)
    return {
        "image_size": image_size if isinstance(image_size, int) else image_size[0],
        "windows": tuple(hiera.get("window_size_per_stage") or default.windows),
        "heads": (hiera.get("num_attention_heads_per_stage") or [default.heads])[0],
        "global_blocks": tuple(hiera.get("global_attention_blocks") or default.global_blocks),
    }
