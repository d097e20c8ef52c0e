"""Image sequences: each page as the browser shows it, one size, one page in memory at a time."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from coded_video import Clips, number_in, picture

from sam2_backend.errors import MediaUnreachableError, MediaUnreadableError, VideoFrameError, VideoTooLargeError, VideoUnreadableError
from sam2_backend.media_folder import image_hash

N = 6


@pytest.fixture
def clips(tmp_path) -> Clips:
    return Clips(tmp_path)


def image(number: int, form: str = "PNG", size_wh: tuple[int, int] = (128, 64), orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    Image.fromarray(picture(number, *size_wh)).save(file, form, **({"exif": exif} if orientation != 1 else {}), **lossless)
    return file.getvalue()


PAGES = [image(number) for number in range(N)]


def test_pages_are_frames_and_places(clips):
    with clips.open(PAGES, "pages") as frames:
        assert (frames.n_frames, frames.n_grid, frames.size_hw, frames.image_hash) == (N, N, (64, 128), image_hash(PAGES[0]))
        assert [(idx, number_in(page)) for idx, page in frames.stream(0, N - 1)] == [(i, i) for i in range(N)]
        assert [number_in(page) for _, page in frames.stream(1, 4, reverse=True)] == [4, 3, 2, 1]
        assert number_in(frames.read(3)) == 3
        assert (frames.frame_of_grid(3), frames.grid_of_frame(3)) == (3, range(3, 4))


def test_a_pages_hash_is_that_of_its_image_so_that_clicks_and_sequences_share_embeddings(clips):
    with clips.open(PAGES, "pages") as frames:
        assert [frames.frame_hash(i) for i in range(N)] == [image_hash(page) for page in PAGES]


def test_pages_are_turned_where_the_browser_turns_them(clips):
    turned, as_stored = image(5, "JPEG", orientation=6), image(5, "WEBP", orientation=6)
    with clips.open([turned], "pages") as frames:
        assert frames.size_hw == (128, 64)
        assert number_in(np.rot90(frames.read(0))) == 5
        assert frames.frame_hash(0) == image_hash(turned)
    with clips.open([as_stored], "pages") as frames:
        assert frames.size_hw == (64, 128)
        assert number_in(frames.read(0)) == 5
        assert frames.frame_hash(0) != image_hash(as_stored)


def test_a_page_of_another_size_is_named(clips):
    frames = clips.open([*PAGES[:2], image(2, size_wh=(64, 32))], "pages")
    with frames, pytest.raises(VideoUnreadableError, match="Page 3 is 64 × 32 pixels, page 1 is 128 × 64"):
        list(frames.stream(0, 2))


def test_bad_pages_are_refused(clips):
    with pytest.raises(VideoUnreadableError, match="no pages"):
        clips.open([], "pages")
    with clips.open([PAGES[0], b"<html>", PAGES[2]], "pages") as frames:
        assert number_in(frames.read(2)) == 2
        with pytest.raises(MediaUnreadableError, match="HTML"):
            frames.read(1)
        for refused in (lambda: frames.read(3), lambda: frames.stream(0, 3), lambda: frames.grid_of_frame(-1)):
            with pytest.raises(VideoFrameError, match="has 3"):
                refused()
    (clips.root / "file-1").unlink()
    clips.settings = dataclasses.replace(clips.settings, video_max_frames=2)
    with pytest.raises(VideoTooLargeError, match="3 pages"):
        clips.open(PAGES[:3], "pages")


def test_a_page_that_is_gone_is_told(clips):
    with clips.open(PAGES, "pages") as frames:
        (clips.root / "file-3").unlink()
        with pytest.raises(MediaUnreachableError, match="file-3"):
            list(frames.stream(0, N - 1))
