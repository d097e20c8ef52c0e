"""Random weights that can be trained from, the same for the same seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam2_backend.network.config import NetworkConfig
from sam2_backend.network.sam2 import Sam2Network


@torch.no_grad()
def random_network(config: NetworkConfig, seed: int) -> Sam2Network:
    """A network with seeded random weights on the CPU.

    Scaled by fan-in: with the usual N(0, 0.02) a small network hardly moves in its first hundreds of steps, and its masks are flat.
    """
    with torch.device("meta"):
        network = Sam2Network(config)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        _reset(module, generator)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            parameter.fill_(1e-6)
        elif "." not in name or "pos_embed" in name:
            parameter.normal_(0.0, 0.1, generator=generator)
    return network


def _reset(module: nn.Module, generator: torch.Generator) -> None:
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        assert isinstance(weight, Tensor)
        weight.normal_(0.0, 1 / math.sqrt(_fan_in(module)), generator=generator)
    elif isinstance(module, nn.Embedding):
        assert isinstance(weight, Tensor)
        weight.normal_(0.0, 0.5, generator=generator)
    elif isinstance(weight, Tensor):
        weight.fill_(1.0)
    if isinstance(bias, Tensor):
        bias.zero_()
    for buffer in module.buffers(recurse=False):
        buffer.normal_(0.0, 1.0, generator=generator)


def _fan_in(module: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> int:
    """How many inputs each output sums; the transposed convolutions here do not overlap."""
    if isinstance(module, nn.ConvTranspose2d):
        return module.in_channels
    return module.weight[0].numel()
