"""EdgeTAM in our tracker against transformers' EdgeTamVideoModel on the same random weights: small in size, real in every part."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import EdgeTamVideoConfig, EdgeTamVideoMaskDecoderConfig, EdgeTamVideoModel, EdgeTamVideoPromptEncoderConfig
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from edgetam_reference import DIM, SIDE, randomize, vision_config
from video_oracle import VideoOracle, disc_frames

from sam2_backend.checkpoints import load
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import BadCheckpointError
from sam2_backend.settings import Settings
from sam2_backend.tracker import Tracker, TrackerOptions, TrackerPrompt

CPU = torch.device("cpu")
N_FRAMES, N_LATENTS, N_WINDOWS = 9, 12, 4
#: Centre at frame 0, its motion per frame, radius; all px.
DISCS = [(80, 80, 4, 1, 30), (150, 150, -2, 2, 25)]


def reference_model(*, is_v21: bool) -> EdgeTamVideoModel:
    """Its memory is noise of a size that reaches the masks: what objects remember moves their logits."""
    config = EdgeTamVideoConfig(
        vision_config=vision_config(),
        prompt_encoder_config=EdgeTamVideoPromptEncoderConfig(hidden_size=DIM, image_size=SIDE),
        mask_decoder_config=EdgeTamVideoMaskDecoderConfig(hidden_size=DIM, mlp_dim=128, iou_head_hidden_dim=128),
        image_size=SIDE,
        memory_attention_hidden_size=DIM,
        memory_attention_mlp_hidden_size=96,
        memory_attention_rope_feat_sizes=[SIDE // 16] * 2,
        memory_attention_rope_k_sizes=[N_WINDOWS] * 2,
        memory_encoder_hidden_size=DIM,
        mask_downsampler_embed_dim=DIM,
        memory_fuser_embed_dim=DIM,
        memory_fuser_intermediate_dim=4 * DIM,
        perceiver_resampler_num_latents=N_LATENTS,
        perceiver_resampler_num_latents_2d=N_WINDOWS**2,
        perceiver_resampler_mlp_intermediate_size=80,
        enable_temporal_pos_encoding_for_object_pointers=is_v21,
        enable_occlusion_spatial_embedding=is_v21,
    )
    model = EdgeTamVideoModel(config).eval().requires_grad_(requires_grad=False)
    randomize(model)
    for name, parameter in model.named_parameters():
        if "layer_norm" in name and name.endswith("weight") and name.startswith(("memory_", "spatial_perceiver")):
            parameter += 1
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.k_proj.weight *= 20
        layer.cross_attn_image.v_proj.weight *= 4
        layer.cross_attn_image.o_proj.weight *= 3
    for layer in model.spatial_perceiver.layers:
        layer.cross_attention.k_proj.weight *= 8
    model.memory_attention.layer_norm.weight *= 4
    model.memory_encoder.mask_downsampler.final_conv.weight *= 10
    return model


def saved(model: EdgeTamVideoModel, folder: Path) -> Sam2Engine:
    model.save_pretrained(folder)
    return Sam2Engine.load(Settings(model=f"edgetam:{folder}", device="cpu", torch_threads=1))


class EdgeTamOracle(VideoOracle):
    """EdgeTamVideoModel, mended as Sam2VideoModel is.

    Beyond that, what it says of a mask prompt's object score gets the shape that it has elsewhere, without which masks and points on
    one frame fail.
    """

    def __init__(self, model: EdgeTamVideoModel, frames: torch.Tensor) -> None:
        self.model = model
        self.session = EdgeTamVideoInferenceSession(video=frames, video_height=SIDE, video_width=SIDE, dtype=torch.float32)
        self._mend_prompts()
        as_output = model._use_mask_as_output

        def as_output_shaped(*arguments):
            out = as_output(*arguments)
            out.object_score_logits = out.object_score_logits[None]
            return out

        model._use_mask_as_output = as_output_shaped


class Race:
    """Both trackers over the same frames; every answer is compared.

    Memories stay in float32 here, as transformers keeps EdgeTAM's: rounded to bfloat16, a last digit of one becomes a 256th.
    """

    def __init__(self, model: EdgeTamVideoModel, folder: Path, frames: torch.Tensor) -> None:
        self.engine = saved(model, folder)
        self.ours = Tracker(self.engine.network, CPU, options=TrackerOptions(n_frames=N_FRAMES))
        self.ours._heads.remember = self.engine.network.remember
        self.theirs = EdgeTamOracle(model, frames)
        with torch.inference_mode():
            self.features = [self.engine.network.encode(frame[None]) for frame in frames]
        self.worst, self.orders_agree, self.apart, self.are_there = 0.0, 1.0, float("inf"), []

    def prompt(self, frame_idx, prompts, *, reverse=False):
        found = self.ours.prompt(frame_idx, self.features[frame_idx], prompts, reverse=reverse)
        self._compare(found, self.theirs.prompt(frame_idx, prompts, reverse=reverse))

    def step(self, frame_idx, *, reverse=False):
        theirs = self.theirs.step(frame_idx, reverse=reverse)
        found = self.ours.step(frame_idx, self.features[frame_idx], reverse=reverse)
        assert set(found.object_ids) == set(theirs)
        self._compare(found, theirs)

    def _compare(self, found, theirs):
        expected = torch.stack([theirs[object_id] for object_id in found.object_ids])
        self.worst = max(self.worst, float((found.logits - expected).abs().max()))
        middle = expected.flatten(1).median(1).values[:, None, None]  # a harder question than 0 where a mask is small
        for threshold in (middle, 0):
            agree = ((found.logits > threshold) == (expected > threshold)).float().mean((1, 2))
            self.orders_agree = min(self.orders_agree, float(agree.min()))
        if len(expected) > 1:
            self.apart = min(self.apart, float((expected[0] - expected[1]).abs().max()))
        self.are_there.append((found.object_scores > 0).tolist())

    def finish(self):
        print(f"max |Δ logit| {self.worst:.1e}, masks agree {self.orders_agree:.6f}, objects at least {self.apart:.3f} apart")
        assert self.orders_agree >= 0.999
        assert self.worst < 1e-4


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Discs that move over a blurred ground, (9, 3, 256, 256)."""
    return disc_frames(DISCS, N_FRAMES, SIDE)


