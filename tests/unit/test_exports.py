"""Boxes of a project become COCO, YouTube-VIS and DAVIS files, which other people's readers read."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as oracle
from pycocotools.coco import COCO

from backend.exports import Exporter, Lifespan, chosen_results, run_export, shown_uri, video_name
from backend.keyframes import our_keyframe, read_keyframe
from backend.label_config import parse_label_config
from backend.masklet_files import ExportError, ExportFolder
from sam2_backend.errors import SettingsError
from sam2_backend.masks import runs_from_mask
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameMask, PropagationState, Track

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools's own

CONFIG = """<View>
  <Labels name="labels" toName="video" allowEmpty="true"><Label value="Ball"/><Label value="Cat"/></Labels>
  <Video name="video" value="$video" framerate="25"/>
  <VideoRectangle name="box" toName="video"/>
</View>"""
SIZE_HW, N = (24, 40), 6


def drawn(frame, *, enabled=True):
    return {"frame": frame, "enabled": enabled, "rotation": 0, "x": 10, "y": 20, "width": 30, "height": 40, "time": frame / 25}


def result(region_id="r1", label="Ball", *sequence):
    value = {"framesCount": N, "duration": N / 25, "sequence": list(sequence or [drawn(1)]), "labels": [label]}
    return {"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "value": value}


def task(task_id=7, *results, video="http://v.test/data/upload/3/ab12-clip.mp4?token=secret", **more):
    made = {"id": 1, "result": list(results or [result()]), "was_cancelled": False, "updated_at": "2026-01-01"}
    return {"id": task_id, "data": {"video": video}, "annotations": [made], "predictions": []} | more


def true_mask(number, grid_idx):
    """Each object is a square that goes to the right."""
    mask = np.zeros(SIZE_HW, bool)
    mask[4 + 8 * number : 10 + 8 * number, 2 + grid_idx : 9 + grid_idx] = True
    return mask


class FakePropagations:
    def __init__(self) -> None:
        self.jobs, self.error, self.started = {}, "", 0

    def start(self, job):
        self.jobs[job.session] = job
        self.started += 1

    def wait(self, session, _wait_s):
        ids = self._ids(session)
        grid = np.arange(N, dtype="<i4")
        tracks = tuple(Track(name, grid.tobytes(), np.zeros((N, 4), "<f4").tobytes(), np.zeros(N, "<f4").tobytes()) for name in ids)
        phase = "failed" if self.error else "done"
        return PropagationState(session, phase, "", N, N, SIZE_HW, tracks, "m", error=self.error)

    def masks(self, session, object_id=""):
        for number, name in enumerate(self._ids(session)):
            for grid_idx in range(N):
                yield FrameMask(name, grid_idx, runs_from_mask(true_mask(number, grid_idx)), 0.75)

    def _ids(self, session):
        return list(dict.fromkeys(keyframe.object_id for keyframe in self.jobs[session].keyframes))


@pytest.fixture
def propagations():
    return FakePropagations()


@pytest.fixture
def export(tmp_path, propagations, dispatcher, web_settings):
    """Export some tasks into the test's folder; returns what was said."""

    def run(*tasks, choice="auto", config=CONFIG):
        said = []
        exporter = Exporter(web_settings, dispatcher, propagations, ExportFolder(tmp_path), said.append)
        exporter.export(config, iter(tasks), choice)
        return said

    return run


def read(tmp_path, name="youtube_vis.json"):
    return json.loads((tmp_path / name).read_text())


def test_youtube_vis_holds_every_mask_and_pycocotools_reads_it(export, tmp_path):
    export(task(7, result("r1", "Ball"), result("r2", "Cat")))
    vis = read(tmp_path)
    (video,) = vis["videos"]
    assert (video["width"], video["height"], video["length"], video["framerate"]) == (40, 24, N, 25)
    assert video["file_names"][2] == "7-ab12-clip/00002.jpg"
    assert {c["name"] for c in vis["categories"]} == {"Ball", "Cat"}
    for number, annotation in enumerate(vis["annotations"]):
        assert len(annotation["segmentations"]) == len(annotation["bboxes"]) == N
        for grid_idx, rle in enumerate(annotation["segmentations"]):
            assert (oracle.decode(rle) == true_mask(number, grid_idx)).all()
            assert annotation["areas"][grid_idx] == oracle.area(rle)
            assert annotation["bboxes"][grid_idx] == oracle.toBbox(rle).tolist()


def test_coco_is_read_by_pycocotools(export, tmp_path):
    export(task(7, result("r1", "Ball"), result("r2", "Cat")), task(8))
    coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.getImgIds()) == 2 * N
    (image,) = [image for image in coco.loadImgs(coco.getImgIds()) if image["file_name"] == "7-ab12-clip/00003.jpg"]
    found = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
    assert [coco.loadCats(a["category_id"])[0]["name"] for a in found] == ["Ball", "Cat"]
    for number, annotation in enumerate(found):
        assert (coco.annToMask(annotation) == true_mask(number, 3)).all()
    assert {a["track_id"] for a in coco.dataset["annotations"]} == {1, 2, 3}


def test_pngs_are_indexed_as_daviss(export, tmp_path):
    export(task(7, result("r1"), result("r2", "Cat")))
    files = sorted((tmp_path / "Annotations/7-ab12-clip").iterdir())
    assert [file.name for file in files] == [f"{n:05d}.png" for n in range(N)]
    with Image.open(files[4]) as png:
        assert png.mode == "P"
        assert png.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        assert (np.asarray(png) == true_mask(0, 4) + 2 * true_mask(1, 4)).all()


