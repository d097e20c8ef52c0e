"""The reference video predictor, transformers' Sam2VideoModel, with the weights of one of our networks."""

from __future__ import annotations

import torch
from transformers import (
    Sam2HieraDetConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)

from sam2_backend.network import NetworkConfig, Sam2Network
from sam2_backend.network.transformers_layout import from_transformers


def twin(network: Sam2Network) -> Sam2VideoModel:
    """The same network in transformers' code."""
    model = Sam2VideoModel(video_config(network.config)).eval().requires_grad_(requires_grad=False)
    weights = network.state_dict()
    for name, tensor in model.state_dict().items():
        renamed = from_transformers({name: tensor})
        tensor.copy_(torch.cat([weights[ours].view(-1) for ours in renamed]).view(tensor.shape))
    return model


def video_config(config: NetworkConfig) -> Sam2VideoConfig:
    d, cells = config.hidden_dim, config.image_size // 16
    return Sam2VideoConfig(
        vision_config=_vision_config(config),
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=d, image_size=config.image_size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=d,
            mlp_dim=config.decoder_mlp_dim,
            iou_head_hidden_dim=config.iou_head_dim,
            dynamic_multimask_via_stability=config.stability_rule,
        ),
        image_size=config.image_size,
        memory_attention_hidden_size=d,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=config.memory_mlp_dim,
        memory_attention_rope_feat_sizes=[cells, cells],
        memory_encoder_hidden_size=d,
        memory_encoder_output_channels=config.memory_dim,
        mask_downsampler_embed_dim=d,
        memory_fuser_embed_dim=d,
        memory_fuser_intermediate_dim=4 * d,
        enable_temporal_pos_encoding_for_object_pointers=config.is_v21,
        enable_occlusion_spatial_embedding=config.is_v21,
    )


def _vision_config(config: NetworkConfig) -> Sam2VisionConfig:
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
    return Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=dims[::-1],
        backbone_feature_sizes=[[side // cut] * 2 for cut in (4, 8, 16)],
        fpn_hidden_size=config.hidden_dim,
    )
