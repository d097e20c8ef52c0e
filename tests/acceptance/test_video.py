"""A box drawn in the real Label Studio becomes a track; a correction stays; what came late is pushed; pages and exports."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from clips import moving_disc
from PIL import Image
from safetensors import safe_open
from scenes import iou, one_disc
from stored import mask_of
from video_editor import VideoEditor
from werkzeug.serving import make_server

from backend import config_generator
from backend.app import create_app
from backend.exports import run_export
from backend.label_studio_process import free_port
from backend.pushes import LOOK_EVERY_S

SCREENSHOTS = Path(__file__).with_name("screenshots")
FOLLOWS = 0.6
"""Of the shipped checkpoint on a plain disc; how good it is, its own evaluation tells."""
SIDES = ("x", "y", "width", "height")


@pytest.fixture(scope="session")
def follows(stack) -> bool:
    """Whether the model was trained to remember; without that its tracks mean nothing, and only the way is tested."""
    with safe_open(stack.settings.checkpoints_dir / "demo" / "model.safetensors", "pt") as file:
        return "untrained" not in file.metadata()["about"]


@pytest.fixture
def video_editor(editor) -> VideoEditor:
    return VideoEditor(editor)


def of_person(sequence: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {keyframe["frame"]: keyframe for keyframe in sequence if not keyframe.get("auto")}


def agreement(boxes, true_boxes) -> float:
    """Mean intersection over union of boxes (left, top, width, height); where one is missing it is 0."""
    found = []
    for box, true in zip(boxes, true_boxes, strict=True):
        if box is None:
            found.append(0.0)
            continue
        wide, high = (min(box[k] + box[k + 2], true[k] + true[k + 2]) - max(box[k], true[k]) for k in (0, 1))
        both = max(wide, 0) * max(high, 0)
        found.append(both / (box[2] * box[3] + true[2] * true[3] - both))
    return float(np.mean(found))


def near(box, other) -> bool:
    """A mouse is right to a pixel of the screen."""
    return bool(np.allclose(box, other, atol=1.0))


def test_a_box_becomes_a_track_and_a_correction_is_kept(video_editor, new_project, tmp_path, follows) -> None:
    clip = moving_disc(tmp_path / "disc.mp4")
    project = new_project(config_generator.generate_video(["Ball", "Player"], framerate="25"))
    task_id = project.upload(clip.path)
    video_editor.open(project.project_id, task_id)
    video_editor.draw("Ball", clip.boxes_pct[0])
    assert near(video_editor.shown(1)[0], clip.boxes_pct[0])
    (drawn,) = video_editor.regions()
    video_editor.select(1)
    video_editor.track("Ball")

    # The track is there, to the last frame, and the keyframe drawn is as it was drawn.
    (tracked,) = video_editor.regions()
    assert (tracked["id"], tracked["labels"]) == (drawn["id"], ["Ball"])
    first, *others = tracked["sequence"]
    assert {side: first[side] for side in SIDES} == {side: drawn["sequence"][0][side] for side in SIDES}
    assert others
    assert all(keyframe["auto"] and keyframe["seal"] and 0 <= keyframe["score"] <= 1 for keyframe in others)
    assert others[-1]["frame"] <= clip.n_frames
    assert [keyframe["time"] for keyframe in tracked["sequence"]] == [keyframe["frame"] / 25 for keyframe in tracked["sequence"]]
    video_editor.go_to(12)
    video_editor.screenshot("frame-12")
    shown = [video_editor.shown(frame)[0] for frame in range(1, clip.n_frames + 1)]
    if follows:
        assert agreement(shown, clip.boxes_pct) >= FOLLOWS

    # Corrections: on one of our keyframes, and on a frame without one, if there is such.
    ours = others[len(others) // 2]["frame"]
    keyframes = {keyframe["frame"] for keyframe in tracked["sequence"]}
    between = next((frame for frame in range(3, clip.n_frames) if frame not in keyframes and frame != ours), None)
    corrected = [frame for frame in (ours, between) if frame and video_editor.shown(frame)[0]]
    for frame in corrected:
        video_editor.go_to(frame)
        left, top, width, height = clip.boxes_pct[frame - 1]
        video_editor.move(frame, (left + 6, top - 5, width, height))  # where a good model would not put it
    moved = {frame: video_editor.shown(frame)[0] for frame in corrected}
    video_editor.track("Ball")
    (again,) = video_editor.regions()
    by_hand = of_person(again["sequence"])
    assert by_hand.keys() == {1, *corrected}
    for frame in corrected:
        assert tuple(by_hand[frame][side] for side in SIDES) == moved[frame]
        assert not {"auto", "seal", "score"} & by_hand[frame].keys()
        video_editor.go_to(frame)
        assert video_editor.shown(frame)[0] == moved[frame]
    video_editor.screenshot("corrected")

    video_editor.submit()
    (stored,) = project.stored(task_id)
    assert (stored["id"], stored["value"]["labels"]) == (drawn["id"], ["Ball"])
    assert stored["value"]["sequence"] == again["sequence"]


def test_objects_of_one_label_are_tracked_together_and_another_label_is_left_alone(video_editor, new_project, tmp_path) -> None:
    clip = moving_disc(tmp_path / "disc.mp4", n_frames=8)
    project = new_project(config_generator.generate_video(["Ball", "Player"], framerate="25"))
    video_editor.open(project.project_id, project.upload(clip.path))
    video_editor.draw("Ball", clip.boxes_pct[0])
    video_editor.draw("Player", (70, 60, 20, 30))
    video_editor.go_to(5)
    video_editor.draw("Ball", (60, 10, 20, 30))
    video_editor.go_to(1)
    video_editor.select(1)
    video_editor.track("Ball")
    context = video_editor.sent[-1]["result"]
    assert [entry["value"]["labels"] for entry in context] == [["Ball"], ["Ball"]]
    balls_and_player = {tuple(region["labels"]): [] for region in video_editor.regions()}
    for region in video_editor.regions():
        balls_and_player[tuple(region["labels"])].append([bool(keyframe.get("auto")) for keyframe in region["sequence"]])
    assert all(any(marks) for marks in balls_and_player["Ball",])
    assert balls_and_player["Player",] == [[False]]
    assert [sorted(of_person(region["sequence"])) for region in video_editor.regions()] == [[1], [1], [5]]


# What comes late


@pytest.fixture
def hasty_url(stack) -> Iterator[str]:
    """Another web tier of the same stack, which waits for next to nothing; both look after what is owed."""
    app = create_app(dataclasses.replace(stack.settings, propagate_wait_s=0.01))
    server = make_server("127.0.0.1", free_port(0), app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    app.extensions["pushes"].stop()


def context_of(clip, frame=1, region_id="by-rest") -> dict[str, Any]:
    box = dict(zip(SIDES, clip.boxes_pct[frame - 1], strict=True))
    keyframe = {"frame": frame, "enabled": True, "rotation": 0, "time": frame / clip.framerate} | box
    value = {"framesCount": clip.n_frames, "duration": clip.n_frames / clip.framerate, "sequence": [keyframe], "labels": ["Ball"]}
    return {
        "result": [{"id": region_id, "from_name": "box", "to_name": "video", "type": "videorectangle", "origin": "manual", "value": value}]
    }


def until(found, wait_s: float = 120) -> Any:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.5)
    raise AssertionError("it did not happen")


def ask(client, backend_id: int, task_id: int, context: dict[str, Any]) -> dict[str, Any]:
    """What the browser asks of Label Studio, without the browser."""
    answer: dict[str, Any] = client._send("POST", f"/api/ml/{backend_id}/interactive-annotating", {"task": task_id, "context": context})
    assert "errors" not in answer, answer
    return answer["data"]


def last_frame(regions: list[dict[str, Any]]) -> int:
    return int(regions[0]["value"]["sequence"][-1]["frame"])


def test_what_comes_after_the_answer_is_pushed_once_and_asking_again_gives_all(client, hasty_url, tmp_path, stack) -> None:
    clip = moving_disc(tmp_path / "long.mp4", n_frames=60)
    config = config_generator.generate_video(["Ball"], framerate="25", options={"model_keyframe_tolerance": 0})
    project_id = client.create_project("late", config, show_collab_predictions=False)["id"]
    try:
        backend = client.connect_ml_backend(project_id, hasty_url, "SAM 2")
        client.upload_files(project_id, [clip.path])
        (task,) = client.tasks(project_id)
        early = ask(client, backend["id"], task["id"], context_of(clip))
        assert last_frame(early["result"]) < clip.n_frames
        listed = requests.get(f"{hasty_url}/propagations", timeout=10).json()["propagations"]
        assert [item["title"] for item in listed if item["phase"] in {"waiting", "running"}] == [f"project {project_id} task {task['id']}"]
        assert f"project {project_id} task {task['id']}" in requests.get(hasty_url, headers={"Accept": "text/html"}, timeout=10).text
        until(lambda: client.task(task["id"])["predictions"])
        time.sleep(3 * LOOK_EVERY_S)  # both web tiers look again
        (prediction,) = client.task(task["id"])["predictions"]
        whole = ask(client, backend["id"], task["id"], context_of(clip))
        assert prediction["result"] == json.loads(json.dumps(whole["result"]))
        assert last_frame(whole["result"]) == clip.n_frames
        assert prediction["model_version"] == whole["model_version"]
    finally:
        client.delete_project(project_id)


def test_the_status_pages_button_stops_a_propagation(client, hasty_url, signed_in, tmp_path, request) -> None:
    clip = moving_disc(tmp_path / "longer.mp4", n_frames=300)
    project_id = client.create_project(
        "cancelled", config_generator.generate_video(["Ball"], framerate="25"), show_collab_predictions=False
    )["id"]
    page = signed_in.new_page()
    try:
        backend = client.connect_ml_backend(project_id, hasty_url, "SAM 2")
        client.upload_files(project_id, [clip.path])
        (task,) = client.tasks(project_id)
        ask(client, backend["id"], task["id"], context_of(clip))
        title = f"project {project_id} task {task['id']}"
        page.goto(hasty_url)
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / "status-running.png")
        page.get_by_role("button", name=f"Cancel {title}").click()
        page.wait_for_load_state()
        page.screenshot(path=SCREENSHOTS / "status-cancelled.png")
        assert page.url.rstrip("/") == hasty_url
        assert page.get_by_role("button", name=f"Cancel {title}").count() == 0
        (state,) = [item for item in requests.get(f"{hasty_url}/propagations", timeout=10).json()["propagations"] if item["title"] == title]
        assert state["phase"] == "cancelled"
        assert not client.task(task["id"])["predictions"]
    finally:
        page.close()
        client.delete_project(project_id)


# Pages and export


def test_a_click_on_one_page_is_found_on_all_pages(editor, new_project, client, media_folder, follows) -> None:
    folder = media_folder / "sequence"
    folder.mkdir(exist_ok=True)
    scenes = [one_disc(320, 240, (110 + 20 * number, 110 + 5 * number), 55) for number in range(4)]
    for number, scene in enumerate(scenes):
        scene.save(folder / f"page{number}.png")
    project = new_project(config_generator.generate(["Disc"], output="brush", pages=True, options={"model_propagate": True}))
    client.create_local_storage(project.project_id, folder, "sequence")
    client.import_tasks(project.project_id, [{"images": [f"/data/local-files/?d=sequence/page{number}.png" for number in range(4)]}])
    (task,) = client.tasks(project.project_id)
    editor.open(project.project_id, task["id"])
    editor.pick("keypoint")
    editor.choose_label(project.prompt_row(), "Disc")
    editor.click(110, 110)
    answered = editor.answers[-1]["data"]["result"]
    pages = [region["item_index"] for region in answered]
    assert 0 in pages
    assert len(pages) == len(set(pages))
    assert all((region["original_width"], region["original_height"]) == (320, 240) for region in answered)
    editor.next_page()
    editor.screenshot("page-2")
    editor.accept()
    editor.submit()
    stored = {region["item_index"]: region for region in project.stored(task["id"])}
    assert sorted(stored) == sorted(pages)
    assert {region["id"] for region in stored.values()} == {region["id"] for region in answered}
    if follows:
        assert sorted(stored) == [0, 1, 2, 3]
        assert min(iou(mask_of([stored[page]]), scene.objects["Disc"]) for page, scene in enumerate(scenes)) >= FOLLOWS


def test_the_boxes_of_a_project_are_exported_as_masks(client, stack, tmp_path) -> None:
    clip = moving_disc(tmp_path / "disc.mp4", n_frames=6)
    project_id = client.create_project("export", config_generator.generate_video(["Ball"], framerate="25"))["id"]
    said: list[str] = []
    try:
        client.upload_files(project_id, [clip.path])
        (task,) = client.tasks(project_id)
        client._send("POST", f"/api/tasks/{task['id']}/annotations/", {"result": context_of(clip)["result"]})
        for _ in range(2):
            assert run_export(stack.settings, project_id, tmp_path / "masks", echo=said.append) == 0
    finally:
        client.delete_project(project_id)
    assert f"task {task['id']}: exported before" in said
    vis = json.loads((tmp_path / "masks/youtube_vis.json").read_text())
    (video,) = vis["videos"]
    assert (video["length"], video["width"], video["height"]) == (6, 320, 240)
    files = sorted((tmp_path / "masks/Annotations").glob("*/*.png"))
    assert [file.name for file in files] == [f"{number:05d}.png" for number in range(6)]
    with Image.open(files[0]) as png:
        found, (height, width) = np.asarray(png) == 1, (240, 320)
    left, top, box_width, box_height = (int(side / 100 * size) for side, size in zip(clip.boxes_pct[0], (width, height) * 2, strict=True))
    assert found[top : top + box_height, left : left + box_width].sum() > 0.5 * found.sum(), "the first mask lies in the box that was drawn"
