from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_backend.box_overlap import areas, iou, near_inner_edge, without_duplicates

coordinates = st.integers(0, 12).map(float)
some_boxes = st.integers(0, 12).flatmap(lambda n: hnp.arrays(np.float64, (n, 4), elements=coordinates)).map(
    lambda b: np.concatenate([np.minimum(b[:, :2], b[:, 2:]), np.maximum(b[:, :2], b[:, 2:])], axis=1)
)  # fmt: skip


def slow_iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def slow_nms(boxes, scores, threshold) -> list[int]:
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(slow_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


@settings(deadline=None)  # machines may be busy
@given(some_boxes)
def test_overlap_is_what_counting_says(boxes):
    for box in boxes:
        np.testing.assert_allclose(iou(box, boxes), [slow_iou(box, other) for other in boxes])


@settings(deadline=None)  # machines may be busy
@given(some_boxes, st.data(), st.floats(0, 1))
def test_duplicates_go_as_in_the_plain_double_loop(boxes, data, threshold):
    scores = data.draw(hnp.arrays(np.float64, len(boxes), elements=st.integers(0, 3).map(float)))
    assert without_duplicates(boxes, scores, threshold).tolist() == slow_nms(boxes, scores, threshold)


@settings(deadline=None)  # machines may be busy
@given(some_boxes, st.data())
def test_what_stays_is_distinct_and_nothing_more_would_fit(boxes, data):
    scores = data.draw(hnp.arrays(np.float64, len(boxes), elements=st.floats(0, 1)))
    kept = without_duplicates(boxes, scores, 0.5)
    again = without_duplicates(boxes[kept], scores[kept], 0.5)
    assert again.tolist() == list(range(len(kept)))


def test_a_box_turned_inside_out_has_no_area():
    assert areas(np.array([[3.0, 0, 1, 5], [0, 0, 2, 3]])).tolist() == [0, 6]


def test_a_box_at_the_edge_of_a_crop_is_cut_unless_the_image_ends_there_too():
    crop, image = (0, 0, 100, 80), (0, 0, 300, 80)
    boxes = np.array([[30.0, 30, 60, 60], [30, 30, 90, 60], [5, 30, 60, 75], [30, 30, 79, 60]])
    assert near_inner_edge(boxes, crop, image).tolist() == [False, True, False, False]
