"""The clip of the demo."""

from __future__ import annotations

import builtins

import av
import numpy as np

from backend.demo_video import FRAMERATE, N_FRAMES, SIZE_WH, make_clip


def test_the_clip_is_h264_that_browsers_play_and_shows_a_saucer_that_moves(tmp_path):
    path = tmp_path / "clip.mp4"
    assert make_clip(path)
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", FRAMERATE)
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(images) == N_FRAMES
    assert images[0].shape == (SIZE_WH[1], SIZE_WH[0], 3)
    red = [np.nonzero((image[..., 0] > 120) & (image[..., 1] < 70))[1].mean() for image in images]
    assert all(np.diff(red[::4]) > 0)


def test_without_pyav_there_is_no_clip(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without_av(name, *arguments, **more):
        if name == "av":
            raise ImportError(name)
        return imported(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without_av)
    assert not make_clip(tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())
