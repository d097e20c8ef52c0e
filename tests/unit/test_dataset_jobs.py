"""Tasks → jobs for a dataset, and replies → predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backend.config_generator import generate
from backend.dataset_jobs import DatasetPlanner
from sam2_backend.dataset_messages import DatasetMask, DatasetReply, LabelText
from sam2_backend.errors import LabelConfigError, TaskDataError
from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings

MODEL = "demo@0123456789ab"
TASK = {"id": 7, "data": {"image": "http://images.test/a.png"}}


def planner(config: str, **overrides) -> DatasetPlanner:
    return DatasetPlanner(Settings(), MediaRef, config, None, {f"model_{name}": value for name, value in overrides.items()})


def everything(config: str = "", **overrides) -> DatasetPlanner:
    return planner(config or generate(["Cat"]), preannotate="everything", **overrides)


def reply(*sources: str, size_hw=(10, 20)) -> DatasetReply:
    mask = np.zeros(size_hw, bool)
    mask[2:6, 4:12] = True
    masks = tuple(DatasetMask("Cat", runs_from_mask(mask), 0.75, (0.2, 0.2, 0.6, 0.6), 32, source) for source in sources)
    return DatasetReply("hash", size_hw, MODEL, "w0", "none", masks)


def test_the_same_question_has_the_same_job_and_version_and_another_another():
    same, other = [everything().plan(TASK, MODEL).pages[0].pending.job_id for _ in range(2)]
    assert same == other
    versions = [
        everything().version(MODEL),
        everything(points_per_side="16").version(MODEL),
        everything(generate(["Cat"], "polygon")).version(MODEL),
        everything().version("tiny@1"),
        planner(generate(["Cat"]), preannotate="boxes").version(MODEL),
    ]
    assert len(set(versions)) == len(versions)
    assert versions[0].startswith(f"{MODEL} everything ")
    assert "," not in everything().version("a,b")


def test_all_options_reach_the_worker():
    asked = everything(points_per_side="5", multimask="false", mask_threshold="1", max_masks="3", score_threshold="0.5", fill_holes="9")
    job = asked.plan(TASK, MODEL).pages[0].pending.message
    assert (job.everything.points_per_side, job.everything.multimask_output, job.everything.mask_threshold) == (5, False, 1.0)
    assert (job.limit, job.min_score, job.mask.fill_holes_px, job.label) == (3, 0.5, 9, "Cat")


def test_a_text_is_the_labels_name_or_the_words_given_for_it():
    asked = planner(generate(["Cat", "Dog"]), preannotate="text", prompt="Dog: a small dog; Cow: never asked")
    job = asked.plan(TASK, MODEL).pages[0].pending.message
    assert job.texts == (LabelText("Cat", "Cat"), LabelText("Dog", "a small dog"))


def test_every_page_is_a_job_and_its_regions_know_it():
    asked = everything(generate(["Cat"], pages=True))
    plan = asked.plan({"id": 7, "data": {"images": [f"http://images.test/{n}.png" for n in range(3)]}}, MODEL)
    assert [page.pending.message.media.uri[-5] for page in plan.pages] == ["0", "1", "2"]
    prediction = asked.prediction(plan, [reply(""), reply(), reply("", "")])
    assert [region["item_index"] for region in prediction.result] == [0, 2, 2]
    assert len({region["id"] for region in prediction.result}) == 3
    assert prediction.score == 0.75


@pytest.mark.parametrize("output", ["brush", "bitmask", "polygon", "rectangle"])
def test_the_output_tag_decides_the_shape(output):
    asked = everything(generate(["Cat"], output))
    (region,) = asked.prediction(asked.plan(TASK, MODEL), [reply("")]).result
    assert region["type"] == f"{output}labels"
    assert region["value"][f"{output}labels"] == ["Cat"]
    assert (region["original_width"], region["original_height"], region["score"]) == (20, 10, 0.75)


def test_masks_of_boxes_carry_their_labels_and_an_unknown_label_is_left_off():
    def drawn(box_id, label, x):
        value = {"x": x, "y": 5, "width": 10, "height": 10, "rectanglelabels": [label]}
        return {"id": box_id, "type": "rectanglelabels", "to_name": "image", "value": value}

    asked = planner(generate(["Cat", "Dog"]), preannotate="boxes")
    plan = asked.plan(TASK | {"annotations": [{"result": [drawn("a", "Dog", 5), drawn("b", "Martian", 40)]}]}, MODEL)
    assert [box.box_id for box in plan.pages[0].pending.message.boxes] == ["0", "1"]
    assert ["Martian" in problem for problem in plan.problems] == [True]
    result = asked.prediction(plan, [reply("0", "1")]).result
    assert [region["value"]["brushlabels"] for region in result] == [["Dog"], []]


def test_a_task_without_boxes_is_no_work():
    assert planner(generate(["Cat"]), preannotate="boxes").plan(TASK, MODEL).pages == ()


def test_nothing_found_is_an_empty_prediction():
    asked = everything()
    prediction = asked.prediction(asked.plan(TASK, MODEL), [reply()])
    assert (prediction.result, prediction.score) == ([], 0.0)


def test_a_task_without_its_image_and_a_config_without_a_mode_are_said():
    with pytest.raises(TaskDataError, match="has no 'image'"):
        everything().plan({"id": 7, "data": {"picture": "x"}}, MODEL)
    with pytest.raises(LabelConfigError, match="No mode of pre-annotation"):
        planner(generate(["Cat"]))


def test_a_misspelt_option_of_the_command_line_is_a_problem_that_names_it():
    assert any("The command line" in problem and "points_per_side" in problem for problem in everything(points_per_sid="3").problems)


def test_a_job_of_another_task_with_the_same_image_is_another_job():
    ids = {everything().plan(TASK | {"id": task_id}, MODEL).pages[0].pending.job_id for task_id in (7, 8)}
    assert len(ids) == 2


def test_planning_reads_data_uris_through_the_given_door():
    settings = replace(Settings(), label_studio_url="")
    asked = DatasetPlanner(settings, lambda uri: MediaRef(f"blob:{len(uri)}"), generate(["Cat"]), {"model_preannotate": "everything"})
    plan = asked.plan({"id": 1, "data": {"image": "data:image/png;base64,AAAA"}}, MODEL)
    assert plan.pages[0].pending.message.media.uri == "blob:26"
