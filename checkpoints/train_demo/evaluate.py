"""Held-out figures of still pictures: mean IoU of drawings and backgrounds never trained on, by kind of object and of prompt."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from checkpoints.train_demo.assets import Assets
from checkpoints.train_demo.batches import normalised
from checkpoints.train_demo.interact import Prompts, box_around, click_on, corrected
from checkpoints.train_demo.scenes import Scene, render
from sam2_backend.network import FeatureMaps, NetworkConfig, Sam2Network

HELD_OUT_SEED = 977
BATCH = 16


def held_out_scenes(assets: Assets, count: int, side_px: int) -> dict[str, list[Scene]]:
    """COUNT scenes with shapes alone and COUNT with clip art alone."""
    return {
        "shapes": [render(assets, HELD_OUT_SEED, i, side_px=side_px, shape_share=1.0) for i in range(count)],
        "clip_art": [render(assets, HELD_OUT_SEED + 1, i, side_px=side_px, shape_share=0.0) for i in range(count)],
    }


def load_network(path: Path) -> Sam2Network:
    """The exported file, strictly, as fp32."""
    with safe_open(path, framework="pt") as stored:
        config = NetworkConfig.from_json(json.loads(stored.metadata()["config"]))
        tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118  (not a mapping)
    network = Sam2Network(config)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(requires_grad=False)


def iou(logits: Tensor, masks: Tensor) -> Tensor:
    """(B, S/4, S/4) logits against (B, S, S) masks, at full size."""
    guess = F.interpolate(logits[:, None], size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0] > 0
    return (guess & masks).sum((1, 2)) / (guess | masks).sum((1, 2)).clamp(min=1)


def _decode(network: Sam2Network, features: FeatureMaps, prompts: Prompts, *, multimask: bool) -> Tensor:
    out = network.decode(features, prompts.points_xy_px, prompts.labels, prompts.mask_logits)
    chosen = 1 + out.scores[:, 1:].argmax(1) if multimask else torch.zeros(len(out.scores), dtype=torch.long)
    return out.mask_logits[torch.arange(len(chosen)), chosen]


def _scores_of(network: Sam2Network, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    features = network.encode(images)
    box = _decode(network, features, box_around(masks, generator, jitter=0.0), multimask=False)
    anywhere = _decode(network, features, click_on(masks, generator, centered=False), multimask=True)
    prompts = click_on(masks, generator, centered=True)
    logits = _decode(network, features, prompts, multimask=True)
    scores = {"box": iou(box, masks), "1_click": iou(logits, masks), "1_click_anywhere": iou(anywhere, masks)}
    for _ in range(2):
        prompts = corrected(prompts, logits, masks, generator, centered=True)
        logits = _decode(network, features, prompts, multimask=False)
    return {**scores, "3_clicks": iou(logits, masks)}


@torch.inference_mode()
def measure(network: Sam2Network, judges: dict[str, list[Scene]]) -> dict[str, float]:
    """`KIND_PROMPT` -> mean IoU; in each scene one object, the same each time, is asked for."""
    figures: dict[str, float] = {}
    for kind, scenes in judges.items():
        parts = [_scores_of(network, *_asked(scenes[start : start + BATCH], start)) for start in range(0, len(scenes), BATCH)]
        for name in parts[0]:
            figures[f"{kind}_{name}"] = round(float(torch.cat([part[name] for part in parts]).mean()), 4)
    return figures


def _asked(scenes: Sequence[Scene], start: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng((HELD_OUT_SEED, start))
    chosen = [rng.choice(np.unique(scene.owner[scene.owner > 0])) for scene in scenes]
    masks = np.stack([scene.owner == owner for scene, owner in zip(scenes, chosen, strict=True)])
    return normalised(np.stack([scene.image for scene in scenes])), torch.from_numpy(masks)
