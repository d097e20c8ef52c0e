"""The sizes of a SAM 2 network, told apart from its tensors alone where they are official."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Everything that decides the shape of a SAM 2 network. The defaults are SAM 2.1 tiny.

    Attributes:
        image_size: Side S of the square input, pixels; a multiple of 32, and S/4 a multiple of windows[0].
        embed_dim: Channels of the first of the four Hiera stages; each later stage has twice as many.
        stages: Blocks per stage.
        global_blocks: Indices of the blocks that attend over the whole image instead of windows.
        windows: Window side per stage, tokens.
        heads: Attention heads of the first stage; each later stage has twice as many.
        background_size: Side of the learned position embedding that is stretched over the image.
        hidden_dim: Channels d of everything behind the image encoder; a multiple of 64.
        decoder_mlp_dim: Width of the MLPs in the mask decoder's transformer.
        iou_head_dim: Width of the head that estimates IoU.
        memory_dim: Channels of a memory map.
        memory_layers: Layers of the memory attention.
        memory_mlp_dim: Width of the MLPs in the memory attention.
        has_memory: The parts that only video needs are there.
        is_v21: The two parts that SAM 2.1 added to SAM 2 are there (they are parts of the memory).
        stability_rule: Where the single mask is unstable, the best of the three others is taken, as the reference does. False for
            networks that never trained those.
    """

    image_size: int = 1024
    embed_dim: int = 96
    stages: tuple[int, int, int, int] = (1, 2, 7, 2)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    heads: int = 1
    background_size: int = 7
    hidden_dim: int = 256
    decoder_mlp_dim: int = 2048
    iou_head_dim: int = 256
    memory_dim: int = 64
    memory_layers: int = 4
    memory_mlp_dim: int = 2048
    has_memory: bool = True
    is_v21: bool = True
    stability_rule: bool = True

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Read what `to_json` wrote.

        Raises:
            ValueError: a name is unknown.
        """
        unknown = values.keys() - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown network settings: {', '.join(sorted(unknown))}")
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**fields)


_TINY = NetworkConfig()
_SMALL = NetworkConfig(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13))
_BASE_PLUS = NetworkConfig(embed_dim=112, stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), heads=2, background_size=14)
_LARGE = NetworkConfig(embed_dim=144, stages=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8), heads=2)

OFFICIAL_CONFIGS: dict[str, NetworkConfig] = {
    f"{family}_hiera_{size}": dataclasses.replace(config, is_v21=family == "sam2.1")
    for family in ("sam2", "sam2.1")
    for size, config in (("tiny", _TINY), ("small", _SMALL), ("base_plus", _BASE_PLUS), ("large", _LARGE))
}
"""The eight published sizes by checkpoint name. Source: facebookresearch/sam2, sam2/configs at 2b90b9f."""


def infer_config(state_dict: Mapping[str, Tensor], **known: Any) -> NetworkConfig:
    """Read a network's sizes off its tensors.

    What tensors do not tell (image_size, windows, heads, global_blocks) is taken from `known`, else from the official network with
    as many channels and blocks.

    Args:
        state_dict: Tensors by Meta's names.
        known: Fields of `NetworkConfig` that are known from elsewhere; they win.

    Raises:
        ValueError: the tensors are not SAM 2's, or not of an official size while `known` lacks what they do not tell.
    """
    try:
        told = _told_by_tensors(state_dict)
    except KeyError as error:
        raise ValueError(f"the tensor {error.args[0]} is missing") from error
    twin = next((c for c in (_TINY, _SMALL, _BASE_PLUS, _LARGE) if (c.embed_dim, c.stages) == (told["embed_dim"], told["stages"])), None)
    if twin is None:
        lacking = {"image_size", "windows", "heads", "global_blocks"} - known.keys()
        if lacking:
            raise ValueError(f"not an official size, and its {', '.join(sorted(lacking))} are not given")
        twin = _TINY
    return dataclasses.replace(twin, **{**told, **known})


def _told_by_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(state_dict[name].shape)

    trunk, decoder = "image_encoder.trunk.", "sam_mask_decoder."
    n_blocks = _n_modules(state_dict, f"{trunk}blocks.")
    starts = [0, *(i for i in range(n_blocks) if f"{trunk}blocks.{i}.proj.weight" in state_dict), n_blocks]
    if len(starts) != 5:
        raise ValueError(f"the image encoder has {len(starts) - 1} stages, a Hiera of SAM 2 has four")
    told: dict[str, Any] = {
        "embed_dim": shape(f"{trunk}patch_embed.proj.weight")[0],
        "stages": tuple(end - start for start, end in pairwise(starts)),
        "background_size": shape(f"{trunk}pos_embed")[-1],
        "hidden_dim": shape(f"{decoder}iou_token.weight")[1],
        "decoder_mlp_dim": shape(f"{decoder}transformer.layers.0.mlp.layers.0.weight")[0],
        "iou_head_dim": shape(f"{decoder}iou_prediction_head.layers.0.weight")[0],
        "has_memory": "memory_encoder.out_proj.weight" in state_dict,
        "is_v21": "obj_ptr_tpos_proj.weight" in state_dict,
    }
    if told["has_memory"]:
        told["memory_dim"] = shape("memory_encoder.out_proj.weight")[0]
        told["memory_layers"] = _n_modules(state_dict, "memory_attention.layers.")
        told["memory_mlp_dim"] = shape("memory_attention.layers.0.linear1.weight")[0]
    return told


def _n_modules(state_dict: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".", 1)[0]) for name in state_dict if name.startswith(prefix)), default=-1)
