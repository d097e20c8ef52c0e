"""Which regions are compared, how they are matched, and what the counts are, on tasks as Label Studio lists them."""

from __future__ import annotations

import tracemalloc
from array import array

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from backend.config_generator import generate
from backend.evaluation import Evaluation
from backend.evaluation_regions import evaluated_regions
from backend.evaluation_scores import WorstCases, measure
from backend.evaluation_table import summary, table
from backend.fast_json import dumps
from backend.label_config import parse_label_config
from backend.project_options import ProjectOptions
from backend.regions import regions
from sam2_backend.masks import fill_ellipse, fill_polygon, mask_from_runs, runs_from_mask
from sam2_backend.messages import ObjectMask
from sam2_backend.settings import Settings

SIZE_HW = (60, 80)
CONFIG = parse_label_config(generate(["Cat", "Dog"]))
MODE = "model@1 boxes 0123abcd"


def box(region_id: str, x: float, y: float, side: float = 20, label: str = "Cat", **more) -> dict:
    value = {"x": x, "y": y, "width": side, "height": side, "rotation": 0, "rectanglelabels": [label] if label else []}
    size = {"original_width": SIZE_HW[1], "original_height": SIZE_HW[0]}
    return {"id": region_id, "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": value} | size | more


def task(predicted: list[dict], annotated: list[dict], task_id: int = 1, **annotation) -> dict:
    predictions = [{"id": 7, "model_version": MODE, "result": predicted}]
    annotations = [{"id": 10 + task_id, "result": annotated} | annotation]
    return {"id": task_id, "data": {"image": "http://images.test/1.png"}, "predictions": predictions, "annotations": annotations}


def evaluated(*tasks: dict, n_worst: int = 4, version: str = "") -> tuple[Evaluation, list[dict]]:
    evaluation = Evaluation(CONFIG, Settings(), WorstCases(n_worst), version)
    return evaluation, [record for task in tasks for record in evaluation.add(task)]


def became(*tasks: dict) -> list[str]:
    return [record["became"] for record in evaluated(*tasks)[1]]


def test_a_copy_that_stayed_is_unchanged_and_took_no_click():
    evaluation, (record,) = evaluated(task([box("a", 10, 10)], [box("a", 10, 10)], parent_prediction=7, lead_time=3.0))
    assert (record["became"], record["iou"], record["boundary_f"], record["clicks"], record["seconds"]) == ("unchanged", 1.0, 1.0, 0, 3.0)
    assert (evaluation.n_copied, evaluation.overall.unchanged) == (1, 1)


def test_regions_of_one_id_are_compared_however_far_apart_and_whatever_their_label():
    _, records = evaluated(task([box("a", 10, 10), box("b", 60, 60)], [box("a", 60, 60, label="Dog"), box("b", 10, 10)]))
    assert [(record["predicted"]["id"], record["annotated"]["id"], record["iou"]) for record in records] == [("a", "a", 0), ("b", "b", 0)]
    evaluation, (record,) = evaluated(task([box("a", 10, 10)], [box("a", 10, 10, label="Dog")]))
    assert (record["became"], record["label"], record["clicks"]) == ("relabelled", "Dog", None)
    assert (evaluation.overall.corrected, evaluation.overall.relabelled, evaluation.overall.unchanged) == (1, 1, 0)


def test_other_regions_are_matched_by_overlap_the_largest_first_within_their_label():
    predicted = [box("p1", 10, 10), box("p2", 14, 10), box("p3", 50, 50, label="Dog")]
    annotated = [box("x", 15, 10), box("y", 9, 10), box("z", 50, 50, label="Cat")]
    _, records = evaluated(task(predicted, annotated))
    matched = {(r["predicted"] or {}).get("id"): (r["annotated"] or {}).get("id") for r in records if r["predicted"]}
    assert matched == {"p1": "y", "p2": "x", "p3": None}
    assert [r["became"] for r in records] == ["corrected", "corrected", "added", "deleted"]


def test_a_prediction_without_a_label_may_become_any_and_little_overlap_is_no_match():
    assert became(task([box("p", 10, 10, label="")], [box("x", 10, 10, label="Dog")])) == ["relabelled"]
    assert became(task([box("p", 10, 10)], [box("x", 28.5, 10)])) == ["added", "deleted"]


