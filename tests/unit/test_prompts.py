from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from backend.brush_rle import encode_mask
from backend.label_config import parse_label_config
from backend.prompts import drawn_objects
from sam2_backend import masks
from sam2_backend.errors import LabelConfigError, PromptError
from sam2_backend.messages import ImagePrompt, Point, from_wire, to_wire

REQUESTS = Path(__file__).parent.parent / "fixtures" / "requests"
CONFIG = parse_label_config("""<View>
  <Image name="image" value="$image"/> <Image name="other" value="$other"/> <Text name="text" value="$text"/>
  <Image name="pages" valueList="$pages"/> <Video name="video" value="$video"/>
  <BrushLabels name="b" toName="image,other,pages"><Label value="cat"/><Label value="dog"/></BrushLabels>
</View>""")
WIDTH, HEIGHT = 200, 50


def region(kind, value, name="r", *, to_name="image", width=WIDTH, height=HEIGHT, **beside):
    return {"id": name, "type": kind, "to_name": to_name, "original_width": width, "original_height": height, "value": value, **beside}


def point(x, y, name="p", label="cat", **beside):
    return region("keypointlabels", {"x": x, "y": y, "width": 0.3, "keypointlabels": [label]}, name, **beside)


def box(x, y, width, height, name="b", label="cat", rotation=0, **beside):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": rotation, "rectanglelabels": [label]}
    return region("rectanglelabels", value, name, **beside)


def drawn(*regions, config=CONFIG, max_prompts=64):
    return drawn_objects({"result": list(regions)}, config, max_prompts)


def only(*regions, **options):
    (found,) = drawn(*regions, **options)
    return found


def points(found):
    return [(p.x_px, p.y_px, p.is_positive) for p in found.prompt.points]


# Per cent to pixels, on an image of 200 x 50 so that swapped axes fail


def test_a_click_in_percent_becomes_pixels():
    found = only(point(25, 80))
    assert found.prompt == ImagePrompt("p", (Point(50.0, 40.0, True),))
    assert (found.size_hw, found.label_names, found.item_index, found.to_name) == ((50, 200), ("cat",), None, "image")


def test_a_negative_click_is_said_beside_the_value():
    assert points(only(point(10, 10, "a", is_positive=True), point(20, 20, "b", is_positive=False))) == [(20, 5, True), (40, 10, False)]


def test_is_positive_inside_the_value_means_nothing():
    inside = point(10, 10)
    inside["value"]["is_positive"] = False
    assert points(only(inside)) == [(20, 5, True)]


def test_a_box_in_percent_becomes_pixels():
    assert only(box(10, 20, 25, 50)).prompt == ImagePrompt("b", box_xyxy_px=(20.0, 10.0, 70.0, 35.0))


def test_a_rotated_box_is_turned_around_its_corner_in_pixels_and_not_in_percent():
    prompt = only(box(50, 20, 10, 40, rotation=30)).prompt  # 20 x 20 px at (100, 10)
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    corners = [(100, 10), (100 + 20 * cos, 10 + 20 * sin), (100 + 20 * (cos - sin), 10 + 20 * (sin + cos)), (100 - 20 * sin, 10 + 20 * cos)]
    assert np.allclose(prompt.clip_xy_px, corners)
    assert np.allclose(prompt.box_xyxy_px, (100 - 20 * sin, 10, 100 + 20 * cos, 10 + 20 * (sin + cos)))


@pytest.mark.parametrize(
    ("rotation", "box_px"), [(90, (90, 10, 100, 30)), (180, (80, 0, 100, 10)), (-90, (100, 0, 110, 10)), (360, (100, 10, 120, 20))]
)
def test_quarter_turns_need_no_cut(rotation, box_px):
    prompt = only(box(50, 20, 10, 20, rotation=rotation)).prompt  # 20 x 10 px at (100, 10)
    assert np.allclose(prompt.box_xyxy_px, box_px)
    assert prompt.clip_xy_px == ()


