"""Examples as the tracker's memory; on a small network with random weights, whose masks mean nothing but are always the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sam2_backend.dataset_messages import SimilarOptions
from sam2_backend.engine import Sam2Engine
from sam2_backend.errors import BadCheckpointError
from sam2_backend.masks import mask_from_runs, runs_from_mask
from sam2_backend.settings import Settings
from sam2_backend.similar import Memory, masks_like, parts_of
from sam2_backend.tracker import Tracker, TrackerOptions, TrackerPrompt

SIZE_HW = (60, 90)


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    return Sam2Engine.load(Settings(model="random:nano", device="cpu", torch_threads=1))


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)


def disc(x_px: int, radius_px: int = 15) -> np.ndarray:
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    return np.hypot(x - x_px, y - 30) < radius_px


def remembered(engine: Sam2Engine, *examples: tuple[str, int]) -> Memory:
    memory = Memory.empty(engine)
    for label, seed in examples:
        memory.add(label, engine.embed(photo(seed)), disc(20 + 10 * seed))
    return memory


class Surely:
    """A tracker that says that everything is there."""

    def __init__(self, tracker: Tracker, object_logit: float) -> None:
        self._tracker, self._logit = tracker, object_logit

    def step(self, *arguments):
        found = self._tracker.step(*arguments)
        logits = torch.zeros_like(found.logits) - 1
        logits[:, 4:20, 4:20] = 1
        logits[:, 40:44, 40:50] = 1
        return dataclasses.replace(found, logits=logits, object_scores=torch.full_like(found.object_scores, self._logit))

    def forget_tracked(self):
        self._tracker.forget_tracked()


def test_the_memory_is_what_the_tracker_makes_of_prompted_frames(engine):
    memory, target = remembered(engine, ("Cat", 1), ("Cat", 2), ("Dog", 3)), engine.embed(photo(9))
    tracker = Tracker(engine.network, engine.device, engine.dtype, TrackerOptions(max_prompted=6))
    for label, frame_idx, seed in (("Cat", 0, 1), ("Cat", 1, 2), ("Dog", 0, 3)):
        prompt = TrackerPrompt(label, mask=torch.from_numpy(disc(20 + 10 * seed)))
        tracker.prompt(frame_idx, engine.embed(photo(seed)).maps, [prompt])
    expected = tracker.step(16, target.maps)
    found = memory.tracker.step(16, target.maps)
    assert found.object_ids == ("Cat", "Dog")
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.object_scores, expected.object_scores)


def test_an_image_does_not_depend_on_the_images_before_it(engine):
    memory, target = remembered(engine, ("Cat", 1), ("Dog", 2)), engine.embed(photo(9))
    first = masks_like(engine, memory, target, SIZE_HW)
    bytes_before = memory.nbytes
    for seed in (10, 11):
        masks_like(engine, memory, engine.embed(photo(seed)), SIZE_HW)
    assert masks_like(engine, memory, target, SIZE_HW) == first
    assert memory.nbytes == bytes_before


def test_a_time_limit_in_the_middle_leaves_no_trace(engine, monkeypatch):
    memory, target = remembered(engine, ("Cat", 1), ("Dog", 2)), engine.embed(photo(9))
    first = masks_like(engine, memory, target, SIZE_HW)
    with monkeypatch.context() as patch:
        patch.setattr(memory.tracker, "_answer", lambda _found: (_ for _ in ()).throw(TimeoutError))
        with pytest.raises(TimeoutError):
            masks_like(engine, memory, engine.embed(photo(10)), SIZE_HW)
    assert not any(kept.tracked for kept in memory.tracker._objects.values())
    assert masks_like(engine, memory, target, SIZE_HW) == first


def test_a_label_that_is_there_comes_with_its_confidence(engine):
    memory = remembered(engine, ("Cat", 1), ("Dog", 2))
    memory.tracker = Surely(memory.tracker, 2.0)
    found = masks_like(engine, memory, engine.embed(photo(9)), SIZE_HW)
    assert [mask.label for mask in found] == ["Cat", "Dog"]
    assert [mask.score for mask in found] == pytest.approx([1 / (1 + np.exp(-2.0))] * 2)
    assert all(mask.runs.size_hw == SIZE_HW for mask in found)


def test_a_label_that_is_not_there_has_no_mask(engine):
    memory = remembered(engine, ("Cat", 1))
    memory.tracker = Surely(memory.tracker, -0.1)
    assert masks_like(engine, memory, engine.embed(photo(9)), SIZE_HW) == []


def test_parts_become_regions_of_their_own_where_they_are_wanted_apart(engine):
    memory = remembered(engine, ("Cat", 1))
    memory.tracker = Surely(memory.tracker, 2.0)
    target = engine.embed(photo(9))
    [one] = masks_like(engine, memory, target, SIZE_HW)
    two = masks_like(engine, memory, target, SIZE_HW, SimilarOptions(splits_parts=True))
    assert [mask.label for mask in two] == ["Cat", "Cat"]
    assert two[0].area_px > two[1].area_px
    assert sum(mask.area_px for mask in two) == one.area_px


def test_specks_beside_a_large_part_are_no_objects():
    mask = disc(30) | disc(70, 8)
    mask[0, 0] = True
    first, second = (mask_from_runs(part) for part in parts_of(runs_from_mask(mask)))
    assert np.array_equal(first, disc(30))
    assert np.array_equal(second, disc(70, 8))


def test_only_so_many_examples_are_read(engine):
    few = Memory.empty(engine, SimilarOptions(max_examples=2))
    for seed in (1, 2, 3, 4):
        few.add("Cat", engine.embed(photo(seed)), disc(20 + 10 * seed))
    reading = few.tracker._objects["Cat"].reading(16, reverse=False, max_prompted=few.tracker._options.max_prompted)
    assert len(reading.maps) == 2


def test_a_model_without_memory_says_so(engine, monkeypatch):
    monkeypatch.setattr(engine.network, "config", dataclasses.replace(engine.network.config, has_memory=False))
    with pytest.raises(BadCheckpointError, match="images alone"):
        Memory.empty(engine)
