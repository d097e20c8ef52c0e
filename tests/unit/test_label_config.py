from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from backend.label_config import MOST_CHARACTERS, parse_label_config
from backend.project_options import OPTIONS, ProjectOptions, project_options
from sam2_backend.errors import LabelConfigError
from sam2_backend.messages import MaskOptions

REQUESTS = Path(__file__).parent.parent / "fixtures" / "requests"


def configs_in(value):
    """Every labeling config in a recorded request."""
    if isinstance(value, dict):
        yield from (value[key] for key in ("label_config", "schema") if isinstance(value.get(key), str))
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from configs_in(item)


CONFIGS = sorted({xml for path in REQUESTS.glob("*.json") for xml in configs_in(json.loads(path.read_text()))})


def config(*tags, image='<Image name="image" value="$image"/>'):
    return parse_label_config(f"<View>{image}{''.join(tags)}</View>")


def control(tag, name, *labels, **attributes):
    attributes = {"toName": "image", **attributes}
    said = " ".join(f'{key}="{value}"' for key, value in attributes.items())
    return f'<{tag} name="{name}" {said}>' + "".join(f'<Label value="{label}"/>' for label in labels) + f"</{tag}>"


def test_every_config_of_the_recordings_is_tried():
    assert len(CONFIGS) == 7


@pytest.mark.parametrize("xml", CONFIGS)
def test_a_recorded_config_reads_as_label_studios_own_library_reads_it(xml):
    ours, theirs = parse_label_config(xml), LabelInterface(xml)
    assert {c.name: (c.tag, [c.to_name], list(c.label_names)) for c in ours.controls} == {
        c.name: (c.tag, c.to_name, list(c.labels or [])) for c in theirs.controls
    }
    assert {o.name: (o.tag, "$" + (o.value_list or o.value)) for o in ours.objects} == {o.name: (o.tag, o.value) for o in theirs.objects}


@pytest.mark.parametrize(
    ("recording", "from_name", "kind", "region_type", "labels_tag"),
    [
        ("brush_click", "tag", "brush", "brushlabels", None),
        ("bitmask", "mask", "bitmask", "bitmasklabels", None),
        ("polygon", "poly", "polygon", "polygonlabels", None),
        ("rectangle", "rect", "rectangle", "rectanglelabels", None),
        ("separated", "brush", "brush", "brush", "labels"),
        ("multi_image", "tag", "brush", "brushlabels", None),
    ],
)
def test_the_output_of_a_recorded_config(recording, from_name, kind, region_type, labels_tag):
    xml = next(configs_in(json.loads((REQUESTS / f"{recording}.json").read_text())))
    output = parse_label_config(xml).output("image")
    assert (output.from_name, output.kind, output.type, output.to_name) == (from_name, kind, region_type, "image")
    assert (output.labels_tag.name if output.labels_tag else None) == labels_tag


def test_tags_and_attributes_in_any_case_but_names_as_written():
    parsed = parse_label_config(
        '<view><image NAME="Img" VALUE="$Photo"/><brushlabels name="B" TONAME="Img" SMART="False"><label VALUE="A"/></brushlabels></view>'
    )
    output = parsed.output("Img")
    assert (parsed.images[0].value, output.from_name, output.type, output.control.label_names) == ("Photo", "B", "brushlabels", ("A",))
    assert output.control.smart is False
    with pytest.raises(LabelConfigError, match="img"):
        parsed.object_tag("img")


def test_a_label_is_called_by_its_alias_and_found_inside_nested_views():
    parsed = config(
        '<View><BrushLabels name="b" toName="image"><View><Label value="Cat &amp; dog" alias="c"/></View><Label value="A&lt;B"/></BrushLabels></View>'
    )
    assert parsed.controls[0].label_names == ("c", "A<B")


def test_a_comment_is_not_read():
    assert config('<!-- <BrushLabels name="b" toName="image"/> -->').controls == ()


def test_several_images_each_have_their_output():
    parsed = parse_label_config(
        '<View><Image name="a" value="$a"/><Image name="b" value="$b"/>'
        + control("BrushLabels", "ba", "x", toName="a")
        + control("PolygonLabels", "pb", "x", toName="b")
        + control("KeyPointLabels", "k", "x", toName="a,b")
        + "</View>"
    )
    assert [parsed.output(name).from_name for name in ("a", "b")] == ["ba", "pb"]
    assert [c.to_name for c in parsed.controls if c.name == "k"] == ["a", "b"]


