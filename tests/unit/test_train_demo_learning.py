"""How the demo checkpoint is taught: losses, courses that go on where they stopped, and following that is the tracker's."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from checkpoints.train_demo import trainer as trainer_module
from checkpoints.train_demo.batches import Batch, BatchSize, normalised
from checkpoints.train_demo.clip_batches import ClipBatch
from checkpoints.train_demo.clip_loss import clip_loss
from checkpoints.train_demo.export import exported
from checkpoints.train_demo.follow import Bank, answer, answer_to_mask, of_tracks, remembered
from checkpoints.train_demo.losses import decoder_loss, mask_loss, measured_iou
from checkpoints.train_demo.optimisers import optimisers
from checkpoints.train_demo.start import with_memory
from checkpoints.train_demo.train import Phase, batch_loss
from checkpoints.train_demo.trainer import Course, Trainer
from sam2_backend.checkpoints import RANDOM_CONFIGS
from sam2_backend.network import NetworkConfig, Sam2Network, random_network
from sam2_backend.tracker import Tracker, TrackerPrompt

SIDE, N_FRAMES, N_TRACKS = 64, 5, 2
CONFIG = dataclasses.replace(RANDOM_CONFIGS["nano"], image_size=SIDE)


@pytest.fixture
def network() -> Sam2Network:
    made = random_network(CONFIG, 1)
    made.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(2.0)  # most objects are there
    return with_memory(made, torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def clip() -> ClipBatch:
    """One clip of noise in which two squares move to the right, the second out of the picture."""
    masks = torch.zeros(N_TRACKS, N_FRAMES, SIDE, SIDE, dtype=torch.bool)
    for frame in range(N_FRAMES):
        masks[0, frame, 8:28, 4 + 4 * frame : 24 + 4 * frame] = True
        masks[1, frame, 36:56, 40 + 8 * frame : 60 + 8 * frame] = True
    pictures = torch.randint(0, 256, (N_FRAMES, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return ClipBatch(normalised(pictures.numpy())[None], masks, torch.zeros(N_TRACKS, dtype=torch.long))


def test_following_is_what_the_tracker_does(network, clip):
    """The tracker keeps its memory in half precision; the masks are the same all the same."""
    folded = random_network(CONFIG, 1)
    folded.load_state_dict(network.state_dict())
    tracker = Tracker(folded.fold(), torch.device("cpu"))
    bank = Bank()
    with torch.no_grad():
        features = network.encode(clip.images[0])
        for frame in range(N_FRAMES):
            single = tuple(part[frame : frame + 1] for part in features)
            shown = of_tracks(features, torch.full((N_TRACKS,), frame))
            if frame == 0:
                tracker.prompt(0, single, [TrackerPrompt(str(i), mask=mask) for i, mask in enumerate(clip.masks[:, 0])])
                given = answer_to_mask(network, shown, clip.masks[:, 0])
                bank.prompted.append((0, *remembered(network, shown[2], given, truth=clip.masks[:, 0], is_prompted=True)))
            else:
                expected = tracker.step(frame, single).logits
                given = answer(network, shown, bank.condition(network, shown[2], frame), None)
                bank.tracked.append((frame, *remembered(network, shown[2], given, truth=None, is_prompted=False)))
                there = given.out.object_logits[:, 0] > 0
                assert there.any()
                assert torch.equal(there, (expected > -1000).flatten(1).any(1))
                assert torch.allclose(given.mask_logits[there], expected[there], atol=0.05 * float(expected[there].std()))


@pytest.mark.parametrize("seed", range(4))
def test_a_clip_teaches_every_part_of_the_memory(network, clip, seed):
    loss = clip_loss(network, clip, torch.Generator().manual_seed(seed), truth_share=0.0)
    loss.backward()
    untaught = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not {name for name in untaught if name.startswith(("memory_", "obj_ptr_", "maskmem"))}


def test_the_same_seed_gives_the_same_loss_of_a_clip(network, clip):
    one, again, other = (float(clip_loss(network, clip, torch.Generator().manual_seed(s), truth_share=0.5).detach()) for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_courses_learn_in_the_half_precision_of_a_gpu(network, clip):
    phase = Phase(1.0, BatchSize(SIDE, images=N_FRAMES, prompts_per_image=N_TRACKS, fresh_images=1), (0.0, 1.0, 0.0, 0.0))
    pictures = Batch(clip.images[0], clip.masks.transpose(0, 1).flatten(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        losses = [clip_loss(network, clip, torch.Generator().manual_seed(1), truth_share=0.0)]
        losses.append(batch_loss(network, pictures, phase, torch.Generator().manual_seed(1)))
    for loss in losses:
        assert loss.dtype == torch.float32
        loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_memory_that_has_learnt_nothing_hands_the_image_on(network, clip):
    with torch.no_grad():
        image = network.encode(clip.images[0])[2]
        memory = network.memory_tokens([torch.zeros(1, CONFIG.memory_dim, *image.shape[2:])], [0])
        handed_on, wanted = network.condition(image, memory), image + network.no_mem_embed.view(1, -1, 1, 1)
    assert torch.nn.functional.cosine_similarity(handed_on.flatten(1), wanted.flatten(1)).min() > 0.9


def test_a_perfect_mask_costs_next_to_nothing_and_the_best_of_three_is_taught():
    truth = torch.zeros(1, 16, 16)
    truth[:, 4:12, 4:12] = 1
    right, wrong = (truth * 2 - 1) * 12, (1 - truth * 2) * 12
    assert float(mask_loss(right[:, None], truth)) < 0.01
    assert float(mask_loss(wrong[:, None], truth)) > 1
    assert measured_iou(torch.stack([right, wrong], 1), truth).tolist() == [[1.0, 0.0]]
    one_right = torch.stack([right, wrong, right, wrong], 1)
    all_wrong = torch.stack([right, wrong, wrong, wrong], 1)
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert float(decoder_loss(one_right, scores, truth)) < float(decoder_loss(all_wrong, scores, truth))


def test_sure_scores_of_a_right_mask_stay_finite_in_half_precision():
    truth = torch.ones(1, 8, 8)
    logits = torch.full((1, 4, 8, 8), 20.0, dtype=torch.bfloat16)
    loss = decoder_loss(logits, torch.ones(1, 4, dtype=torch.bfloat16), truth)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_every_taught_parameter_has_one_optimiser_and_its_share_of_the_rate(network):
    made = optimisers(network, 1e-3, {"memory_": 1.0, "sam_mask_decoder.": 0.2})
    taught = {name: p for name, p in network.named_parameters() if name.startswith(("memory_", "sam_mask_decoder."))}
    groups = [group for optimiser in made for group in optimiser.param_groups]
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in taught.values())
    slow = {id(p) for group in groups if group["share"] == 0.2 for p in group["params"]}
    assert slow == {id(p) for name, p in taught.items() if name.startswith("sam_mask_decoder.")}


def course() -> Course:
    """Learns to make the single mask of a random click empty: cheap, and different at every step."""

    def loss(network: Sam2Network, step: int, done: float, generator: torch.Generator) -> torch.Tensor:
        assert 0 <= done <= 1
        images = torch.randn(1, 3, SIDE, SIDE, generator=generator)
        points = torch.rand(1, 1, 2, generator=generator) * SIDE
        out = network.decode(network.encode(images), points, torch.ones(1, 1, dtype=torch.long))
        return out.mask_logits.sigmoid().mean() + 0 * step

    shares = dict.fromkeys(("image_encoder.", "sam_"), 1.0)
    return Course("lesson", 3, lambda: random_network(CONFIG, 5), shares, 1e-2, loss, lambda _: {"figure": 0.5})


@pytest.fixture
def _even_time(monkeypatch):
    """Every look at the clock is half a second later: the schedule follows trained time."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 2, strftime=time.strftime)  # threads of other tests look at the real one
    monkeypatch.setattr(trainer_module, "time", clock)


