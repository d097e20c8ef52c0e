"""A real video through real workers with a small network of random weights: every frame's score depends on all that is remembered."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from backend.dispatch import Dispatcher
from backend.propagations import Propagations, session_of
from sam2_backend.masks import area_px
from sam2_backend.messages import ImageJob, ImagePrompt, MediaRef, Point
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob, PropagationState, VideoOptions

sys.path.insert(0, str(Path(__file__).parent))
from test_real_worker import MAIN, png
from worker_processes import HEARTBEAT_S, ROOT, until

N_FRAMES = 60


@pytest.fixture
def quick(settings: Settings) -> Settings:
    return replace(settings, model="random:nano", device="cpu", heartbeat_s=HEARTBEAT_S, propagate_checkpoint_s=0.0)


@pytest.fixture
def start(quick: Settings, tmp_path: Path) -> Iterator:
    """Starts real workers by name; their log is at `tmp_path / "log"`."""
    processes: list[subprocess.Popen[bytes]] = []

    def start_one(name: str) -> subprocess.Popen[bytes]:
        env = os.environ | replace(quick, worker_name=name).to_env() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (tmp_path / "log").open("ab") as log:
            main = MAIN + "sys.exit(run_worker(Settings.from_env(os.environ)))"
            processes.append(subprocess.Popen([sys.executable, "-c", main], env=env, stderr=log))
        return processes[-1]

    yield start_one
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


@pytest.fixture
def dispatcher(quick: Settings) -> Iterator[Dispatcher]:
    opened = Dispatcher(quick)
    yield opened
    opened.close()


@pytest.fixture
def propagations(quick: Settings, dispatcher: Dispatcher) -> Propagations:
    return Propagations(quick, dispatcher)


def clip(n_frames: int = N_FRAMES) -> bytes:
    """A bright square that moves over noise, 24 frames a second."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 96, 64, "yuv420p", Fraction(1, 24)
        for number in range(n_frames):
            image = np.random.default_rng(number).integers(0, 120, (64, 96, 3), dtype=np.uint8)
            image[20:40, 10 + number % 60 : 30 + number % 60] = 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def asked(media: MediaRef, version: str, *keys: tuple[str, int], title: str = "task 1", **options) -> PropagateJob:
    source = FrameSource((media,), "video", 24.0)
    box = {"a": (0.1, 0.3, 0.32, 0.63), "b": (0.5, 0.1, 0.9, 0.5)}
    keyframes = tuple(Keyframe(name, at, ImagePrompt(name, box_xyxy_px=box[name])) for name, at in keys)
    wishes = VideoOptions(wants_masks=True, **options)
    return PropagateJob(session_of(source, (1, 1), keyframes, wishes, version), source, (1, 1), keyframes, wishes, title)


def results(propagations: Propagations, state: PropagationState) -> tuple:
    return state.phase, state.error, state.n_frames, state.n_done, state.size_hw, state.tracks, list(propagations.masks(state.session))


def scores(state: PropagationState, index: int) -> np.ndarray:
    return np.frombuffer(state.tracks[index].scores, "<f4")


@pytest.mark.timeout(600)  # eleven starts of torch
def test_ten_workers_killed_in_the_middle_leave_no_trace_in_the_result(propagations, dispatcher, start, quick):
    processes = {"w0": start("w0")}
    serving = until(lambda: [worker for worker in dispatcher.workers() if worker.state != "loading"], 60)
    media, keys = dispatcher.put_blob(clip()), (("a", 8), ("b", 0), ("a", 40))
    message = asked(media, serving[0].model_version, *keys)
    propagations.start(message)
    state = propagations.wait(message.session, 120)
    assert state.phase == "done", state.error
    assert len(set(scores(state, 0).tolist())) > N_FRAMES / 2, "or else nothing was tested"
    expected = results(propagations, state)
    connection = dispatcher.redis()
    for key in list(connection.scan_iter("sam2:propagation:*")):
        connection.delete(key)  # or else the second time would be a copy

    propagations.start(message)
    n_done, n_killed, victim = 0, 0, None
    while n_killed < 10:
        for name in (f"v{n_killed}", f"v{n_killed + 1}"):
            if name not in processes:
                processes[name] = start(name)  # comes while another works
        state = propagations.wait(message.session, 0.05)
        assert state.phase in {"waiting", "running"}, "the video is too short for ten deaths"
        # One that was killed may have saved a frame more: its successor is waited for.
        if state.n_done > n_done and processes.get(state.worker, victim) is not victim:
            n_done, victim = state.n_done, processes[state.worker]
            victim.kill()
            n_killed += 1
    state = propagations.wait(message.session, 120)
    assert results(propagations, state) == expected


