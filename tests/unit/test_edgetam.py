"""EdgeTAM through the engine, against transformers' own on the same random weights.

Where torchvision is not installed, the test of the encoder alone is skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EdgeTamConfig, EdgeTamMaskDecoderConfig, EdgeTamModel, EdgeTamPromptEncoderConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from edgetam_reference import DIM, SIDE, randomize, vision_config

from sam2_backend.checkpoints import load
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import BadCheckpointError
from sam2_backend.models.edgetam import RepVitTrunk
from sam2_backend.network import NetworkConfig
from sam2_backend.settings import Settings

SIZE_HW = (60, 90)


@pytest.fixture(scope="module")
def reference():
    model = EdgeTamModel(
        EdgeTamConfig(
            vision_config=vision_config(),
            prompt_encoder_config=EdgeTamPromptEncoderConfig(hidden_size=DIM, image_size=SIDE),
            mask_decoder_config=EdgeTamMaskDecoderConfig(hidden_size=DIM, mlp_dim=128, iou_head_hidden_dim=128),
        )
    ).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny-edgetam"
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder):
    return Sam2Engine.load(Settings(model=f"edgetam:{folder}", device="cpu", torch_threads=1))


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)


@torch.inference_mode()
def test_an_embedding_equals_the_reference(engine, reference, photo):
    pixels = engine._normalized(engine.square(photo))
    high_res_0, high_res_1, image = engine.network.encode(pixels)
    ours = high_res_0, high_res_1, image + engine.network.no_mem_embed.view(1, -1, 1, 1)
    for found, expected in zip(ours, reference.get_image_embeddings(pixels), strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_run_can_let_others_in_between_its_blocks(engine, photo):
    times: list[int] = []
    shared = engine.embed(photo, lambda: times.append(1))
    assert len(times) == len(list(engine.network.image_encoder.trunk.steps())) > 4
    assert shared.to_bytes() == engine.embed(photo).to_bytes()


@torch.inference_mode()
@pytest.mark.parametrize("multimask", [True, False])
def test_a_click_equals_the_reference(engine, reference, photo, multimask):
    embedding = engine.embed(photo)
    found = engine.decode(
        embedding, points_xy_px=np.array([[30.0, 20.0]]), is_positive=np.array([True]), size_hw=SIZE_HW, multimask=multimask
    )
    theirs = reference(
        image_embeddings=[*embedding.maps[:2], embedding.image + reference.no_memory_embedding.view(1, -1, 1, 1)],
        input_points=torch.tensor([[[[30.0 * SIDE / 90, 20.0 * SIDE / 60]]]]),
        input_labels=torch.tensor([[[1]]]),
        multimask_output=multimask,
    )
    order = theirs.iou_scores[0, 0].argsort(descending=True)
    torch.testing.assert_close(found.logits, theirs.pred_masks[0, 0][order], rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(found.scores, theirs.iou_scores[0, 0][order], rtol=1e-4, atol=5e-5)


def test_it_warms_up_and_says_what_it_is(engine):
    engine.warm_up()
    assert engine.model_version.startswith("edgetam-tiny-edgetam@")
    assert not engine.network.config.has_memory


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(BadCheckpointError, match="holds no"):
        load(Settings(model=f"edgetam:{tmp_path}"))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadCheckpointError, match="cannot be read as an EdgeTAM checkpoint"):
        load(Settings(model=f"edgetam:{tmp_path}"))


@torch.inference_mode()
def test_the_encoder_equals_timms_repvit():
    pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("repvit_m1", features_only=True, out_indices=[0, 1, 2, 3], num_classes=0).eval()
    ours = RepVitTrunk(NetworkConfig(embed_dim=48, stages=(2, 2, 14, 2))).eval()
    for name, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.5 + 0.5 if name.endswith("running_var") else torch.randn_like(tensor) * 0.1)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 128, 128)
    for found, expected in zip(ours(image), theirs(image), strict=True):
        torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)
