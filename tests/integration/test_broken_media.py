"""Broken, lying and hostile files through the worker's media path in a process with little memory: refused in words, quickly, nothing opened."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import broken_images
import broken_videos
from media_in_a_small_room import MAX_PIXELS

ROOT = Path(__file__).resolve().parents[2]
MOST_GROWTH_MIB = 24 * MAX_PIXELS / (1 << 20) + 64
"""What decoding the largest image that the room's settings allow takes, and some more: every limit of ours lies far below the room's walls."""


@dataclass(frozen=True)
class Outcome:
    """What the worker said of one file ("": it can use it), and how much memory the process took beyond what it ever had."""

    name: str
    said: str
    grown_mib: float


def outcomes(folder: Path, cases: Iterable[tuple[str, bytes]], kind: str) -> list[Outcome]:
    """Put files through `media_in_a_small_room`; fails with the name of the file that ended or hung the process."""
    names = []
    for number, (name, data) in enumerate(cases):
        (folder / f"{number}.{kind}").write_bytes(data)
        names.append(name)
    _warm_up(folder)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/integration/media_in_a_small_room.py"), str(folder)]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=250)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (
        f"{names[lines[-1]['begins']] if lines else 'the start'} ended it: {done.returncode}\n{done.stderr[-2000:]}"
    )
    found = [Outcome(names[line["number"]], line["said"], line["grown_mib"]) for line in lines if "number" in line]
    assert len(found) == len(names)
    return found


def _warm_up(folder: Path) -> None:
    """One whole file of each kind, so that what readers load once is not put down to a broken one."""
    (folder / "warm-up.image").write_bytes(broken_images.good_images()["jpeg"])
    (folder / "warm-up.video").write_bytes(broken_videos.encode(range(3)))
    (folder / "warm-up.volume").write_bytes(broken_videos.dicom())


def check(found: list[Outcome], *, usable: bool | None) -> None:
    """Bounded, and with a next step; used or refused as expected, by a limit of ours and not by the end of memory (None: as FFmpeg likes)."""
    assert found
    assert [one for one in found if one.grown_mib > MOST_GROWTH_MIB] == []
    assert [one for one in found if one.said and not one.said.rstrip().endswith((".", "?"))] == []
    if usable is not None:
        assert [one for one in found if "this machine's memory" in one.said] == []
        assert [one for one in found if bool(one.said) == usable] == []


def test_images_that_lie_are_refused_before_they_cost_anything(tmp_path):
    check(outcomes(tmp_path, broken_images.lying_images(), "image"), usable=False)


def test_odd_images_that_a_browser_shows_are_used(tmp_path):
    check(outcomes(tmp_path, broken_images.harmless_images(), "image"), usable=True)


def test_images_cut_off_anywhere_or_with_changed_bytes_end_nothing(tmp_path):
    found = outcomes(tmp_path, broken_images.cut_and_changed(), "image")
    check(found, usable=None)
    assert len(found) > 500
    assert 0 < sum(not one.said for one in found) < len(found)


def test_volumes_that_lie_are_refused_before_they_cost_anything(tmp_path):
    check(outcomes(tmp_path, broken_videos.lying_volumes(), "volume"), usable=False)


def test_odd_volumes_cost_no_memory(tmp_path):
    check(outcomes(tmp_path, broken_videos.harmless_volumes(), "volume"), usable=True)


def test_a_volumes_names_climb_nowhere(tmp_path):
    """What a zip unpacks to has no name on disk, whatever its members are called."""
    names = {"../../../climbed.dcm": broken_videos.dicom(), "/tmp/climbed.dcm": broken_videos.dicom(InstanceNumber=2)}
    (found,) = outcomes(tmp_path, [("a zip of names that climb", broken_videos._zipped(names))], "volume")
    assert not found.said
    assert list(tmp_path.rglob("climbed*")) == []
    assert not Path("/tmp/climbed.dcm").exists()


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server that nobody may come to, and who came."""
    visitors: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visitors.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/canary", visitors
    server.shutdown()
    server.server_close()


def test_playlists_are_refused_and_what_they_name_is_not_opened(tmp_path, canary):
    url, visitors = canary
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    check(outcomes(tmp_path, broken_videos.playlists(url, str(tmp_path / "pipe")), "video"), usable=False)
    assert visitors == []


def test_videos_that_lie_are_bounded_and_open_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    check(outcomes(tmp_path, broken_videos.odd_videos(str(tmp_path / "pipe")), "video"), usable=None)
