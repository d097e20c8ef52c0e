from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam2_backend import checkpoints
from sam2_backend.engine import ObjectPrompt, Sam2Engine
from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import ImagePrompt, MaskOptions, Point
from sam2_backend.refinement import LogitsCache, segment
from sam2_backend.settings import Settings

SIZE_HW = (40, 120)
CLICKS = tuple(Point(10.0 * i + 0.123, 3.0 * i + 0.5, i % 3 != 1) for i in range(10))
SQUARE = np.zeros(SIZE_HW, bool)
SQUARE[10:30, 40:70] = True
MASK = runs_from_mask(SQUARE)


class CountingEngine(Sam2Engine):
    """Remembers the prompts of each decode, and how many came together."""

    asked: list[ObjectPrompt]
    rounds: list[int]

    def decode_many(self, asked):
        self.asked += [prompt for _, prompt in asked]
        self.rounds.append(len(asked))
        return super().decode_many(asked)


@pytest.fixture(scope="module")
def _engine():
    return CountingEngine(checkpoints.load(Settings(model="random:nano", device="cpu")), torch.device("cpu"))


@pytest.fixture
def engine(_engine):
    _engine.asked, _engine.rounds = [], []
    return _engine


@pytest.fixture(scope="module")
def embedding(_engine):
    return _engine.embed(np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8))


def run(engine, embedding, prompt, cache, options=MaskOptions(), key="image", size_hw=SIZE_HW):
    [step] = segment(engine, embedding, key, [prompt], size_hw, options, cache)
    return (np.zeros(size_hw, bool), 0.0) if step is None else (engine.upsample(step.logits, size_hw, options.mask_threshold), step.score)


def test_the_tenth_click_costs_one_decode_and_equals_a_cold_start(engine, embedding):
    warm = LogitsCache(100)
    for n in range(1, 11):
        engine.asked.clear()
        mask, score = run(engine, embedding, ImagePrompt("a", CLICKS[:n]), warm)
        assert len(engine.asked) == 1
        cold_mask, cold_score = run(engine, embedding, ImagePrompt("b", CLICKS[:n]), LogitsCache(100))
        assert np.array_equal(mask, cold_mask)
        assert score == cold_score
    engine.asked.clear()
    run(engine, embedding, ImagePrompt("c", CLICKS), LogitsCache(100))
    assert len(engine.asked) == 10


def test_the_same_prompt_again_and_a_click_taken_back_cost_no_decode(engine, embedding):
    cache = LogitsCache(100)
    first = run(engine, embedding, ImagePrompt("a", CLICKS[:2]), cache)
    run(engine, embedding, ImagePrompt("a", CLICKS[:3]), cache)
    engine.asked.clear()
    again = run(engine, embedding, ImagePrompt("a", CLICKS[:2]), cache)
    assert not engine.asked
    assert np.array_equal(first[0], again[0])
    assert first[1] == again[1]


def test_one_lone_click_takes_the_best_of_three_and_every_later_step_one_mask(engine, embedding):
    run(engine, embedding, ImagePrompt("a", CLICKS[:3]), LogitsCache(100))
    assert [prompt.multimask for prompt in engine.asked] == [True, False, False]
    engine.asked.clear()
    run(engine, embedding, ImagePrompt("a", CLICKS[:3]), LogitsCache(100), MaskOptions(multimask=False))
    assert [prompt.multimask for prompt in engine.asked] == [False, False, False]


def test_each_step_sees_its_points_and_the_clamped_logits_of_the_step_before(engine, embedding, monkeypatch):
    decode_many = type(engine).decode_many

    def loud(self, asked):
        return [dataclasses.replace(found, logits=found.logits * 1000) for found in decode_many(self, asked)]

    monkeypatch.setattr(type(engine), "decode_many", loud)
    run(engine, embedding, ImagePrompt("a", CLICKS[:3]), LogitsCache(100))
    assert [len(prompt.points_xy_px) for prompt in engine.asked] == [1, 2, 3]
    assert engine.asked[0].mask_logits is None
    assert all(prompt.mask_logits.abs().max() == 32 for prompt in engine.asked[1:])
    assert engine.asked[2].points_xy_px.tolist() == [[p.x_px, p.y_px] for p in CLICKS[:3]]
    assert engine.asked[2].is_positive.tolist() == [True, False, True]


def test_points_up_to_the_first_positive_one_are_one_step(engine, embedding):
    points = (Point(1, 1, is_positive=False), Point(2, 2, is_positive=False), Point(60, 20), Point(3, 3, is_positive=False))
    run(engine, embedding, ImagePrompt("a", points), LogitsCache(100))
    assert [len(prompt.points_xy_px) for prompt in engine.asked] == [3, 4]
    assert not any(prompt.multimask for prompt in engine.asked)


def test_negative_clicks_alone_have_an_empty_mask(engine, embedding):
    mask, score = run(engine, embedding, ImagePrompt("a", (Point(5, 5, is_positive=False),)), LogitsCache(100))
    assert mask.shape == SIZE_HW
    assert not mask.any()
    assert score == 0.0
    assert not engine.asked