@given(st.floats(1, 359.9), st.floats(5, 20), st.floats(10, 40))
def test_the_corners_of_a_rotated_box_keep_its_sides_and_lie_around_its_corner(rotation, width, height):
    prompt = only(box(50, 50, width, height, rotation=rotation)).prompt
    if prompt.clip_xy_px:
        a, b, c, d = (np.array(corner) for corner in prompt.clip_xy_px)
        assert np.allclose(a, (100, 25))
        assert np.allclose([np.linalg.norm(b - a), np.linalg.norm(c - b), np.dot(b - a, d - a)], [width * 2, height / 2, 0], atol=1e-6)
    x0, y0, x1, y1 = prompt.box_xyxy_px
    assert 0 <= x0 < x1 <= WIDTH
    assert 0 <= y0 < y1 <= HEIGHT


def test_a_turned_box_may_hang_over_the_border_and_its_box_is_cut_to_the_image():
    prompt = only(box(-2, 10, 20, 60, rotation=10)).prompt
    assert prompt.box_xyxy_px[0] == 0
    assert prompt.clip_xy_px[0] == (-4, 5)


def test_an_ellipse_becomes_a_mask():
    found = only(region("ellipselabels", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0, "ellipselabels": ["dog"]}))
    mask = masks.mask_from_runs(found.prompt.mask)
    assert mask.shape == (50, 200)
    assert abs(mask.sum() - math.pi * 20 * 10) < 20
    assert (mask[25, 100], mask[25, 118], mask[25, 122], mask[33, 100], mask[37, 100]) == (True, True, False, True, False)
    assert (found.prompt.box_xyxy_px, found.label_names) == (None, ("dog",))


def test_a_polygon_becomes_a_mask():
    prompt = only(region("polygon", {"points": [[10, 20], [30, 20], [30, 60], [10, 60]], "closed": True})).prompt
    expected = np.zeros((50, 200), dtype=bool)
    expected[10:30, 20:60] = True
    assert np.array_equal(masks.mask_from_runs(prompt.mask), expected)


def some_mask():
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[5:20, 30:90] = True
    mask[7, 40] = False
    return mask


def png(alpha, mode="RGBA"):
    image = Image.fromarray(alpha.astype(np.uint8) * 255)
    if mode != "L":
        image = Image.merge(mode, [*[Image.new("L", image.size)] * (len(mode) - 1), image])
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def brush(mask, name="m", **beside):
    return region("brushlabels", {"format": "rle", "rle": list(encode_mask(mask)), "brushlabels": ["cat"]}, name, **beside)


@pytest.mark.parametrize(
    "drawing",
    [
        brush(some_mask()),
        region("bitmasklabels", {"imageDataURL": png(some_mask()), "bitmasklabels": ["cat"]}),
        region("bitmask", {"imageDataURL": png(some_mask(), "LA")}),
    ],
)
def test_a_brush_and_a_bitmask_are_mask_prompts_pixel_for_pixel(drawing):
    prompt = only(drawing).prompt
    assert np.array_equal(masks.mask_from_runs(prompt.mask), some_mask())
    assert (prompt.box_xyxy_px, prompt.points) == (None, ())


# Ids and labels


def test_a_region_sent_twice_is_one_prompt_with_the_label_of_its_twin():
    bare = region("keypoint", {"x": 25, "y": 80}, "same", from_name="kp")
    twin = region("labels", {"x": 25, "y": 80, "labels": ["dog"]}, "same", from_name="labels")
    answer = region("textarea", {"text": ["a remark"]}, "same")
    for twins in ([bare, twin], [twin, bare], [bare, twin, answer]):
        found = only(*twins)
        assert (points(found), found.label_names) == ([(50, 40, True)], ("dog",))


