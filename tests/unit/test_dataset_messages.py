from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_backend.dataset_messages import (
    DatasetJob,
    DatasetMask,
    DatasetReply,
    EverythingOptions,
    Example,
    LabelledBox,
    LabelText,
    SimilarOptions,
    Skipped,
)
from sam2_backend.errors import JobRefusedError
from sam2_backend.messages import MaskOptions, MediaRef, RunLengths, from_wire, to_wire

shares = st.floats(0, 1)
boxes = st.tuples(shares, shares, shares, shares)
runs = st.builds(RunLengths, st.tuples(st.integers(1, 9), st.integers(1, 9)), st.binary())
jobs = st.builds(
    DatasetJob,
    st.builds(MediaRef, st.text()),
    st.sampled_from(["boxes", "everything", "text", "similar"]),
    st.lists(st.builds(LabelledBox, st.text(), boxes, st.text())).map(tuple),
    st.text(),
    st.lists(st.builds(LabelText, st.text(), st.text())).map(tuple),
    st.lists(st.builds(Example, st.builds(MediaRef, st.text()), st.text(), st.none() | runs, st.none() | boxes)).map(tuple),
    st.builds(EverythingOptions, points_per_side=st.integers(), pred_iou_thresh=shares, use_m2m=st.booleans()),
    st.builds(SimilarOptions, st.integers(), st.booleans()),
    st.builds(MaskOptions),
    shares,
    st.integers(),
)
replies = st.builds(
    DatasetReply,
    st.text(),
    st.tuples(st.integers(), st.integers()),
    st.text(),
    st.text(),
    st.sampled_from(["device", "host", "redis", "none"]),
    st.lists(st.builds(DatasetMask, st.text(), runs, shares, boxes, st.integers(), st.text())).map(tuple),
    st.lists(st.builds(Skipped, st.text(), st.text())).map(tuple),
    st.dictionaries(st.text(), shares),
)


@settings(deadline=None)  # machines may be busy
@given(jobs | replies)
def test_a_message_survives_json(message):
    assert from_wire(type(message), json.loads(json.dumps(to_wire(message)))) == message


def test_a_job_says_its_image_and_mode_and_the_rest_has_defaults():
    wire = {"media": {"uri": "http://images.test/1.png"}, "mode": "everything"}
    assert from_wire(DatasetJob, wire) == DatasetJob(MediaRef("http://images.test/1.png"), "everything")


def test_an_unknown_mode_is_refused():
    with pytest.raises(JobRefusedError, match="mode"):
        from_wire(DatasetJob, {"media": {"uri": "x"}, "mode": "nothing"})