def test_pages_are_kept_apart():
    assert became(task([box("a", 10, 10, item_index=0)], [box("a", 10, 10, item_index=1)])) == ["added", "deleted"]


def test_the_prediction_it_was_copied_from_counts_then_shared_ids_then_the_newest():
    def choice(annotation: dict, version: str = "") -> int:
        one = task([], [box("a", 10, 10)], **annotation)
        one["predictions"] = [
            {"id": 1, "model_version": "m1", "result": [box("z", 10, 10)]},
            {"id": 2, "model_version": "m2", "result": [box("a", 10, 10)]},
            {"id": 3, "model_version": "m3", "result": [box("y", 10, 10)]},
            {"id": 4, "model_version": "m4", "result": []},
        ]
        _, records = evaluated(one, version=version)
        return records[0]["prediction"] if records else 0

    assert choice({"parent_prediction": 1}) == 1
    assert choice({"parent_prediction": 99}) == 2
    assert choice({"result": [box("new", 10, 10)]}) == 3
    assert choice({}, version="m1") == 1
    assert choice({}, version="m9") == 0


def test_an_empty_prediction_counts_only_if_a_mode_found_nothing():
    for version, n_added in ((MODE, 1), ("model@1", 0), (f"{MODE} (not ready)", 0)):
        one = task([], [box("a", 10, 10)])
        one["predictions"][0]["model_version"] = version
        evaluation, _ = evaluated(one)
        assert (evaluation.overall.added, evaluation.n_without_prediction) == (n_added, 1 - n_added)


def test_skipped_annotations_and_drafts_do_not_count():
    one = task([box("a", 10, 10)], [box("a", 10, 10)], was_cancelled=True) | {"drafts": [{"id": 1, "result": [box("a", 10, 10)]}]}
    evaluation, records = evaluated(one)
    assert (records, evaluation.n_annotations, evaluation.n_tasks) == ([], 0, 0)


def test_lead_time_is_shared_among_the_regions_of_an_annotation():
    evaluation, records = evaluated(task([box("a", 10, 10)], [box("a", 10, 10), box("b", 50, 50)], lead_time=8.0))
    assert [record["seconds"] for record in records] == [4.0, 4.0]
    for lead_time in (None, 0, -3, "5", True, 1e9, float("nan")):
        _, (record,) = evaluated(task([box("a", 10, 10)], [box("a", 10, 10)], lead_time=lead_time))
        assert record["seconds"] is None, lead_time
    assert "Known of 2 regions" in table(evaluation)


def test_clicks_are_read_where_a_region_tells():
    told = box("n", 50, 50, meta={"clicks": 3})
    evaluation, records = evaluated(task([box("a", 10, 10), box("b", 10, 50)], [box("a", 12, 10), box("b", 10, 50), told]))
    assert [record["clicks"] for record in records] == [None, 0, 3]
    assert measure(evaluation.overall.clicks)["mean"] == 3
    assert "the mean of the 1 regions made by smart clicks" in table(evaluation)
    for meta in ({"clicks": -1}, {"clicks": True}, {"clicks": "3"}, {"text": ["note"]}, None, "3", {"clicks": 10**9}):
        _, records = evaluated(task([box("p", 1, 1)], [box("n", 50, 50, meta=meta)]))
        assert records[0]["clicks"] is None, meta


BROKEN = [
    box("a", 10, 10, original_width=None),
    box("a", 10, 10) | {"original_height": 0},
    box("a", 10, 10, value=None),
    box("a", 140, 10),
    box("a", 10, 10, type="brushlabels", value={"format": "rle", "rle": [1, 2, 3], "brushlabels": ["Cat"]}),
    box("a", 10, 10, type="brushlabels", value={"format": "rle", "rle": "no", "brushlabels": ["Cat"]}),
    box("a", 10, 10, type="bitmasklabels", value={"imageDataURL": "data:image/png;base64,xx", "bitmasklabels": ["Cat"]}),
    box("a", 10, 10, type="polygonlabels", value={"points": [[1, 2]], "polygonlabels": ["Cat"]}),
    box("a", 10, 10, item_index=-1),
    box("a", 10, 10, value={"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": "Cat"}),
]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("side", ["predicted", "annotated"])
def test_what_cannot_be_read_is_counted_and_named_and_its_counterpart_left_out(broken, side):
    good, other = box("a", 10, 10), box("b", 50, 50)
    one = task([broken, other], [good, other]) if side == "predicted" else task([good, other], [broken, other])
    evaluation, records = evaluated(one)
    assert [record["became"] for record in records] == ["unchanged"]
    assert evaluation.n_unreadable == 1
    (problem,) = evaluation.problems
    assert problem.startswith(f"task 1, {'prediction 7' if side == 'predicted' else 'annotation 11'}: Region 'a' (")


