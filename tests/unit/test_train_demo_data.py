"""What the demo checkpoint is taught with: the same pictures for the same seed, true masks, and clips that do what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from checkpoints.train_demo.assets import Assets, MissingAssetsError, is_held_out, load_assets
from checkpoints.train_demo.batches import BatchMaker, BatchSize
from checkpoints.train_demo.clip_batches import ClipBatchMaker, ClipBatchSize
from checkpoints.train_demo.clips import TOLERATED_FRAMES, ClipSize, render_clip
from checkpoints.train_demo.evaluate_video import jaccard
from checkpoints.train_demo.interact import box_around, click_on, corrected, drawn_mask
from checkpoints.train_demo.motion import away
from checkpoints.train_demo.plot import curves, svg
from checkpoints.train_demo.scenes import render

SIDE = 64


@pytest.fixture(scope="module")
def assets() -> Assets:
    """Drawings and photographs made of noise."""
    rng = np.random.default_rng(0)
    cutouts = [rng.integers(0, 256, (40, 30, 4), dtype=np.uint8) for _ in range(4)]
    for cutout in cutouts:
        cutout[..., 3] = 0
        cutout[5:35, 5:25, 3] = 255
    return Assets(cutouts, [rng.integers(0, 256, (80, 90, 3), dtype=np.uint8) for _ in range(3)])


def test_a_scene_is_the_same_every_time_and_another_for_another_number(assets):
    one, again, other = (render(assets, 5, index, side_px=SIDE) for index in (3, 3, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.owner, again.owner)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("index", range(8))
def test_every_scene_has_something_to_ask_for(assets, index):
    scene = render(assets, 1, index, side_px=SIDE)
    assert scene.image.shape == (SIDE, SIDE, 3)
    assert scene.owner.any()


@pytest.mark.parametrize("event", ["none", "covered", "gone"])
def test_a_clip_is_the_same_every_time(assets, event):
    one, again = (render_clip(assets, 5, 1, ClipSize(SIDE, 12), n_objects=2, event=event, hidden_frames=2) for _ in range(2))
    assert np.array_equal(one.images, again.images)
    assert np.array_equal(one.owner, again.owner)


@pytest.mark.parametrize("event", ["covered", "gone"])
@pytest.mark.parametrize("index", range(3))
def test_what_is_hidden_is_hidden_wholly_for_so_many_frames_and_comes_back(assets, event, index):
    clip = render_clip(assets, 5, index, ClipSize(SIDE, 24), n_objects=2, event=event, hidden_frames=4)
    pixels = (clip.owner == 1).sum((1, 2))
    assert not pixels[10:14].any()
    assert (pixels == 0).sum() <= 4 + TOLERATED_FRAMES
    assert pixels[0] > 0
    assert pixels[-1] >= pixels[0] / 2


def test_a_clip_moves(assets):
    clip = render_clip(assets, 5, 2, ClipSize(SIDE, 12), n_objects=2, event="none")
    assert any(not np.array_equal(clip.owner[0], owner) for owner in clip.owner[1:])


def test_batches_repeat_for_the_same_seed_and_history(assets):
    size = BatchSize(side_px=SIDE, images=3, prompts_per_image=2, fresh_images=1)
    first, second = BatchMaker(assets, 1), BatchMaker(assets, 1)
    for step in range(2):
        one, other = first.batch(step, size), second.batch(step, size)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
    assert one.images.shape == (3, 3, SIDE, SIDE)
    assert one.masks.shape == (6, SIDE, SIDE)
    assert one.masks.flatten(1).any(1).all()


def test_a_batch_of_clips_asks_for_what_its_first_frames_show(assets):
    size = ClipBatchSize(ClipSize(SIDE, 6), clips=3, fresh_clips=1, tracks_per_clip=2)
    batch = ClipBatchMaker(assets, 1).batch(0, size)
    assert batch.images.shape == (3, 6, 3, SIDE, SIDE)
    assert batch.masks.shape[1:] == (6, SIDE, SIDE)
    assert batch.masks[:, 0].flatten(1).any(1).all()
    assert sorted(set(batch.clip_of_track.tolist())) == [0, 1, 2]


def test_away_is_nothing_in_the_frames_and_all_beyond_the_ramp():
    assert away(10, 4, 2, 2).tolist() == [1, 1, 1, 0.5, 0, 0, 0.5, 1, 1, 1]


@pytest.fixture
def masks() -> torch.Tensor:
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 10:30, 20:50] = True
    masks[1, 40:60, 4:9] = True
    return masks


def test_clicks_are_on_the_object_and_boxes_around_it(masks):
    generator = torch.Generator().manual_seed(1)
    for centered in (True, False):
        points = click_on(masks, generator, centered=centered).points_xy_px[:, 0].long()
        assert masks[torch.arange(2), points[:, 1], points[:, 0]].all()
    assert box_around(masks, generator, jitter=0.0).points_xy_px.tolist() == [[[20, 10], [50, 30]], [[4, 40], [9, 60]]]
    drawn = drawn_mask(masks, generator)
    assert drawn.mask_logits is not None
    assert drawn.mask_logits.shape == (2, 1, SIDE // 4, SIDE // 4)


def test_a_correction_is_positive_on_what_was_missed_and_negative_on_what_was_too_much(masks):
    generator = torch.Generator().manual_seed(1)
    prompts = click_on(masks, generator, centered=True)
    nothing, everything = (torch.full((2, SIDE // 4, SIDE // 4), logit) for logit in (-5.0, 5.0))
    assert corrected(prompts, nothing, masks, generator, centered=True).labels[:, 1].tolist() == [1, 1]
    assert corrected(prompts, everything, masks, generator, centered=True).labels[:, 1].tolist() == [0, 0]


def test_an_object_that_is_gone_counts_as_found_where_the_mask_is_empty(assets):
    clip = render_clip(assets, 5, 0, ClipSize(SIDE, 24), n_objects=1, event="covered", hidden_frames=4)
    perfect = iter(clip.owner[:, None] == 1)
    assert jaccard(clip, (1,), perfect).min() == 1
    never = iter(np.zeros((24, 1, SIDE, SIDE), bool))
    assert jaccard(clip, (1,), never)[0, 9:13].tolist() == [1, 1, 1, 1]


def test_variants_of_one_drawing_are_on_one_side():
    assert is_held_out("animals/cat") == is_held_out("animals/cat")
    assert 0 < sum(is_held_out(f"animals/{i}") for i in range(200)) < 60


def test_missing_material_says_how_to_get_it(tmp_path):
    with pytest.raises(MissingAssetsError, match="openclipart-png"):
        load_assets(tmp_path, "held_out")


def test_the_plot_leaves_out_what_a_run_begun_anew_left_behind():
    rows = [{"trained_s": s, "loss": loss, "rate": 0.1, "box": 0.5} for s, loss in ((60, 3.0), (120, 2.0), (60, 1.5), (180, 1.0))]
    loss, figures = curves(json.dumps(row) for row in rows)
    assert loss == [(1.0, 1.5), (3.0, 1.0)]
    assert list(figures) == ["box"]
    drawn = ET.fromstring(svg("Course", loss, figures))
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"minutes of training", "Course: loss", "box 0.50"} <= set(texts)
