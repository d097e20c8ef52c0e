"""A request to track: what is asked of the workers, what is answered, what is owed and pushed. Workers, Redis and Label Studio are fakes."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from backend import pushes
from backend.label_config import parse_label_config
from backend.pushes import Pushes
from backend.tracking_plans import Planner, asks_for_tracking
from backend.video_predictor import VideoPredictor
from sam2_backend.errors import LabelConfigError, MediaUnreachableError, PromptError, TaskDataError, VideoUnreadableError
from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import MediaRef, from_wire, to_wire
from sam2_backend.video_messages import FrameMask, PropagateJob, PropagationState, Track

CONFIG = """<View>
  <Labels name="labels" toName="video" allowEmpty="true"><Label value="Ball"/></Labels>
  <Video name="video" value="$video" framerate="25"/>
  <VideoRectangle name="box" toName="video" model_direction="forward" model_frames="1-30"/>
</View>"""
PAGES_CONFIG = """<View>
  <Image name="image" valueList="$images"/>
  <BrushLabels name="brush" toName="image" smart="false" model_propagate="true"><Label value="Cat"/></BrushLabels>
  <KeyPointLabels name="point" toName="image" smart="true"><Label value="Cat"/></KeyPointLabels>
  <RectangleLabels name="rect" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
</View>"""
TASK = {"id": 17, "data": {"video": "http://v.test/a.mp4", "images": [f"http://v.test/{n}.png" for n in range(4)]}}
LIVE, PROJECT = "sam2.1_hiera_tiny@0123456789ab", "3.1700000000"


def region(*frames, region_id="r1", x=10.0, **more):
    sequence = [{"frame": f, "enabled": True, "rotation": 0, "x": x, "y": 20, "width": 30, "height": 40, "time": f / 25} for f in frames]
    value = {"framesCount": 30, "duration": 1.2, "sequence": sequence, "labels": ["Ball"]}
    return {"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual", "value": value} | more


class FakePropagations:
    """Every object goes to the right; as many frames are done as `n_done` says, all of them: the phase is done."""

    def __init__(self, n_frames=30) -> None:
        self.n_frames, self.n_done = n_frames, n_frames
        self.jobs: dict[str, PropagateJob] = {}
        self.phases: dict[str, str] = {}
        self.error = ""
        self.waited: list[float] = []

    def start(self, job):
        self.jobs[job.session] = from_wire(PropagateJob, to_wire(job))
        self.phases.pop(job.session, None)
        return self.state(job.session)

    def wait(self, session, wait_s):
        self.waited.append(wait_s)
        return self.state(session)

    def state(self, session):
        if session not in self.jobs:
            return None
        job = self.jobs[session]
        ids = list(dict.fromkeys(keyframe.object_id for keyframe in job.keyframes))
        phase = self.phases.get(session) or ("failed" if self.error else "done" if self.n_done == self.n_frames else "running")
        tracks = tuple(_track(object_id, self.n_done) for object_id in ids)
        return PropagationState(
            session, phase, job.title, self.n_frames * len(ids), self.n_done * len(ids), (48, 64), tracks, LIVE, "cpu0", self.error
        )

    def masks(self, session, object_id=""):
        job = self.jobs[session]
        mask = np.zeros(job.size_hw, bool)
        mask[10:20, 5:25] = True
        for name in dict.fromkeys(keyframe.object_id for keyframe in job.keyframes):
            for grid_idx in range(min(self.n_done, len(job.source.media))):
                yield FrameMask(name, grid_idx, runs_from_mask(mask), 0.8)

    def cancel(self, session):
        self.phases[session] = "cancelled"

    def recent(self):
        return [dataclasses.replace(self.state(session), tracks=()) for session in self.jobs]


def _track(object_id, n):
    left = np.linspace(0.1, 0.5, 30, dtype="<f4")[:n]
    boxes = np.stack([left, np.full(n, 0.2), left + 0.3, np.full(n, 0.6)], axis=1).astype("<f4")
    return Track(object_id, np.arange(n, dtype="<i4").tobytes(), boxes.tobytes(), np.full(n, 0.9, "<f4").tobytes())


class FakeRedis:
    """The commands that tracking and pushing use, with their expiry demanded."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.due: dict[str, float] = {}

    def set(self, key, value, ex=None, nx=False, get=False):
        assert ex, "everything in Redis ends some day"
        before = self.values.get(key)
        if nx and before is not None:
            return None
        self.values[key] = value if isinstance(value, bytes) else str(value).encode()
        return before if get else True

    def get(self, key):
        return self.values.get(key)

    def getex(self, key, ex=None):
        assert ex
        return self.values.get(key)

    def zmscore(self, _key, names):
        return [self.due.get(name) for name in names]

    def exists(self, key):
        return int(key in self.values)

    def delete(self, *keys):
        for key in keys:
            self.values.pop(key, None)

    def zadd(self, _key, scores, nx=False):
        self.due |= {name: score for name, score in scores.items() if not (nx and name in self.due)}

    def zrem(self, _key, *names):
        for name in names:
            self.due.pop(name, None)

    def zrangebyscore(self, _key, least, most):
        return [name.encode() for name, score in self.due.items() if least <= score <= most]

    def zremrangebyrank(self, _key, first, last): ...