def test_a_prediction_of_another_image_size_is_not_compared():
    small = {"original_width": 40, "original_height": 30}
    evaluation, records = evaluated(task([box("a", 10, 10, **small)], [box("a", 10, 10)]))
    assert records == []
    assert "the prediction is of an image of 40 x 30 pixels, the annotation of 80 x 60" in evaluation.problems[0]


@pytest.mark.parametrize("result", [None, "x", [None, 3, []], [{"type": "choices", "value": {}}], [{"type": 3}], [{}]])
def test_results_that_are_no_regions_are_passed_over(result):
    assert evaluated_regions(result, CONFIG) == ([], [])


def test_tasks_that_are_no_tasks_do_no_harm():
    for one in ({"id": 1}, {"id": 1, "annotations": None, "predictions": 3}, {"id": 1, "annotations": [None, {"id": 2, "result": None}]}):
        assert evaluated(one)[1] == []


@pytest.mark.parametrize("kind", ["brush", "bitmask", "polygon", "rectangle"])
@pytest.mark.parametrize("separated", [False, True])
def test_every_shape_that_this_backend_writes_is_read_back(kind, separated):
    mask = fill_polygon([(8, 9), (50, 9), (50, 40), (8, 40)], SIZE_HW)
    config = parse_label_config(generate(["Cat", "Dog"], kind, separated=separated))
    found = ObjectMask("p", runs_from_mask(mask), 0.9)
    made = regions(
        found, config.output("image"), label_names=("Dog",), region_id="r", item_index=None, options=ProjectOptions(), n_clicks=2
    )
    (region,), problems = evaluated_regions(made, config)
    assert problems == []
    assert (region.region_id, region.label, region.clicks) == ("r", "Dog", 2)
    assert (mask_from_runs(region.mask) == mask).all()


