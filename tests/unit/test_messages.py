from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_backend.errors import JobRefusedError
from sam2_backend.messages import (
    ImageJob,
    ImagePrompt,
    ImageReply,
    MaskOptions,
    MediaRef,
    ObjectMask,
    Point,
    RunLengths,
    WorkerStatus,
    from_wire,
    to_wire,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
pairs = st.tuples(finite, finite)
runs = st.builds(RunLengths, st.tuples(st.integers(1, 9), st.integers(1, 9)), st.binary())
prompts = st.builds(
    ImagePrompt, st.text(), st.lists(st.builds(Point, finite, finite, st.booleans())).map(tuple), st.none() | st.tuples(finite, finite, finite, finite),
    st.none() | runs, st.lists(pairs).map(tuple),
)  # fmt: skip
jobs = st.builds(
    ImageJob,
    st.builds(MediaRef, st.text()),
    st.tuples(st.integers(), st.integers()),
    st.lists(prompts).map(tuple),
    st.builds(MaskOptions),
    st.text(),
)
replies = st.builds(
    ImageReply, st.text(), st.text(), st.text(), st.sampled_from(["device", "host", "redis", "none"]),
    st.lists(st.builds(ObjectMask, st.text(), runs, finite)).map(tuple), st.dictionaries(st.text(), finite),
)  # fmt: skip


@given(jobs | replies)
def test_a_message_survives_json(message):
    assert from_wire(type(message), json.loads(json.dumps(to_wire(message)))) == message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(json_values)
def test_anything_else_is_refused_and_nothing_else_is_raised(value):
    with pytest.raises(JobRefusedError):
        from_wire(ImageJob, value)


@pytest.mark.parametrize(
    "change",
    [
        {"media": {"uri": 7}},
        {"media": {}},
        {"size_hw": [1]},
        {"size_hw": [1, True]},
        {"prompts": [{"prompt_id": "a", "points": [{"x_px": float("nan"), "y_px": 1.0, "is_positive": True}]}]},
        {"prompts": [{"prompt_id": "a", "mask": {"size_hw": [1, 1], "counts": "not base64!"}}]},
        {"command": "rm"},
    ],
)
def test_a_job_with_a_wrong_field_is_refused(change):
    good = to_wire(ImageJob(MediaRef("u"), (1, 1), ()))
    assert from_wire(ImageJob, good) == ImageJob(MediaRef("u"), (1, 1), ())
    with pytest.raises(JobRefusedError):
        from_wire(ImageJob, good | change)


def test_a_worker_status_survives_json():
    status = WorkerStatus("w", 1, "h", "cpu", "m", 1.0, 2.0, "idle", hits={"device": 3})
    assert from_wire(WorkerStatus, json.loads(json.dumps(to_wire(status)))) == status