class FakeStudio:
    """Label Studio as `pushes` sees it."""

    predictions: list[dict] = []
    fails = 0

    def __init__(self, url, key) -> None:
        assert url
        assert key

    def task(self, task_id):
        return {"id": task_id, "predictions": FakeStudio.predictions}

    def create_prediction(self, task_id, result, *, score, model_version):
        if FakeStudio.fails:
            FakeStudio.fails -= 1
            raise MediaUnreachableError("Label Studio is away.")
        FakeStudio.predictions.append(
            {"task": task_id, "result": json.loads(json.dumps(result)), "score": score, "model_version": model_version}
        )

    def close(self): ...


@pytest.fixture
def propagations():
    return FakePropagations()


@pytest.fixture
def store():
    return FakeRedis()


@pytest.fixture
def tracks(web_settings, propagations, store, monkeypatch) -> VideoPredictor:
    FakeStudio.predictions, FakeStudio.fails = [], 0
    monkeypatch.setattr(pushes, "LabelStudio", FakeStudio)
    monkeypatch.setattr(Pushes, "start", lambda _self: None)
    planner = Planner(web_settings, MediaRef)
    return VideoPredictor(web_settings, propagations, planner, lambda: store, lambda: LIVE, lambda _project: "")


def ask(tracks, *regions, config=CONFIG, task=TASK):
    click = tracks.track(task, config, {"result": list(regions)}, PROJECT)
    return click.predictions[0]["result"], click.facts


def shown_last(result):
    return result["value"]["sequence"][-1]["frame"]


def test_a_box_on_a_video_becomes_a_job_with_the_projects_options(tracks, propagations):
    ask(tracks, region(1, 9), region(3, region_id="r2"))
    (job,) = propagations.jobs.values()
    assert job.source.media == (MediaRef("http://v.test/a.mp4"),)
    assert (job.source.kind, job.source.framerate, job.source.n_frames, job.size_hw) == ("video", 25, 30, (1, 1))
    assert [(k.object_id, k.grid_idx) for k in job.keyframes] == [("r1", 0), ("r1", 8), ("r2", 2)]
    assert (job.options.direction, job.options.first_grid_idx, job.options.last_grid_idx) == ("forward", 0, 29)
    assert job.title == "project 3 task 17"
    assert len(job.session) == 32


def test_the_whole_track_is_answered_when_it_is_there(tracks, store):
    (result,), facts = ask(tracks, region(1))
    assert (result["id"], result["value"]["labels"], shown_last(result)) == ("r1", ["Ball"], 30)
    assert (facts["phase"], facts["done"], facts["frames"], facts["score"]) == ("done", 30, 30, 0.9)
    assert not store.due


def test_what_is_done_so_far_is_answered_and_asking_again_gives_more(tracks, propagations):
    lasts = []
    for propagations.n_done in (0, 12, 30):
        (result,), facts = ask(tracks, region(1))
        lasts.append((shown_last(result), facts["phase"]))
    assert lasts == [(1, "running"), (12, "running"), (30, "done")]
    assert len(propagations.jobs) == 1


def test_the_wait_is_the_setting_and_below_the_browsers(tracks, propagations, web_settings):
    ask(tracks, region(1))
    assert web_settings.propagate_wait_s == 20
    assert 19 < propagations.waited[0] <= 20


def test_a_label_is_not_part_of_the_work(tracks, propagations):
    """Clicking the label off and on sends the region without a label first."""
    bare = region(1)
    del bare["value"]["labels"]
    ask(tracks, bare)
    ask(tracks, region(1))
    assert len(propagations.jobs) == 1


def test_a_correction_is_new_work_and_ends_the_old(tracks, propagations):
    propagations.n_done = 12
    (first,), _ = ask(tracks, region(1))
    corrected = json.loads(json.dumps(first))
    corrected["value"]["sequence"][-1]["x"] = 55.0
    ask(tracks, corrected)
    old, new = propagations.jobs
    assert propagations.phases.get(old) == "cancelled"
    assert [k.grid_idx for k in propagations.jobs[new].keyframes] == [0, 11]