def test_turned_rectangles_and_ellipses_are_filled():
    turned = box("t", 50, 10, value={"x": 50, "y": 10, "width": 25, "height": 25, "rotation": 45, "rectanglelabels": ["Cat"]})
    ellipse = box("e", 1, 1, type="ellipselabels", value={"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0})
    (first, second), _ = evaluated_regions([turned, ellipse], CONFIG)
    area = mask_from_runs(first.mask).sum()
    assert area == pytest.approx(0.25 * 80 * 0.25 * 60, rel=0.05)
    assert (mask_from_runs(second.mask) == fill_ellipse((40, 30), (8, 12), 0, SIZE_HW)).all()


def test_the_sums_of_the_table_hold():
    tasks = [
        task([box("a", 10, 10), box("b", 50, 50, label="Dog")], [box("a", 12, 10), box("c", 70, 10)], task_id=1, lead_time=6),
        task([box("a", 10, 10)], [box("a", 10, 10)], task_id=2),
    ]
    evaluation, records = evaluated(*tasks)
    overall = evaluation.overall
    assert (overall.predicted, overall.annotated, overall.unchanged, overall.corrected, overall.added, overall.deleted) == (
        3,
        3,
        1,
        1,
        1,
        1,
    )
    for name in ("predicted", "annotated", "unchanged", "corrected", "added", "deleted"):
        assert getattr(overall, name) == sum(getattr(scores, name) for scores in evaluation.by_label.values())
    lines = table(evaluation).splitlines()
    assert lines[1].split()[:7] == ["Cat", "2", "3", "1", "1", "1", "0"]
    assert lines[2].split() == ["Dog", "1", "0", "0", "0", "0", "1", "-", "-", "-", "-", "-"]
    assert lines[4].split()[:7] == ["all", "3", "3", "1", "1", "1", "1"]
    told = summary(evaluation, {"id": 1, "title": "T"}, [])
    assert told["overall"]["iou"]["mean"] == pytest.approx(np.mean([r["iou"] for r in records if r["iou"] is not None]), abs=1e-3)
    dumps(told)


def test_the_worst_cases_are_the_worst_and_of_several_tasks():
    tasks = [
        task([box(f"{n}", 10, 10) for n in range(5)], [box(f"{n}", 10 + number + n / 5, 10) for n in range(5)], number)
        for number in range(1, 6)
    ]
    evaluation, records = evaluated(*tasks, n_worst=4)
    cases = evaluation.worst.chosen()
    assert sorted(case.task_id for case in cases) == [4, 4, 5, 5]
    assert [case.pair.iou for case in cases] == sorted(case.pair.iou for case in cases)
    assert cases[0].pair.iou == pytest.approx(min(record["iou"] for record in records), abs=1e-4)
    assert evaluated(*tasks, n_worst=0)[0].worst.chosen() == []


def test_a_case_whose_image_cannot_be_named_says_so():
    one = task([box("a", 10, 10)], [box("a", 15, 10)]) | {"data": {}}
    (case,) = evaluated(one)[0].worst.chosen()
    assert "The task's data has no 'image'" in case.problem


def test_half_characters_and_control_characters_in_labels_can_be_written():
    evaluation, records = evaluated(task([box("a", 10, 10, label="\ud800")], [box("a", 10, 10, label="\ud800\n\x1b[31m")]))
    dumps(records[0])
    table(evaluation).encode()
    assert "\x1b" not in table(evaluation)


def test_measures_of_nothing_are_null():
    assert measure(array("f")) == {"count": 0, "mean": None, "q1": None, "median": None, "q3": None}


def test_a_pair_that_was_counted_leaves_a_few_bytes():
    evaluation = Evaluation(CONFIG, Settings(), WorstCases(4))

    def add(numbers: range) -> int:
        for number in numbers:
            one = task([box("a", 10, 10)], [box("a", 12, 10)], number, lead_time=3.0)
            for _ in evaluation.add(one):
                pass
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    before = add(range(50))
    grown = add(range(50, 350)) - before
    tracemalloc.stop()
    assert grown < 200 * 300, grown  # a pair that is kept has thousands; other threads of the process allocate a little


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "rle", "points", "id", "labels", "clicks"]), inner),
    max_leaves=6,
)
NUMBER = st.floats(-5, 110) | JSON
VALUE = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "labels", "rectanglelabels", "brushlabels"), NUMBER
    )
    | {"points": st.lists(st.lists(NUMBER, min_size=2, max_size=2), max_size=4) | JSON}
    | {"rle": st.lists(st.integers(0, 255), max_size=20).map(lambda tail: [0, 0, 75, 0, *tail]) | JSON}
    | {"imageDataURL": st.text(max_size=9).map("data:image/png;base64,".__add__) | JSON},
)
KINDS = [kind + labels for kind in ("rectangle", "ellipse", "polygon", "brush", "bitmask", "keypoint") for labels in ("", "labels")]
REGION = st.fixed_dictionaries(
    {"type": st.sampled_from([*KINDS, "labels"]) | JSON, "value": VALUE | JSON, "to_name": st.just("image") | JSON},
    optional={
        "original_width": st.just(SIZE_HW[1]) | JSON,
        "original_height": st.just(SIZE_HW[0]) | JSON,
        "id": st.sampled_from("ab") | JSON,
        "item_index": st.sampled_from([0, 1]) | JSON,
        "meta": JSON,
    },
)
GOOD = st.builds(box, st.sampled_from("abc"), st.floats(0, 70), st.floats(0, 70), label=st.sampled_from(["Cat", "Dog", ""]))
RESULT = st.lists(REGION | GOOD, max_size=4) | JSON


@hypothesis.settings(max_examples=80, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(RESULT, RESULT, st.integers(1, 3) | JSON, JSON)
def test_whatever_label_studio_holds_is_compared_or_named_and_every_region_is_in_one_place(predicted, annotated, parent, lead_time):
    one = task([], [], parent_prediction=parent, lead_time=lead_time)
    one["annotations"][0]["result"], one["predictions"][0]["result"] = annotated, predicted
    evaluation, records = evaluated(one)
    for name, side in (("predicted", predicted), ("annotated", annotated)):
        told = [record[name] for record in records if record[name]]
        found, _ = evaluated_regions(side, CONFIG)
        assert len(told) <= len(found)
        assert len(told) == getattr(evaluation.overall, name)
    assert len(evaluation.problems) == evaluation.n_unreadable
    dumps(summary(evaluation, {}, records))
    table(evaluation).encode()