def prompt(kind: str, disc: int, frame_idx: int) -> TrackerPrompt:
    x0, y0, dx, dy, r = DISCS[disc]
    x, y = x0 + dx * frame_idx, y0 + dy * frame_idx
    if kind == "mask":
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        return TrackerPrompt(str(disc), mask=(columns - x) ** 2 + (rows - y) ** 2 < r**2)
    points = {"box": [(x - r, y - r, 2), (x + r, y + r, 3)], "click": [(x, y, 1)], "clicks": [(x, y, 1), (x + 2 * r, y, 0)]}[kind]
    return TrackerPrompt(str(disc), torch.tensor([p[:2] for p in points]).float(), torch.tensor([p[2] for p in points]))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "tiny-edgetam"


@pytest.mark.parametrize("is_v21", [False, True], ids=["as published", "with the parts of SAM 2.1"])
@pytest.mark.parametrize("kinds", [("box", "click"), ("mask", "clicks")])
def test_two_objects_and_a_correction_are_the_references(frames, folder, kinds, is_v21):
    race = Race(reference_model(is_v21=is_v21), folder, frames)
    race.prompt(0, [prompt(kind, disc, 0) for disc, kind in enumerate(kinds)])
    for frame_idx in range(1, N_FRAMES):
        race.step(frame_idx)
        if frame_idx == 5:
            race.prompt(5, [prompt("clicks", 1, 5)])
    race.finish()
    assert race.apart > 1000 * race.worst  # objects remember different things


def test_backwards_is_the_references(frames, folder):
    race = Race(reference_model(is_v21=False), folder, frames)
    race.prompt(8, [prompt("box", 0, 8), prompt("mask", 1, 8)], reverse=True)
    for frame_idx in range(7, 1, -1):
        race.step(frame_idx, reverse=True)
    race.finish()


@pytest.mark.parametrize("is_v21", [False, True])
def test_an_object_that_is_lost_is_remembered_as_the_reference_remembers_it(frames, folder, is_v21):
    model = reference_model(is_v21=is_v21)
    model.mask_decoder.pred_obj_score_head.proj_out.bias -= 10
    race = Race(model, folder, frames)
    race.prompt(0, [prompt("mask", 0, 0), prompt("mask", 1, 0)])
    for frame_idx in range(1, 4):
        race.step(frame_idx)
    assert race.are_there == [[True, True]] + 3 * [[False, False]]
    model.mask_decoder.pred_obj_score_head.proj_out.bias += 10
    race.engine.network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias += 10
    for frame_idx in range(4, 7):
        race.step(frame_idx)
    assert race.are_there[4:] == 3 * [[True, True]]
    race.finish()


def test_a_tracker_made_of_bytes_goes_on_as_the_first(frames, folder):
    engine = saved(reference_model(is_v21=False), folder)
    with torch.inference_mode():
        features = [engine.network.encode(frame[None]) for frame in frames[:4]]
    tracker = Tracker(engine.network, CPU)
    tracker.prompt(0, features[0], [prompt("box", 0, 0), prompt("click", 1, 0)])
    tracker.step(1, features[1])
    resumed = Tracker.from_bytes(tracker.to_bytes(), engine.network, CPU)
    for frame_idx in (2, 3):
        found, expected = (one.step(frame_idx, features[frame_idx]) for one in (resumed, tracker))
        assert torch.equal(found.logits, expected.logits)


def test_a_network_that_is_not_folded_remembers_and_reads_the_same(folder):
    reference_model(is_v21=False).save_pretrained(folder)
    checkpoint = load(Settings(model=f"edgetam:{folder}"))
    folded, plain = checkpoint.network(), checkpoint.kind(checkpoint.config)
    plain.load_state_dict(checkpoint.state_dict)
    generator = torch.Generator().manual_seed(3)
    image, logits = torch.randn(1, DIM, 16, 16, generator=generator), torch.randn(2, 1, 64, 64, generator=generator)
    pointers = [torch.randn(2, DIM, generator=generator)]
    conditioned = []
    for network in (folded, plain.eval()):
        maps = network.remember(image, logits, torch.ones(2, 1), binarize=False)
        assert maps.shape == (2, 64, N_LATENTS + N_WINDOWS**2)
        memory = network.memory_tokens([maps, maps], [0, 1], pointers)
        conditioned.append(network.condition(image, memory))
    torch.testing.assert_close(conditioned[0], conditioned[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"perceiver_resampler_num_attention_heads": 2}, "perceiver_resampler_num_attention_heads is 2, and only 1 is known"),
        ({"memory_attention_rope_k_sizes": [8, 8]}, "windowed latents do not divide a memory map of 16 × 16 cells"),
    ],
)
def test_a_memory_of_an_unknown_kind_is_refused(folder, setting, complaint):
    reference_model(is_v21=False).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | setting))
    with pytest.raises(BadCheckpointError, match=complaint):
        load(Settings(model=f"edgetam:{folder}"))
