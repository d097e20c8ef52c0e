"""Bad requests on videos, over HTTP: each is a sentence with a status, none is an unexpected error."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CONFIG = """<View>
  <Labels name="labels" toName="video" allowEmpty="true"><Label value="Ball"/></Labels>
  <Video name="video" value="$video" framerate="25"/><VideoRectangle name="box" toName="video"/>
</View>"""
BOX = {"frame": 1, "enabled": True, "rotation": 0, "x": 10, "y": 20, "width": 30, "height": 40}


def region(region_id="r1", **value):
    whole = {"framesCount": 50, "duration": 2, "sequence": [BOX], "labels": ["Ball"]} | value
    return {"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "value": whole}


def body(*regions, data=None, config=CONFIG):
    task = {"id": 17, "data": {"video": "http://v.test/a.mp4"} if data is None else data}
    return {"tasks": [task], "project": "3.1", "label_config": config, "params": {"context": {"result": list(regions)}}}


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (body(region(), data={}), 422, "no 'video'"),
        (body(region(), data={"video": ""}), 422, "is empty"),
        (body(region(), data={"video": 7}), 422, "must be an address"),
        (body(region(), data={"video": "ftp://x/y"}), 422, "no address"),
        (body(region(sequence=[])), 422, "at least one keyframe"),
        (body(region(sequence=[BOX | {"x": "left"}])), 422, "x on frame 1 must be a number"),
        (body(region(sequence=[BOX | {"rotation": 45}])), 422, "turned"),
        (body(region(framesCount="many")), 422, "framesCount must be a number"),
        (body(region(duration=1e300)), 422, "duration"),
        (body(region(framesCount=1_000_000, duration=0.5)), 422, "frames per second cannot be"),
        (body(*(region(f"r{n}") for n in range(200))), 422, "200 objects at a time are more than 50"),
        (body(region(), config=CONFIG.replace("VideoRectangle", "Rectangle")), 422, "can hold a track"),
        (body(region() | {"to_name": "other"}), 422, "does not have"),
    ],
)  # fmt: skip
def test_it_is_said_what_is_wrong(client, sent, status, said):
    answer = client.post("/predict", json=sent)
    assert (answer.status_code, said in answer.json["error"]["message"]) == (status, True), answer.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["frame", "x", "sequence", "labels", "id"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(key=st.sampled_from(["id", "from_name", "to_name", "type", "value"]), value=json_values, inner=st.booleans())
def test_no_region_brings_predict_down(client, key, value, inner):
    """The task has no video, so that no region gets as far as the workers: the answer is a sentence of ours, or the region as it was."""
    bad = region(**({"sequence": [BOX | {"x": value}], "duration": value} if inner else {})) | ({} if inner else {key: value})
    answer = client.post("/predict", json=body(bad, data={}))
    assert answer.status_code in {200, 400, 422}, answer.text
