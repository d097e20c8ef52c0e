"""What is no video, or a broken one: an error of ours that names the file and the next step, never a traceback, and soon."""

from __future__ import annotations

import dataclasses
import io
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parent))
from coded_video import Clips, encode, number_in, picture

from sam2_backend.errors import (
    MediaError,
    MediaRefusedError,
    MediaTooLargeError,
    MediaUnreachableError,
    VideoFramerateError,
    VideoTooLargeError,
    VideoUnreadableError,
)
from sam2_backend.frame_sources import open_frames
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.prefetch import THREAD_NAME
from sam2_backend.video_messages import FrameSource

INDEX_IN_FRONT = {"movflags": "faststart"}


@pytest.fixture
def clips(tmp_path) -> Clips:
    return Clips(tmp_path)


def refuse(clips, data: bytes, error: type[MediaError], match: str, **source) -> None:
    with pytest.raises(error, match=match) as caught:
        clips.open(data, **source).close()
    assert "file-1" in caught.value.message or "framerate" in caught.value.message
    assert caught.value.message.endswith((".", ")"))


def with_limits(clips, **limits) -> Clips:
    clips.settings = dataclasses.replace(clips.settings, **limits)
    return clips


def sound_only(form: str = "mp4", *, has_cover: bool = False) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        cover = container.add_stream("mjpeg", rate=1) if has_cover else None
        if cover is not None:
            cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 64, "yuvj420p", av.stream.Disposition.attached_pic
            container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1, 64, 64), format="rgb24").reformat(format="yuvj420p")))
        for position in range(0, 8192, 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate, sound.pts = 8000, position
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf <!DOCTYPE html><title>Login</title>", "HTML page, not a video"),
        (b'{"detail": "Not found."}', "text answer"),
        (b"<?xml version='1.0'?><Error/>", "text answer"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "is an image"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1/secret.ts\n#EXT-X-ENDLIST\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
        (b"hello " * 1000, "not a video"),
        (bytes(5000), "not a video"),
    ],
    ids=["empty", "HTML", "JSON", "XML", "image", "playlist", "concat script", "text", "zeros"],
)
def test_what_is_no_video_is_told_by_what_it_is(clips, data, match):
    refuse(clips, data, VideoUnreadableError, match)


def test_sound_alone_is_refused(clips):
    refuse(clips, sound_only(), VideoUnreadableError, "only sound")


def test_the_cover_picture_of_sound_is_no_video(clips):
    data = sound_only(has_cover=True)
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].disposition & av.stream.Disposition.attached_pic
    refuse(clips, data, VideoUnreadableError, "only sound")


def test_a_codec_that_ffmpeg_lacks_is_named_as_the_reason(clips):
    refuse(clips, encode(range(4), form="matroska").replace(b"V_MPEG4/ISO/", b"V_MPEG4/XXX/"), VideoUnreadableError, r"codec .* Convert it")


def test_a_video_without_frames_has_no_duration(clips):
    whole = encode(range(20), mux={"movflags": "frag_keyframe+empty_moov+default_base_moof"})
    refuse(clips, whole[: whole.index(b"moof") - 4], VideoUnreadableError, "no frames: its duration is zero")