def test_twins_without_ids_are_one_prompt_too_and_get_a_stable_id():
    bare = region("keypoint", {"x": 25, "y": 80}, None)
    twin = region("labels", {"x": 25, "y": 80, "labels": ["dog"]}, None)
    found = only(bare, twin)
    assert points(found) == [(50, 40, True)]
    assert found.prompt.prompt_id == only(twin | {"type": "keypoint"}).prompt.prompt_id != only(point(25, 81, None)).prompt.prompt_id


def test_only_labels_of_the_output_are_carried_but_unknown_ones_still_keep_objects_apart():
    found = drawn(point(10, 10, "a", "martian"), point(20, 20, "b", "venusian"))
    assert [(d.label_names, len(d.prompt.points)) for d in found] == [((), 1), ((), 1)]


def test_the_region_id_stays_while_the_drawing_is_refined_and_differs_from_the_prompts_id_and_between_pages():
    first = only(point(10, 10, "a"))
    refined = only(point(10, 10, "a"), point(20, 20, "b"), point(5, 5, "c", is_positive=False))
    assert first.region_id == refined.region_id != "a"
    assert first.prompt.prompt_id == refined.prompt.prompt_id == "a"
    pages = drawn(*(point(10, 10, "a", to_name="pages", item_index=page) for page in (0, 1)))
    assert len({first.region_id, *(d.region_id for d in pages)}) == 3


# Which prompts make one object


def groups(*regions, **options):
    """Prompt ids, and how many points each object has, negative ones in brackets of their own."""
    return [
        (d.prompt.prompt_id, sum(p.is_positive for p in d.prompt.points), sum(not p.is_positive for p in d.prompt.points))
        for d in drawn(*regions, **options)
    ]


def test_points_of_one_label_refine_one_object_and_labels_are_objects_apart():
    assert groups(point(1, 1, "a"), point(2, 2, "b", "dog"), point(3, 3, "c")) == [("a", 2, 0), ("b", 1, 0)]


def test_points_keep_their_order_oldest_first():
    found = only(point(3, 3, "a"), point(1, 1, "b", is_positive=False), point(2, 2, "c"))
    assert [x for x, _, _ in points(found)] == [6, 2, 4]


def test_boxes_are_objects_apart():
    assert groups(box(10, 10, 20, 20, "a"), box(60, 60, 20, 20, "b")) == [("a", 0, 0), ("b", 0, 0)]


def test_all_points_belong_to_the_only_box():
    assert groups(box(10, 10, 20, 20, "a"), point(90, 90, "b"), point(1, 1, "c", is_positive=False)) == [("a", 1, 1)]


def test_all_points_belong_to_the_only_mask():
    found = only(brush(some_mask(), "m"), point(90, 90, "p"))
    assert (found.prompt.mask is not None, found.prompt.prompt_id, points(found)) == (True, "m", [(180, 45, True)])


def test_a_point_refines_the_smallest_box_around_it():
    regions = [box(10, 10, 80, 80, "big"), box(20, 20, 20, 20, "small"), point(30, 30, "in both"), point(80, 80, "in big")]
    found = {d.prompt.prompt_id: points(d) for d in drawn(*regions)}
    assert found == {"big": [(160, 40, True)], "small": [(60, 15, True)]}


def test_a_point_in_the_box_around_a_mask_refines_the_mask():
    assert groups(brush(some_mask(), "m"), box(60, 60, 20, 20, "b"), point(20, 20, "p")) == [("m", 1, 0), ("b", 0, 0)]


def test_left_over_points_make_one_more_object_and_left_over_negatives_hold_for_all():
    regions = [
        box(10, 10, 10, 10, "a"),
        box(60, 60, 10, 10, "b"),
        point(40, 40, "c"),
        point(45, 45, "d"),
        point(90, 90, "n", is_positive=False),
    ]
    assert groups(*regions) == [("a", 0, 1), ("b", 0, 1), ("c", 2, 1)]


def test_a_negative_point_inside_one_of_several_boxes_holds_for_that_box_alone():
    regions = [box(10, 10, 10, 10, "a"), box(60, 60, 10, 10, "b"), point(15, 15, "n", is_positive=False)]
    assert groups(*regions) == [("a", 0, 1), ("b", 0, 0)]


