"""Propagations through the real queue, Redis and worker processes: nothing lost, nothing twice, nobody kept waiting. Frames are counted
in place of tracked (slow_counting), so that one frame left out, done twice or on another's memory shows in all that follow."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backend.dispatch import Dispatcher
from backend.propagations import ENDED, Propagations, session_of
from sam2_backend.errors import NoWorkerError, PromptError, SessionExpiredError
from sam2_backend.messages import ImagePrompt, MediaRef, WarmJob
from sam2_backend.propagation_format import RUNNING, WAITING, SessionKeys
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource, Keyframe, PropagateJob, PropagationState, VideoOptions

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import Background, Workers, job, names_in, until

FRAMES = "sam2:test:frames"


@pytest.fixture
def quick(quick: Settings) -> Settings:
    return replace(quick, propagate_checkpoint_s=0.0)


@pytest.fixture
def propagations(quick: Settings, dispatcher: Dispatcher) -> Propagations:
    return Propagations(quick, dispatcher)


def video(n_frames: int, *keys: int, title: str = "", name: str = "a", **options) -> PropagateJob:
    """One object with keyframes at these places."""
    source = FrameSource((MediaRef(f"http://videos.test/{name}.mp4"),), "video", 24.0, n_frames)
    keyframes = tuple(Keyframe("o", at, ImagePrompt("o", box_xyxy_px=(0.1, 0.1, 0.5, 0.5))) for at in keys or (0,))
    wishes = VideoOptions(**{"direction": "forward", "wants_masks": True, **options})
    return PropagateJob(session_of(source, (1, 1), keyframes, wishes, title), source, (1, 1), keyframes, wishes, title)


def places(state: PropagationState) -> list[int]:
    return np.frombuffer(state.tracks[0].grid_idx, "<i4").tolist()


def results(propagations: Propagations, state: PropagationState) -> tuple:
    """All that must not depend on who did the work."""
    return state.phase, state.n_frames, state.n_done, state.tracks, list(propagations.masks(state.session))


def undisturbed(propagations: Propagations, message: PropagateJob) -> tuple:
    """What one worker finds that nobody disturbs; it is done under another name and forgotten."""
    alone = replace(message, session="0" * 32, title="alone", source=replace(message.source, media=(MediaRef("http://videos.test/alone"),)))
    propagations.start(alone)
    state = propagations.wait(alone.session, 60)
    assert state.phase == "done", state
    return results(propagations, state)


def frames_done(workers: Workers) -> list[int]:
    return [int(line.split()[1]) for line in workers.connection.lrange(FRAMES, 0, -1)]


def done_at_least(propagations: Propagations, session: str, count: int) -> PropagationState:
    return until(lambda: (state := propagations.state(session)) and state.n_done >= count and state)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def test_a_propagation_grows_while_it_runs_and_is_asked_for_again(propagations, workers):
    workers.start("w0")
    message = video(20, title="task 7 frame_s=0.05")
    assert propagations.start(message).phase == "waiting"
    early = done_at_least(propagations, message.session, 2)
    assert (early.phase, early.n_frames, early.worker, early.size_hw) == ("running", 20, "w0", (60, 90))
    assert places(early) == list(range(early.n_done))
    assert early.n_done < 20
    again = propagations.start(message)
    assert again.phase == "running"
    assert again.n_done >= early.n_done
    state = propagations.wait(message.session, 30)
    assert (state.phase, places(state), state.title) == ("done", list(range(20)), "task 7 frame_s=0.05")
    assert propagations.start(message).phase == "done"
    assert propagations.wait(message.session, 30) == propagations.state(message.session)
    assert frames_done(workers) == list(range(20))
    assert [mask.grid_idx for mask in propagations.masks(message.session, "o")] == list(range(20))
    assert list(propagations.masks(message.session, "nobody")) == []


def test_waiting_ends_on_time_with_what_there_is(propagations, workers):
    workers.start("w0")
    message = video(400, title="frame_s=0.05")
    propagations.start(message)
    done_at_least(propagations, message.session, 1)
    start = time.monotonic()
    state = propagations.wait(message.session, 0.5)
    assert 0.5 <= time.monotonic() - start < 3
    assert state.phase == "running"
    assert 0 < state.n_done < 400


def test_two_starts_at_a_time_are_one_job(propagations, workers):
    workers.start("w0")
    workers.start("w1")
    message = video(30, title="frame_s=0.02")
    calls = [Background(lambda: propagations.start(message)) for _ in range(16)]
    assert {call.result().session for call in calls} == {message.session}
    assert propagations.wait(message.session, 30).phase == "done"
    assert frames_done(workers) == list(range(30))


def test_clicks_and_warming_do_not_wait_for_a_propagation(propagations, dispatcher, workers):
    workers.start("w0")
    message = video(400, title="frame_s=0.05")
    propagations.start(message)
    done_at_least(propagations, message.session, 1)
    dispatcher.warm([WarmJob(MediaRef("http://images.test/9.png"))])
    for _ in range(5):
        before = len(frames_done(workers))
        names_in(dispatcher.segment([job()], 20))
        # The frame in hand, and those done while the answer travelled: not the 400 that remain.
        assert len(frames_done(workers)) - before < 20
    until(lambda: workers.connection.llen("sam2:test:warmed") == 1)
    assert propagations.state(message.session).phase == "running"


def test_a_propagation_is_begun_although_somebody_clicks_all_the_time(propagations, dispatcher, workers):
    workers.start("w0")
    names_in(dispatcher.segment([job()], 20))
    message = video(10)
    propagations.start(message)
    for _ in range(200):
        names_in(dispatcher.segment([job()], 20))
        if propagations.state(message.session).phase == "done":
            break
        time.sleep(0.1)
    else:
        pytest.fail("it waits for a second without a click")


def test_cancelling_stops_within_a_frame_and_asking_again_goes_on(propagations, workers):
    workers.start("w0")
    message = video(30, title="frame_s=0.1")
    propagations.start(message)
    done_at_least(propagations, message.session, 3)
    propagations.cancel(message.session)
    at_cancel = len(frames_done(workers))
    state = propagations.wait(message.session, 30)
    assert state.phase == "cancelled"
    time.sleep(0.5)
    assert len(frames_done(workers)) - at_cancel <= 1
    assert propagations.state(message.session) == state
    assert state.n_done >= 3
    assert propagations.start(message).phase == "waiting"
    finished = propagations.wait(message.session, 30)
    assert (finished.phase, places(finished)) == ("done", list(range(30)))
    assert len(frames_done(workers)) <= 31, "what was saved before is not done again"


def test_cancelling_one_that_waits_takes_it_off_the_queue(propagations, workers):
    workers.start("w0")
    first, second = video(400, title="frame_s=0.05"), video(5, name="b")
    propagations.start(first)
    done_at_least(propagations, first.session, 1)
    propagations.start(second)
    propagations.cancel(second.session)
    propagations.cancel("no such session")
    assert propagations.state(second.session).phase == "cancelled"
    assert workers.connection.llen(WAITING) == 0


def test_ten_workers_killed_in_the_middle_leave_no_trace_in_the_result(propagations, workers, quick):
    message = video(120, 0, 60, title="frame_s=0.02")
    processes = {"w0": workers.start("w0"), "w1": workers.start("w1")}
    expected = undisturbed(propagations, message)
    propagations.start(message)
    n_done, killed = 0, 0
    while killed < 10:
        # One that was killed may have saved a frame more: its successor is waited for.
        state = until(
            lambda n=n_done: (
                (s := propagations.state(message.session)) and (s.phase in ENDED or (s.n_done > n and s.worker in processes)) and s
            ),
            60,
        )
        assert state.phase == "running", state.error or "the video is too short for ten deaths"
        n_done = state.n_done
        kill(processes.pop(state.worker))
        killed += 1
        name = f"v{killed}"
        processes[name] = workers.start_unawaited(name)
    state = propagations.wait(message.session, 60)
    assert results(propagations, state) == expected
    assert state.n_done == 120


def test_sigterm_hands_over_at_once_and_no_frame_is_done_twice(propagations, workers):
    process = workers.start("w0")
    message = video(40, title="frame_s=0.05")
    propagations.start(message)
    done_at_least(propagations, message.session, 3)
    workers.start("w1")
    process.terminate()
    assert process.wait(10) == 0
    state = propagations.wait(message.session, 30)
    assert (state.phase, state.worker) == ("done", "w1")
    assert frames_done(workers) == list(range(40))
    assert "Traceback" not in workers.log_of("w0").read_text()


def test_a_stopped_worker_that_comes_back_writes_nothing(propagations, workers):
    process = workers.start("w0")
    message = video(60, title="frame_s=0.02")
    expected = undisturbed(propagations, message)
    propagations.start(message)
    done_at_least(propagations, message.session, 3)
    process.send_signal(signal.SIGSTOP)
    workers.start("w1")
    state = propagations.wait(message.session, 40)
    assert (state.phase, state.worker) == ("done", "w1")
    process.send_signal(signal.SIGCONT)
    until(lambda: "is no longer ours" in workers.log_of("w0").read_text())
    assert results(propagations, propagations.state(message.session)) == expected
    next_one = video(5, name="b")
    propagations.start(next_one)
    assert propagations.wait(next_one.session, 30).phase == "done"


def test_a_worker_that_returns_under_its_name_goes_on(propagations, workers):
    process = workers.start("w0")
    message = video(40, title="frame_s=0.05")
    propagations.start(message)
    done_at_least(propagations, message.session, 3)
    kill(process)
    workers.start("w0")
    assert propagations.wait(message.session, 30).phase == "done"


def test_a_video_that_kills_its_workers_does_not_kill_them_all(propagations, workers):
    for name in ("w0", "w1", "w2", "w3"):
        workers.start(name)
    message = video(10, title="die=4")
    propagations.start(message)
    state = propagations.wait(message.session, 60)
    assert state.phase == "failed"
    assert "3 workers died over this video" in state.error
    assert until(propagations._dispatcher.workers)  # a busy machine may delay a sign of life


def test_propagations_take_turns(propagations, workers, quick):
    workers.settings = replace(quick, propagate_turn_s=0.3)
    workers.start("w0")
    both = video(60, title="frame_s=0.05"), video(60, title="frame_s=0.05", name="b")
    for message in both:
        propagations.start(message)
    for message in both:
        assert done_at_least(propagations, message.session, 2).n_done < 60
    states = [propagations.wait(message.session, 60) for message in both]
    assert [places(state) for state in states] == [list(range(60))] * 2
    assert len(frames_done(workers)) == 120


def test_a_session_is_left_to_workers_of_its_model_as_long_as_there_are_any(propagations, workers):
    busy = workers.start("w0")
    first, second = video(400, title="frame_s=0.05"), video(5, name="b")
    propagations.start(first)
    propagations.start(second)
    workers.start("w1", MODEL_VERSION="other@1")
    done_at_least(propagations, first.session, 2)
    assert propagations.wait(second.session, 2).phase == "waiting"
    propagations.cancel(first.session)
    kill(busy)
    state = propagations.wait(second.session, 30)
    assert (state.phase, state.worker, state.model_version) == ("done", "w1", "other@1")


@pytest.mark.parametrize(
    ("title", "error"),
    [
        ("open=video_unreadable", "video_unreadable: as asked"),
        ("fail=7", "video_unreadable: The video ends at frame 7."),
    ],
)
def test_a_video_that_cannot_be_read_fails_in_words_and_may_be_asked_for_again(title, error, propagations, workers):
    workers.start("w0")
    message = video(10, title=title)
    propagations.start(message)
    state = propagations.wait(message.session, 30)
    assert (state.phase, state.error) == ("failed", error)
    assert propagations.start(message).phase == "waiting"
    assert propagations.wait(message.session, 30).phase == "failed"
    other = video(3, name="b")
    propagations.start(other)
    assert propagations.wait(other.session, 30).phase == "done"


def test_a_keyframe_past_the_end_fails_by_its_number(propagations, workers):
    workers.start("w0")
    message = video(10, 0, 10)
    propagations.start(message)
    state = propagations.wait(message.session, 30)
    assert state.phase == "failed"
    assert state.error.startswith("no_such_frame: Frame 11 lies past the end")


def test_what_cannot_be_asked_is_refused_before_it_waits(propagations, workers):
    with pytest.raises(NoWorkerError, match="sam2-backend worker"):
        propagations.start(video(10))
    workers.start("w0")
    box = ImagePrompt("o", box_xyxy_px=(0.1, 0.1, 0.5, 0.5))
    crowd = tuple(Keyframe(f"o{i}", 0, box) for i in range(200))
    with pytest.raises(PromptError, match="200 objects are more than the 50"):
        propagations.start(replace(video(10), keyframes=crowd))
    with pytest.raises(PromptError, match="neither a box nor a point nor a mask"):
        propagations.start(replace(video(10), keyframes=(Keyframe("o", 3, ImagePrompt("o")),)))
    assert propagations.recent() == []


def test_an_unknown_session_is_told_as_such(propagations):
    assert propagations.state("nothing") is None
    with pytest.raises(SessionExpiredError, match="no longer kept"):
        propagations.wait("nothing", 5)


def test_of_more_sessions_than_are_kept_the_one_unused_for_longest_goes(propagations, workers, quick, dispatcher):
    workers.settings = few = replace(quick, propagate_sessions=3)
    propagations = Propagations(few, dispatcher)
    workers.start("w0")
    messages = [video(3, name=str(i)) for i in range(4)]
    for message in messages[:3]:
        propagations.start(message)
        propagations.wait(message.session, 30)
    propagations.wait(messages[0].session, 0)  # used again
    propagations.start(messages[3])
    propagations.wait(messages[3].session, 30)
    kept = {state.session for state in propagations.recent()}
    assert kept == {messages[i].session for i in (0, 2, 3)}
    assert not workers.connection.exists(*SessionKeys(messages[1].session).all)


def test_sessions_stay_within_their_bytes(workers, quick, dispatcher):
    workers.settings = small = replace(quick, propagate_bytes=20_000)
    propagations = Propagations(small, dispatcher)
    workers.start("w0")
    for i in range(8):
        message = video(100, name=str(i))
        propagations.start(message)
        propagations.wait(message.session, 30)
    kept = propagations.recent()
    assert 1 <= len(kept) < 8
    assert kept[0].session == message.session
    keys = [key for state in kept for key in SessionKeys(state.session).all]
    assert sum(int(workers.connection.memory_usage(key) or 0) for key in keys) < 2 * 20_000


def test_everything_of_a_session_ends_some_day(propagations, workers):
    workers.start("w0")
    message = video(200, title="frame_s=0.05")
    propagations.start(message)
    done_at_least(propagations, message.session, 2)
    keys = [key for key in workers.connection.scan_iter("sam2:propagation:*") if workers.connection.ttl(key) < 0]
    assert set(keys) <= {RUNNING.encode(), WAITING.encode(), b"sam2:propagation:used"}


def test_an_idle_session_is_forgotten_and_one_in_use_is_not(workers, quick, dispatcher):
    workers.settings = brief = replace(quick, propagate_idle_s=2)
    propagations = Propagations(brief, dispatcher)
    workers.start("w0")
    idle, used = video(3), video(3, name="b")
    for message in (idle, used):
        propagations.start(message)
    until(lambda: propagations.wait(used.session, 1) and propagations.state(idle.session) is None)
    assert propagations.state(used.session).phase == "done"


def test_a_correction_changes_only_what_follows_it_and_does_only_that_again(propagations, workers):
    workers.start("w0")
    before = video(40, 10, direction="both", title="salt=first")
    propagations.start(before)
    old = propagations.wait(before.session, 30)
    n_before = len(list(propagations.masks(before.session)))
    after = video(40, 10, 30, direction="both", title="salt=second")
    propagations.start(after)
    new = propagations.wait(after.session, 30)
    assert places(new) == places(old) == list(range(40))
    boxes = [np.frombuffer(state.tracks[0].boxes, "<f4").reshape(-1, 4) for state in (old, new)]
    assert (boxes[0][:30] == boxes[1][:30]).all(), "copied"
    assert (boxes[0][30:] != boxes[1][30:]).all(), "found anew"
    masks = {mask.grid_idx: mask.score for mask in propagations.masks(after.session)}
    assert masks == dict(enumerate(np.frombuffer(new.tracks[0].scores, "<f4")))
    assert n_before == 40


def test_redis_that_comes_back_empty_has_forgotten_and_the_worker_serves_on(own_redis_server, quick, tmp_path):
    its_settings = replace(quick, redis_url=own_redis_server.url)
    workers, dispatcher = Workers(its_settings, tmp_path), Dispatcher(its_settings)
    propagations = Propagations(its_settings, dispatcher)
    worker = workers.start("w0")
    message = video(400, title="frame_s=0.05")
    propagations.start(message)
    done_at_least(propagations, message.session, 2)
    own_redis_server.stop()
    time.sleep(0.5)
    own_redis_server.start()
    until(lambda: [w.state for w in dispatcher.workers()] == ["idle"])
    assert propagations.state(message.session) is None
    short = video(5)
    propagations.start(short)
    assert propagations.wait(short.session, 30).phase == "done"
    assert worker.poll() is None
    workers.close()
    dispatcher.close()


def test_redis_without_room_ends_the_propagation_in_words_and_the_worker_serves_on(own_redis_server, quick, tmp_path):
    its_settings = replace(quick, redis_url=own_redis_server.url)
    workers, dispatcher = Workers(its_settings, tmp_path), Dispatcher(its_settings)
    propagations = Propagations(its_settings, dispatcher)
    workers.start("w0")
    connection = workers.connection
    connection.config_set("maxmemory-policy", "noeviction")
    connection.config_set("maxmemory", connection.info("memory")["used_memory"] + 3_000_000)
    message = video(20, title="bank=8000000")
    propagations.start(message)
    state = propagations.wait(message.session, 30)
    assert state.phase == "failed"
    assert state.error.startswith("overloaded: Redis has no room")
    names_in(dispatcher.segment([job()], 20))
    connection.config_set("maxmemory", 0)
    assert not connection.exists(SessionKeys(message.session).bank)
    propagations.start(message)
    assert propagations.wait(message.session, 30).n_done == 20
    assert propagations.state(message.session).phase == "done"
    workers.close()
    dispatcher.close()
