"""What a propagation has to do: keyframes, options and a grid become runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_backend.errors import PromptError, VideoFrameError
from sam2_backend.messages import ImagePrompt, MediaRef, Point
from sam2_backend.propagation_plan import MOST_CONDITIONING, Run, check_job, plan_runs
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob, VideoOptions

BOX = ImagePrompt("p", box_xyxy_px=(1.0, 2.0, 3.0, 4.0))


def key(grid_idx: int, object_id: str = "a", prompt: ImagePrompt | None = BOX) -> Keyframe:
    return Keyframe(object_id, grid_idx, prompt)


def gone(grid_idx: int, object_id: str = "a") -> Keyframe:
    return key(grid_idx, object_id, None)


def plan(*keys: Keyframe, n_grid: int = 100, frame_of_grid=lambda g: g, **options) -> tuple[Run, ...]:
    return plan_runs(keys, VideoOptions(**options), n_grid, frame_of_grid)


def shapes(runs) -> list[tuple]:
    """(object, first place, last place, direction, places of the conditioning keyframes)"""
    return [
        (r.object_idx, r.first_grid_idx, r.last_grid_idx, "<" if r.reverse else ">", tuple(c.grid_idx for c in r.conditioning))
        for r in runs
    ]


def test_one_keyframe_fills_forward_and_back():
    assert shapes(plan(key(30))) == [(0, 30, 99, ">", (30,)), (0, 0, 29, "<", (30,))]
    assert shapes(plan(key(30), direction="forward")) == [(0, 30, 99, ">", (30,))]
    assert shapes(plan(key(30), direction="backward")) == [(0, 0, 30, "<", (30,))]


def test_a_run_is_conditioned_on_its_keyframe_and_those_passed_before_it():
    assert shapes(plan(key(50), key(10), key(80))) == [
        (0, 10, 49, ">", (10,)),
        (0, 50, 79, ">", (10, 50)),
        (0, 80, 99, ">", (10, 50, 80)),
        (0, 0, 9, "<", (10,)),
    ]
    assert shapes(plan(key(10), key(50), direction="backward")) == [(0, 0, 10, "<", (50, 10)), (0, 11, 50, "<", (50,))]


def test_a_correction_leaves_every_run_before_it_as_it_was():
    before, after = plan(key(10), key(50)), plan(key(10), key(50), key(30))
    kept = {r for r in before if r.last_grid_idx < 30}
    assert kept <= set(after)
    cut = [r for r in after if r.first_grid_idx == 10]
    assert [(r.first_frame_idx, r.conditioning) for r in cut] == [
        (r.first_frame_idx, r.conditioning) for r in before if r.first_grid_idx == 10
    ]


def test_between_only_a_run_is_conditioned_on_its_two_ends_alone():
    assert shapes(plan(key(10), key(50), key(80), between_only=True)) == [
        (0, 10, 49, ">", (50, 10)),
        (0, 50, 79, ">", (80, 50)),
        (0, 80, 99, ">", (80,)),
        (0, 0, 9, "<", (10,)),
    ]
    before, after = (set(plan(*keys, between_only=True)) for keys in ([key(10), key(50), key(80)], [key(10), key(50), key(80), key(65)]))
    assert {(r.first_grid_idx, r.last_grid_idx) for r in before - after} == {(50, 79)}


def test_of_many_keyframes_the_nearest_condition():
    keys = [key(10 * i) for i in range(9)]
    last = max(plan(*keys), key=lambda r: r.first_grid_idx)
    assert tuple(c.grid_idx for c in last.conditioning) == (50, 60, 70, 80)
    assert len(last.conditioning) == MOST_CONDITIONING


def test_a_keyframe_without_prompt_is_an_object_gone_until_the_next():
    assert shapes(plan(key(10), gone(40), key(60))) == [
        (0, 10, 39, ">", (10,)),
        (0, 40, 59, ">", ()),
        (0, 60, 99, ">", (10, 60)),
        (0, 0, 9, "<", (10,)),
    ]
    assert shapes(plan(gone(10), key(60))) == [(0, 10, 59, ">", ()), (0, 60, 99, ">", (60,))], "nothing is known before it"
    assert shapes(plan(key(10), gone(40), key(60), direction="backward")) == [
        (0, 0, 10, "<", (60, 10)),
        (0, 40, 59, ">", ()),
        (0, 60, 60, "<", (60,)),
    ]
    assert shapes(plan(key(10), gone(40), direction="backward"))[-1] == (0, 40, 99, ">", ())


def test_objects_are_numbered_by_first_appearance():
    runs = plan(key(5, "b"), key(0, "a"), key(9, "b"), direction="forward")
    assert shapes(runs) == [(0, 5, 8, ">", (5,)), (0, 9, 99, ">", (5, 9)), (1, 0, 99, ">", (0,))]


def test_of_two_keyframes_on_one_place_the_later_counts():
    second = ImagePrompt("p", box_xyxy_px=(5.0, 6.0, 7.0, 8.0))
    [run] = plan(key(3), key(3, prompt=second), direction="forward")
    assert run.conditioning[0].prompt == second


def test_a_range_is_filled_from_its_edge_on_the_keyframes_outside():
    runs = plan(key(10), key(80), first_grid_idx=40, last_grid_idx=60)
    assert shapes(runs) == [(0, 40, 60, ">", (10,))]
    assert (runs[0].first_frame_idx, runs[0].last_frame_idx) == (40, 60)
    [back] = plan(key(80), first_grid_idx=40, last_grid_idx=60)
    assert (back.reverse, back.first_frame_idx, back.last_frame_idx) == (True, 60, 40)
    assert plan(key(80), first_grid_idx=40, last_grid_idx=60, direction="forward") == ()


def test_places_and_frames_are_told_apart():
    [coarse] = plan(key(2), n_grid=10, frame_of_grid=lambda g: 25 * g, direction="forward")
    assert (coarse.first_grid_idx, coarse.last_grid_idx, coarse.first_frame_idx, coarse.last_frame_idx) == (2, 9, 50, 225)
    fine = plan(key(4), key(5), key(8), n_grid=12, frame_of_grid=lambda g: g // 3, direction="forward")
    assert [[(c.grid_idx, c.frame_idx) for c in run.conditioning] for run in fine] == [[(4, 1)], [(5, 1)], [(5, 1), (8, 2)]]


def test_a_keyframe_or_a_range_past_the_end_is_told_by_its_number():
    with pytest.raises(VideoFrameError, match="Frame 101 lies past the end: the video has 100 frames"):
        plan(key(100))
    with pytest.raises(VideoFrameError, match="Frame 201"):
        plan(key(0), first_grid_idx=200)


@st.composite
def asked(draw) -> tuple:
    n_grid = draw(st.integers(1, 40))
    places = st.integers(0, n_grid - 1)
    keys = draw(st.lists(st.builds(key, places, st.sampled_from("abc"), st.sampled_from([BOX, BOX, None])), min_size=1, max_size=8))
    first = draw(places)
    options = VideoOptions(
        draw(st.sampled_from(["forward", "backward", "both"])),
        first,
        draw(st.sampled_from([-1, *range(first, n_grid)])),
        draw(st.booleans()),
    )
    frames = sorted(draw(st.lists(st.integers(0, 60), min_size=n_grid, max_size=n_grid)))
    return keys, options, n_grid, frames


@given(asked())
def test_no_place_of_an_object_is_filled_twice_and_runs_stay_in_the_range(case):
    keys, options, n_grid, frames = case
    runs = plan_runs(keys, options, n_grid, frames.__getitem__)
    filled = [(run.object_idx, place) for run in runs for place in range(run.first_grid_idx, run.last_grid_idx + 1)]
    assert len(filled) == len(set(filled)) == sum(run.n_places for run in runs)
    last = n_grid - 1 if options.last_grid_idx < 0 else options.last_grid_idx
    assert all(options.first_grid_idx <= place <= last for _, place in filled)
    if options.direction == "both":
        ids = list(dict.fromkeys(k.object_id for k in keys))
        starts_with_prompt = [min((k for k in reversed(keys) if k.object_id == i), key=lambda k: k.grid_idx).prompt for i in ids]
        whole = {i for i, prompt in enumerate(starts_with_prompt) if prompt}
        assert {(i, place) for i in whole for place in range(options.first_grid_idx, last + 1)} <= set(filled)


@given(asked(), st.integers(0, 39))
def test_a_new_keyframe_changes_nothing_before_the_keyframe_it_follows(case, at):
    keys, options, n_grid, frames = case
    at %= n_grid
    if options.direction == "backward" or any(k.grid_idx == at and k.object_id == "a" for k in keys):
        return
    earlier = [k.grid_idx for k in keys if k.object_id == "a" and k.grid_idx < at]
    if not earlier:
        return
    before, after = (
        {
            (run.object_idx, place): run.conditioning
            for run in plan_runs(ks, options, n_grid, frames.__getitem__)
            for place in range(run.first_grid_idx, run.last_grid_idx + 1)
        }
        for ks in (keys, [*keys, key(at)])
    )
    index = list(dict.fromkeys(k.object_id for k in keys)).index("a")
    untouched_until = max(earlier) if options.between_only else at
    for (object_idx, place), conditioning in before.items():
        if object_idx != index or place < untouched_until:
            assert after[object_idx, place] == conditioning


def job(*keys: Keyframe, **options) -> PropagateJob:
    return PropagateJob("s", FrameSource((MediaRef("http://v.test/1.mp4"),), "video"), (1, 1), keys, VideoOptions(**options))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (job(), "no keyframe to start from"),
        (job(gone(3)), "no keyframe to start from"),
        (job(key(-1)), "before the start"),
        (job(key(0, prompt=ImagePrompt("a"))), "The keyframe of a on frame 1 holds neither a box nor a point nor a mask"),
        (job(key(0, prompt=ImagePrompt("a", (Point(1, 2, is_positive=False),)))), "only where the object is not"),
        (job(key(0), first_grid_idx=9, last_grid_idx=4), "no frame from 10 to 5"),
        (job(*(key(0, str(i)) for i in range(6))), "6 objects are more than the 5 .* SAM2_PROPAGATE_MAX_OBJECTS"),
    ],
)
def test_what_cannot_be_done_is_told_before_the_video_is_opened(bad, words):
    with pytest.raises(PromptError, match=words):
        check_job(bad, 5)


def test_what_can_be_done_passes():
    check_job(job(key(0), gone(4), key(9), key(0, "b", ImagePrompt("b", (Point(1, 2),)))), 2)