def test_a_file_cut_before_its_index_is_truncated(clips):
    whole = encode(range(40))
    refuse(clips, whole[: len(whole) // 2], VideoUnreadableError, "truncated")


def test_a_file_cut_behind_its_index_is_truncated(clips):
    whole = encode(range(100), mux=INDEX_IN_FRONT)
    refuse(clips, whole[: len(whole) // 2], VideoUnreadableError, r"truncated: it has \d\.\d of its 4\.0 seconds")


def test_a_few_frames_missing_at_the_end_are_no_reason_to_refuse(clips):
    whole = encode(range(100), mux=INDEX_IN_FRONT)
    with clips.open(whole[: len(whole) * 24 // 25]) as frames:
        assert 90 <= frames.n_frames < 100
        assert [number_in(image) for _, image in frames.stream(0, frames.n_frames - 4)] == list(range(frames.n_frames - 3))
        assert len(list(frames.stream(0, frames.n_frames - 1))) == frames.n_frames


def two_sizes() -> bytes:
    """Both halves in one stream, as a camera writes that is turned while it records."""
    big = encode(range(10), form="mpegts", b_frames=0)
    small = encode(range(10, 20), form="mpegts", b_frames=0, size_wh=(64, 32))
    return big + small


@pytest.mark.parametrize("reverse", [False, True])
def test_a_video_that_changes_its_size_is_refused_where_it_does(clips, reverse):
    with clips.open(two_sizes()) as frames:
        assert frames.size_hw == (64, 128)
        stream = frames.stream(0, frames.n_frames - 1, reverse=reverse)
        with pytest.raises(VideoUnreadableError, match=r"changes its size .* from 128 × 64 to 64 × 32"):
            list(stream)
    assert [thread for thread in threading.enumerate() if thread.name == THREAD_NAME] == []


def test_too_many_pixels_are_refused_before_they_are_decoded(clips):
    data = encode(range(4))
    with with_limits(clips, video_max_pixels=128 * 64).open(data):
        pass
    with pytest.raises(VideoTooLargeError, match=r"128 × 64 pixels; at most 8191.*SAM2_VIDEO_MAX_PIXELS"):
        with_limits(clips, video_max_pixels=128 * 64 - 1).open(data)


def test_too_many_frames_are_refused(clips):
    data = encode(range(50))
    with with_limits(clips, video_max_frames=50).open(data) as frames:
        assert frames.n_frames == 50
    with pytest.raises(VideoTooLargeError, match=r"more than 49 frames.*SAM2_VIDEO_MAX_FRAMES"):
        with_limits(clips, video_max_frames=49).open(data)


def test_too_many_places_are_refused(clips):
    data = encode(range(25))
    with pytest.raises(VideoTooLargeError, match="1000 places at 1000 frames per second"):
        with_limits(clips, video_max_frames=999).open(data, framerate=1000.0)


def test_too_many_bytes_are_refused(clips):
    data = encode(range(4))
    with with_limits(clips, video_max_bytes=len(data)).open(data):
        pass
    with pytest.raises(MediaTooLargeError, match="SAM2_VIDEO_MAX_BYTES"):
        with_limits(clips, video_max_bytes=len(data) - 1).open(data)


@pytest.mark.parametrize("framerate", [0.0, -24.0, float("nan"), float("inf"), 1e9])
def test_an_absurd_framerate_is_refused(clips, framerate):
    refuse(clips, encode(range(4)), VideoFramerateError, "<Video> tag", framerate=framerate)


def test_a_video_is_one_file(clips):
    with pytest.raises(VideoUnreadableError, match="names 2"):
        clips.open([encode(range(4)), encode(range(4))])
    with pytest.raises(VideoUnreadableError, match="names 0"):
        clips.open([])


def test_only_files_below_the_root_are_opened(clips, tmp_path):
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(encode(range(4)))
    (clips.root / "link").symlink_to(outside)
    for uri, error in [
        (outside.as_uri(), MediaRefusedError),
        ((clips.root / "link").as_uri(), MediaRefusedError),
        ((clips.root / "none").as_uri(), MediaUnreachableError),
        ("ftp://host/video.mp4", MediaRefusedError),
    ]:
        with pytest.raises(error):
            open_frames(FrameSource((MediaRef(uri),), "video", 25.0), MediaStore(clips.settings, None), clips.settings)


def test_damage_in_the_middle_repeats_the_frame_before_it_as_a_player_does(clips):
    whole = bytearray(encode(range(60), Fraction(1, 25), gop=10, b_frames=0, mux=INDEX_IN_FRONT))
    with av.open(io.BytesIO(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][25]
        whole[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    with clips.open(bytes(whole)) as frames:
        shown = [idx for idx, _ in frames.stream(0, 59)]
        assert shown == list(range(60))
        assert [number_in(frames.read(idx)) for idx in (0, 24, 30, 59)] == [0, 24, 30, 59]


def test_a_damaged_start_shows_the_first_frame_that_decodes(clips):
    whole = bytearray(encode(range(60), gop=10, b_frames=0, mux=INDEX_IN_FRONT))
    with av.open(io.BytesIO(whole)) as container:
        packet = next(iter(container.demux(video=0)))
        whole[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    with clips.open(bytes(whole)) as frames:
        shown = list(frames.stream(0, 59))
        assert [idx for idx, _ in shown] == list(range(60))
        assert [number_in(image) for _, image in shown[10:]] == list(range(10, 60))
        assert frames.read(0).tobytes() == shown[0][1].tobytes()


def test_damage_to_the_end_is_told_with_its_place(clips):
    whole = bytearray(encode(range(100), gop=50, b_frames=0, mux=INDEX_IN_FRONT))
    with av.open(io.BytesIO(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][50]
    whole[packet.pos :] = bytes(len(whole) - packet.pos)
    with clips.open(bytes(whole)) as frames:
        with pytest.raises(VideoUnreadableError, match=r"cannot be decoded at 2\.00 s: it is damaged"):
            list(frames.stream(0, 99))
        assert number_in(frames.read(49)) == 49


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_bytes_are_changed_only_our_errors_come_out(clips, data):
    whole = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(whole) - 1))
        whole[position] = data.draw(st.integers(0, 255))
    kept = data.draw(st.sampled_from([len(whole), len(whole) * 3 // 4]))
    try:
        with clips.open(bytes(whole[:kept])) as frames:
            assert 0 < frames.n_frames <= 1000
            assert sum(1 for _ in frames.stream(0, frames.n_frames - 1)) == frames.n_frames
            frames.read(frames.n_frames - 1)
    except MediaError as error:
        assert "file-" in error.message


SAMPLES = [encode(range(12)), encode(range(12), form="matroska"), encode(range(12), form="mpegts"), encode(range(12), mux=INDEX_IN_FRONT)]
