"""Slices of a volume as pages of a task: the pictures that propagation sees, in its order, named so that Label Studio finds them."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from backend.cli import main
from backend.volume_pages import write_pages
from sam2_backend.errors import Sam2BackendError
from sam2_backend.frame_sources import open_frames
from sam2_backend.media import MediaStore
from sam2_backend.messages import MediaRef
from sam2_backend.settings import Settings
from sam2_backend.video_messages import FrameSource


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(data_dir=tmp_path / "data", local_files_root=str(tmp_path))


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "head scan.tif"
    tifffile.imwrite(path, np.random.default_rng(5).integers(0, 4000, (4, 12, 20)).astype(np.uint16), photometric="minisblack")
    return path


def test_pages_are_the_slices_that_propagation_sees(tmp_path, settings, volume):
    write_pages(volume, tmp_path / "pages", settings)
    with open_frames(FrameSource((MediaRef(volume.as_uri()),), kind="volume"), MediaStore(settings, None), settings) as frames:
        for i in range(4):
            page = np.asarray(Image.open(tmp_path / "pages" / f"{i + 1:05d}.png").convert("RGB"))
            assert np.array_equal(page, frames.read(i))


def test_the_task_lists_the_pages_in_order_as_label_studio_fetches_them(tmp_path, settings, volume):
    (task,) = json.loads(write_pages(volume, tmp_path / "my pages", settings).read_text())
    assert task["data"]["images"] == [f"/data/local-files/?d=my%20pages/{i:05d}.png" for i in range(1, 5)]
    (task,) = json.loads(write_pages(volume, tmp_path / "my pages", settings, "https://files.example.org/a/").read_text())
    assert task["data"]["images"][3] == "https://files.example.org/a/00004.png"


@pytest.mark.parametrize("name", ["gone.nii", "empty", "text.nii"])
def test_what_is_no_volume_is_refused_in_words(tmp_path, settings, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(Sam2BackendError, match=name):
        write_pages(tmp_path / name, tmp_path / "pages", settings)


def test_the_command_says_what_to_do_next(tmp_path, monkeypatch, capsys, volume):
    monkeypatch.setenv("SAM2_DATA_DIR", str(tmp_path / "data"))
    assert main(["slices", str(volume), "--to", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "tasks.json") in capsys.readouterr().out
