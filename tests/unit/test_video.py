"""Videos whose frames tell their own number: whatever the container, the codec and the times, a frame asked for is the frame got."""

from __future__ import annotations

import functools
import random
import sys
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import av
from coded_video import Clips, encode, number_in, picture

from sam2_backend import video
from sam2_backend.errors import VideoFrameError
from sam2_backend.prefetch import THREAD_NAME
from sam2_backend.video_pixels import Turn, upright_rgb

N = 40
STEADY = range(N)


def uneven(seed: int = 1) -> list[int]:
    steps = random.Random(seed)
    timestamps = [0]
    while len(timestamps) < N:
        timestamps.append(timestamps[-1] + steps.choice([7, 33, 40, 90, 400]))
    return timestamps


KINDS = {
    "steady, B-frames": functools.partial(encode, STEADY),
    "no B-frames": functools.partial(encode, STEADY, b_frames=0),
    "every frame a key frame": functools.partial(encode, STEADY, gop=1, b_frames=0),
    "one key frame": functools.partial(encode, STEADY, gop=1000),
    "open groups": functools.partial(encode, STEADY, codec_options={"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}),
    "uneven times": functools.partial(encode, uneven(), Fraction(1, 1000)),
    "23.976": functools.partial(encode, STEADY, Fraction(1001, 24000)),
    "29.97": functools.partial(encode, STEADY, Fraction(1001, 30000)),
    "12.5": functools.partial(encode, STEADY, Fraction(2, 25)),
    "starts late": functools.partial(encode, [13 + i for i in STEADY]),
    "starts late, no edit list": functools.partial(encode, [13 + i for i in STEADY], mux={"use_editlist": "0"}),
    "fragments, no index": functools.partial(encode, STEADY, mux={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "index in front": functools.partial(encode, STEADY, mux={"movflags": "faststart"}),
    "MPEG-4": functools.partial(encode, STEADY, codec="mpeg4"),
    "MPEG-4, no B-frames, AVI": functools.partial(encode, STEADY, codec="mpeg4", form="avi", b_frames=0),
    "QuickTime": functools.partial(encode, STEADY, codec="mpeg4", form="mov", gop=1, b_frames=0),
    "Matroska": functools.partial(encode, STEADY, form="matroska"),
    "transport stream": functools.partial(encode, STEADY, form="mpegts"),
    "VP9": functools.partial(encode, STEADY, codec="libvpx-vp9", form="webm", codec_options={"deadline": "realtime", "cpu-used": "8"}),
}


@pytest.fixture
def clips(tmp_path) -> Clips:
    return Clips(tmp_path)


@functools.cache
def data_of(kind: str) -> bytes:
    return KINDS[kind]()


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    codec = KINDS[request.param].keywords.get("codec", "libx264")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    return request.param


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def test_a_stream_shows_every_frame_once_in_order(clips, kind):
    with clips.open(data_of(kind)) as frames:
        assert frames.n_frames == N
        assert frames.size_hw == (64, 128)
        assert [(idx, number_in(image)) for idx, image in frames.stream(0, N - 1)] == [(i, i) for i in range(N)]


def test_backwards_is_the_same_frames_in_the_other_order(clips, kind, monkeypatch):
    monkeypatch.setattr(video, "BACKWARD_BYTES", 7 * 128 * 64 * 3)  # less than most groups need
    with clips.open(data_of(kind)) as frames:
        forward = {idx: image.tobytes() for idx, image in frames.stream(0, N - 1)}
        backward = [(idx, image.tobytes()) for idx, image in frames.stream(0, N - 1, reverse=True)]
    assert backward == [(idx, forward[idx]) for idx in range(N - 1, -1, -1)]


def test_any_frame_read_is_the_frame_streamed(clips, kind):
    order = [*random.Random(2).sample(range(N), 15), 0, 1, 2, N - 1, N - 1, N - 2, 13, 12]
    with clips.open(data_of(kind)) as frames:
        streamed = {idx: image.tobytes() for idx, image in frames.stream(0, N - 1)}
        assert [frames.read(idx).tobytes() for idx in order] == [streamed[idx] for idx in order]


def test_part_of_a_video_is_that_part(clips, kind):
    with clips.open(data_of(kind)) as frames:
        assert [number_in(image) for _, image in frames.stream(9, 17)] == list(range(9, 18))
        assert [number_in(image) for _, image in frames.stream(9, 17, reverse=True)] == list(range(17, 8, -1))
        assert [idx for idx, _ in frames.stream(N - 1, N - 1)] == [N - 1]


@pytest.mark.parametrize(
    ("file_rate", "framerate"), [(Fraction(24000, 1001), 23.976), (Fraction(30000, 1001), 29.97), (Fraction(25, 2), 12.5)]
)
def test_the_files_own_rate_as_framerate_numbers_its_frames(clips, file_rate, framerate):
    with clips.open(encode(STEADY, 1 / file_rate), framerate=framerate) as frames:
        assert frames.n_grid == N
        assert [number_in(frames.read(frames.frame_of_grid(g))) for g in range(0, N, 7)] == list(range(0, N, 7))


def test_uneven_times_show_what_is_there_at_the_moment(clips):
    times_ms = uneven()
    with clips.open(data_of("uneven times"), framerate=24.0) as frames:
        for g in range(0, frames.n_grid, 5):
            moment_ms = g * 1000 / 24 + 2
            assert number_in(frames.read(frames.frame_of_grid(g))) == max(i for i, t in enumerate(times_ms) if t <= moment_ms)


def test_before_a_late_start_the_first_frame_stands_still(clips):
    with clips.open(data_of("starts late")) as frames:
        assert [frames.frame_of_grid(g) for g in range(17)] == [0] * 14 + [1, 2, 3]


def test_frames_cut_off_by_an_edit_list_are_not_counted(clips):
    with clips.open(encode([i - 7 for i in STEADY], mux={"avoid_negative_ts": "disabled"})) as frames:
        assert frames.n_frames == N - 7
        assert [number_in(image) for _, image in frames.stream(0, 5)] == [7, 8, 9, 10, 11, 12]
        assert number_in(frames.read(0)) == 7


@pytest.mark.parametrize(("rotation", "quarter_turns"), [(0, 0), (90, 1), (180, 2), (270, 3)])
@pytest.mark.parametrize("hflip", [False, True])
def test_a_turned_video_is_seen_upright(clips, rotation, quarter_turns, hflip):
    with clips.open(encode(range(8), rotation=rotation, hflip=hflip)) as frames:
        expected = np.rot90(picture(5), quarter_turns)
        expected = expected[:, ::-1] if hflip else expected
        assert frames.size_hw == expected.shape[:2]
        shown = frames.read(5)
        assert shown.shape == expected.shape
        assert shown.flags.c_contiguous
        assert np.abs(shown.astype(int) - expected).mean() < 12


def test_the_grid_is_as_long_as_asked_but_not_longer_than_the_file(clips):
    data = data_of("steady, B-frames")
    for asked, got in [(0, N), (10, 10), (N, N), (N + 20, N + 20), (10**12, N + 25)]:
        with clips.open(data, n_frames=asked) as frames:
            assert frames.n_grid == got
            assert frames.frame_of_grid(got - 1) == min(got, N) - 1


def test_a_hash_names_the_bytes_and_the_frame(clips):
    with (
        clips.open(data_of("steady, B-frames")) as one,
        clips.open(data_of("steady, B-frames")) as same,
        clips.open(data_of("12.5")) as other,
    ):
        assert one.image_hash == same.image_hash != other.image_hash
        assert one.frame_hash(3) == same.frame_hash(3) != one.frame_hash(4)
        assert one.frame_hash(3) != other.frame_hash(3)


def test_frames_past_the_end_are_refused(clips):
    with clips.open(data_of("steady, B-frames")) as frames:
        for first, last in [(0, N), (-1, 3), (5, 4)]:
            with pytest.raises(VideoFrameError, match="counted from 0"):
                frames.stream(first, last)
        for frame_idx in (-1, N):
            with pytest.raises(VideoFrameError):
                frames.read(frame_idx)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_early_end_leaves_no_thread(clips, reverse):
    with clips.open(data_of("one key frame")) as frames:
        stream = frames.stream(0, N - 1, reverse=reverse)
        next(stream)
        assert len(prefetch_threads()) == 1
        stream.close()
        assert prefetch_threads() == []


def test_closing_the_video_ends_its_streams(clips):
    frames = clips.open(data_of("one key frame"))
    stream = frames.stream(0, N - 1)
    next(stream)
    frames.close()
    assert prefetch_threads() == []
    assert list(stream) == []


def test_reads_and_streams_do_not_disturb_one_another(clips):
    with clips.open(data_of("steady, B-frames")) as frames:
        up, down = frames.stream(0, N - 1), frames.stream(0, N - 1, reverse=True)
        for i in range(N):
            assert number_in(next(up)[1]) == i
            assert number_in(next(down)[1]) == N - 1 - i
            assert number_in(frames.read((i * 7) % N)) == (i * 7) % N


def test_going_backwards_keeps_a_bounded_number_of_frames_and_decodes_long_groups_in_parts(clips, monkeypatch):
    kept: list[int] = []

    class Watched(list):
        def __init__(self, items):
            super().__init__(items)
            kept.append(len(self))

    frame_bytes = 128 * 64 * 3 // 2
    monkeypatch.setattr(video, "BACKWARD_BYTES", 7 * frame_bytes)
    monkeypatch.setattr(video, "list", Watched, raising=False)
    with clips.open(data_of("one key frame")) as frames:
        assert [number_in(image) for _, image in frames.stream(0, N - 1, reverse=True)] == list(range(N))[::-1]
    assert sum(kept) == N
    assert max(kept) <= 7


def test_backwards_starts_at_key_frames_where_they_are_near(clips, monkeypatch):
    monkeypatch.setattr(video, "BACKWARD_BYTES", 20 * 128 * 64 * 3 // 2)
    with clips.open(data_of("MPEG-4")) as frames:
        assert [frames._chunk_start(0, stop) % 12 for stop in (40, 37, 36, 24, 12)] == [0] * 5
        assert frames._chunk_start(5, 10) == 5


@pytest.mark.parametrize(("size_wh", "red"), [((320, 240), 211), ((1280, 720), 226)])
def test_colours_without_a_told_space_are_those_of_the_browser(size_wh, red):
    frame = av.VideoFrame(*size_wh, "yuv420p")
    for plane, value in zip(frame.planes, (100, 90, 200), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    assert abs(int(upright_rgb(frame, Turn())[5, 5, 0]) - red) <= 1  # Chromium 156: 213 and 227


def test_an_open_video_survives_its_files_deletion(clips):
    with clips.open(data_of("steady, B-frames")) as frames:
        for path in clips.root.iterdir():
            path.unlink()
        assert [number_in(image) for _, image in frames.stream(0, 9)] == list(range(10))