@pytest.mark.parametrize(
    "start", [{"box_xyxy_px": (40.0, 10.0, 70.0, 30.0)}, {"mask": MASK}, {"box_xyxy_px": (40.0, 10.0, 70.0, 30.0), "mask": MASK}]
)
def test_a_box_or_mask_is_the_first_step_and_every_point_a_later_one(engine, embedding, start):
    run(engine, embedding, ImagePrompt("a", CLICKS[1:3], **start), LogitsCache(100))
    assert [len(prompt.points_xy_px) for prompt in engine.asked] == [0, 1, 2]
    assert [prompt.box_xyxy_px for prompt in engine.asked] == [start.get("box_xyxy_px")] * 3
    assert not any(prompt.multimask for prompt in engine.asked)
    first = engine.asked[0].mask_logits
    assert torch.equal(first, engine.mask_logits_from(SQUARE)) if "mask" in start else first is None


@pytest.mark.parametrize(
    "change",
    [
        {"points": (Point(10.0 * 0 + 0.1230001, 0.5), *CLICKS[1:4])},
        {"points": (Point(CLICKS[0].x_px, CLICKS[0].y_px, is_positive=False), *CLICKS[1:4])},
        {"box_xyxy_px": (0.0, 0.0, 9.0, 9.0)},
        {"mask": MASK},
    ],
)
def test_a_changed_beginning_starts_a_fresh_chain(engine, embedding, change):
    cache = LogitsCache(100)
    prompt = ImagePrompt("a", CLICKS[:4])
    run(engine, embedding, prompt, cache)
    engine.asked.clear()
    changed = dataclasses.replace(prompt, **change)
    warm = run(engine, embedding, changed, cache)
    n_decodes = len(engine.asked)
    engine.asked.clear()
    cold = run(engine, embedding, changed, LogitsCache(100))
    assert n_decodes == len(engine.asked)
    assert np.array_equal(warm[0], cold[0])


@pytest.mark.parametrize("other", [{"key": "another image"}, {"size_hw": (41, 120)}, {"options": MaskOptions(multimask=False)}])
def test_another_image_size_or_kind_of_first_step_shares_nothing(engine, embedding, other):
    cache = LogitsCache(100)
    run(engine, embedding, ImagePrompt("a", CLICKS[:2]), cache)
    engine.asked.clear()
    run(engine, embedding, ImagePrompt("a", CLICKS[:2]), cache, **other)
    assert len(engine.asked) == 2


def test_the_threshold_is_applied_afterwards(engine, embedding):
    cache = LogitsCache(100)
    low, _ = run(engine, embedding, ImagePrompt("a", CLICKS[:1]), cache, MaskOptions(mask_threshold=-1e6))
    high, _ = run(engine, embedding, ImagePrompt("a", CLICKS[:1]), cache, MaskOptions(mask_threshold=1e6))
    assert low.all()
    assert not high.any()
    assert len(engine.asked) == 1


def test_several_objects_come_back_in_order(engine, embedding):
    prompts = [ImagePrompt("box", box_xyxy_px=(1.0, 1.0, 30.0, 30.0)), ImagePrompt("nothing"), ImagePrompt("click", CLICKS[:2])]
    together = segment(engine, embedding, "image", prompts, SIZE_HW, MaskOptions(), LogitsCache(9))
    alone = [segment(engine, embedding, "image", [prompt], SIZE_HW, MaskOptions(), LogitsCache(9))[0] for prompt in prompts]
    assert together[1] is alone[1] is None
    for i in (0, 2):
        assert together[i].score == alone[i].score
        assert torch.equal(together[i].logits, alone[i].logits)


def test_eight_boxes_are_one_decode_and_their_corrections_another(engine, embedding):
    prompts = [ImagePrompt(str(i), CLICKS[: i % 2], (1.0 + i, 1.0, 30.0 + i, 30.0)) for i in range(8)]
    segment(engine, embedding, "image", prompts, SIZE_HW, MaskOptions(), LogitsCache(99))
    assert engine.rounds == [8, 4]


def test_the_cache_is_bounded_and_forgets_the_least_recently_used_first(engine, embedding):
    cache = LogitsCache(3)
    for n in range(1, 11):
        run(engine, embedding, ImagePrompt("a", CLICKS[:n]), cache)
        assert len(cache) == min(n, 3)
    run(engine, embedding, ImagePrompt("a", CLICKS[:8]), cache)  # of 8, 9 and 10, it is now the latest used
    for i in (1, 2):
        run(engine, embedding, ImagePrompt("b", (Point(50.0 + i, 9.0),)), cache)
    engine.asked.clear()
    run(engine, embedding, ImagePrompt("a", CLICKS[:8]), cache)
    assert not engine.asked


def test_a_cache_of_no_entries_only_costs_time(engine, embedding):
    none, some = LogitsCache(0), LogitsCache(9)
    assert np.array_equal(
        run(engine, embedding, ImagePrompt("a", CLICKS[:3]), none)[0], run(engine, embedding, ImagePrompt("a", CLICKS[:3]), some)[0]
    )
    assert len(none) == 0


POINTS = st.lists(st.sampled_from(CLICKS[:4]), max_size=3).map(tuple)
PROMPTS = st.builds(ImagePrompt, st.just("p"), POINTS, st.sampled_from([None, (40.0, 10.0, 70.0, 30.0)]), st.sampled_from([None, MASK]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompts=st.lists(PROMPTS, min_size=1, max_size=5), max_entries=st.integers(0, 4))
def test_no_history_and_no_eviction_changes_a_mask(engine, embedding, prompts, max_entries):
    cache = LogitsCache(max_entries)
    for prompt in prompts:
        mask, score = run(engine, embedding, prompt, cache)
        cold_mask, cold_score = run(engine, embedding, prompt, LogitsCache(0))
        assert np.array_equal(mask, cold_mask)
        assert score == cold_score
        assert len(cache) <= max_entries
