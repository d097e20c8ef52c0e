"""From Label Studio's request to jobs, and from replies to exactly one prediction per task."""

from __future__ import annotations

import base64
import dataclasses
import logging
from urllib.parse import quote

import pytest

from backend.predictor import MOST_WARMED_IMAGES, Predictor
from sam2_backend.errors import (
    MediaRefusedError,
    MediaTooLargeError,
    MediaUnreachableError,
    MediaUnreadableError,
    NoWorkerError,
    QueueDownError,
    RequestError,
    SupersededError,
)
from sam2_backend.messages import Point

PAGES_CONFIG = """<View>
  <Image name="image" valueList="$images"/>
  <BrushLabels name="brush" toName="image" smart="false"><Label value="Cat"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels>
</View>"""
PAGES = [f"http://images.test/page{n}.png" for n in range(3)]


@pytest.fixture
def predictor(web_settings, dispatcher) -> Predictor:
    return Predictor(web_settings, dispatcher)


def _pages(predictor, *regions, pages=PAGES):
    return predictor.predict([{"id": 5, "data": {"images": pages}}], PAGES_CONFIG, {"result": list(regions)}, "3.1")


def _click(predictor, config, *regions, image="http://images.test/cat.png", tasks=1, project="3.1"):
    listed = [{"id": 17 + n, "data": {"image": image}} for n in range(tasks)]
    return predictor.predict(listed, config, {"result": list(regions)}, project)


def test_a_click_in_percent_is_sent_in_pixels_of_the_image(predictor, dispatcher, brush_config, point):
    _click(predictor, brush_config, point(x=50, y=25))
    (job,) = dispatcher.jobs
    assert job.size_hw == (100, 200)
    assert job.prompts[0].points == (Point(100.0, 25.0),)
    assert job.media.uri == "http://images.test/cat.png"


def test_the_region_lies_where_the_click_was(predictor, brush_config, point):
    """x and y differ and the image is wide, so that swapped axes fail."""
    from backend.brush_rle import decode_mask

    ((prediction),) = _click(predictor, brush_config, point(x=75, y=30))
    mask = decode_mask(prediction["result"][0]["value"]["rle"], (100, 200))
    assert mask[30, 150]
    assert not mask[75, 60]


def test_a_region_says_how_many_points_and_boxes_made_it(predictor, brush_config, point):
    for n_points in (1, 3):
        (prediction,) = _click(predictor, brush_config, *[point(f"p{n}", x=50 + n) for n in range(n_points)])
        assert [region["meta"] for region in prediction["result"]] == [{"clicks": n_points}]


def test_a_later_click_on_the_same_object_supersedes_the_earlier_and_another_object_does_not(predictor, dispatcher, brush_config, point):
    _click(predictor, brush_config, point("p1"))
    _click(predictor, brush_config, point("p1"), point("p2", x=60))
    _click(predictor, brush_config, point("q1"))
    _click(predictor, brush_config, point("p1"), project="4.1")
    first, second, other, elsewhere = (job.drawing for job in dispatcher.jobs)
    assert first == second
    assert len({first, other, elsewhere}) == 3


def test_only_the_first_task_is_segmented_and_each_gets_one_prediction(predictor, dispatcher, brush_config, point):
    predictions = _click(predictor, brush_config, point(), tasks=3)
    assert [len(prediction["result"]) for prediction in predictions] == [1, 0, 0]
    assert len(dispatcher.jobs) == 1


def test_pages_are_one_job_each_and_come_back_with_their_number(predictor, dispatcher, point):
    (prediction,) = _pages(
        predictor, point("a", item_index=1), point("b", item_index=2, original_width=300), point("c", item_index=1, x=60)
    )
    assert [(job.media.uri, job.size_hw) for job in dispatcher.jobs] == [(PAGES[1], (100, 200)), (PAGES[2], (100, 300))]
    assert len({job.drawing for job in dispatcher.jobs}) == 2
    assert [region["item_index"] for region in prediction["result"]] == [1, 2]