def test_clicks_are_answered_between_frames_and_sigterm_hands_over(propagations, dispatcher, start, tmp_path):
    first = start("w0")
    serving = until(lambda: [worker for worker in dispatcher.workers() if worker.state != "loading"], 60)
    image = dispatcher.put_blob(png())
    click = ImageJob(image, (60, 90), (ImagePrompt("p", (Point(30.0, 20.0),)),))
    [quiet] = dispatcher.segment([click], 60)
    message = asked(dispatcher.put_blob(clip()), serving[0].model_version, ("a", 8), ("b", 0))
    propagations.start(message)
    until(lambda: propagations.state(message.session).n_done > 2, 60)
    [busy] = dispatcher.segment([click], 60)
    assert busy.masks == quiet.masks
    middle = propagations.state(message.session)
    assert middle.phase == "running"
    assert 0 < middle.n_done < middle.n_frames == 2 * N_FRAMES
    first.terminate()
    assert first.wait(30) == 0
    start("w1")
    state = propagations.wait(message.session, 120)
    assert (state.phase, state.worker, state.n_done, state.size_hw) == ("done", "w1", 2 * N_FRAMES, (64, 96))
    masks = list(propagations.masks(message.session, "b"))
    assert all(mask.runs.size_hw == (64, 96) and area_px(mask.runs) for mask in masks)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_after_a_correction_what_it_does_not_change_is_there_at_once_byte_for_byte(propagations, dispatcher, start, tmp_path):
    start("w0")
    serving = until(lambda: [worker for worker in dispatcher.workers() if worker.state != "loading"], 60)
    media, version = dispatcher.put_blob(clip()), serving[0].model_version
    before, after = asked(media, version, ("a", 8), ("b", 0)), asked(media, version, ("a", 8), ("b", 0), ("a", 50))
    states = []
    for message in (before, after):
        propagations.start(message)
        states.append(propagations.wait(message.session, 120))
    old, new = states
    assert (old.phase, new.phase) == ("done", "done")
    assert old.tracks[1] == new.tracks[1], "another object"
    assert (scores(old, 0)[:50] == scores(new, 0)[:50]).all()
    assert old.tracks[0].boxes[: 50 * 16] == new.tracks[0].boxes[: 50 * 16]
    assert (scores(old, 0)[50:] != scores(new, 0)[50:]).mean() > 0.8
    old_masks, new_masks = ({(m.object_id, m.grid_idx): m for m in propagations.masks(s.session)} for s in states)
    unchanged = {key for key in old_masks if key[0] == "b" or key[1] < 50}
    assert {key: old_masks[key] for key in unchanged} == {key: new_masks[key] for key in new_masks if key[0] == "b" or key[1] < 50}
    log = (tmp_path / "log").read_text()
    assert f"of {2 * N_FRAMES} results {2 * N_FRAMES - 10} are known" in log


def test_a_video_that_cannot_be_read_fails_by_its_code(propagations, dispatcher, start):
    start("w0")
    serving = until(lambda: [worker for worker in dispatcher.workers() if worker.state != "loading"], 60)
    for media, code in ((dispatcher.put_blob(b"no video"), "video_unreadable: "), (MediaRef("blob:gone"), "media_unreachable: ")):
        message = asked(media, serving[0].model_version, ("a", 0))
        propagations.start(message)
        state = propagations.wait(message.session, 30)
        assert state.phase == "failed"
        assert state.error.startswith(code)
    late = asked(dispatcher.put_blob(clip()), serving[0].model_version, ("a", N_FRAMES))
    propagations.start(late)
    assert propagations.wait(late.session, 30).error.startswith(f"no_such_frame: Frame {N_FRAMES + 1} lies past the end")