@pytest.mark.usefixtures("_even_time")
def test_a_course_goes_on_where_it_stopped(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = Trainer(course(), tmp_path / "a", hours=0.01)
    for _ in range(4):
        straight.step()
    interrupted = Trainer(course(), tmp_path / "b", hours=0.01)
    for _ in range(2):
        interrupted.step()
    interrupted.save()
    resumed = Trainer(course(), tmp_path / "b", hours=0.01)
    assert resumed.progress == interrupted.progress
    for _ in range(2):
        resumed.step()
    assert resumed.progress == straight.progress
    for kept in ("network", "average"):
        expected = getattr(straight, kept).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in getattr(resumed, kept).state_dict().items())


@pytest.mark.usefixtures("_even_time")
def test_a_course_ends_with_its_best_weights_a_log_and_a_state(tmp_path):
    trainer = Trainer(course(), tmp_path, hours=3 / 3600)
    trainer.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lesson-best.pt", "lesson-log.jsonl", "lesson-state.pt"]
    assert trainer.progress.trained_s >= 3
    assert trainer.progress.loss < 1


def test_what_is_exported_is_half_precision_and_names_its_sizes(network):
    tensors, metadata = exported(network)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert tensors.keys() == network.state_dict().keys()
    assert NetworkConfig.from_json(json.loads(metadata["config"])) == CONFIG