def test_negative_points_alone_are_no_object():
    assert groups(point(1, 1, "a", is_positive=False), point(2, 2, "b", is_positive=False)) == []


def test_a_drawing_that_begins_with_a_negative_point_is_named_after_its_first_positive_one():
    assert groups(point(1, 1, "a", is_positive=False), point(2, 2, "b")) == [("b", 1, 1)]


def test_a_point_drawn_before_its_box_names_the_object():
    assert groups(point(15, 15, "p"), box(10, 10, 10, 10, "b")) == [("p", 1, 0)]


def test_objects_come_in_the_order_in_which_they_were_drawn():
    regions = [point(1, 1, "a"), box(60, 60, 10, 10, "b", "dog"), box(10, 10, 10, 10, "c"), box(30, 30, 10, 10, "d")]
    assert [name for name, *_ in groups(*regions)] == ["a", "b", "c", "d"]


# Pages and images


def test_pages_and_images_are_kept_apart():
    found = drawn(
        point(10, 10, "a", to_name="pages", item_index=1, width=500, height=700),
        point(10, 10, "b", to_name="pages", item_index=2),
        point(10, 10, "c", to_name="other"),
        point(10, 10, "d", to_name="image"),
    )
    assert [(d.to_name, d.item_index, d.size_hw) for d in found] == [
        ("pages", 1, (700, 500)),
        ("pages", 2, (50, 200)),
        ("other", None, (50, 200)),
        ("image", None, (50, 200)),
    ]


def test_without_item_index_the_first_page_is_meant():
    assert groups(point(1, 1, "a", to_name="pages"), point(2, 2, "b", to_name="pages", item_index=0)) == [("a", 2, 0)]


def test_a_prompt_that_names_no_image_is_on_the_only_one():
    config = parse_label_config('<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"/></View>')
    assert only(point(1, 1, to_name=None), config=config).to_name == "i"
    with pytest.raises(PromptError, match="to_name"):
        drawn(point(1, 1, to_name=None))


def test_videos_are_not_answered_here():
    sequence = {"framesCount": 2, "duration": 1, "sequence": [{"frame": 1, "x": 1, "y": 1, "width": 9, "height": 9}]}
    assert drawn({"id": "v", "type": "videorectangle", "to_name": "video", "value": sequence}) == []
    assert drawn({"id": "v", "type": "labels", "to_name": "video", "value": sequence}) == []


def test_an_image_without_a_tag_for_masks_is_the_project_owners_to_mend():
    config = parse_label_config('<View><Image name="image" value="$i"/><KeyPoint name="k" toName="image"/></View>')
    with pytest.raises(LabelConfigError):
        drawn(point(1, 1), config=config)


# Bad input


@pytest.mark.parametrize(
    "context", [None, [], "x", {}, {"result": None}, {"result": {}}, {"result": [1]}, {"result": [None]}, {"result": [[]]}]
)
def test_what_is_no_context_is_refused(context):
    with pytest.raises(PromptError):
        drawn_objects(context, CONFIG, 9)


def test_an_empty_context_asks_for_nothing():
    assert drawn() == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "50", None, True, [], {}, 10**400, 1e300])
@pytest.mark.parametrize(
    ("kind", "value", "names"),
    [
        ("keypoint", {"x": 50, "y": 50}, ["x", "y"]),
        ("rectangle", {"x": 10, "y": 10, "width": 20, "height": 20}, ["x", "y", "width", "height"]),
        ("rectangle", {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 9}, ["x", "y", "width", "height"]),
        ("ellipse", {"x": 50, "y": 50, "radiusX": 9, "radiusY": 9}, ["x", "y", "radiusX", "radiusY"]),
    ],
)
def test_what_is_no_number_is_refused_by_the_prompts_id(kind, value, names, number):
    for name in names:
        with pytest.raises(PromptError, match="'r'"):
            drawn(region(kind, value | {name: number}))


