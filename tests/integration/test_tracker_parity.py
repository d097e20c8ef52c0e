"""Our tracker against transformers' video predictor on the same weights: small in size, real in every part."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from video_oracle import VideoOracle, disc_frames

from sam2_backend.checkpoints import load
from sam2_backend.network import Sam2Network
from sam2_backend.settings import Settings
from sam2_backend.tracker import Tracker, TrackerOptions, TrackerPrompt

CPU = torch.device("cpu")
SIDE = 256
N_FRAMES = 30
#: Centre at frame 0, its motion per frame, radius; all px.
DISCS = [(80, 80, 4, 1, 30), (150, 150, -2, 2, 25), (60, 190, 3, -2, 20), (200, 60, -3, 1, 28), (128, 30, 0, 5, 18)]
MEMORY_PARTS = ("memory_", "obj_ptr_", "maskmem_", "no_obj_", "no_mem_pos_enc", "mask_downsample.")


def shipped() -> Sam2Network:
    return load(Settings(model="demo")).network()


def with_random_memory(*, is_v21: bool) -> Sam2Network:
    """The shipped image network, whose memory is noise of a size that reaches the masks: what objects remember moves their logits."""
    checkpoint = load(Settings(model="demo"))
    network = Sam2Network(dataclasses.replace(checkpoint.config, is_v21=is_v21))
    network.load_state_dict(checkpoint.state_dict, strict=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith(MEMORY_PARTS):
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
                parameter.normal_(0, 1 / math.sqrt(max(fan_in, 1)), generator=generator)
        network.memory_attention.norm.weight += 1
        network.memory_attention.norm.bias *= 0.1
        for layer in network.memory_attention.layers:
            layer.cross_attn_image.v_proj.weight *= 2
            layer.cross_attn_image.k_proj.weight *= 2
        network.memory_encoder.mask_downsampler.encoder[-1].weight *= 10
    return network.fold()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Discs that move over a blurred ground, (30, 3, 256, 256)."""
    return disc_frames(DISCS, N_FRAMES, SIDE)


def prompt(kind: str, disc: int, frame_idx: int) -> TrackerPrompt:
    """A prompt on a disc, which gives the object its name."""
    x0, y0, dx, dy, r = DISCS[disc]
    x, y = x0 + dx * frame_idx, y0 + dy * frame_idx
    if kind == "mask":
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        return TrackerPrompt(str(disc), mask=(columns - x) ** 2 + (rows - y) ** 2 < (0.8 * r) ** 2)
    corners, centre, outside = [(x - r, y - r, 2), (x + r, y + r, 3)], [(x, y, 1)], [(x + 2 * r, y, 0)]
    points = {"click": centre, "clicks": centre + outside, "box": corners, "box and click": corners + outside}[kind]
    return TrackerPrompt(str(disc), torch.tensor([p[:2] for p in points]).float(), torch.tensor([p[2] for p in points]))


class Race:
    """Both trackers over the same frames; every answer is compared."""

    def __init__(self, network: Sam2Network, frames: torch.Tensor, **options) -> None:
        self.ours = Tracker(network, CPU, options=TrackerOptions(**options))
        self.theirs = VideoOracle(network, frames)
        with torch.inference_mode():
            self.features = [network.encode(frame[None]) for frame in frames]
        self.worst, self.masks_agree, self.orders_agree, self.apart, self.n_frames = 0.0, 1.0, 1.0, 0.0, 0

    def prompt(self, frame_idx: int, prompts: list[TrackerPrompt], *, reverse: bool = False) -> None:
        found = self.ours.prompt(frame_idx, self.features[frame_idx], prompts, reverse=reverse)
        theirs = self.theirs.prompt(frame_idx, prompts, reverse=reverse)
        self._compare(found, theirs)

    def step(self, frame_idx: int, *, reverse: bool = False) -> None:
        theirs = self.theirs.step(frame_idx, reverse=reverse)
        found = self.ours.step(frame_idx, self.features[frame_idx], reverse=reverse)
        assert set(found.object_ids) == set(theirs)
        self._compare(found, theirs)
        self.n_frames += 1

    def _compare(self, found, theirs) -> None:
        expected = torch.stack([theirs[object_id] for object_id in found.object_ids])
        self.worst = max(self.worst, float((found.logits - expected).abs().max()))
        if len(expected) > 1:
            self.apart = max(self.apart, float((expected[0] - expected[1]).abs().max()))
        ours, reference = (F.interpolate(t[:, None], (SIDE, SIDE), mode="bilinear") for t in (found.logits, expected))
        self.masks_agree = min(self.masks_agree, agreement(ours > 0, reference > 0))
        middle = reference.flatten(1).median(1).values[:, None, None, None]  # a harder question where a mask is small
        self.orders_agree = min(self.orders_agree, agreement(ours > middle, reference > middle))

    def finish(self) -> None:
        print(
            f"{self.n_frames} frames: max |Δ logit| {self.worst:.1e}, masks agree {self.masks_agree:.6f}, "
            f"above the median {self.orders_agree:.6f}, objects apart {self.apart:.1f}"
        )
        assert self.masks_agree >= 0.9999
        assert self.orders_agree >= 0.9995
        assert self.worst < 1e-2