@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ([("RectangleLabels", "r", {}), ("BrushLabels", "b", {})], "b"),
        ([("PolygonLabels", "p", {}), ("RectangleLabels", "r", {"smart": "true"})], "p"),
        ([("PolygonLabels", "p", {}), ("BitmaskLabels", "m", {})], "m"),
        ([("BitmaskLabels", "m", {}), ("Brush", "b", {})], "b"),
        ([("Brush", "b", {}), ("BrushLabels", "bl", {})], "bl"),
        ([("RectangleLabels", "prompt", {"smart": "true"}), ("RectangleLabels", "result", {"smart": "false"})], "result"),
        ([("RectangleLabels", "prompt", {"smart": "true"}), ("RectangleLabels", "result", {})], "result"),
        ([("RectangleLabels", "r", {"smart": "true"}), ("KeyPointLabels", "k", {"smart": "true"})], "r"),
        ([("BrushLabels", "b1", {}), ("BrushLabels", "b2", {})], "b1"),
        ([("BrushLabels", "b", {}), ("PolygonLabels", "p", {"model_output": "p"})], "p"),
        ([("BrushLabels", "b", {}), ("PolygonLabels", "p", {}), ("KeyPointLabels", "k", {"model_output": "p"})], "p"),
        ([("BrushLabels", "b", {"model_output": "k"}), ("KeyPointLabels", "k", {})], "b"),
    ],
)
def test_which_tag_takes_the_masks(tags, taken):
    assert config(*(control(tag, name, "x", **attributes) for tag, name, attributes in tags)).output("image").from_name == taken


def test_the_image_tag_may_name_the_output():
    image = '<Image name="image" value="$image" model_output="p"/>'
    assert config(control("BrushLabels", "b", "x"), control("PolygonLabels", "p", "x"), image=image).output("image").from_name == "p"


@pytest.mark.parametrize("tag", ["KeyPointLabels", "EllipseLabels", "Choices", "Labels"])
def test_without_a_tag_that_holds_masks_the_error_says_what_to_add(tag):
    with pytest.raises(LabelConfigError, match=r'BrushLabels.*toName="image"'):
        config(control(tag, "k", "x")).output("image")


def test_only_labels_that_the_output_has_are_carried():
    output = config(control("BrushLabels", "b", "cat", "dog")).output("image")
    assert output.known_labels(("dog", "martian", "cat")) == ("dog", "cat")
    assert output.known_labels(("martian",)) == ()


def test_labels_of_a_separate_tag_and_labels_from_the_task():
    separate = config(control("Labels", "l", "cat"), control("Brush", "b")).output("image")
    assert separate.known_labels(("cat", "dog")) == ("cat",)
    from_task = config(control("BrushLabels", "b", value="$labels")).output("image")
    assert from_task.known_labels(("cat", "dog")) == ("cat", "dog")
    assert config(control("Brush", "b")).output("image").known_labels(("cat",)) == ()


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "  ",
        "View",
        "<View>",
        "<View><Image</View>",
        "<View>\x00</View>",
        "<View>\ud800</View>",
        '<!DOCTYPE v [<!ENTITY a "a">]><View>&a;</View>',
        '<!DOCTYPE v SYSTEM "file:///etc/passwd"><View/>',
        "<View>&undefined;</View>",
        "<View>" + " " * MOST_CHARACTERS + "</View>",
    ],
)
def test_what_is_no_labeling_config_is_refused(xml):
    with pytest.raises(LabelConfigError):
        parse_label_config(xml)


def test_depth_does_not_hurt():
    assert parse_label_config("<View>" * 50_000 + "</View>" * 50_000).controls == ()


def test_an_encoding_declaration_is_no_obstacle():
    assert parse_label_config('<?xml version="1.0" encoding="utf-16"?><View><Image name="ü" value="$x"/></View>').images[0].name == "ü"


@given(st.text() | st.text(alphabet='<>/"= ViewImaglLb$', max_size=200))
def test_any_text_is_a_config_or_a_config_error(text):
    try:
        parse_label_config(text)
    except LabelConfigError:
        pass


