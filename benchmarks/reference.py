"""transformers' unmodified SAM 2 on our weights: the oracle of the parity tests and the opponent of engine.py."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import Sam2Config, Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2Model, Sam2PromptEncoderConfig, Sam2VisionConfig

from sam2_backend.network import NetworkConfig
from sam2_backend.network.transformers_layout import from_transformers

_POINTS = "sam_prompt_encoder.point_embeddings.{}.weight"


def reference_of(state_dict: Mapping[str, Tensor], config: NetworkConfig) -> Sam2Model:
    """Sam2Model with the weights of one of our checkpoints, in eval mode."""
    with torch.device("meta"):
        names = list(Sam2Model(_config_of(config)).state_dict())
    theirs = {name: _theirs(name, state_dict) for name in names}
    model = Sam2Model(_config_of(config)).eval()
    model.load_state_dict(theirs, strict=True)
    return model


def random_reference(config: NetworkConfig, seed: int) -> Sam2Model:
    """Random weights, scaled so that nothing vanishes: transformers starts with zeros in places, which would hide mistakes."""
    model = Sam2Model(_config_of(config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.normal_(0, 1 / math.sqrt(max(fan_in, 1)), generator=generator)
    model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)  # as published
    return model


def _theirs(name: str, state_dict: Mapping[str, Tensor]) -> Tensor:
    """Our tensor behind one of their names: where our reading of their layout would put it."""
    if name == "prompt_encoder.point_embed.weight":
        return torch.cat([state_dict[_POINTS.format(i)] for i in range(4)])
    [ours] = from_transformers({name: torch.empty(0)})
    return state_dict[ours]


def _config_of(config: NetworkConfig) -> Sam2Config:
    side, dims = config.image_size, [config.embed_dim << i for i in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=config.embed_dim,
        num_attention_heads=config.heads,
        image_size=[side, side],
        blocks_per_stage=list(config.stages),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[config.heads << i for i in range(4)],
        window_size_per_stage=list(config.windows),
        global_attention_blocks=list(config.global_blocks),
        window_positional_embedding_background_size=[config.background_size] * 2,
    )
    return Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=hiera,
            backbone_channel_list=dims[::-1],
            backbone_feature_sizes=[[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
            fpn_hidden_size=config.hidden_dim,
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=config.hidden_dim, image_size=side),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=config.hidden_dim,
            mlp_dim=config.decoder_mlp_dim,
            iou_head_hidden_dim=config.iou_head_dim,
            dynamic_multimask_via_stability=config.stability_rule,
        ),
    )
