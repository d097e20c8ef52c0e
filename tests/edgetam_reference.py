"""transformers' EdgeTAM with random weights, small in size, real in every part.

transformers builds EdgeTAM's encoder with timm, which needs torchvision; our encoder stands in for it.
"""

from __future__ import annotations

import math

import torch
from transformers import AutoConfig, AutoModel, EdgeTamVisionConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from sam2_backend.models.edgetam import RepVitTrunk
from sam2_backend.network import NetworkConfig

SIDE, DIM = 256, 128
SIZES = NetworkConfig(image_size=SIDE, embed_dim=16, stages=(1, 2, 3, 1), hidden_dim=DIM)


class StandInConfig(PreTrainedConfig):
    model_type = "repvit_stand_in"


class StandIn(PreTrainedModel):
    config_class = StandInConfig

    def __init__(self, config):
        super().__init__(config)
        self.timm_model = RepVitTrunk(SIZES)

    def forward(self, pixel_values, **_kwargs):
        return BaseModelOutput(last_hidden_state=[m.permute(0, 3, 1, 2) for m in self.timm_model(pixel_values)])


AutoConfig.register("repvit_stand_in", StandInConfig)
AutoModel.register(StandInConfig, StandIn)


def vision_config() -> EdgeTamVisionConfig:
    return EdgeTamVisionConfig(
        backbone_config=StandInConfig(),
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[SIDE // n] * 2 for n in (4, 8, 16)],
        fpn_hidden_size=DIM,
    )


def randomize(model: PreTrainedModel) -> None:
    """Weights of a size that lets signals through."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.3, generator=generator)
    model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
