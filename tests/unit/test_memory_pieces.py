"""What training and tracking share of the network's memory: differentiable, the same folded, for any size of image and number of objects."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from sam2_backend.checkpoints import RANDOM_CONFIGS
from sam2_backend.network import MemoryTokens, Sam2Network, memory_attention, random_network
from sam2_backend.network.memory import sine_positions_1d

NANO = RANDOM_CONFIGS["nano"]
N_OBJECTS = 3


def two_frames(network: Sam2Network, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A click on the first image is followed to the second; in a batch of objects. Returns logits, scores and object logits."""
    first, second = (network.encode(image[None]) for image in images)
    side = images.shape[-1]
    points, labels = torch.full((N_OBJECTS, 1, 2), side / 2), torch.ones(N_OBJECTS, 1, dtype=torch.long)
    seen = network.decode(first, points, labels)
    pointer = network.pointer(seen.mask_tokens[:, 0], seen.object_logits)
    memory_map = network.remember(first[2], seen.mask_logits[:, :1], seen.object_logits, binarize=False)
    memory = network.memory_tokens([memory_map], [0], [pointer], torch.ones(1, 1))
    conditioned = network.condition(second[2], memory)
    nothing = torch.zeros(N_OBJECTS, 1, 2), torch.full((N_OBJECTS, 1), -1)
    out = network.decode_conditioned(second, conditioned, *nothing)
    return out.mask_logits, out.scores, out.object_logits


def pictures(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("is_v21", [True, False])
@pytest.mark.parametrize("side", [256, 128])
def test_a_loss_on_the_second_frame_reaches_every_part_of_the_memory(side, is_v21):
    network = random_network(dataclasses.replace(NANO, image_size=side, is_v21=is_v21), 1)
    network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(5.0)  # the object is there
    logits, scores, object_logits = two_frames(network, pictures(side))
    assert logits.shape == (N_OBJECTS, 4, side // 4, side // 4)
    (logits.square().mean() + scores.sum() + object_logits.sum()).backward()
    parts = ("memory_", "obj_ptr_", "maskmem_", "image_encoder.", "no_mem_embed")
    untouched = {name for name, p in network.named_parameters() if name.startswith(parts) and not (p.grad is not None and p.grad.any())}
    assert not untouched


@pytest.mark.parametrize("is_there", [True, False])
def test_an_object_that_is_gone_leaves_the_fixed_pointer_and_its_mark_in_the_memory_map(is_there):
    network = random_network(NANO, 2).fold()
    generator = torch.Generator().manual_seed(3)
    tokens, image = torch.randn(1, 128, generator=generator), torch.randn(1, 128, 16, 16, generator=generator)
    object_logits = torch.full((1, 1), 1.0 if is_there else -1.0)
    pointer = network.pointer(tokens, object_logits)
    assert torch.equal(pointer, network.no_obj_ptr) is not is_there
    drawn, empty = torch.full((1, 1, 64, 64), 5.0), torch.full((1, 1, 64, 64), -5000.0)
    maps = [network.remember(image, mask, object_logits, binarize=True) for mask in (drawn, empty)]
    assert torch.equal(*maps) is not is_there
    present = network.remember(image, empty, torch.ones(1, 1), binarize=True)
    expected = torch.zeros(1, 64) if is_there else network.no_obj_embed_spatial
    torch.testing.assert_close(maps[1] - present, expected[..., None, None].expand_as(present), atol=1e-5, rtol=0)


def test_a_folded_network_gives_the_same_masks():
    network = random_network(NANO, 4)
    with torch.no_grad():
        before = two_frames(network, pictures(256))
        after = two_frames(network.fold(), pictures(256))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_folded_network_serves_images_of_another_size_too():
    network = random_network(NANO, 5).fold()
    image = torch.randn(1, 128, 8, 8)
    memory = network.memory_tokens([torch.randn(2, 64, 8, 8)], [1])
    assert network.condition(image, memory).shape == (2, 128, 8, 8)


def test_a_batch_of_objects_equals_each_alone():
    network = random_network(NANO, 6).fold()
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(1, 128, 16, 16, generator=generator)
    maps = [torch.randn(N_OBJECTS, 64, 16, 16, generator=generator) for _ in range(3)]
    pointers = [torch.randn(N_OBJECTS, 128, generator=generator) for _ in range(2)]
    apart = torch.tensor([[4.0, 1.0], [5.0, 1.0], [9.0, 2.0]])
    together = network.condition(image, network.memory_tokens(maps, [0, 2, 1], pointers, apart))
    for i in range(N_OBJECTS):
        one = slice(i, i + 1)
        memory = network.memory_tokens([m[one] for m in maps], [0, 2, 1], [p[one] for p in pointers], apart[one])
        assert isinstance(memory, MemoryTokens)
        assert memory.n_pointer_tokens == 4
        torch.testing.assert_close(network.condition(image, memory), together[one], rtol=1e-4, atol=1e-5)


def test_sine_positions_of_numbers_are_the_original_transformers():
    found = sine_positions_1d(torch.tensor([0.0, 0.5]), 4)
    expected = [[0.0, 0.0, 1.0, 1.0], [torch.tensor(0.5).sin(), torch.tensor(0.5).sin(), torch.tensor(0.5).cos(), torch.tensor(0.5).cos()]]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("budget", [1 << 24, 5000, 1])
def test_attention_over_narrow_values_is_the_usual_attention_in_pieces_of_any_size(monkeypatch, budget):
    """All at once, some objects at a time, some rows of one object at a time."""
    monkeypatch.setattr(memory_attention, "_MAX_WEIGHTS", budget)
    monkeypatch.setattr(memory_attention, "_MIN_ROWS", 3)
    generator = torch.Generator().manual_seed(8)
    k, v = torch.randn(5, 40, 16, generator=generator), torch.randn(5, 40, 4, generator=generator)
    for n_queries in (5, 1):
        q = torch.randn(n_queries, 25, 16, generator=generator)
        with torch.no_grad():
            found = memory_attention.attend_narrow(q, k, v)
        expected = F.scaled_dot_product_attention(q.expand(5, -1, -1), k, v)
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_what_runs_on_the_cpu_is_what_is_trained_and_runs_elsewhere(monkeypatch):
    network = random_network(NANO, 9).fold()
    generator = torch.Generator().manual_seed(10)
    image = torch.randn(1, 128, 16, 16, generator=generator)
    maps = [torch.randn(N_OBJECTS, 64, 16, 16, generator=generator) for _ in range(3)]
    memory = network.memory_tokens(maps, [0, 2, 1], [torch.randn(N_OBJECTS, 128, generator=generator)], torch.ones(1, 1))
    fast = network.condition(image, memory)
    monkeypatch.setattr(memory_attention, "_is_plain", lambda _: False)
    torch.testing.assert_close(fast, network.condition(image, memory), rtol=1e-4, atol=1e-5)