def test_an_object_that_gets_another_label_does_not_end_the_work_on_those_it_was_with(tracks, propagations):
    """Label Studio sends the regions of one label: first both, then the one alone, then both again."""
    propagations.n_done = 12
    both = [region(1), region(3, region_id="r2")]
    ask(tracks, *both)
    ask(tracks, both[1])
    (first, second) = propagations.jobs
    assert propagations.phases.get(first) is None
    ask(tracks, *both)
    assert propagations.phases.get(second) == "cancelled"
    assert propagations.state(first).phase == "running"


def test_regions_that_nobody_drew_on_come_back_unchanged(tracks, propagations):
    ours = region(1)
    ours["value"]["sequence"][0]["auto"] = True
    assert ask(tracks, ours)[0] == [ours]
    assert not propagations.jobs


def test_a_failed_propagation_is_its_error(tracks, propagations):
    propagations.error = "video_unreadable: The file is damaged."
    with pytest.raises(VideoUnreadableError, match="damaged"):
        ask(tracks, region(1))


def test_a_cancelled_one_answers_with_what_there_is_and_owes_nothing(tracks, propagations, store, monkeypatch):
    propagations.n_done = 12
    monkeypatch.setattr(propagations, "wait", lambda session, _wait_s: dataclasses.replace(propagations.state(session), phase="cancelled"))
    (result,), facts = ask(tracks, region(1))
    assert (shown_last(result), facts["phase"]) == (12, "cancelled")
    assert not store.due


def test_a_task_without_a_video_is_said(tracks):
    with pytest.raises(TaskDataError, match="no 'video'"):
        ask(tracks, region(1), task={"id": 1, "data": {}})


def test_a_config_without_video_rectangle_is_said(tracks):
    with pytest.raises(LabelConfigError, match="can hold a track"):
        ask(tracks, region(1), config='<View><Video name="video" value="$video"/></View>')


# Pushing


def owed(tracks, propagations, n_done=12):
    propagations.n_done = n_done
    ask(tracks, region(1))
    propagations.n_done = 30


def test_a_partial_answer_is_made_whole_by_a_prediction_once(tracks, propagations, store):
    owed(tracks, propagations)
    assert [tracks.pushes.look(), tracks.pushes.look()] == [1, 0]
    (prediction,) = FakeStudio.predictions
    assert (prediction["task"], prediction["model_version"], prediction["score"]) == (17, LIVE, 0.9)
    assert shown_last(prediction["result"][0]) == 30
    assert not store.due


def test_nothing_is_pushed_before_the_end(tracks, propagations):
    propagations.n_done = 12
    ask(tracks, region(1))
    assert tracks.pushes.look() == 0
    assert not FakeStudio.predictions


def test_asking_again_for_the_whole_leaves_nothing_to_push(tracks, propagations):
    owed(tracks, propagations)
    ask(tracks, region(1))
    assert tracks.pushes.look() == 0


def test_asking_many_times_owes_one_push(tracks, propagations):
    for n_done in (3, 6, 9):
        owed(tracks, propagations, n_done)
    assert tracks.pushes.look() == 1
    assert len(FakeStudio.predictions) == 1


def test_a_process_that_died_after_pushing_does_not_make_another_push_twice(tracks, propagations, store):
    owed(tracks, propagations)
    before = dict(store.values), dict(store.due)
    tracks.pushes.look()
    store.values, store.due = before
    tracks.pushes.look()
    assert len(FakeStudio.predictions) == 1


def test_while_another_process_pushes_this_one_leaves_it(tracks, propagations, store):
    owed(tracks, propagations)
    store.values |= {pushes.LOCK + name: b"1" for name in store.due}
    assert tracks.pushes.look() == 0


def test_a_push_that_fails_is_tried_again_later(tracks, propagations, store, monkeypatch):
    owed(tracks, propagations)
    FakeStudio.fails = 1
    assert tracks.pushes.look() == 0
    (name,) = store.due
    assert store.due[name] > pushes.time.time() + 5
    store.due[name] = 0
    assert tracks.pushes.look() == 1


def test_a_push_that_fails_for_ever_is_given_up_in_words(tracks, propagations, store):
    said = []
    tracks.pushes.record = said.append
    owed(tracks, propagations)
    FakeStudio.fails = 1000
    for _ in range(pushes.MOST_ATTEMPTS):
        store.due = dict.fromkeys(store.due, 0.0)
        tracks.pushes.look()
    assert not store.due
    assert [(event.task, event.words) for event in said] == [("17", "Its track is not pushed into Label Studio: Label Studio is away.")]


