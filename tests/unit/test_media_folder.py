"""The files on disk: within the budget at every moment, least recently used out first, never a damaged one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sam2_backend.media_folder import KEPT_SHARE, LEDGER, PART_SUFFIX, MediaFolder, image_hash


def held(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.name != LEDGER} if folder.is_dir() else {}


def keep(folder: MediaFolder, data: bytes) -> str:
    folder.write(image_hash(data), data)
    return image_hash(data)


def test_what_is_written_is_read_under_its_hash(tmp_path):
    folder = MediaFolder(tmp_path / "media", 100)
    name = keep(folder, b"hello")
    assert folder.path(name).read_bytes() == folder.read(name) == b"hello"
    assert folder.read(image_hash(b"other")) is None
    assert (tmp_path / "media").stat().st_mode & 0o777 == 0o700


def test_the_budget_is_the_last_byte_that_is_held(tmp_path):
    folder = MediaFolder(tmp_path, 10)
    first, second = keep(folder, b"12345"), keep(folder, b"67890")
    assert held(tmp_path) == {first: 5, second: 5}
    third = keep(folder, b"x")
    assert held(tmp_path) == {second: 5, third: 1}


def test_more_than_the_whole_budget_is_not_held_and_puts_nothing_out(tmp_path):
    folder = MediaFolder(tmp_path, 10)
    first = keep(folder, b"12345")
    assert folder.write(image_hash(bytes(11)), bytes(11)) is None
    assert held(tmp_path) == {first: 5}
    assert MediaFolder(tmp_path / "none", 0).write(image_hash(b"x"), b"x") is None


def test_a_read_file_outlives_an_unread_older_one(tmp_path):
    folder = MediaFolder(tmp_path, 10)
    hot, cold = keep(folder, b"hot.."), keep(folder, b"cold.")
    folder.read(hot)
    keep(folder, b"new")
    assert folder.read(hot) == b"hot.."
    assert folder.read(cold) is None


@pytest.mark.parametrize("damage", [b"", b"hellO", b"hello world"])
def test_a_damaged_file_is_never_served_and_is_thrown_away(tmp_path, damage):
    folder = MediaFolder(tmp_path, 100)
    name = keep(folder, b"hello")
    folder.path(name).write_bytes(damage)
    assert folder.read(name) is None
    assert held(tmp_path) == {}


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = MediaFolder(tmp_path, 100)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        keep(folder, b"hello")
    assert held(tmp_path) == {}


def test_parts_left_by_a_killed_process_go_after_an_hour(tmp_path):
    for name, age_s in (("old", 4000), ("young", 10)):
        part = tmp_path / (name + PART_SUFFIX)
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age_s,) * 2)
    kept = keep(MediaFolder(tmp_path, 100), b"hello")
    assert held(tmp_path) == {"young" + PART_SUFFIX: 4, kept: 5}


def test_writers_and_readers_at_a_time_keep_the_budget_and_get_whole_files(tmp_path):
    contents = [bytes([n]) * 1000 for n in range(20)]
    failures: list[object] = []

    def work(seed: int) -> None:
        folder = MediaFolder(tmp_path, 5000)  # its own object, as another process has
        for step in range(60):
            data = contents[(seed * 7 + step * 3) % 20]
            keep(folder, data)
            complete = sum(size for _, size in _sizes(tmp_path))
            if complete > 5000 or folder.read(image_hash(data)) not in {data, None}:
                failures.append(complete)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _sizes(folder: Path):
    # Under the writers' lock, because a listing without it may see a file both before and after its replacement's eviction.
    with MediaFolder(folder, 0)._locked():
        yield from ((path.name, path.stat().st_size) for path in folder.iterdir() if path.suffix != PART_SUFFIX and path.name != LEDGER)


class FolderMachine(RuleBasedStateMachine):
    """The folder against an ordered dictionary that does the same by the book."""

    BUDGET = 100

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.folder = MediaFolder(self.path, self.BUDGET)
        self.model: OrderedDict[str, bytes] = OrderedDict()

    def teardown(self) -> None:
        shutil.rmtree(self.path)

    @rule(letter=st.sampled_from("abcdef"), n_bytes=st.integers(0, 120))
    def write(self, letter: str, n_bytes: int) -> None:
        data = (letter * n_bytes).encode()
        name = keep(self.folder, data)
        if n_bytes > self.BUDGET:
            return
        self.model.pop(name, None)
        if self.used_bytes() + n_bytes > self.BUDGET:
            while self.model and self.used_bytes() + n_bytes > self.BUDGET * KEPT_SHARE:
                self.model.popitem(last=False)
        self.model[name] = data

    @rule(pick=st.integers(0, 20))
    def read(self, pick: int) -> None:
        if self.model:
            name = list(self.model)[pick % len(self.model)]
            assert self.folder.read(name) == self.model[name]
            self.model.move_to_end(name)

    @rule(pick=st.integers(0, 20))
    def vanish(self, pick: int) -> None:
        if self.model:
            name = list(self.model)[pick % len(self.model)]
            self.folder.path(name).unlink()
            assert self.folder.read(name) is None
            del self.model[name]

    @rule(text=st.sampled_from([b"", b"damaged", None]))
    def lose_the_ledger(self, text: bytes | None) -> None:
        ledger = self.path / LEDGER
        ledger.unlink(missing_ok=True) if text is None else ledger.write_bytes(text)

    def used_bytes(self) -> int:
        return sum(map(len, self.model.values()))

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert held(self.path) == {name: len(data) for name, data in self.model.items()}


TestFolderMachine = FolderMachine.TestCase
TestFolderMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_stopped_process_that_holds_the_lock_costs_the_copy_and_not_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr("sam2_backend.file_lock.LOCK_WAIT_S", 0.05)
    folder = MediaFolder(tmp_path, 100)
    first = keep(folder, b"hello")
    with (tmp_path / LEDGER).open("rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        with pytest.raises(OSError):
            keep(folder, b"other")
        assert folder.read(first) == b"hello"
    assert folder.read(keep(folder, b"other")) == b"other"
