"""From the editor's context to prompts on the grid; what cannot be used is said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.label_config import parse_label_config
from backend.video_prompts import framerate, is_on_video, video_drawings
from sam2_backend.errors import PromptError, Sam2BackendError, VideoFramerateError
from sam2_backend.messages import ImagePrompt

TASK = {"id": 1, "data": {"video": "http://v.test/a.mp4", "fps": "30", "words": "fast"}}


def config(rate='framerate="25"'):
    return parse_label_config(f"""<View>
      <Labels name="labels" toName="video"><Label value="Ball"/></Labels>
      <Video name="video" value="$video" {rate}/><VideoRectangle name="box" toName="video"/>
    </View>""")


def keyframe(frame, x=10, y=20, width=30, height=40, **more):
    return {"frame": frame, "enabled": True, "rotation": 0, "x": x, "y": y, "width": width, "height": height} | more


def region(*sequence, region_id="r1", **value):
    whole = {"framesCount": 50, "duration": 2, "sequence": list(sequence), "labels": ["Ball"]} | value
    return {"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual", "value": whole}


def read(*regions, of=None, most=64):
    (drawing,) = video_drawings(regions, of or config(), TASK, most)
    return drawing


def test_a_box_becomes_a_prompt_in_shares_on_the_frame_before_label_studios_number():
    drawing = read(region(keyframe(9)))
    (prompt,) = drawing.keyframes
    assert (prompt.object_id, prompt.grid_idx) == ("r1", 8)
    assert prompt.prompt == ImagePrompt("r1", box_xyxy_px=(0.1, 0.2, 0.4, pytest.approx(0.6)))
    assert (drawing.framerate, drawing.n_frames, drawing.from_name) == (25, 50, "box")


def test_all_keyframes_of_all_objects_are_prompts():
    drawing = read(region(keyframe(30), keyframe(1)), region(keyframe(12), region_id="r2"))
    assert [(k.object_id, k.grid_idx) for k in drawing.keyframes] == [("r1", 0), ("r1", 29), ("r2", 11)]


def test_a_disabled_keyframe_is_a_box_and_the_object_is_gone_after_it():
    drawing = read(region(keyframe(1), keyframe(10, enabled=False), keyframe(20)))
    assert [(k.grid_idx, k.prompt is None) for k in drawing.keyframes] == [(0, False), (9, False), (10, True), (19, False)]


def test_a_lifespan_that_ends_where_the_next_begins_or_the_video_ends_has_no_gap():
    drawing = read(region(keyframe(1, enabled=False), keyframe(2), keyframe(50, enabled=False)))
    assert [(k.grid_idx, k.prompt is None) for k in drawing.keyframes] == [(0, False), (1, False), (49, False)]


def test_a_box_over_the_border_is_cut_and_one_outside_says_that_the_object_is_not_there():
    drawing = read(region(keyframe(1, x=-10), keyframe(2, x=101)))
    assert [k.prompt and k.prompt.box_xyxy_px for k in drawing.keyframes] == [(0, 0.2, pytest.approx(0.2), pytest.approx(0.6)), None]


def test_ours_are_no_prompts_with_or_without_a_seal_that_fits():
    assert [k.grid_idx for k in read(region(keyframe(1), keyframe(5, auto=True))).keyframes] == [0]
    assert [k.grid_idx for k in read(region(keyframe(1), keyframe(5, auto=True, seal="another"))).keyframes] == [0, 4]


def test_a_keyframe_past_the_end_is_kept_and_is_no_prompt():
    drawing = read(region(keyframe(1), keyframe(51), keyframe(9000)))
    assert [k.grid_idx for k in drawing.keyframes] == [0]
    assert len(drawing.objects[0].keyframes) == 3


def test_of_two_keyframes_on_one_frame_the_first_counts_as_in_the_editor():
    drawing = read(region(keyframe(4, x=1), keyframe(4, x=2), keyframe(4, x=3, auto=True)))
    assert [k.prompt.box_xyxy_px[0] for k in drawing.keyframes] == [0.01]


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ('framerate="25"', {"framesCount": 50, "duration": 2}, (25, 50)),
        ('framerate="25.0"', {"framesCount": 16, "duration": 0.64}, (25, 16)),
        ('framerate="29.97"', {"framesCount": 300, "duration": 10.01}, (29.97, 300)),
        ("", {"framesCount": 240, "duration": 10}, (24, 240)),
        ('framerate="$fps"', {"framesCount": 300, "duration": 10}, (30, 300)),
        ('framerate="$absent"', {"framesCount": 240, "duration": 10}, (24, 240)),
        ('framerate="$words"', {}, (24, 0)),
        ('framerate="0.04"', {"framesCount": 50, "duration": 2}, (25, 50)),
        ('framerate="0"', {"framesCount": 1, "duration": 0}, (24, 0)),
        ('framerate="25"', {"framesCount": 1, "duration": 0}, (25, 0)),
        ('framerate="25"', {"framesCount": None, "duration": None}, (25, 0)),
        ('framerate="25"', {"framesCount": 60, "duration": 2}, (30, 60)),
    ],
)  # fmt: skip
def test_the_grid_is_that_of_label_studio(attribute, value, expected):
    tag = config(attribute).videos[0]
    rate, n_frames = framerate(tag, TASK, value)
    assert (rate, n_frames) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (region(), "at least one keyframe"),
        (region(sequence={}), "at least one keyframe"),
        (region("x"), "must be an object"),
        (region(keyframe("1")), "frame of a keyframe must be a number"),
        (region(keyframe(True)), "must be a number"),
        (region(keyframe(0)), "whole numbers from 1"),
        (region(keyframe(1.5)), "whole numbers from 1"),
        (region(keyframe(1e12)), "whole numbers from 1"),
        (region(keyframe(1, x=None)), "x on frame 1 must be a number"),
        (region(keyframe(1, x=float("nan"))), "x on frame 1 must be a number"),
        (region(keyframe(1, width=-3)), "Draw it again"),
        (region(keyframe(1, width=1e9)), "Draw it again"),
        (region(keyframe(1, height=0)), "no size"),
        (region(keyframe(1, rotation=30)), "turned"),
        (region(keyframe(1, enabled="no")), "true or false"),
        (region(keyframe(1), framesCount="many"), "framesCount must be a number"),
        (region(keyframe(1), framesCount=-1), "framesCount is -1"),
        (region(keyframe(1), framesCount=1e13), "framesCount"),
        (region(keyframe(1), duration=-1), "duration is -1"),
        (region(keyframe(1), duration=1e9), "duration"),
        (region(keyframe(1)) | {"value": None}, "has no value"),
        (region(keyframe(1)) | {"to_name": "other"}, "'other', which the labeling config does not have"),
        (region(keyframe(1)) | {"id": "x" * 300}, "at most 200"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(bad, said):
    with pytest.raises(PromptError, match=said):
        read(bad)


def test_an_absurd_framerate_is_said_to_the_project_owner():
    with pytest.raises(VideoFramerateError, match="labeling config"):
        read(region(keyframe(1), framesCount=1_000_000, duration=0.5))


def test_too_many_objects_are_refused():
    with pytest.raises(PromptError, match="200 objects"):
        read(*(region(keyframe(1), region_id=f"r{n}") for n in range(200)))


def test_the_recorded_requests_of_label_studio_are_read():
    path = Path(__file__).parents[1] / "fixtures/requests/video.json"
    calls = [call["request"] for step in json.loads(path.read_text())["steps"] for call in step.get("backend", [])]
    bodies = [body for body in calls if (body.get("params") or {}).get("context")]
    assert bodies
    for body in bodies:
        read_config = parse_label_config(body["label_config"])
        entries = body["params"]["context"]["result"]
        assert all(is_on_video(entry, read_config) for entry in entries)
        (drawing,) = video_drawings(entries, read_config, body["tasks"][0], 64)
        assert (drawing.framerate, drawing.n_frames) == (25, 16)
        assert drawing.keyframes[0].grid_idx == 0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["frame", "x", "y", "width", "height", "enabled"]), inner)
        ),
        max_leaves=20,
    )
)
def test_whatever_a_region_holds_the_answer_is_a_reading_or_one_of_our_errors(value):
    for bad in (region(value), region(keyframe(1), framesCount=value), region(keyframe(1), duration=value), region(sequence=value)):
        try:
            video_drawings([bad], config(), TASK, 64)
        except Sam2BackendError as error:
            assert error.message