@pytest.mark.parametrize("phase", ["failed", "cancelled"])
def test_what_ended_without_a_result_is_not_pushed(tracks, propagations, store, phase):
    owed(tracks, propagations)
    propagations.phases = dict.fromkeys(propagations.jobs, phase)
    assert tracks.pushes.look() == 0
    assert not store.due


def test_without_label_studios_address_the_status_page_says_that_nothing_is_pushed(tracks, propagations, web_settings, store):
    tracks.pushes._settings = dataclasses.replace(web_settings, label_studio_api_key="")
    said = []
    tracks.pushes.record = said.append
    owed(tracks, propagations)
    assert not store.due
    assert said[0].is_error
    assert "LABEL_STUDIO_API_KEY" in said[0].words


# Pages


def prompt(region_id="p1", x=50.0, page=0, label="Cat", *, width=None, size=(64, 48)):
    shape = {"x": x, "y": 40.0, "width": 0.3, "keypointlabels": [label]}
    if width:
        shape = {"x": x, "y": 40.0, "width": width, "height": 20.0, "rotation": 0, "rectanglelabels": [label]}
    kind = "rectanglelabels" if width else "keypointlabels"
    return {
        "id": region_id, "from_name": "rect" if width else "point", "to_name": "image", "type": kind, "item_index": page,
        "original_width": size[0], "original_height": size[1], "value": shape,
    } | ({} if width else {"is_positive": True})  # fmt: skip


def test_a_click_on_one_page_gives_a_mask_on_every_page(tracks, propagations):
    results, _ = ask(tracks, prompt(page=1), config=PAGES_CONFIG)
    (job,) = propagations.jobs.values()
    assert (job.source.kind, len(job.source.media), job.size_hw, job.options.wants_masks) == ("pages", 4, (48, 64), True)
    assert [(k.grid_idx, k.prompt.points[0].x_px) for k in job.keyframes] == [(1, 32.0)]
    assert [result["item_index"] for result in results] == [0, 1, 2, 3]
    assert {result["type"] for result in results} == {"brushlabels"}
    assert all(result["value"]["brushlabels"] == ["Cat"] for result in results)


def test_ids_are_stable_per_object_and_page(tracks, propagations):
    first, _ = ask(tracks, prompt(page=1), config=PAGES_CONFIG)
    again, _ = ask(tracks, prompt(page=1), prompt("p2", 60, page=1), config=PAGES_CONFIG)
    assert [result["id"] for result in first] == [result["id"] for result in again]
    assert len({result["id"] for result in first}) == 4


def test_on_the_page_drawn_on_the_id_is_that_of_a_click_without_propagation(tracks):
    from backend.prompts import drawn_objects

    (drawn,) = drawn_objects({"result": [prompt(page=2)]}, parse_label_config(PAGES_CONFIG), 9)
    results, _ = ask(tracks, prompt(page=2), config=PAGES_CONFIG)
    assert results[2]["id"] == drawn.region_id


def test_points_on_two_pages_are_one_object_and_two_boxes_on_a_page_are_two(tracks, propagations):
    ask(tracks, prompt(page=0), prompt("p2", page=3), config=PAGES_CONFIG)
    ask(tracks, prompt("b1", 5, width=20), prompt("b2", 60, width=20), prompt("b3", 60, page=2, width=20), config=PAGES_CONFIG)
    one, three = ([(k.object_id, k.grid_idx) for k in job.keyframes] for job in propagations.jobs.values())
    assert one == [("p1", 0), ("p1", 3)]
    assert three == [("b1", 0), ("b2", 0), ("b3", 2)]


def test_pages_done_so_far_are_shown(tracks, propagations):
    propagations.n_done = 2
    results, facts = ask(tracks, prompt(), config=PAGES_CONFIG)
    assert ([result["item_index"] for result in results], facts["phase"]) == ([0, 1], "running")


def test_pages_that_do_not_exist_or_differ_in_size_are_said(tracks):
    with pytest.raises(PromptError, match="Page 10 was drawn on, and the task has 4"):
        ask(tracks, prompt(page=9), config=PAGES_CONFIG)
    with pytest.raises(PromptError, match="64 x 48 and 64 x 64"):
        ask(tracks, prompt(), prompt("p2", page=1, size=(64, 64)), config=PAGES_CONFIG)


def test_without_the_option_pages_are_answered_one_by_one_as_before():
    plain = PAGES_CONFIG.replace(' model_propagate="true"', "")
    one_page = PAGES_CONFIG.replace("valueList", "value")
    asks = [asks_for_tracking({"result": [prompt()]}, parse_label_config(xml), "") for xml in (PAGES_CONFIG, plain, one_page)]
    assert asks == [True, False, False]
    assert asks_for_tracking({"result": [prompt()]}, parse_label_config(plain), '{"model_propagate": true}')
