"""Every published size, and the checkpoint that ships, against transformers on the same weights and pixels; prompts in one call here,
one at a time there.

The images are small, and the largest network has fewer blocks, so that this ends in a minute; what tells the sizes apart (widths, heads,
windows, the background of the positions, where blocks look at the whole image) is theirs.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.reference import random_reference, reference_of
from sam2_backend.checkpoints import Checkpoint, load
from sam2_backend.engine import ObjectPrompt, Sam2Engine
from sam2_backend.network import OFFICIAL_CONFIGS, infer_config
from sam2_backend.network.transformers_layout import from_transformers, known_sizes
from sam2_backend.settings import Settings

SIZE_HW = (120, 200)
CUT = {"large": {"stages": (2, 3, 4, 2), "global_blocks": (6, 8)}}
CLICKS = [(50.5, 40.25, 1), (10.0, 110.0, 0), (180.0, 30.0, 1)]
BOX = (20.0, 10.0, 150.5, 100.0)


def official(size: str):
    return dataclasses.replace(OFFICIAL_CONFIGS[f"sam2.1_hiera_{size}"], image_size=256, **CUT.get(size, {}))


@pytest.fixture(scope="module", params=["tiny", "small", "base_plus", "large", "demo"])
def pair(request):
    """Our engine and their model."""
    if request.param == "demo":
        checkpoint = load(Settings(model="demo"))
        return Sam2Engine(checkpoint, torch.device("cpu")), reference_of(checkpoint.state_dict, checkpoint.config)
    reference = random_reference(official(request.param), 1)
    weights = from_transformers(reference.state_dict())
    config = infer_config(weights, **known_sizes(reference.config.to_dict()))
    return Sam2Engine(Checkpoint(request.param, "0" * 64, weights, config), torch.device("cpu")), reference


@pytest.fixture(scope="module")
def photo():
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((17, 40), (31, 9), (90, 55))]
    waves[0][(x - 60) ** 2 + (y - 50) ** 2 < 30**2] = 250
    return np.stack(waves, -1).astype(np.uint8)


@pytest.fixture(scope="module")
def embedding(pair, photo):
    return pair[0].embed(photo)


@torch.inference_mode()
def test_embeddings_equal_the_reference(pair, photo):
    engine, reference = pair
    pixels = engine._normalized(engine.square(photo))
    high_res_0, high_res_1, image = engine.network.encode(pixels)
    ours = high_res_0, high_res_1, image + engine.network.no_mem_embed.view(1, -1, 1, 1)
    for found, expected in zip(ours, reference.get_image_embeddings(pixels), strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def prompts(side: int) -> list[ObjectPrompt]:
    """Points, boxes, masks, and mixed."""
    mask = torch.randn(side, side, generator=torch.Generator().manual_seed(9)) * 6
    points = [np.array([c[:2] for c in CLICKS[:n]], dtype=float).reshape(-1, 2) for n in range(4)]
    signs = [np.array([c[2] == 1 for c in CLICKS[:n]], dtype=bool) for n in range(4)]
    given = [(1, None, None), (3, None, None), (0, BOX, None), (0, None, mask), (2, BOX, mask)]
    return [ObjectPrompt(points[n], signs[n], SIZE_HW, multimask, box, logits) for n, box, logits in given for multimask in (True, False)]


@torch.inference_mode()
def test_masks_in_one_call_equal_the_references_one_at_a_time(pair, embedding):
    engine, reference = pair
    asked = prompts(engine.image_size // 4)
    differ = total = 0
    for prompt, found in zip(asked, engine.decode_many([(embedding, prompt) for prompt in asked]), strict=True):
        theirs = theirs_of(engine, reference, embedding, prompt)
        order = theirs.iou_scores[0, 0].argsort(descending=True)
        expected = theirs.pred_masks[0, 0][order]
        torch.testing.assert_close(found.scores, theirs.iou_scores[0, 0][order], rtol=1e-3, atol=1e-4)
        assert (found.logits - expected).abs().max() <= 1e-4 * expected.abs().max()
        differ += int(((found.logits > 0) != (expected > 0)).sum())
        total += expected.numel()
    assert differ <= 1e-4 * total


def theirs_of(engine: Sam2Engine, reference, embedding, prompt: ObjectPrompt):
    scale = torch.tensor([engine.image_size / SIZE_HW[1], engine.image_size / SIZE_HW[0]])
    has_points = len(prompt.is_positive) > 0
    return reference(
        image_embeddings=[*embedding.maps[:2], embedding.image + reference.no_memory_embedding.view(1, -1, 1, 1)],
        input_points=(torch.tensor(prompt.points_xy_px, dtype=torch.float32) * scale)[None, None] if has_points else None,
        input_labels=torch.tensor(prompt.is_positive).int()[None, None] if has_points else None,
        input_boxes=(torch.tensor(prompt.box_xyxy_px).view(2, 2) * scale).view(1, 1, 4) if prompt.box_xyxy_px else None,
        input_masks=None if prompt.mask_logits is None else prompt.mask_logits[None, None],
        multimask_output=prompt.multimask,
    )
