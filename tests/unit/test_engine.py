from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sam2_backend import checkpoints
from sam2_backend.checkpoints import RANDOM_CONFIGS
from sam2_backend.engine import ImageEmbedding, ObjectPrompt, Sam2Engine
from sam2_backend.errors import BadCheckpointError, GpuMemoryError, SettingsError
from sam2_backend.mask_logits import device_runs, is_stable
from sam2_backend.masks import runs_from_mask
from sam2_backend.network import DecoderOutput, random_network
from sam2_backend.preprocessing import Normalization
from sam2_backend.settings import Settings

CPU = torch.device("cpu")
CLICK = {"points_xy_px": np.array([[150.0, 10.0]]), "is_positive": np.array([True])}


@pytest.fixture(scope="module")
def engine():
    return Sam2Engine(checkpoints.load(Settings(model="random:nano", device="cpu")), CPU)


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (50, 200, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def embedding(engine, photo):
    return engine.embed(photo)


def smooth_logits(side: int, seed: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (side, side), mode="bicubic")[0, 0] * 5


def test_folding_changes_no_output():
    network = random_network(RANDOM_CONFIGS["nano"], 3).eval()
    pixels = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        slow = network.encode(pixels)
    network.fold()
    with torch.inference_mode():
        fast = network.encode(pixels)
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_a_network_learns_until_it_is_folded():
    network = random_network(RANDOM_CONFIGS["nano"], 3)
    out = network.decode(network.encode(torch.randn(2, 3, 256, 256)), torch.full((2, 1, 2), 128.0), torch.ones(2, 1, dtype=torch.long))
    out.mask_logits.square().mean().backward()
    assert network.image_encoder.trunk.patch_embed.proj.weight.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in network.fold().parameters())


def test_half_precision_of_the_encoder_leaves_the_rest_and_hardly_changes_the_maps():
    network = random_network(RANDOM_CONFIGS["nano"], 3).fold()
    pixels = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        full = network.encode(pixels)
        half = network.set_encoder_dtype(torch.bfloat16).encode(pixels.bfloat16())
    assert network.sam_mask_decoder.iou_token.weight.dtype == network._folded.grid_positions.dtype == torch.float32
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b).abs().mean() < 0.05 * a.abs().mean()


def test_an_embedding_survives_storage_bit_for_bit(engine, embedding):
    data = embedding.to_bytes()
    back = ImageEmbedding.from_bytes(memoryview(data), CPU, engine.dtype)
    assert all(torch.equal(a, b) and a.stride()[1:] == b.stride()[1:] for a, b in zip(embedding.maps, back.maps, strict=True))
    assert back.to_bytes() == data
    assert back.nbytes == embedding.nbytes == 2 * (len(data) - 44)
    assert [tuple(t.shape) for t in back.maps] == [(1, 16, 64, 64), (1, 32, 32, 32), (1, 128, 16, 16)]


@pytest.mark.parametrize("multimask", [True, False])
def test_cached_and_fresh_embeddings_give_identical_masks(engine, embedding, multimask):
    back = ImageEmbedding.from_bytes(embedding.to_bytes(), CPU, engine.dtype)
    a, b = (engine.decode(e, **CLICK, size_hw=(50, 200), multimask=multimask) for e in (embedding, back))
    assert torch.equal(a.logits, b.logits)
    assert torch.equal(a.scores, b.scores)


@pytest.mark.parametrize("cut", [0, 3, 44, 1001, -1])
def test_a_damaged_embedding_is_refused(embedding, cut):
    with pytest.raises(ValueError, match="embedding"):
        ImageEmbedding.from_bytes(embedding.to_bytes()[:cut], CPU, torch.float32)


@pytest.mark.parametrize("position", [0, 9, 43, 44, 5000])
def test_an_embedding_with_a_changed_byte_is_refused(embedding, position):
    data = bytearray(embedding.to_bytes())
    data[position] ^= 1
    with pytest.raises(ValueError, match="embedding"):
        ImageEmbedding.from_bytes(bytes(data), CPU, torch.float32)


