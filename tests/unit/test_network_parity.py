"""Our network against transformers' SAM 2 on the same random weights, in small sizes that reach every branch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VideoConfig,
    Sam2VideoMaskDecoderConfig,
    Sam2VideoModel,
    Sam2VideoPromptEncoderConfig,
    Sam2VisionConfig,
)

from sam2_backend.checkpoints import RANDOM_CONFIGS, Checkpoint
from sam2_backend.checkpoints.reading import read_weights
from sam2_backend.engine import Sam2Engine
from sam2_backend.network import NetworkConfig, Sam2Network, infer_config
from sam2_backend.network.layers import rotary_table, sine_positions_2d
from sam2_backend.network.transformers_layout import from_transformers, known_sizes

NANO = RANDOM_CONFIGS["nano"]
CONFIGS = {
    "2.1": NANO,
    "2.0": dataclasses.replace(NANO, is_v21=False),
    "windows that need padding": dataclasses.replace(NANO, windows=(8, 4, 14, 7), background_size=14, heads=2),
}
PROMPTS = {  # points and what they say, box, mask prompt
    "a click": ([(100.0, 30.0, 1)], None, False),
    "clicks of both kinds": ([(100.0, 30.0, 1), (7.5, 200.25, 0), (255.0, 0.0, 1)], None, False),
    "a box": ([], (10.0, 20.0, 200.5, 140.0), False),
    "a mask": ([], None, True),
    "all mixed": ([(100.0, 30.0, 1), (7.5, 200.25, 0)], (10.0, 20.0, 200.5, 140.0), True),
}


def _parts(config: NetworkConfig, prompt_kind, decoder_kind) -> dict:
    side, dims = config.image_size, [config.embed_dim << i for i in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=config.embed_dim,
        num_attention_heads=config.heads,
        image_size=[side, side],
        blocks_per_stage=list(config.stages),
        embed_dim_per_stage=dims,
        num_attention_heads_per_stage=[config.heads << i for i in range(4)],
        window_size_per_stage=list(config.windows),
        global_attention_blocks=list(config.global_blocks),
        window_positional_embedding_background_size=[config.background_size] * 2,
    )
    return {
        "vision_config": Sam2VisionConfig(
            backbone_config=hiera,
            backbone_channel_list=dims[::-1],
            backbone_feature_sizes=[[side // 4] * 2, [side // 8] * 2, [side // 16] * 2],
            fpn_hidden_size=config.hidden_dim,
        ),
        "prompt_encoder_config": prompt_kind(hidden_size=config.hidden_dim, image_size=side),
        "mask_decoder_config": decoder_kind(
            hidden_size=config.hidden_dim, mlp_dim=config.decoder_mlp_dim, iou_head_hidden_dim=config.iou_head_dim
        ),
    }


def video_reference(config: NetworkConfig, seed: int = 1) -> Sam2VideoModel:
    d = config.hidden_dim
    model = Sam2VideoModel(
        Sam2VideoConfig(
            **_parts(config, Sam2VideoPromptEncoderConfig, Sam2VideoMaskDecoderConfig),
            image_size=config.image_size,
            memory_attention_hidden_size=d,
            memory_attention_num_layers=config.memory_layers,
            memory_attention_feed_forward_hidden_size=config.memory_mlp_dim,
            memory_attention_rope_feat_sizes=[config.image_size // 16] * 2,
            memory_encoder_hidden_size=d,
            memory_encoder_output_channels=config.memory_dim,
            mask_downsampler_embed_dim=d,
            memory_fuser_embed_dim=d,
            memory_fuser_intermediate_dim=4 * d,
            enable_temporal_pos_encoding_for_object_pointers=config.is_v21,
            enable_occlusion_spatial_embedding=config.is_v21,
        )
    ).eval()
    randomize(model, seed)
    model.shared_image_embedding.positional_embedding.copy_(model.prompt_encoder.shared_embedding.positional_embedding)  # as published
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Scaled so that nothing vanishes: transformers starts with zeros in places, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data.normal_(0, 1 / math.sqrt(max(fan_in, 1)), generator=generator)


def image_reference(video: Sam2VideoModel, config: NetworkConfig) -> Sam2Model:
    model = Sam2Model(Sam2Config(**_parts(config, Sam2PromptEncoderConfig, Sam2MaskDecoderConfig))).eval()
    missing, _ = model.load_state_dict(video.state_dict(), strict=False)
    assert not missing
    return model


def ours(video: Sam2VideoModel, config: NetworkConfig) -> Sam2Network:
    network = Sam2Network(config)
    network.load_state_dict(from_transformers(video.state_dict()), strict=True)
    return network.fold()


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request):
    config = CONFIGS[request.param]
    video = video_reference(config)
    return ours(video, config), video, image_reference(video, config)


@torch.inference_mode()
def test_embeddings_equal_the_reference(pair):
    network, _, reference = pair
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    theirs = reference.get_image_embeddings(pixels)
    high_res_0, high_res_1, image = network.encode(pixels)
    for found, expected in zip((high_res_0, high_res_1, image + network.no_mem_embed.view(1, -1, 1, 1)), theirs, strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_scores_equal_the_reference(pair, prompt):
    network, _, reference = pair
    points, box, has_mask = PROMPTS[prompt]
    generator = torch.Generator().manual_seed(3)
    features = network.encode(torch.randn(1, 3, 256, 256, generator=generator))
    mask = torch.randn(1, 1, 64, 64, generator=generator) * 5 if has_mask else None
    theirs = reference(
        image_embeddings=[*features[:2], features[2] + network.no_mem_embed.view(1, -1, 1, 1)],
        input_points=torch.tensor([[[p[:2] for p in points]]]) if points else None,
        input_labels=torch.tensor([[[p[2] for p in points]]]) if points else None,
        input_boxes=torch.tensor([[box]]) if box else None,
        input_masks=mask,
        multimask_output=True,
    )
    corners = [(*box[:2], 2), (*box[2:], 3)] if box else []
    everything = [*corners, *points] or [(0.0, 0.0, -1)]
    out = network.decode(features, torch.tensor([[p[:2] for p in everything]]), torch.tensor([[p[2] for p in everything]]), mask)
    assert theirs.pred_masks.std() > 0.1
    torch.testing.assert_close(out.mask_logits[:, 1:], theirs.pred_masks[:, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(out.scores[:, 1:], theirs.iou_scores[:, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(out.object_logits, theirs.object_score_logits[:, 0], rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("prompt", ["a click", "all mixed"])
def test_the_engines_single_mask_is_the_references_with_its_stability_rule(pair, prompt):
    network, video, reference = pair
    weights = from_transformers(video.state_dict())
    engine = Sam2Engine(Checkpoint("pair", "0" * 64, weights, network.config), torch.device("cpu"))
    points, box, has_mask = PROMPTS[prompt]
    generator = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=generator).numpy()
    embedding = engine.embed(image)
    mask = torch.randn(64, 64, generator=generator) * 5 if has_mask else None
    found = engine.decode(
        embedding,
        points_xy_px=torch.tensor([p[:2] for p in points]).numpy(),
        is_positive=torch.tensor([p[2] == 1 for p in points]).numpy(),
        box_xyxy_px=box,
        mask_logits=mask,
        size_hw=(256, 256),
        multimask=False,
    )
    theirs = reference(
        image_embeddings=[*embedding.maps[:2], embedding.image + network.no_mem_embed.view(1, -1, 1, 1)],
        input_points=torch.tensor([[[p[:2] for p in points]]]),
        input_labels=torch.tensor([[[p[2] for p in points]]]),
        input_boxes=torch.tensor([[box]]) if box else None,
        input_masks=mask[None, None] if has_mask else None,
        multimask_output=False,
    )
    torch.testing.assert_close(found.logits, theirs.pred_masks[0, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.scores, theirs.iou_scores[0, 0], rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_memory_attention_equals_the_reference_and_shares_its_first_layer_among_objects(pair):
    network, video, _ = pair
    generator = torch.Generator().manual_seed(5)
    n_objects, cells, n_pointers = 2, 256, 4
    image, positions = torch.randn(1, cells, 128, generator=generator), sine_positions_2d(128, 16)
    memory, memory_positions = (torch.randn(n_objects, 2 * cells + n_pointers, 64, generator=generator) for _ in range(2))
    theirs = video.memory_attention(
        current_vision_features=image.transpose(0, 1).expand(-1, n_objects, -1),
        current_vision_position_embeddings=positions.transpose(0, 1),
        memory=memory.transpose(0, 1),
        memory_posision_embeddings=memory_positions.transpose(0, 1),
        num_object_pointer_tokens=n_pointers,
    )
    found = network.memory_attention(image + 0.1 * positions, memory, memory_positions, rotary_table(16, 128), n_pointers)
    torch.testing.assert_close(found, theirs.reshape(found.shape), rtol=1e-4, atol=5e-5)


@torch.inference_mode()
def test_memory_encoder_and_sine_positions_equal_the_reference(pair):
    network, video, _ = pair
    generator = torch.Generator().manual_seed(6)
    image, mask = torch.randn(1, 128, 16, 16, generator=generator), torch.randn(1, 1, 256, 256, generator=generator) * 10
    theirs, positions = video.memory_encoder(image, mask)
    torch.testing.assert_close(network.memory_encoder(image, mask), theirs, rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(sine_positions_2d(64, 16), positions.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_sizes_are_told_by_tensors_and_the_config_file(pair):
    network, video, reference = pair
    for model, has_memory in ((video, True), (reference, False)):
        found = infer_config(from_transformers(model.state_dict()), **known_sizes(model.config.to_dict()))
        same = {} if has_memory else {"has_memory": False, "is_v21": False, "memory_layers": 4, "memory_mlp_dim": 2048}
        assert found == dataclasses.replace(network.config, **same)


@pytest.mark.parametrize("has_memory", [True, False])
def test_a_hugging_face_folder_and_metas_file_give_identical_masks(pair, tmp_path, has_memory):
    network, video, reference = pair
    (video if has_memory else reference).save_pretrained(tmp_path / "folder")
    folder = read_weights(tmp_path / "folder")
    torch.save({"model": folder.state_dict, "config": folder.config.to_json()}, tmp_path / "meta.pt")
    file = torch.load(tmp_path / "meta.pt", weights_only=True)["model"]
    image = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7)).numpy()
    masks = []
    for weights, config in ((folder.state_dict, folder.config), (file, network.config if has_memory else folder.config)):
        engine = Sam2Engine(Checkpoint("one", "0" * 64, weights, config), torch.device("cpu"))
        embedding = engine.embed(image)
        points, signs = torch.tensor([[30.0, 20.0]]).numpy(), torch.tensor([True]).numpy()
        masks.append(engine.decode(embedding, points_xy_px=points, is_positive=signs, size_hw=(40, 60), multimask=True).logits)
    assert torch.equal(*masks)