@pytest.mark.parametrize("rotation", [math.nan, "left", True, [1], 1e300])
def test_a_rotation_that_is_no_number_is_refused(rotation):
    with pytest.raises(PromptError, match="rotation"):
        drawn(box(10, 10, 20, 20, rotation=rotation))


@pytest.mark.parametrize(("x", "y"), [(-0.6, 5), (100.6, 5), (5, -1), (5, 101), (-1e9, 0)])
def test_a_point_outside_the_image_is_refused_with_the_place(x, y):
    with pytest.raises(PromptError, match=r"'p'.*outside the image"):
        drawn(point(x, y))


@pytest.mark.parametrize(("x", "y", "expected"), [(-0.4, 50, (0, 25)), (100.4, 50, (200, 25)), (0, 100, (0, 50))])
def test_a_point_a_hair_outside_is_moved_onto_the_border(x, y, expected):
    assert points(only(point(x, y))) == [(*expected, True)]


@pytest.mark.parametrize("drawing", [box(90, 10, 20, 10), box(10, 90, 10, 20), box(-5, 10, 20, 10), box(300, 10, 20, 20, rotation=20)])
def test_a_box_outside_the_image_is_refused(drawing):
    with pytest.raises(PromptError, match=r"outside the image|less than a pixel"):
        drawn(drawing)


