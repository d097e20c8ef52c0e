"""Tracks become regions that Label Studio draws as tracked: its editor's own rules, written down here, are the oracle."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.keyframe_thinning import interpolated, needed
from backend.label_config import parse_label_config
from backend.video_prompts import video_drawings
from backend.video_regions import mean_score, video_regions
from sam2_backend.video_messages import Track

CONFIG = parse_label_config("""<View>
  <Labels name="labels" toName="video" allowEmpty="true"><Label value="Ball"/></Labels>
  <Video name="video" value="$video" framerate="25"/>
  <VideoRectangle name="box" toName="video"/>
</View>""")
TASK = {"id": 1, "data": {"video": "http://v.test/a.mp4"}}
N = 40


def shown(sequence, frame):
    """What Label Studio 1.23.2 draws on a frame: (x, y, width, height) or None (`getShape`, `isInLifespan`, `closestKeypoint`)."""
    before = [k for k in sequence if k["frame"] <= frame]
    if not before:
        return None
    if not (before[-1]["enabled"] or before[-1]["frame"] == frame):
        return None
    last, after = before[-1], next((k for k in sequence if k["frame"] > frame), None)
    sides = ("x", "y", "width", "height")
    if last["frame"] == frame or after is None:
        return tuple(last[side] for side in sides)
    share = (frame - last["frame"]) / (after["frame"] - last["frame"])
    return tuple(last[side] + (after[side] - last[side]) * share for side in sides)


def drawn(frame, x=10.0, y=20.0, width=30.0, height=40.0, *, enabled=True, **more):
    return {"frame": frame, "enabled": enabled, "rotation": 0, "x": x, "y": y, "width": width, "height": height, "time": frame / 25} | more


def region(*sequence, region_id="r1", label="Ball"):
    value = {"framesCount": N, "duration": N / 25, "sequence": list(sequence), "labels": [label]}
    return {
        "id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual", "meta": {"text": ["kept"]},
        "value": value,
    }  # fmt: skip


def track(boxes_xywh_pct, first=1, object_id="r1", score=0.9):
    """A track from frame `first` (1-based) on; None: not seen."""
    rows = np.array([[np.nan] * 4 if b is None else [b[0], b[1], b[0] + b[2], b[1] + b[3]] for b in boxes_xywh_pct], "<f4") / 100
    grid = np.arange(first - 1, first - 1 + len(rows), dtype="<i4")
    return Track(object_id, grid.tobytes(), rows.astype("<f4").tobytes(), np.full(len(rows), score, "<f4").tobytes())


def answer(regions, tracks, tolerance=0.25):
    (drawing,) = video_drawings(regions, CONFIG, TASK, 64)
    return video_regions(drawing, tracks, tolerance)


def sequence_of(regions, tracks, tolerance=0.25):
    return answer(regions, tracks, tolerance)[0]["value"]["sequence"]


def line(n=N):
    return [(10 + 0.5 * k, 20 + 0.25 * k, 30.0, 40.0) for k in range(n)]


def test_a_straight_track_needs_two_keyframes():
    sequence = sequence_of([region(drawn(1))], [track(line())])
    assert [keyframe["frame"] for keyframe in sequence] == [1, N]
    assert shown(sequence, 21) == pytest.approx((20, 25, 30, 40), abs=0.25)


def test_a_persons_keyframes_stand_exactly_as_drawn_with_every_key():
    mine = drawn(1, x=9.123456789012345, custom={"a": 1}), drawn(17, x=55.5, time=0.68)
    sequence = sequence_of([region(*mine)], [track(line())])
    by_frame = {keyframe["frame"]: keyframe for keyframe in sequence}
    assert (by_frame[1], by_frame[17]) == mine


def test_ours_are_marked_with_score_seal_and_label_studios_time():
    ours = sequence_of([region(drawn(1))], [track(line())])[-1]
    assert ours["auto"] is True
    assert ours["score"] == pytest.approx(0.9)
    assert ours["time"] == N / 25
    assert ours["seal"]


def test_where_the_object_is_gone_its_lifespan_ends_on_the_last_frame_that_shows_it():
    boxes = [*line(10), None, None, None, *line(5)]
    sequence = sequence_of([region(drawn(1))], [track(boxes)])
    assert [shown(sequence, frame) is not None for frame in range(1, 19)] == [True] * 10 + [False] * 3 + [True] * 5


def test_an_object_lost_right_after_a_persons_keyframe_ends_on_the_frame_after_it():
    mine = drawn(5)
    sequence = sequence_of([region(mine)], [track([*line(5), *[None] * 10])])
    assert mine in sequence
    assert [shown(sequence, frame) is not None for frame in (5, 6, 7, 15)] == [True, True, False, False]


def test_a_keyframe_that_a_person_disabled_is_left_alone():
    mine = drawn(5, enabled=False)
    sequence = sequence_of([region(drawn(1), mine)], [track([*line(5), *[None] * 10])])
    assert sequence[-1] == mine
    assert shown(sequence, 6) is None


def test_tracked_keyframes_are_no_prompts_the_next_time_and_edited_ones_are():
    first = answer([region(drawn(1))], [track([*line(20), *[(90 - k, 5.0, 5.0, 5.0) for k in range(20)]])])[0]
    (again,) = video_drawings([first], CONFIG, TASK, 64)
    assert [keyframe.grid_idx for keyframe in again.keyframes] == [0]
    edited = json.loads(json.dumps(first))
    edited["value"]["sequence"][1] |= {"x": 1.0, "y": 2.0}  # as the editor does: our keys stay on it
    (corrected,) = video_drawings([edited], CONFIG, TASK, 64)
    assert [keyframe.grid_idx for keyframe in corrected.keyframes] == [0, first["value"]["sequence"][1]["frame"] - 1]
    kept = sequence_of([edited], [track(line())])[1:]
    person = next(k for k in kept if k["frame"] == first["value"]["sequence"][1]["frame"])
    assert (person["x"], person["y"]) == (1.0, 2.0)
    assert not {"auto", "score", "seal"} & person.keys()


def test_a_keyframe_put_before_one_of_ours_is_a_persons_although_it_has_our_keys():
    """Label Studio copies the keys of the next keyframe onto a new one."""
    first = answer([region(drawn(1))], [track(line())])[0]
    sequence = first["value"]["sequence"]
    sequence.insert(1, copy.deepcopy(sequence[1]) | {"frame": 9, "x": sequence[1]["x"]})
    (drawing,) = video_drawings([first], CONFIG, TASK, 64)
    assert [keyframe.grid_idx for keyframe in drawing.keyframes] == [0, 8]


def test_switching_one_of_ours_off_makes_it_a_persons():
    first = answer([region(drawn(1))], [track(line())])[0]
    first["value"]["sequence"][-1]["enabled"] = False
    (drawing,) = video_drawings([first], CONFIG, TASK, 64)
    assert [keyframe.grid_idx for keyframe in drawing.keyframes] == [0, N - 1]


def test_what_is_not_tracked_again_keeps_the_keyframes_of_before():
    before = answer([region(drawn(1))], [track([*line(20), *[(80 - k, 5.0, 5.0, 5.0) for k in range(20)]])])[0]
    sequence = sequence_of([before], [track([(10, 20, 30, 40 - 0.1 * k) for k in range(10)])])
    old = {k["frame"]: k for k in before["value"]["sequence"] if k["frame"] > 10}
    assert old == {k["frame"]: k for k in sequence if k["frame"] > 10}
    for frame in range(1, 11):
        assert shown(sequence, frame)[3] == pytest.approx(40 - 0.1 * (frame - 1), abs=0.25) or frame == 1


def test_every_object_keeps_its_region_and_one_without_a_track_is_unchanged():
    first, second, third = region(drawn(1)), region(drawn(3), region_id="r2"), region(drawn(7), region_id="r3")
    answered = answer([first, second, third], [track(line(), object_id="r2"), Track("r3")])
    assert [item["id"] for item in answered] == ["r1", "r2", "r3"]
    assert (answered[0], answered[2]) == (first, third)
    assert answered[1]["value"]["labels"] == ["Ball"]
    assert answered[1]["meta"] == {"text": ["kept"]}


def test_the_score_is_the_mean_where_objects_are_seen():
    assert mean_score([track([*line(5), None], score=0.5), Track("r2")]) == pytest.approx(0.5)
    assert mean_score([]) == 0


boxes = st.tuples(*[st.floats(0, 90, allow_subnormal=False)] * 2, *[st.floats(0.1, 60, allow_subnormal=False)] * 2)


@st.composite
def walks(draw):
    """Boxes that move, jump, vanish and come back."""
    found, box = [], draw(boxes)
    for _ in range(draw(st.integers(1, 60))):
        step = draw(st.sampled_from(["same", "same", "drift", "jump", "gone"]))
        if step == "jump":
            box = draw(boxes)
        elif step == "drift":
            box = (box[0] + 0.3, box[1] - 0.2, box[2], box[3] + 0.1)
        found.append(None if step == "gone" else box)
    return found


@given(walks(), st.sampled_from([0.0, 0.1, 0.25, 1.0, 5.0]), st.data())
def test_the_thinned_sequence_shows_the_whole_track_within_the_tolerance(boxes, tolerance, data):
    frames = data.draw(st.lists(st.integers(1, len(boxes)), min_size=1, max_size=4, unique=True))
    by_hand = {frame: drawn(frame, *data.draw(st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(1, 50)] * 2))) for frame in frames}
    sequence = sequence_of([region(*by_hand.values())], [track(boxes)], tolerance)
    assert [k["frame"] for k in sequence] == sorted({k["frame"] for k in sequence})
    for frame, box in enumerate(boxes, start=1):
        seen = shown(sequence, frame)
        if frame in by_hand:
            assert seen == tuple(by_hand[frame][side] for side in ("x", "y", "width", "height"))
        elif box is None:
            assert seen is None or frame - 1 in by_hand, "gone, but for the one frame that ends the lifespan after a person's keyframe"
        else:
            assert seen is not None
            assert abs(np.array(edges(seen)) - np.array(edges(box))).max() <= max(tolerance, 3e-4)


def edges(box):
    return (box[0], box[1], box[0] + box[2], box[1] + box[3])


@given(st.lists(boxes, min_size=2, max_size=50), st.floats(0.01, 10))
def test_thinning_keeps_the_ends_and_misses_nothing_by_more_than_the_tolerance(boxes, tolerance):
    values, frames = np.array(boxes), np.arange(len(boxes)) * 3
    kept = needed(frames, values, tolerance)
    assert kept[0]
    assert kept[-1]
    drawn_out = interpolated(frames, frames[kept], values[kept])
    miss = np.abs(np.hstack([drawn_out[:, :2] - values[:, :2], (drawn_out[:, :2] + drawn_out[:, 2:]) - (values[:, :2] + values[:, 2:])]))
    assert miss.max() <= tolerance + 1e-9


def test_the_longest_video_is_shown_in_bounded_time():
    """Two hours and more; pytest's limit is the bound."""
    k = np.arange(200_000)
    boxes = np.stack([20 + 15 * np.sin(k / 5000), np.full_like(k, 20.0, dtype=float), *[np.full_like(k, 10.0, dtype=float)] * 2], axis=1)
    rows = np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]).astype("<f4") / 100
    long = Track("r1", k.astype("<i4").tobytes(), rows.tobytes(), np.ones(len(k), "<f4").tobytes())
    region_ = region(drawn(1))
    region_["value"] |= {"framesCount": len(k), "duration": len(k) / 25}
    sequence = sequence_of([region_], [long], 1.0)
    assert 20 < len(sequence) < 1000
    assert sequence[-1]["frame"] == len(k)


def test_a_quarter_of_an_hour_is_thinned_without_recursion():
    frames = np.arange(20_000)
    values = np.stack([50 + 30 * np.sin(frames / 40), frames / 2000, np.full(20_000, 10.0), np.full(20_000, 10.0)], axis=1)
    assert needed(frames, values, 0.25).sum() < 8_000
