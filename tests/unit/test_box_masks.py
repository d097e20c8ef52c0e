"""Boxes → masks and what goes with a mask, on a small network with random weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_backend.box_masks import masks_of_boxes, pixels_of, why_unusable
from sam2_backend.dataset_messages import DatasetMask, LabelledBox
from sam2_backend.engine import Sam2Engine
from sam2_backend.masks import mask_from_runs, runs_from_mask
from sam2_backend.messages import MaskOptions, RunLengths
from sam2_backend.regions_found import best, region
from sam2_backend.settings import Settings

SIZE_HW = (100, 200)


@pytest.fixture(scope="module")
def engine() -> Sam2Engine:
    return Sam2Engine.load(Settings(model="demo", device="cpu", torch_threads=1))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A red disc around (60, 50) and a blue square around (150, 50)."""
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    image = np.full((*SIZE_HW, 3), (90, 110, 100), np.uint8)
    image[np.hypot(x - 60, y - 50) < 25] = (220, 60, 40)
    image[(np.abs(x - 150) < 20) & (np.abs(y - 50) < 20)] = (40, 60, 220)
    return image


DISC, SQUARE = (0.17, 0.24, 0.43, 0.76), (0.64, 0.29, 0.86, 0.71)


def test_each_box_becomes_the_mask_that_a_click_with_it_alone_would_get(engine, photo):
    embedding = engine.embed(photo)
    found, skipped = masks_of_boxes(engine, embedding, SIZE_HW, [LabelledBox("a", DISC, "Disc"), LabelledBox("b", SQUARE, "Square")])
    assert not skipped
    assert [(m.source, m.label) for m in found] == [("a", "Disc"), ("b", "Square")]
    for mask, box in zip(found, (DISC, SQUARE), strict=True):
        alone = engine.decode(
            embedding,
            points_xy_px=np.zeros((0, 2)),
            is_positive=np.zeros(0, bool),
            box_xyxy_px=(box[0] * 200, box[1] * 100, box[2] * 200, box[3] * 100),
            size_hw=SIZE_HW,
            multimask=False,
        )
        assert mask.runs == engine.runs(alone.logits[0], SIZE_HW)
        assert mask.score == pytest.approx(float(alone.scores[0]))
    disc = mask_from_runs(found[0].runs)
    assert disc[50, 60]
    assert not disc[50, 150]


def test_a_mask_comes_with_its_box_and_area():
    mask = np.zeros(SIZE_HW, bool)
    mask[10:30, 50:100] = True
    made = region(runs_from_mask(mask), 0.7, "Cat", "b1")
    assert made == DatasetMask("Cat", runs_from_mask(mask), 0.7, (0.25, 0.1, 0.5, 0.3), 1000, "b1")
    assert region(RunLengths(SIZE_HW, np.array([20_000], "<u4").tobytes()), 0.7) is None


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((0.5, 0.5, 0.5, 0.9), "no area"),
        ((0.5, 0.9, 0.7, 0.2), "no area"),
        ((1.0, 0.2, 1.4, 0.5), "outside"),
        ((-0.5, 0.2, 0.0, 0.5), "outside"),
        ((0.2, -3.0, 0.4, -1.0), "outside"),
        ((float("nan"), 0.2, 0.4, 0.5), "not a number"),
        ((0.1, 0.2, float("inf"), 0.5), "not a number"),
    ],
)
def test_a_box_of_no_use_is_left_out_with_the_reason_and_the_others_are_done(engine, photo, box, reason):
    assert reason in why_unusable(box, SIZE_HW)
    boxes = [LabelledBox("bad", box, "Cat"), LabelledBox("good", DISC, "Cat")]
    found, skipped = masks_of_boxes(engine, engine.embed(photo), SIZE_HW, boxes)
    assert [m.source for m in found] == ["good"]
    assert [s.what for s in skipped] == ["bad"]
    assert reason in skipped[0].reason


def test_a_box_that_reaches_beyond_the_image_is_cut_to_it():
    assert not why_unusable((-0.2, 0.5, 0.5, 1.7), SIZE_HW)
    assert pixels_of((-0.2, 0.5, 0.5, 1.7), SIZE_HW) == (0, 50, 100, 100)


def test_a_box_in_which_nothing_is_found_is_told(engine, photo):
    options = MaskOptions(mask_threshold=1e6)
    found, [skipped] = masks_of_boxes(engine, engine.embed(photo), SIZE_HW, [LabelledBox("a", DISC)], options)
    assert found == []
    assert skipped.what == "a"


def test_holes_and_islands_are_those_the_project_asks_for(engine, photo):
    embedding, box = engine.embed(photo), [LabelledBox("a", (0.0, 0.0, 1.0, 1.0))]
    [rough], _ = masks_of_boxes(engine, embedding, SIZE_HW, box, MaskOptions(mask_threshold=-1.0))
    [smooth], _ = masks_of_boxes(engine, embedding, SIZE_HW, box, MaskOptions(mask_threshold=-1.0, remove_sprinkles_px=10**6))
    assert smooth.area_px <= rough.area_px


def test_no_boxes_are_no_masks(engine, photo):
    assert masks_of_boxes(engine, engine.embed(photo), SIZE_HW, []) == ([], [])


def masks_with(scores: list[float]) -> list[DatasetMask]:
    return [DatasetMask(str(i), RunLengths((1, 1), b""), score, (0, 0, 1, 1), 1) for i, score in enumerate(scores)]


@settings(deadline=None)  # machines may be busy
@given(hnp.arrays(np.float64, st.integers(0, 12), elements=st.sampled_from([0.1, 0.4, 0.4, 0.9])), st.floats(0, 1), st.integers(0, 6))
def test_the_best_are_kept_in_their_order(scores, min_score, limit):
    found = masks_with(scores.tolist())
    kept = best(found, min_score, limit)
    good = [m for m in found if m.score >= min_score]
    assert len(kept) == (min(limit, len(good)) if limit else len(good))
    assert [int(m.label) for m in kept] == sorted(int(m.label) for m in kept)
    assert sorted((m.score for m in kept), reverse=True) == sorted((m.score for m in good), reverse=True)[: len(kept)]