@pytest.mark.parametrize("size_hw", [(333, 517), (40, 30), (256, 256), (2000, 300)])
def test_the_square_is_metas_transform_in_whole_grey_levels(engine, size_hw):
    image = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    image.setflags(write=False)
    pixels = torch.tensor(image).permute(2, 0, 1).float()[None]
    resized = F.interpolate(pixels, (256, 256), mode="bilinear", align_corners=False, antialias=True)
    found = engine.square(image)
    assert found.dtype == torch.uint8
    assert (found - resized).abs().max() <= 1.01  # two passes, each rounded
    assert (found - resized).abs().mean() <= 0.35


def test_grey_levels_are_normalised_as_the_networks_were_trained():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    torch.testing.assert_close(Normalization(CPU)(levels), (levels.float() / 255 - mean) / std, rtol=1e-6, atol=1e-6)


def prompt(points=(), signs=(), box=None, mask=None, size_hw=(50, 200), multimask=False):
    return ObjectPrompt(np.array(points, dtype=float).reshape(-1, 2), np.array(signs, dtype=bool), size_hw, multimask, box, mask)


def test_points_and_boxes_in_pixels_become_model_pixels_box_first():
    xy, labels = prompt([[150.0, 10.0], [0.0, 50.0]], [True, False], (20.0, 5.0, 200.0, 25.0)).model_points(256)
    np.testing.assert_allclose(xy, [[25.6, 25.6], [256.0, 128.0], [192.0, 51.2], [0.0, 256.0]])
    assert labels == [2, 3, 1, 0]


def test_a_mask_alone_is_prompted_by_an_empty_point():
    assert prompt().model_points(256)[1] == [-1]


