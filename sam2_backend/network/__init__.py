"""SAM 2 in plain torch: knows tensors, and neither files nor queues."""

from sam2_backend.network.config import OFFICIAL_CONFIGS, NetworkConfig, infer_config
from sam2_backend.network.initialization import random_network
from sam2_backend.network.mask_decoder import DecoderOutput
from sam2_backend.network.memory import MemoryTokens
from sam2_backend.network.sam2 import FeatureMaps, Sam2Network

__all__ = [
    "OFFICIAL_CONFIGS",
    "DecoderOutput",
    "FeatureMaps",
    "MemoryTokens",
    "NetworkConfig",
    "Sam2Network",
    "infer_config",
    "random_network",
]