def agreement(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """The least share of pixels of one object that are equal."""
    return float((ours == reference).float().mean((1, 2, 3)).min())


@pytest.fixture(scope="module")
def network() -> Sam2Network:
    return with_random_memory(is_v21=True)


@pytest.mark.parametrize("n_objects", [1, 2])
def test_thirty_frames_are_the_references(network, frames, n_objects):
    race = Race(network, frames)
    race.prompt(0, [prompt(kind, disc, 0) for disc, kind in enumerate(("box", "click")[:n_objects])])
    for frame_idx in range(1, N_FRAMES):
        race.step(frame_idx)
    race.finish()
    assert n_objects == 1 or race.apart > 1.0  # objects remember different things


EVERY_KIND = ("click", "box", "mask", "clicks", "box and click")


def five_objects_a_late_one_and_corrections(race: Race) -> None:
    """Four from the start, the fifth from frame 9; two are corrected on 12, one of them again on 20, by its mask."""
    race.prompt(0, [prompt(kind, disc, 0) for disc, kind in enumerate(EVERY_KIND[:4])])
    for frame_idx in range(1, N_FRAMES):
        race.step(frame_idx)
        if frame_idx == 9:
            race.prompt(9, [prompt(EVERY_KIND[4], 4, 9)])
        if frame_idx == 12:
            race.prompt(12, [prompt("clicks", 0, 12), prompt("click", 2, 12)])
        if frame_idx == 20:
            race.prompt(20, [prompt("mask", 0, 20)])
    race.finish()


def test_five_objects_every_kind_of_prompt_a_late_object_and_corrections_are_the_references(network, frames):
    race = Race(network, frames)
    five_objects_a_late_one_and_corrections(race)
    assert race.apart > 1.0


def test_sam_2_0_reads_pointers_without_their_times_as_the_reference(frames):
    five_objects_a_late_one_and_corrections(Race(with_random_memory(is_v21=False), frames))


def test_the_shipped_checkpoint_tracks_as_the_reference_does(frames):
    five_objects_a_late_one_and_corrections(Race(shipped(), frames))


def test_backwards_is_the_references_and_a_correction_too(network, frames):
    race = Race(network, frames)
    race.prompt(29, [prompt("box", 0, 29), prompt("click", 1, 29)], reverse=True)
    for frame_idx in range(28, -1, -1):
        race.step(frame_idx, reverse=True)
        if frame_idx == 15:
            race.prompt(15, [prompt("clicks", 1, 15)], reverse=True)
    race.finish()


def test_forwards_then_backwards_from_the_middle_is_the_references(network, frames):
    """The way back reads what the way forward left close to the keyframe, as long as it is there: here the video ends in time."""
    race = Race(network, frames)
    race.prompt(24, [prompt("box", 0, 24), prompt("click", 1, 24)])
    for frame_idx in range(25, N_FRAMES):
        race.step(frame_idx)
    for frame_idx in range(23, 3, -1):
        race.step(frame_idx, reverse=True)
    race.finish()


def test_keyframes_in_the_past_and_in_the_future_are_read_as_the_reference_reads_them(network, frames):
    race = Race(network, frames)
    race.prompt(0, [prompt("box", 0, 0)])
    race.prompt(18, [prompt("click", 0, 18)])
    race.prompt(25, [prompt("mask", 0, 25)])
    for frame_idx in range(1, N_FRAMES):
        race.step(frame_idx)
    race.finish()


def test_a_short_video_measures_time_as_the_reference_does(network, frames):
    race = Race(network, frames[:10], n_frames=10)
    race.prompt(0, [prompt("box", 0, 0), prompt("click", 1, 0)])
    for frame_idx in range(1, 10):
        race.step(frame_idx)
    race.finish()
