"""Rows and masks as they lie in Redis, and names that depend on content alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sam2_backend.messages import ImagePrompt, MediaRef
from sam2_backend.propagation_format import (
    ROW,
    PackedMask,
    frame_masks,
    pack_masks,
    session_of,
    tracks_of,
    unpack_masks,
    unpack_rows,
    with_places,
)
from sam2_backend.video_messages import FrameSource, Keyframe, VideoOptions

SOURCE = FrameSource((MediaRef("http://v.test/1.mp4"),), "video", 24.0, 100)
KEYS = (Keyframe("a", 3, ImagePrompt("a", box_xyxy_px=(0.1, 0.2, 0.3, 0.4))),)


def test_rows_become_one_track_per_object_in_the_order_of_frames():
    rows = np.zeros(4, ROW)
    rows["object_idx"], rows["grid_idx"] = [1, 0, 1, 1], [7, 5, 9, 2]
    rows["box"], rows["score"] = np.arange(16).reshape(4, 4), [0.1, 0.2, 0.3, 0.4]
    first, second, third = tracks_of(unpack_rows(rows.tobytes()), ("x", "y", "z"))
    assert [t.object_id for t in (first, second, third)] == ["x", "y", "z"]
    assert np.frombuffer(second.grid_idx, "<i4").tolist() == [2, 7, 9]
    assert np.frombuffer(second.boxes, "<f4").reshape(-1, 4)[:, 0].tolist() == [12, 0, 8]
    assert np.frombuffer(second.scores, "<f4").tolist() == np.float32([0.4, 0.1, 0.3]).tolist()
    assert np.frombuffer(first.grid_idx, "<i4").tolist() == [5]
    assert (third.grid_idx, third.boxes, third.scores) == (b"", b"", b"")


def test_masks_come_back_as_they_went_in_and_once_for_each_place():
    masks = [PackedMask(0, 4, 6, 0.5, b"\1\0\0\0" * 3), PackedMask(1, 7, 7, 0.25, b"")]
    assert list(unpack_masks(pack_masks(masks))) == masks
    shown = list(frame_masks(masks, ("x", "y"), (2, 3)))
    assert [(m.object_id, m.grid_idx) for m in shown] == [("x", 4), ("x", 5), ("x", 6), ("y", 7)]
    assert shown[0].runs.size_hw == (2, 3)


def test_a_mask_keeps_the_places_that_lie_in_a_run():
    mask = PackedMask(0, 4, 6, 0.5, b"m")
    assert with_places(mask, 2, 5, 99) == PackedMask(2, 5, 6, 0.5, b"m")
    assert with_places(mask, 2, 7, 99) is None


def test_a_session_is_named_by_everything_that_its_results_depend_on():
    name = session_of(SOURCE, (1, 1), KEYS, VideoOptions(), "m@1")
    assert name == session_of(SOURCE, (1, 1), list(KEYS), VideoOptions(), "m@1")
    others = [
        session_of(replace(SOURCE, n_frames=99), (1, 1), KEYS, VideoOptions(), "m@1"),
        session_of(SOURCE, (2, 1), KEYS, VideoOptions(), "m@1"),
        session_of(SOURCE, (1, 1), (replace(KEYS[0], grid_idx=4),), VideoOptions(), "m@1"),
        session_of(SOURCE, (1, 1), (replace(KEYS[0], prompt=None),), VideoOptions(), "m@1"),
        session_of(SOURCE, (1, 1), KEYS, VideoOptions(between_only=True), "m@1"),
        session_of(SOURCE, (1, 1), KEYS, VideoOptions(), "m@2"),
    ]
    assert len({name, *others}) == len(others) + 1
