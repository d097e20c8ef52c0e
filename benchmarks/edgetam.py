"""What a tracked frame costs one object in memory alone: EdgeTAM's latents against SAM 2.1 tiny's maps. `python -m benchmarks.edgetam`

Published sizes, random weights, one thread; milliseconds of processor time, medians, asked in turn.
"""

from __future__ import annotations

import json
import math
import statistics
import time

import torch

from sam2_backend.models.edgetam import EdgeTamNetwork
from sam2_backend.models.edgetam_memory import EdgeTamConfig
from sam2_backend.network import NetworkConfig, Sam2Network
from sam2_backend.network.sam2 import N_MEMORY_MAPS, N_POINTERS

ROUNDS = 3
AGES = [0, *range(N_MEMORY_MAPS - 1, 0, -1)]


def with_random_weights(network: Sam2Network) -> Sam2Network:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.normal_(0, 1 / math.sqrt(fan_in), generator=generator)
    return network.fold()


def cost_ms(network: Sam2Network) -> tuple[float, float, int]:
    """Make the memory of a frame, then read 7 of them and 16 pointers → (ms, ms, KiB that are kept of a frame)."""
    image, logits, pointers = torch.randn(1, 256, 64, 64), torch.randn(1, 1, 256, 256), [torch.randn(1, 256)] * N_POINTERS
    start = time.process_time()
    memory = network.remember(image, logits, torch.ones(1, 1), binarize=False)
    made = time.process_time()
    network.condition(image, network.memory_tokens([memory] * N_MEMORY_MAPS, AGES, pointers, torch.arange(N_POINTERS)[None].float()))
    return 1000 * (made - start), 1000 * (time.process_time() - made), memory.to(torch.bfloat16).nbytes // 1024


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    edgetam = EdgeTamConfig(embed_dim=48, stages=(2, 2, 14, 2), memory_layers=2, is_v21=False)
    networks = {"edgetam": with_random_weights(EdgeTamNetwork(edgetam)), "sam2.1 tiny": with_random_weights(Sam2Network(NetworkConfig()))}
    costs = [{name: cost_ms(network) for name, network in networks.items()} for _ in range(ROUNDS + 1)][1:]
    for name in networks:
        remember, read, kib = (statistics.median(cost[name][i] for cost in costs) for i in range(3))
        print(json.dumps({"network": name, "remember_ms": round(remember), "read_ms": round(read), "kept_kib": kib}))


if __name__ == "__main__":
    main()
