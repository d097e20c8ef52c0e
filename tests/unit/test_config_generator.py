from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from backend.config_generator import generate, generate_video
from backend.config_judge import judge
from backend.label_config import parse_label_config
from sam2_backend.errors import LabelConfigError

OUTPUTS = ["brush", "bitmask", "polygon", "rectangle"]
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("separated", [False, True])
@pytest.mark.parametrize("pages", [False, True])
def test_label_studio_and_the_judge_accept_what_is_generated(output, separated, pages):
    xml = generate(["cat", "dog"], output, separated=separated, pages=pages)
    LabelInterface(xml).validate()
    assert judge(xml) == []
    config = parse_label_config(xml)
    taken = config.output("image")
    assert (taken.kind, taken.type.endswith("labels"), taken.control.smart) == (output, not separated, False)
    assert taken.label_source.label_names == ("cat", "dog")
    assert (config.images[0].value, config.images[0].value_list) == (("", "images") if pages else ("image", ""))
    tools = {control.kind.removesuffix("labels") for control in config.controls if control.smart}
    assert tools == {"keypoint", "rectangle"}


@given(st.lists(texts, min_size=1, max_size=5, unique=True), st.sampled_from(OUTPUTS), st.booleans())
def test_any_label_comes_back_unchanged(labels, output, separated):
    xml = generate(labels, output, separated=separated)
    assert parse_label_config(xml).output("image").label_source.label_names == tuple(labels)


def test_labels_full_of_markup_pass_label_studios_validation():
    labels = ['a"b', "a<b>&c", "name='x' name=\"y\"", "<!DOCTYPE x>", "$label", "]]>", "日本"]
    LabelInterface(generate(labels)).validate()
    assert parse_label_config(generate(labels)).output("image").label_source.label_names == tuple(labels)


def test_options_ride_on_the_output():
    xml = generate(["cat"], "polygon", options={"model_epsilon": 1.5, "model_multimask": False})
    attributes = parse_label_config(xml).output("image").control.attributes
    assert (attributes["model_epsilon"], attributes["model_multimask"]) == ("1.5", "false")


@pytest.mark.parametrize("labels", [[], [""], ["  "], ["a", "a"], ["a\nb"], ["\x00"], ["\ud800"], ["\uffff"], ["x" * (1 << 20)]])
def test_labels_that_no_config_can_hold_are_refused(labels):
    with pytest.raises(LabelConfigError):
        generate(labels)


@pytest.mark.parametrize(
    ("output", "options"), [("ellipse", {}), ("", {}), ("brush", {"model_x": 1}), ("brush", {"a b": 1}), ("brush", {"model_epsilon": -1})]
)
def test_unknown_outputs_and_wrong_options_are_refused(output, options):
    with pytest.raises(LabelConfigError):
        generate(["cat"], output, options=options)


@pytest.mark.parametrize("framerate", ["", "25", "29.97", "$fps"])
def test_label_studio_and_the_judge_accept_a_generated_video_config(framerate):
    xml = generate_video(["ball", "player"], framerate=framerate, options={"model_direction": "forward"})
    LabelInterface(xml).validate()
    assert judge(xml) == []
    config = parse_label_config(xml)
    output = config.video_output("video")
    assert (output.from_name, output.label_source.label_names) == ("box", ("ball", "player"))
    assert config.videos[0].attributes.get("framerate", "") == framerate


@pytest.mark.parametrize(("labels", "more"), [([], {}), (["a"], {"framerate": "fast"}), (["a"], {"options": {"model_x": 1}})])
def test_a_video_config_that_cannot_work_is_refused(labels, more):
    with pytest.raises(LabelConfigError):
        generate_video(labels, **more)