def test_masks_are_kept_where_the_annotation_shows_the_object(export, tmp_path):
    export(task(7, result("r1", "Ball", drawn(2), drawn(4, enabled=False))))
    (annotation,) = read(tmp_path)["annotations"]
    assert [rle is not None for rle in annotation["segmentations"]] == [False, True, True, True, False, False]
    with Image.open(tmp_path / "Annotations/7-ab12-clip/00005.png") as png:
        assert not np.asarray(png).any()


def test_only_what_a_person_drew_is_a_prompt(export, propagations):
    ours = our_keyframe(4, (10, 20, 30, 40), is_enabled=True, score=0.9, framerate=25)
    export(task(7, result("r1", "Ball", drawn(1), ours)))
    (job,) = propagations.jobs.values()
    assert [k.grid_idx for k in job.keyframes] == [0]
    assert job.options.wants_masks


def test_an_accepted_prediction_is_tracked_from_the_starts_of_its_lifespans(export, propagations):
    keys = [our_keyframe(f, (10, 20, 30, 40), is_enabled=f != 3, score=0.9, framerate=25) for f in (1, 2, 3, 5, 6)]
    export(task(7, result("r1", "Ball", *keys)))
    (job,) = propagations.jobs.values()
    assert [(k.grid_idx, k.prompt is None) for k in job.keyframes] == [(0, False), (2, False), (3, True), (4, False)]


def test_many_objects_are_exported_in_groups(export, propagations, tmp_path):
    export(task(7, *(result(f"r{n}") for n in range(19))))
    assert [len({k.object_id for k in job.keyframes}) for job in propagations.jobs.values()] == [8, 8, 3]
    assert len(read(tmp_path)["annotations"]) == 19


def test_what_was_exported_before_is_passed_over_and_what_changed_is_not(export, propagations, tmp_path):
    export(task(7), task(8))
    said = export(task(7), task(8, result("r1", "Ball", drawn(1), drawn(5))))
    assert "task 7: exported before" in said
    assert propagations.started == 3
    assert len(read(tmp_path)["videos"]) == 2


def test_an_interrupted_task_is_done_again(export, propagations, tmp_path):
    export(task(7))
    (tmp_path / "masklets/7.json").write_text("{")
    export(task(7))
    assert propagations.started == 2


def test_a_task_that_fails_is_said_and_the_others_are_exported(export, propagations, tmp_path):
    said = export(task(7, video=""), task(8))
    assert any(line.startswith("task 7: FAILED") for line in said)
    assert said[-1] == "1 objects of 1 videos exported; 1 tasks failed, run it again"
    propagations.error = "video_unreadable: The file is damaged."
    assert any("The file is damaged. (video_unreadable)" in line for line in export(task(9)))


def test_tasks_that_are_gone_leave_the_export(export, tmp_path):
    export(task(7), task(8))
    export(task(8))
    assert [video["id"] for video in read(tmp_path)["videos"]] == [8]
    assert [path.name for path in (tmp_path / "Annotations").iterdir()] == ["8-ab12-clip"]


def test_annotations_come_before_predictions_and_skipped_ones_do_not_count():
    config = parse_label_config(CONFIG)
    guess = {"result": [result("guess")], "created_at": "2026-02-02"}
    both = task(7, result("person"), predictions=[guess])
    skipped = task(7, annotations=[{"result": [result("skipped")], "was_cancelled": True}], predictions=[guess])
    older = {"result": [result("older")], "updated_at": "2025-01-01"}
    newest = task(7, annotations=[older, {"result": [result("newer")], "updated_at": "2026-01-01"}])
    chosen = [
        [entry["id"] for entry in chosen_results(item, config, choice)]
        for item, choice in [
            (both, "auto"), (both, "predictions"), (skipped, "auto"), (skipped, "annotations"), (newest, "auto"),
        ]
    ]  # fmt: skip
    assert chosen == [["person"], ["guess"], ["guess"], [], ["newer"]]


def test_a_lifespan_is_as_label_studio_shows_it():
    shown = Lifespan([read_keyframe(drawn(2)), read_keyframe(drawn(4, enabled=False)), read_keyframe(drawn(7))])
    assert [frame for frame in range(1, 10) if frame in shown] == [2, 3, 4, 7, 8, 9]


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/upload/1/a b.mp4", "7-a_b"),
        ("s3://b/../../x.mp4?sig=1", "7-x"),
        ("data:video/mp4;base64,AAAA", "7"),
        ("http://h/%2e%2e", "7"),
    ],
)
def test_folder_names_stay_in_the_folder(uri, name):
    assert video_name({"id": 7}, uri) == name
    assert "sig" not in shown_uri(uri)


def test_a_project_without_video_boxes_is_refused(export):
    with pytest.raises(ExportError, match="VideoRectangle"):
        export(task(), config='<View><Image name="i" value="$i"/></View>')


def test_without_label_studio_nothing_is_started(tmp_path):
    with pytest.raises(SettingsError, match="LABEL_STUDIO_URL"):
        run_export(Settings(), 1, tmp_path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="--to"):
        ExportFolder(tmp_path / "file")


def test_a_cancelled_propagation_is_said(export, propagations, monkeypatch):
    wait = propagations.wait
    monkeypatch.setattr(propagations, "wait", lambda session, wait_s: dataclasses.replace(wait(session, wait_s), phase="cancelled"))
    assert any("was cancelled" in line for line in export(task()))