# Project options


def output_with(**attributes):
    return config(control("BrushLabels", "b", "x", **attributes)).output("image")


def test_options_are_read_from_attributes_and_extra_parameters_and_the_attribute_wins():
    output = output_with(model_fill_holes="50", MODEL_EPSILON="1.5", model_multimask="false")
    params = {
        "model_fill_holes": 7,
        "model_min_area": "30",
        "model_score_threshold": 0.25,
        "Model_Mask_Threshold": -1,
        "model_remove_sprinkles": 9.0,
    }
    expected = ProjectOptions(MaskOptions(False, 50, 9, -1.0), epsilon=1.5, score_threshold=0.25, min_area_px=30)
    assert project_options(output, params) == (expected, [])
    assert project_options(output, json.dumps(params)) == (expected, [])


def test_every_documented_option_can_be_set():
    for name, option in OPTIONS.items():
        values = {bool: ("false", "true"), int: ("3",), float: ("0.75",), range: ("5-9",), dict: ("Cat: a tabby",), str: option.words}[
            option.kind
        ]
        read = [project_options(output_with(**{name: value}), None) for value in values]
        assert [problems for _, problems in read] == [[]] * len(values)
        assert any(options != ProjectOptions() for options, _ in read)


@pytest.mark.parametrize(
    ("text", "expected"), [("5-9", (4, 8)), (" 5 - 9 ", (4, 8)), ("7-", (6, -1)), ("-9", (0, 8)), ("3-3", (2, 2)), ("1-", (0, -1))]
)
def test_a_range_of_frames_is_read_as_label_studio_counts_them(text, expected):
    video = project_options(output_with(model_frames=text), None)[0].video
    assert (video.first_grid_idx, video.last_grid_idx) == expected


@pytest.mark.parametrize("params", [None, {}, "", "  "])
def test_no_extra_parameters_are_no_problem(params):
    assert project_options(output_with(), params) == (ProjectOptions(), [])


@pytest.mark.parametrize("params", ["{", "[]", [], "3", "[" * 100_000])
def test_extra_parameters_that_are_no_object_are_reported(params):
    options, problems = project_options(output_with(), params)
    assert options == ProjectOptions()
    assert len(problems) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_score_threshold", "high"),
        ("model_score_threshold", "1.5"),
        ("model_score_threshold", "nan"),
        ("model_epsilon", "-1"),
        ("model_epsilon", "inf"),
        ("model_fill_holes", "1.5"),
        ("model_fill_holes", "1e99"),
        ("model_min_area", ""),
        ("model_multimask", "perhaps"),
        ("model_min_area", True),
        ("model_min_area", None),
        ("model_min_area", {}),
        ("model_frames", "9-5"),
        ("model_frames", "0-5"),
        ("model_frames", "-"),
        ("model_frames", "5"),
        ("model_frames", "a-b"),
        ("model_frames", "1-99999999999999"),
        ("model_direction", "sideways"),
        ("model_keyframe_tolerance", "-1"),
        ("model_propagate", "yes please"),
    ],
)
def test_a_malformed_option_is_reported_by_name_and_ignored(name, value):
    options, problems = project_options(output_with(), {name: value})
    assert options == ProjectOptions()
    assert len(problems) == 1
    assert name in problems[0]


def test_an_unknown_option_is_reported_with_the_nearest_name():
    _, problems = project_options(output_with(model_scor_treshold="0.5"), {"temperature": 1})
    assert ["temperature" in problems[0], "model_score_threshold" in problems[1]] == [True, True]


def test_model_output_is_the_labeling_configs_alone():
    _, problems = project_options(output_with(model_output="b"), {"model_output": "b"})
    assert len(problems) == 1
    assert "labeling config" in problems[0]


@given(
    st.dictionaries(
        st.sampled_from([*OPTIONS, "model_x"]), st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())
    )
)
def test_whatever_the_extra_parameters_hold_the_options_stay_in_range(params):
    options, problems = project_options(output_with(), params)
    assert 0 <= options.score_threshold <= 1
    assert options.min_area_px >= 0
    assert len(problems) <= len(params)
