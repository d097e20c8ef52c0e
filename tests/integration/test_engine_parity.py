"""The whole engine in SAM 2 and 2.1 tiny's real size against transformers on the same random weights, and from disk in both layouts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

from sam2_backend.checkpoints import load
from sam2_backend.engine import Sam2Engine
from sam2_backend.settings import Settings

SIZE_HW = (480, 640)
CLICKS = [(320.5, 200.25, 1), (10.0, 470.0, 0), (600.0, 30.0, 1)]
BOX = (100.0, 50.0, 500.5, 400.0)
PROMPTS = {
    "a click": (CLICKS[:1], None, False),
    "clicks": (CLICKS, None, False),
    "a box": ([], BOX, False),
    "a mask": ([], None, True),
    "all mixed": (CLICKS, BOX, True),
}


@pytest.fixture(scope="module", params=["2.0", "2.1"])
def saved(request, tmp_path_factory):
    """A transformers folder and Meta's .pt file of the same random weights."""
    folder, is_v21 = tmp_path_factory.mktemp("tiny"), request.param == "2.1"
    video = Sam2VideoModel(
        Sam2VideoConfig(enable_temporal_pos_encoding_for_object_pointers=is_v21, enable_occlusion_spatial_embedding=is_v21)
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in video.parameters():
        parameter.data.normal_(0, 1 / math.sqrt(parameter[0].numel() if parameter.ndim > 1 else 4), generator=generator)
    video.shared_image_embedding.positional_embedding.copy_(video.prompt_encoder.shared_embedding.positional_embedding)
    video.save_pretrained(folder / "hf")
    checkpoint = load(Settings(model=str(folder / "hf")))
    torch.save({"model": checkpoint.state_dict}, folder / "meta.pt")
    assert checkpoint.config.is_v21 == is_v21
    reference = Sam2Model(Sam2Config()).eval()
    assert not reference.load_state_dict(video.state_dict(), strict=False).missing_keys
    return folder, reference


@pytest.fixture(scope="module")
def photo():
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((17, 40), (31, 9), (90, 55))]
    return np.stack(waves, -1).astype(np.uint8)


@pytest.fixture(scope="module")
def engine(saved):
    return Sam2Engine.load(Settings(model=str(saved[0] / "hf"), device="cpu"))


@pytest.fixture(scope="module")
def embedding(engine, photo):
    return engine.embed(photo)


def prompt_of(name: str) -> dict:
    points, box, has_mask = PROMPTS[name]
    mask = torch.randn(256, 256, generator=torch.Generator().manual_seed(9)) * 6 if has_mask else None
    return {
        "points_xy_px": np.array([p[:2] for p in points], dtype=float).reshape(-1, 2),
        "is_positive": np.array([p[2] == 1 for p in points], dtype=bool),
        "box_xyxy_px": box,
        "mask_logits": mask,
        "size_hw": SIZE_HW,
    }


@torch.inference_mode()
def test_embedding_equals_the_reference(engine, saved, photo):
    theirs = saved[1].get_image_embeddings(engine._normalized(engine.square(photo)))
    maps = engine.network.encode(engine._normalized(engine.square(photo)))
    no_memory = saved[1].no_memory_embedding.view(1, -1, 1, 1)
    for ours, expected in zip((*maps[:2], maps[2] + no_memory), theirs, strict=True):
        print(f"embedding: max |Δ| {float((ours - expected).abs().max()):.2e}, std {float(expected.std()):.2f}")
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=5e-5)


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("multimask", [True, False])
def test_logits_and_scores_equal_the_reference(engine, embedding, saved, prompt, multimask):
    asked = prompt_of(prompt)
    found = engine.decode(embedding, **asked, multimask=multimask)
    scale = torch.tensor([1024 / SIZE_HW[1], 1024 / SIZE_HW[0]])
    box, mask = asked["box_xyxy_px"], asked["mask_logits"]
    has_points = len(asked["is_positive"]) > 0
    theirs = saved[1](
        image_embeddings=[*embedding.maps[:2], embedding.image + saved[1].no_memory_embedding.view(1, -1, 1, 1)],
        input_points=(torch.tensor(asked["points_xy_px"], dtype=torch.float32) * scale)[None, None] if has_points else None,
        input_labels=torch.tensor(asked["is_positive"]).int()[None, None] if has_points else None,
        input_boxes=(torch.tensor(box).view(2, 2) * scale).view(1, 1, 4) if box else None,
        input_masks=mask[None, None] if mask is not None else None,
        multimask_output=multimask,
    )
    order = theirs.iou_scores[0, 0].argsort(descending=True)
    expected = theirs.pred_masks[0, 0][order]
    print(f"{prompt}, multimask {multimask}: max |Δ| {float((found.logits - expected).abs().max()):.2e}, std {float(expected.std()):.2f}")
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.scores, theirs.iou_scores[0, 0][order], rtol=1e-4, atol=1e-5)


def test_metas_file_and_the_hugging_face_folder_give_identical_masks(engine, embedding, saved, photo):
    other = Sam2Engine.load(Settings(model=str(saved[0] / "meta.pt"), device="cpu"))
    assert other.model_id != engine.model_id
    other_embedding = other.embed(photo)
    assert other_embedding.to_bytes() == embedding.to_bytes()
    for prompt in PROMPTS:
        a, b = (e.decode(m, **prompt_of(prompt), multimask=False) for e, m in ((engine, embedding), (other, other_embedding)))
        assert np.array_equal(engine.upsample(a.logits[0], SIZE_HW), other.upsample(b.logits[0], SIZE_HW))
        assert torch.equal(a.scores, b.scores)
