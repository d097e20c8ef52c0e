from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.config_judge import judge

IMAGE = '<Image name="image" value="$image"/>'
BRUSH = '<BrushLabels name="b" toName="image" smart="false"><Label value="cat"/><Label value="dog"/></BrushLabels>'
POINT = '<KeyPointLabels name="k" toName="image" smart="true"><Label value="cat"/><Label value="dog"/></KeyPointLabels>'
BOX = '<RectangleLabels name="r" toName="image" smart="true"><Label value="cat"/></RectangleLabels>'
VIDEO = '<Video name="v" value="$v"/>'
TRACK = '<VideoRectangle name="t" toName="v" smart="true"/>'
VIDEO_LABELS = '<Labels name="l" toName="v" allowEmpty="true"><Label value="ball"/></Labels>'


def judged(*tags, params=None):
    return judge(f"<View>{''.join(tags)}</View>", params)


@pytest.mark.parametrize(
    "tags",
    [
        (IMAGE, BRUSH, POINT, BOX),
        (IMAGE, BRUSH, POINT),
        (IMAGE, BRUSH.replace("Brush", "Bitmask"), BOX),
        (IMAGE, BRUSH.replace("Brush", "Polygon"), POINT, BOX),
        (IMAGE, BRUSH.replace("Brush", "Rectangle"), POINT),
        (IMAGE, BRUSH, POINT, '<Image name="reference" value="$other"/>'),
        (IMAGE, BRUSH, POINT, '<Image name="seen" value="$o"/><Choices name="c" toName="seen"><Choice value="x"/></Choices>'),
        (
            IMAGE,
            '<Labels name="l" toName="image"><Label value="x"/></Labels><Brush name="b" toName="image" smart="false"/><KeyPoint name="k" toName="image"/>',
        ),
        (IMAGE, '<BrushLabels name="b" toName="image" smart="false" value="$labels"/>', POINT),
        (VIDEO, TRACK, VIDEO_LABELS),
        (VIDEO.replace("/>", ' framerate="$fps"/>'), TRACK.replace("smart", 'model_frames="5-" smart'), VIDEO_LABELS),
        (IMAGE, BRUSH, POINT, VIDEO, TRACK, VIDEO_LABELS),
        (IMAGE, BRUSH, POINT, VIDEO),
        (IMAGE, VIDEO, TRACK, VIDEO_LABELS),
        (IMAGE.replace("value", "valueList"), BRUSH.replace("smart", 'model_propagate="true" smart'), POINT),
    ],
)
def test_a_good_config_is_found_good(tags):
    assert judged(*tags) == []


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ((IMAGE, POINT), "can hold a mask. Add"),
        ((IMAGE,), "can hold a mask. Add"),
        ((IMAGE, BRUSH), "no smart tool"),
        ((IMAGE, BRUSH, POINT.replace("true", "false")), "no smart tool"),
        ((IMAGE, BRUSH.replace(' smart="false"', ""), POINT), 'lacks smart="false"'),
        ((IMAGE, BRUSH.replace("false", "true"), POINT), 'lacks smart="false"'),
        ((IMAGE, BRUSH, POINT, '<MagicWand name="w" toName="image"/>'), "'w'"),
        ((IMAGE, BRUSH, POINT.replace("dog", "bird")), "lacks the labels 'bird'"),
        ((IMAGE, BRUSH, POINT.replace("KeyPoint", "")), "no smart tool"),
        ((IMAGE, '<Brush name="b" toName="image" smart="false"/>', POINT), "without a label"),
        ((IMAGE, '<BrushLabels name="b" toName="image" smart="false"/>', POINT), "no <Label> tags"),
        ((IMAGE, BRUSH.replace("smart", 'model_epsilom="1" smart'), POINT), "Did you mean model_epsilon?"),
        ((IMAGE, BRUSH.replace("smart", 'model_epsilon="wide" smart'), POINT), "number from 0 to 100"),
        ((IMAGE, BRUSH, POINT.replace("smart", 'model_epsilon="1" smart')), "no effect"),
        ((IMAGE.replace("value", 'model_output="q" value'), BRUSH, POINT), "model_output='q' names no tag"),
        ((IMAGE, BRUSH, POINT, BRUSH.replace("Brush", "Polygon").replace('"b"', '"p"')), "not to <PolygonLabels name='p'>"),
        ((IMAGE, BRUSH, POINT, BOX.replace("image", "picture")), "toName='picture', which does not exist"),
        ((VIDEO,), "can hold a track. Add <VideoRectangle"),
        ((VIDEO, TRACK), "no <Labels> tag"),
        ((VIDEO, TRACK, VIDEO_LABELS.replace(' allowEmpty="true"', "")), 'lacks allowEmpty="true"'),
        ((VIDEO, TRACK.replace("true", "false"), VIDEO_LABELS), 'smart="false"'),
        ((VIDEO.replace("/>", ' framerate="fast"/>'), TRACK, VIDEO_LABELS), "framerate='fast'"),
        ((VIDEO.replace("/>", ' framerate="0"/>'), TRACK, VIDEO_LABELS), "framerate='0'"),
        ((VIDEO, TRACK.replace("smart", 'model_direction="sideways" smart'), VIDEO_LABELS), "forward, backward or both"),
        ((VIDEO, TRACK.replace("smart", 'model_frames="9-3" smart'), VIDEO_LABELS), "two numbers from 1"),
        ((VIDEO, TRACK, VIDEO_LABELS.replace("allow", 'model_frames="1-3" allow')), "no effect"),
        ((IMAGE, BRUSH.replace("smart", 'model_propagate="true" smart'), POINT), "one image a task"),
        (('<Text name="t" value="$t"/>',), "no <Image> tag"),
        (("<Image",), "not XML"),
    ],
)
def test_what_is_wrong_is_said(tags, said):
    assert any(said in sentence for sentence in judged(*tags)), judged(*tags)


def test_one_fault_is_one_sentence():
    assert len(judged(IMAGE, BRUSH)) == 1
    assert len(judged(IMAGE, POINT)) == 1


def test_with_the_output_named_several_outputs_are_fine():
    polygon = BRUSH.replace("Brush", "Polygon").replace('"b"', '"p"')
    assert judged(IMAGE.replace("value", 'model_output="p" value'), BRUSH, polygon, POINT) == []


def test_extra_parameters_are_judged_with_the_config():
    assert judged(IMAGE, BRUSH, POINT, params={"model_min_area": 5}) == []
    assert len(judged(IMAGE, BRUSH, POINT, params='{"model_min_aera": 5}')) == 1


@given(
    st.lists(
        st.sampled_from([IMAGE, BRUSH, POINT, BOX, VIDEO, TRACK, VIDEO_LABELS, "<Brush/>", '<Labels name="" toName=","/>', "<Label/>", "<"])
    ),
    st.none() | st.text(),
)
def test_it_never_raises(tags, params):
    assert all(isinstance(sentence, str) and sentence for sentence in judged(*tags, params=params))