@pytest.mark.parametrize(
    "drawing",
    [
        box(10, 10, 0, 10),
        box(10, 10, 10, 0),
        box(10, 10, 0.4, 50),
        box(10, 10, -10, 10),
        box(10, 10, 10, 1.9, rotation=20),
        region("ellipse", {"x": 50, "y": 50, "radiusX": 0, "radiusY": 10}),
        region("ellipse", {"x": 50, "y": 50, "radiusX": -3, "radiusY": 10}),
        region("polygon", {"points": [[10, 10], [20, 20]]}),
        region("polygon", {"points": [[10, 10], [20, 20], [30]]}),
        region("polygon", {"points": [[10, 10], [20, 20], [30, 130]]}),
        region("polygon", {"points": [[10, 10], [10, 10], [10, 10]]}),
        region("polygon", {"points": "abc"}),
        region("polygon", {}),
        brush(np.zeros((HEIGHT, WIDTH), dtype=bool)),
        brush(some_mask()[:, 1:]),
        region("brush", {"rle": [1, 2, 3]}),
        region("brush", {"rle": list(encode_mask(some_mask()))[:5]}),
        region("brush", {"rle": [256]}),
        region("brush", {"rle": ["a"]}),
        region("brush", {"rle": 5 * 10**9}),
        region("brush", {"rle": None}),
        region("bitmask", {"imageDataURL": png(some_mask()[1:])}),
        region("bitmask", {"imageDataURL": png(some_mask())[:80]}),
        region("bitmask", {"imageDataURL": png(some_mask())[:100] + "A" * 200}),
        region("bitmask", {"imageDataURL": "data:image/png;base64,AAAA"}),
        region("bitmask", {"imageDataURL": "https://x/y.png"}),
        region("bitmask", {"imageDataURL": 5}),
        region("bitmask", {}),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_its_id(drawing):
    with pytest.raises(PromptError, match=f"'{drawing['id']}'"):
        drawn(drawing)


@pytest.mark.parametrize("kind", ["labels", "choices", "magicwand", "", None, 3, "KEYPOINTS"])
def test_an_unknown_type_is_refused_with_the_known_ones(kind):
    with pytest.raises(PromptError, match=r"keypoint\(labels\), rectangle"):
        drawn(region(kind, {"x": 1, "y": 1}))


@pytest.mark.parametrize(
    "beside",
    [
        {"original_width": 0},
        {"original_width": -5},
        {"original_height": None},
        {"original_height": "50"},
        {"original_width": 1.5},
        {"original_width": 10**6, "original_height": 10**6},
        {"original_width": True},
        {"item_index": -1},
        {"item_index": 1.0},
        {"item_index": "0"},
        {"item_index": True},
        {"item_index": 10**30},
        {"is_positive": "no"},
        {"is_positive": 0},
        {"to_name": "nowhere"},
        {"to_name": "text"},
        {"to_name": 3},
        {"value": None},
        {"value": []},
        {"value": {"x": 1, "y": 1, "keypointlabels": "cat"}},
        {"value": {"x": 1, "y": 1, "labels": [1]}},
        {"id": {}},
        {"id": True},
        {"id": "x" * 201},
    ],
)
def test_a_malformed_region_is_refused(beside):
    with pytest.raises(PromptError):
        drawn(point(10, 10) | beside)


def test_a_negative_box_is_refused():
    with pytest.raises(PromptError, match="key points"):
        drawn(box(10, 10, 20, 20, is_positive=False))


def test_another_size_on_the_same_page_is_refused():
    with pytest.raises(PromptError, match="size"):
        drawn(point(1, 1, "a"), point(1, 1, "b", width=201))


def test_too_many_prompts_are_refused_twins_counted_once():
    regions = [twin for i in range(3) for twin in (point(i, 1, str(i)), point(i, 1, str(i)) | {"type": "labels"})]
    assert len(drawn(*regions, max_prompts=3)) == 1
    with pytest.raises(PromptError, match="3 prompts"):
        drawn(*regions, max_prompts=2)
    with pytest.raises(PromptError, match="9 results"):
        drawn(*[point(1, 1)] * 9, max_prompts=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
PERCENT = st.floats(-1, 101) | st.sampled_from([0, 50, 100]) | JSON
VALUES = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("x", "y", "width", "height", "rotation", "radiusX", "radiusY"), PERCENT)
    | {"points": st.lists(st.lists(PERCENT, min_size=2, max_size=2), max_size=5) | JSON}
    | {"rle": st.lists(st.integers(0, 255), max_size=30).map(lambda tail: [0, 0, 156, 64, *tail]) | JSON}
    | {"imageDataURL": st.binary(max_size=20).map(lambda b: "data:image/png;base64," + base64.b64encode(b).decode()) | JSON}
    | {key: st.lists(st.sampled_from(["cat", "dog", "x"]), max_size=2) | JSON for key in ("labels", "keypointlabels")},
)
KINDS = [kind + labels for kind in ("keypoint", "rectangle", "ellipse", "polygon", "brush", "bitmask") for labels in ("", "labels")]
REGIONS = st.fixed_dictionaries(
    {"type": st.sampled_from([*KINDS, "labels", "videorectangle"]) | JSON, "value": VALUES | JSON},
    optional={
        "original_width": st.just(WIDTH) | JSON,
        "original_height": st.just(HEIGHT) | JSON,
        "to_name": st.sampled_from(["image", "pages", "video", "text"]) | JSON,
        "item_index": st.sampled_from([0, 1]) | JSON,
        "is_positive": st.booleans() | JSON,
        "id": st.sampled_from("abc") | JSON,
    },
)
GOOD = st.builds(
    region,
    st.sampled_from(KINDS[:8]),
    st.fixed_dictionaries(
        {key: st.floats(0, 40) for key in ("x", "y", "width", "height", "radiusX", "radiusY")}
        | {
            "rotation": st.floats(-360, 360),
            "points": st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)).map(list), min_size=3, max_size=6),
        }
    ),
    st.text(max_size=5),
    to_name=st.sampled_from(["image", "pages"]),
    is_positive=st.sampled_from([True, None]),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(JSON | st.fixed_dictionaries({"result": st.lists(REGIONS | GOOD, max_size=5)}))
def test_any_context_is_objects_or_a_prompt_error(context):
    try:
        found = drawn_objects(context, CONFIG, 4)
    except PromptError as error:
        assert error.message
        return
    for one in found:
        _check(one)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(GOOD, max_size=4, unique_by=lambda r: r["id"]))
