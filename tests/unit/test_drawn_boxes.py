"""Rectangles of tasks, for masks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.drawn_boxes import drawn_boxes


def region(box_id="a", x=10, y=20, width=30, height=40, label="Cat", **more) -> dict:
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": more.pop("rotation", 0)}
    value |= {"rectanglelabels": [label]} if label else {}
    return {"id": box_id, "from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value} | more


def task(annotations=(), drafts=(), predictions=()) -> dict:
    return {
        "id": 1,
        "annotations": [{"result": list(result)} for result in annotations],
        "drafts": [{"result": list(result)} for result in drafts],
        "predictions": [{"result": list(result), "model_version": "detector"} for result in predictions],
    }


def test_per_cent_become_shares_with_label_and_page():
    ((box,), problems) = drawn_boxes(task([[region(item_index=2)]]))
    assert box.box == pytest.approx((0.1, 0.2, 0.4, 0.6))
    assert (box.labels, box.to_name, box.page, problems) == (("Cat",), "image", 2, [])


def test_people_come_before_detectors_and_a_skipped_annotation_is_none():
    detected = [region("d", x=50)]
    assert [box.region_id for box in drawn_boxes(task([[region("p")]], predictions=[detected]))[0]] == ["p"]
    assert [box.region_id for box in drawn_boxes(task(drafts=[[region("p")]], predictions=[detected]))[0]] == ["p"]
    skipped = task([[region("p")]], predictions=[detected])
    skipped["annotations"][0]["was_cancelled"] = True
    assert [box.region_id for box in drawn_boxes(skipped)[0]] == ["d"]


def test_an_annotation_and_its_draft_are_one_box_and_two_labels_are_two():
    boxes, _ = drawn_boxes(task([[region("a"), region("b", label="Dog")]], drafts=[[region("c", x=10.001)]]))
    assert [box.region_id for box in boxes] == ["a", "b"]


def test_own_predictions_are_no_boxes():
    assert drawn_boxes(task(predictions=[[region()]]), ["detector"]) == ([], [])


def test_a_separate_labels_tag_labels_the_box():
    bare = region(label="", type="rectangle")
    labels = bare | {"type": "labels", "from_name": "label", "value": bare["value"] | {"labels": ["Dog"]}}
    ((box,), _) = drawn_boxes(task([[bare, labels]]))
    assert box.labels == ("Dog",)


def test_the_upright_box_around_a_turned_one_is_that_of_its_pixels():
    turned = region(x=50, y=50, width=20, height=10, rotation=90, original_width=200, original_height=100)
    ((box,), _) = drawn_boxes(task([[turned]]))
    # 40 x 10 pixels about (100, 50), a quarter to the right: 10 to the left of it, 40 below it
    assert box.box == pytest.approx((0.45, 0.5, 0.5, 0.9))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 0}, "no area"),
        ({"height": -3}, "no area"),
        ({"x": 100}, "outside the image"),
        ({"x": -40}, "outside the image"),
        ({"x": "10"}, "must be a number"),
        ({"rotation": 30}, "original_height must be a number"),
        ({"value": None}, "no value"),
    ],
)
def test_a_bad_box_is_named_and_the_others_stay(wrong, says):
    (boxes, (problem,)) = drawn_boxes(task([[region("bad") | wrong if "value" in wrong else region("bad", **wrong), region("good")]]))
    assert [box.region_id for box in boxes] == ["good"]
    assert says in problem
    assert "'bad'" in problem


def test_a_box_that_hangs_over_the_border_stays():
    assert drawn_boxes(task([[region(x=-5, width=120)]]))[1] == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["rectangle", "labels", "rectanglelabels"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "type", "value", "x", "result"]), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["annotations", "drafts", "predictions"]), JSON))
def test_whatever_a_task_holds_it_is_read_without_an_error(found):
    drawn_boxes({"id": 1} | found)
