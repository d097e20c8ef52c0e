"""The demo network's sizes: those of SAM 2.1 in small, so that two CPU cores learn something in an hour."""

from sam2_backend.network import NetworkConfig

DEMO_CONFIG = NetworkConfig(
    image_size=256,
    embed_dim=32,
    stages=(1, 2, 3, 1),
    global_blocks=(4, 5),
    windows=(8, 4, 8, 8),
    hidden_dim=128,
    decoder_mlp_dim=256,
    iou_head_dim=128,
    memory_layers=2,
    memory_mlp_dim=512,
)
#: Learnt from still pictures; everything else in the network is memory, which only video needs.
IMAGE_PREFIXES = ("image_encoder.", "sam_prompt_encoder.", "sam_mask_decoder.", "no_mem_embed")