def test_every_object_is_inside_its_image_and_crosses_the_queue(regions):
    try:
        found = drawn(*regions)
    except PromptError:
        return
    assert len({(one.to_name, one.prompt.prompt_id) for one in found}) == len({one.region_id for one in found}) == len(found)
    for one in found:
        _check(one)


def _check(one):
    height, width = one.size_hw
    assert all(0 <= p.x_px <= width and 0 <= p.y_px <= height for p in one.prompt.points)
    assert one.prompt.box_xyxy_px or one.prompt.mask or any(p.is_positive for p in one.prompt.points)
    if one.prompt.box_xyxy_px:
        x0, y0, x1, y1 = one.prompt.box_xyxy_px
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
    assert from_wire(ImagePrompt, json.loads(json.dumps(to_wire(one.prompt)))) == one.prompt


# What Label Studio's editor really sent


def contexts(value):
    """Every context in a recording, those that the browser sent and those that the backend got."""
    if isinstance(value, dict) and value.get("context"):
        yield value["context"]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from contexts(item)


def config_of(value):
    if isinstance(value, dict) and isinstance(value.get("label_config"), str):
        return value["label_config"]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(config_of, items)), None)


def recorded(name):
    """Per context, per object: (page, labels, clicks and signs, box or None, whether it is turned); pixels rounded."""
    recording = json.loads((REQUESTS / f"{name}.json").read_text())
    config = parse_label_config(config_of(recording) or "<View/>")
    found = []
    for context in contexts(recording):
        objects = [_described(one) for one in drawn_objects(context, config, 64)]
        if objects not in found:
            found.append(objects)
    return found


def _described(one):
    clicks = [(round(p.x_px), round(p.y_px), "+" if p.is_positive else "-") for p in one.prompt.points]
    box_px = one.prompt.box_xyxy_px and tuple(round(edge) for edge in one.prompt.box_xyxy_px)
    return one.item_index, one.label_names, clicks, box_px, bool(one.prompt.clip_xy_px)


def click(x, y, label, *more, page=None):
    return [(page, (label,), [(x, y, "+"), *more], None, False)]


def boxed(*boxes, label="defect", turned=False):
    return [(None, (label,), [], edges, turned) for edges in boxes]


SECOND, THIRD = (358, 278, "+"), (128, 96, "-")
RECORDED = {
    "auto_accept": [click(800, 200, "defect"), click(144, 120, "defect")],
    "bitmask": [click(320, 240, "cat")],
    "brush_box": [boxed((284, 188, 616, 432), label="scratch")],
    "brush_click": [click(320, 240, "defect")],
    "brush_refine": [
        click(282, 211, "defect"),
        click(282, 211, "defect", SECOND),
        click(282, 211, "defect", SECOND, THIRD),
        click(544, 72, "scratch"),
    ],
    "exif": [click(350, 160, "defect")],
    "ls_quirks": [
        boxed((192, 120, 430, 315), turned=True),
        boxed((192, 144, 448, 360)),
        click(128, 96, "defect"),
        click(320, 240, "defect"),
    ],
    "multi_image": [
        click(140, 140, "defect", page=0),
        click(266, 431, "defect", page=1),
        click(266, 431, "defect", page=1) + click(470, 311, "defect", page=2),
    ],
    "polygon": [click(320, 240, "cat")],
    "rectangle": [click(451, 311, "cat")],
    "s3": [click(320, 240, "defect")],
    "separated": [click(320, 240, "scratch")],
    "two_boxes": [boxed((64, 48, 192, 168)), boxed((64, 48, 192, 168), (384, 288, 544, 432))],
    "video": [[]],
}


@pytest.mark.parametrize("name", sorted(path.stem for path in REQUESTS.glob("*.json")))
def test_a_recorded_context_becomes_the_objects_that_were_drawn(name):
    assert recorded(name) == RECORDED.get(name, [])