def test_a_broken_page_does_not_cost_the_others_their_masks(predictor, dispatcher, point, caplog):
    dispatcher.failures["*page1*"] = MediaUnreadableError("Page 1 is no image.")
    (prediction,) = _pages(predictor, point("a", item_index=1), point("b", item_index=2))
    assert [region["item_index"] for region in prediction["result"]] == [2]
    assert "Page 1 is no image." in caplog.text


def test_where_no_page_is_left_the_first_error_is_the_answer(predictor, dispatcher, point):
    dispatcher.failures |= {"*page1*": SupersededError("newer"), "*page2*": MediaRefusedError("Private.")}
    with pytest.raises(MediaRefusedError, match="Private"):
        _pages(predictor, point("a", item_index=1), point("b", item_index=2))


def test_a_superseded_click_answers_an_empty_result(predictor, dispatcher, brush_config, point):
    dispatcher.failures["*"] = SupersededError("A newer click came.")
    (prediction,) = _click(predictor, brush_config, point())
    assert (prediction["result"], prediction["score"]) == ([], 0.0)


def test_nothing_found_answers_an_empty_result(predictor, dispatcher, brush_config, point):
    dispatcher.find_nothing = True
    (prediction,) = _click(predictor, brush_config, point())
    assert (prediction["result"], prediction["score"]) == ([], 0.0)


@pytest.mark.parametrize("context", [{"result": []}, {}, {"result": None}])
def test_an_empty_context_answers_without_asking_a_worker(predictor, dispatcher, brush_config, context):
    predictions = predictor.predict([{"id": 1}, {"id": 2}], brush_config, context)
    assert [prediction["result"] for prediction in predictions] == [[], []]
    assert dispatcher.jobs == dispatcher.warmed == []


def test_the_dispatchers_errors_are_passed_on(predictor, dispatcher, brush_config, point):
    dispatcher.raises = NoWorkerError("No worker.")
    with pytest.raises(NoWorkerError):
        _click(predictor, brush_config, point())


# ------------------------------------------------------------------------------------------------------------ data URIs


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64," + base64.b64encode(b"\x89PNG bytes").decode(),
        "DATA:image/png;charset=x;BASE64," + quote(base64.b64encode(b"\x89PNG bytes").decode(), safe=""),
        "data:image/png," + quote(b"\x89PNG bytes"),
    ],
)
def test_a_data_uri_goes_beside_the_queue(predictor, dispatcher, brush_config, point, uri):
    _click(predictor, brush_config, point(), image=uri)
    (job,) = dispatcher.jobs
    assert job.media.uri.startswith("blob:")
    assert list(dispatcher.blobs.values()) == [b"\x89PNG bytes"]


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,A"])
def test_a_damaged_data_uri_is_an_unreadable_image(predictor, brush_config, point, uri):
    with pytest.raises(MediaUnreadableError):
        _click(predictor, brush_config, point(), image=uri)


def test_a_data_uri_above_the_limit_is_refused_before_it_is_stored(web_settings, dispatcher, brush_config, point):
    predictor = Predictor(dataclasses.replace(web_settings, media_max_bytes=10), dispatcher)
    assert _click(predictor, brush_config, point(), image="data:,0123456789")[0]["result"]
    with pytest.raises(MediaTooLargeError, match="SAM2_MEDIA_MAX_BYTES"):
        _click(predictor, brush_config, point(), image="data:,0123456789A")
    assert len(dispatcher.blobs) == 1


# -------------------------------------------------------------------------------------------------------------- warming


def test_every_page_of_an_opened_task_is_warmed(predictor, dispatcher):
    predictor.predict([{"id": 5, "data": {"images": PAGES}}], PAGES_CONFIG, None)
    assert [job.media.uri for job in dispatcher.warmed] == PAGES