def many_prompts(mask: torch.Tensor) -> list[ObjectPrompt]:
    """Every shape, mixed, some of each alike."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(14):
        points = rng.uniform([0, 0], [200, 50], (i % 4, 2))
        box = (5.0 * i, 3.0, 5.0 * i + 60, 40.0) if i % 3 == 0 else None
        made.append(prompt(points, rng.random(i % 4) < 0.7, box, mask if i % 5 == 0 else None, multimask=i % 2 == 0))
    return made


def several_images() -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 256, (50, 200 - 30 * i, 3), dtype=np.uint8) for i in range(3)]


def test_many_prompts_on_several_images_in_one_call_are_the_bytes_of_one_at_a_time(engine):
    embeddings = engine.embed_many(several_images())
    asked = list(zip(embeddings * 5, many_prompts(smooth_logits(64, 1)), strict=False))
    together = engine.decode_many(asked)
    alone = [engine.decode_many([one])[0] for one in asked]
    assert [len(found.scores) for found in together] == [3 if asked[i][1].multimask else 1 for i in range(14)]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.scores, b.scores)


def test_many_images_in_one_call_are_the_bytes_of_one_at_a_time(engine):
    images = several_images()
    assert [e.to_bytes() for e in engine.embed_many(images)] == [engine.embed(image).to_bytes() for image in images]


@pytest.mark.parametrize("n_images", [1, 3])
def test_batches_as_on_a_gpu_give_the_same_masks_within_rounding(engine, monkeypatch, n_images):
    asked = list(zip(engine.embed_many(several_images()[:n_images]) * 14, many_prompts(smooth_logits(64, 1)), strict=False))
    alone = engine.decode_many(asked)
    monkeypatch.setattr(engine, "prompts_per_batch", 3)
    batches = []
    decode = engine.network.decode
    monkeypatch.setattr(engine.network, "decode", lambda *args: batches.append(len(args[1])) or decode(*args))
    together = engine.decode_many(asked)
    assert max(batches) == 3
    assert sum(batches) == 14
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=2e-5)
        assert torch.equal(a.logits > 0, b.logits > 0)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_prompts_side_by_side_give_the_same_masks_within_rounding(engine, monkeypatch, n_threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    asked = list(zip(engine.embed_many(several_images()) * 14, many_prompts(smooth_logits(64, 1)), strict=False)) * 3
    alone, threads, decode = engine.decode_many(asked), set(), engine.network.decode
    monkeypatch.setattr(engine.network, "decode", lambda *args: threads.add(threading.get_ident()) or time.sleep(0.01) or decode(*args))
    together = engine.decode_many(asked, exact=False)
    assert len(threads) == n_threads
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=2e-5)
        assert torch.equal(a.logits > 0, b.logits > 0)


def test_an_error_beside_others_is_raised_and_the_next_prompts_are_answered(engine, embedding, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    asked = [(embedding, one) for one in many_prompts(smooth_logits(64, 1))]
    with monkeypatch.context() as broken:
        broken.setattr(engine.network, "decode", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))
        with pytest.raises(GpuMemoryError):
            engine.decode_many(asked, exact=False)
    assert len(engine.decode_many(asked, exact=False)) == len(asked)


def test_images_in_a_batch_as_on_a_gpu_give_the_same_embeddings_within_rounding(engine, monkeypatch):
    alone = engine.embed_many(several_images())
    monkeypatch.setattr(engine, "images_per_batch", 2)
    for a, b in zip(engine.embed_many(several_images()), alone, strict=True):
        for x, y in zip(a.maps, b.maps, strict=True):
            assert x.shape == y.shape
            assert x.stride()[1:] == y.stride()[1:]
            torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-3)  # a step of fp16


def test_nothing_asked_is_nothing_found(engine):
    assert engine.decode_many([]) == engine.embed_many([]) == []


def test_several_candidates_come_best_first(engine, embedding):
    found = engine.decode(embedding, **CLICK, size_hw=(50, 200), multimask=True)
    assert found.logits.shape == (3, 64, 64)
    assert found.logits.dtype == found.scores.dtype == torch.float32
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert len(set(found.scores.tolist())) == 3


def decoded_as(engine, monkeypatch, single: torch.Tensor) -> int:
    """Which of the four masks a single-mask decode takes, when the first is `single` and the third scores best."""
    masks = torch.stack([single, *(torch.full((64, 64), float(i)) for i in (1, 2, 3))])[None]
    out = DecoderOutput(masks, torch.tensor([[0.9, 0.2, 0.5, 0.1]]), torch.zeros(1, 4, 128), torch.zeros(1, 1))
    monkeypatch.setattr(engine._network, "decode", lambda *_: out)
    empty = ImageEmbedding(*(torch.zeros(1),) * 3)
    found = engine.decode(empty, **CLICK, size_hw=(50, 200), multimask=False)
    return [torch.equal(found.logits[0], mask) for mask in masks[0]].index(True)


def test_an_unstable_single_mask_gives_way_to_the_best_candidate_unless_switched_off(engine, monkeypatch):
    stable, unstable = torch.full((64, 64), -9.0), torch.full((64, 64), -9.0)
    stable[:32] = 9.0
    unstable[:32] = 0.01
    assert decoded_as(engine, monkeypatch, stable) == 0
    assert decoded_as(engine, monkeypatch, unstable) == 2
    monkeypatch.setattr(engine, "uses_stability", False)
    assert decoded_as(engine, monkeypatch, unstable) == 0


def test_an_empty_mask_is_stable():
    assert is_stable(torch.full((1, 4, 4), -1.0)).tolist() == [True]


@pytest.mark.parametrize("size_hw", [(300, 400), (1, 1), (61, 1023), (64, 64)])
def test_run_lengths_counted_on_a_device_equal_those_of_the_mask(engine, size_hw):
    logits = smooth_logits(64, sum(size_hw))
    for threshold in (0.0, -1.5, -1e9, 1e9):
        mask = engine.upsample(logits, size_hw, threshold)
        assert engine.runs(logits, size_hw, threshold) == runs_from_mask(mask) == device_runs(torch.from_numpy(mask))


@pytest.mark.parametrize("size_hw", [(300, 400), (1, 1), (61, 1023), (64, 64)])
def test_upsampling_equals_torchs(engine, size_hw):
    logits = smooth_logits(64, sum(size_hw))
    for threshold in (0.0, -1.5):
        expected = F.interpolate(logits[None, None], size_hw, mode="bilinear", align_corners=False)[0, 0] > threshold
        found = engine.upsample(logits, size_hw, threshold)
        assert found.shape == size_hw
        assert found.dtype == bool
        assert (found == expected.numpy()).mean() >= 0.9999


def test_a_mask_prompt_says_ten_inside_and_minus_ten_outside(engine):
    mask = np.zeros((100, 400), bool)
    mask[:50, 300:] = True  # the upper right
    logits = engine.mask_logits_from(mask)
    assert logits.shape == (64, 64)
    assert logits.dtype == torch.float32
    assert (logits[:31, 49:] == 10).all()
    assert (logits[33:] == -10).all()
    assert (logits[:, :47] == -10).all()


def test_a_thin_mask_is_not_lost_in_a_mask_prompt(engine):
    mask = np.zeros((1024, 1024), bool)
    mask[500:503] = True
    assert engine.mask_logits_from(mask).max() > -10
    assert engine.mask_logits_from(np.ones((8, 9), bool)).min() == 10


def test_a_full_device_is_our_error(engine, photo, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(engine._network, "encode", full)
    with pytest.raises(GpuMemoryError, match="SAM2_DEVICE_CACHE_BYTES"):
        engine.embed(photo)


def test_other_errors_of_torch_stay_what_they_are(engine, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine._network, "encode", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        engine.embed(np.zeros((4, 4, 3), np.uint8))


def test_a_device_that_is_not_there_stops_the_start():
    with pytest.raises(SettingsError, match="SAM2_DEVICE=cuda:9"):
        Sam2Engine.load(Settings(model="random:nano", device="cuda:9"))


def test_weights_that_are_not_finite_do_not_pass_the_warm_up():
    checkpoint = checkpoints.load(Settings(model="random:nano"))
    tensors = dict(checkpoint.state_dict)
    tensors["no_mem_embed"] = torch.full_like(tensors["no_mem_embed"], float("nan"))
    with pytest.raises(BadCheckpointError, match="not finite"):
        Sam2Engine(dataclasses.replace(checkpoint, state_dict=tensors), CPU).warm_up()


def test_loading_limits_torch_to_the_workers_share_and_says_random(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    loaded = Sam2Engine.load(Settings(model="random:nano", device="cpu", workers=4))
    Sam2Engine.load(Settings(model="random:nano", device="cpu", torch_threads=3))
    assert asked == [2, 3]
    assert loaded.model_version.startswith("random-weights-nano@")
    assert loaded.model_id.startswith("random:nano@")
    loaded.warm_up()


def test_an_encoder_run_that_lets_others_decode_in_between_makes_the_same_bytes(engine, photo, embedding):
    other = np.random.default_rng(1).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    alone, decoded = engine.embed(other), []
    shared = engine.embed(other, lambda: decoded.append(engine.decode(embedding, **CLICK, size_hw=photo.shape[:2], multimask=True)))
    assert shared.to_bytes() == alone.to_bytes()
    assert len(decoded) == sum(RANDOM_CONFIGS["nano"].stages), "between any two blocks"
    expected = engine.decode(embedding, **CLICK, size_hw=photo.shape[:2], multimask=True)
    assert all(torch.equal(found.logits, expected.logits) for found in decoded)
    assert engine.embed(other).to_bytes() == alone.to_bytes()
    assert len(decoded) == sum(RANDOM_CONFIGS["nano"].stages), "and later runs ask nobody"