def test_retrieving_predictions_of_many_tasks_warms_a_bounded_number(predictor, dispatcher, brush_config):
    tasks = [{"id": n, "data": {"image": f"http://images.test/{n}.png"}} for n in range(MOST_WARMED_IMAGES * 3)]
    assert len(predictor.predict(tasks, brush_config, None)) == len(tasks)
    assert len(dispatcher.warmed) == MOST_WARMED_IMAGES


@pytest.mark.parametrize(
    ("config", "data"),
    [("<View", {"image": "http://images.test/a.png"}), (None, {}), (None, {"image": "data:image/png;base64,A"}), (None, None)],
)
def test_what_cannot_be_warmed_is_logged_and_answered_all_the_same(predictor, brush_config, config, data, caplog):
    with caplog.at_level(logging.WARNING):
        predictions = predictor.predict([{"id": 1, "data": data}], config or brush_config, None)
    assert [prediction["result"] for prediction in predictions] == [[]]
    assert "not_warmed" in caplog.text


def test_a_task_that_cannot_be_warmed_does_not_cost_the_others_their_warming(predictor, dispatcher, brush_config):
    tasks = [{"id": 1, "data": {}}, {"id": 2, "data": {"image": "http://images.test/2.png"}}]
    predictor.predict(tasks, brush_config, None)
    assert [job.media.uri for job in dispatcher.warmed] == ["http://images.test/2.png"]


def test_an_unexpected_failure_to_warm_is_logged_not_answered(predictor, dispatcher, brush_config, caplog):
    dispatcher.warm = lambda _jobs, **_: 1 / 0
    assert len(predictor.predict([{"id": 1, "data": {"image": "http://images.test/1.png"}}], brush_config, None)) == 1
    assert "ZeroDivisionError" in caplog.text


def test_an_opened_task_is_answered_while_redis_is_away(predictor, dispatcher, brush_config, caplog):
    dispatcher.client.is_down = True
    assert len(predictor.predict([{"id": 1, "data": {"image": "http://images.test/1.png"}}], brush_config, None)) == 1
    assert "not_warmed" in caplog.text


# ---------------------------------------------------------------------------------------------------------- the project


def test_extra_parameters_of_the_connection_reach_the_job(predictor, dispatcher, brush_config, point):
    predictor.setup("3.1", brush_config, extra_params={"model_fill_holes": 40})
    _click(predictor, brush_config, point())
    _click(predictor, brush_config, point(), project="4.1")
    assert [job.options.fill_holes_px for job in dispatcher.jobs] == [40, 0]


def test_extra_parameters_are_read_by_another_web_process(predictor, dispatcher, web_settings, brush_config, point):
    predictor.setup("3.1", brush_config, extra_params='{"model_fill_holes": 40}')
    _click(Predictor(web_settings, dispatcher), brush_config, point())
    assert dispatcher.jobs[0].options.fill_holes_px == 40


def test_a_click_works_without_the_extra_parameters_while_their_storage_hiccups(web_settings, dispatcher, brush_config, point):
    predictor = Predictor(web_settings, dispatcher)
    dispatcher.redis = lambda: (_ for _ in ()).throw(QueueDownError("Redis does not answer."))
    assert len(_click(predictor, brush_config, point())[0]["result"]) == 1


@pytest.mark.parametrize("tasks", [None, [], {}, "x", [None], [[]]])
def test_tasks_that_are_no_tasks_are_refused(predictor, brush_config, tasks):
    with pytest.raises(RequestError, match="tasks"):
        predictor.predict(tasks, brush_config, None)


def test_an_unreachable_image_of_the_only_page_is_the_answer(predictor, dispatcher, brush_config, point):
    dispatcher.failures["*"] = MediaUnreachableError("images.test did not answer.")
    with pytest.raises(MediaUnreachableError):
        _click(predictor, brush_config, point())
