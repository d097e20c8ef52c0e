"""The folder of embeddings: within its budget at every moment, least recently used out first, and only what was put is ever read."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sam2_backend import file_lock, shelves
from sam2_backend.embedding_disk import ABANDONED_AFTER_S, KEPT_SHARE, LEDGER, EmbeddingFolder
from sam2_backend.embedding_name import MOST_BYTES, place_of, preface_of

EXTRA = len(preface_of("k0"))
ONE = 100 + EXTRA
DATA = bytes(range(100))


def path_of(folder: Path, key: str) -> Path:
    return folder.joinpath(*place_of(key))


def held_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != LEDGER)


def test_what_is_put_is_found_again_also_by_another_process_on_the_folder(tmp_path):
    EmbeddingFolder(tmp_path / "new", 1000).put("k0", DATA)
    after_a_restart = EmbeddingFolder(tmp_path / "new", 1000)
    assert after_a_restart.get("k0") == DATA
    assert after_a_restart.has("k0")
    assert after_a_restart.get("k1") is None
    assert not after_a_restart.has("k1")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert path_of(tmp_path / "new", "k0").stat().st_mode & 0o777 == 0o600


def test_names_are_safe_whatever_the_key_holds(tmp_path):
    folder = EmbeddingFolder(tmp_path / "in", 10_000)
    for key in ("../../x", "a/b", "/etc/passwd", "\0", "ä" * 500, ""):
        folder.put(key, DATA)
        assert folder.get(key) == DATA
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_the_budget_is_the_last_byte_that_is_held(tmp_path):
    folder = EmbeddingFolder(tmp_path, 2 * ONE)
    for number in range(5):
        folder.put(f"k{number}", DATA)
        assert held_bytes(tmp_path) <= 2 * ONE
    assert [folder.has(f"k{number}") for number in range(5)] == [False, False, False, False, True]  # a sixteenth of room is left


def test_more_than_the_whole_budget_is_not_held_and_puts_nothing_out(tmp_path):
    folder = EmbeddingFolder(tmp_path, ONE)
    folder.put("k0", DATA)
    folder.put("k1", DATA + b"x")
    assert folder.get("k1") is None
    assert folder.get("k0") == DATA


def test_what_was_asked_for_outlives_what_was_not_also_across_a_restart(tmp_path):
    folder = EmbeddingFolder(tmp_path, 32 * ONE)
    keys = [f"k{letter}" for letter in "abcdefghijklmnopqrstuvwxyzABCDEF"]
    for key in keys:
        folder.put(key, DATA)
    assert folder.get("ka") == DATA
    assert folder.has("kb")
    EmbeddingFolder(tmp_path, 32 * ONE).put("k0", DATA)
    assert [key for key in keys if not folder.has(key)] == ["kc", "kd", "ke"]  # a sixteenth of room is left


def test_a_lowered_budget_holds_from_the_start(tmp_path):
    for number in range(8):
        EmbeddingFolder(tmp_path, 8 * ONE).put(f"k{number}", DATA)
    lower = EmbeddingFolder(tmp_path, 2 * ONE)
    lower.trim()
    assert held_bytes(tmp_path) <= 2 * ONE
    assert lower.has("k7")


@pytest.mark.parametrize("damage", [b"", b"S2N1", preface_of("k0"), preface_of("k1") + DATA, b"x" * 4000])
def test_a_file_that_begins_otherwise_is_a_miss_and_goes(tmp_path, damage):
    folder = EmbeddingFolder(tmp_path, 10_000)
    folder.put("k0", DATA)
    path_of(tmp_path, "k0").write_bytes(damage)
    assert folder.get("k0") is None
    assert not path_of(tmp_path, "k0").exists()


def test_a_file_at_anothers_place_is_not_taken_for_it(tmp_path):
    folder = EmbeddingFolder(tmp_path, 10_000)
    folder.put("k0", DATA)
    folder.put("k1", DATA[::-1])
    shutil.copy(path_of(tmp_path, "k1"), path_of(tmp_path, "k0"))
    assert folder.get("k0") is None
    assert folder.get("k1") == DATA[::-1]


def test_a_planted_giant_is_not_read(tmp_path):
    folder = EmbeddingFolder(tmp_path, 1 << 40)
    folder.put("k0", DATA)
    os.truncate(path_of(tmp_path, "k0"), MOST_BYTES + 1000)
    assert folder.get("k0") is None


def test_a_planted_link_is_neither_read_nor_written_through(tmp_path):
    outside, folder = tmp_path / "outside", EmbeddingFolder(tmp_path / "in", 10_000)
    folder.put("k0", DATA)
    outside.write_bytes(preface_of("k0") + b"strange")
    path_of(tmp_path / "in", "k0").unlink()
    path_of(tmp_path / "in", "k0").symlink_to(outside)
    assert not folder.has("k0")
    assert folder.get("k0") is None
    path_of(tmp_path / "in", "k0").symlink_to(outside)
    folder.put("k0", DATA)
    assert folder.get("k0") == DATA
    assert outside.read_bytes() == preface_of("k0") + b"strange"


def test_a_linked_directory_is_neither_read_written_nor_emptied(tmp_path):
    elsewhere, inside = tmp_path / "elsewhere", tmp_path / "in"
    EmbeddingFolder(elsewhere, 10_000).put("k0", DATA)
    inside.mkdir()
    shelf, _ = place_of("k0")
    (inside / shelf).symlink_to(elsewhere / shelf)
    folder = EmbeddingFolder(inside, 10_000)
    assert folder.get("k0") is None
    assert not folder.has("k0")
    folder.forget("k0")
    EmbeddingFolder(inside, 0).trim()
    folder.put("k0", DATA[::-1])
    assert folder.get("k0") == DATA[::-1]
    assert EmbeddingFolder(elsewhere, 10_000).get("k0") == DATA


@pytest.mark.timeout(20)
def test_a_planted_pipe_or_directory_blocks_nobody(tmp_path):
    folder = EmbeddingFolder(tmp_path, 10_000)
    for key, plant in (("k0", os.mkfifo), ("k1", os.mkdir)):
        folder.put(key, DATA)
        path_of(tmp_path, key).unlink()
        plant(path_of(tmp_path, key))
        assert folder.get(key) is None
        assert not folder.has(key)


def test_files_of_others_are_left_alone(tmp_path):
    theirs = [tmp_path / "photo.jpg", tmp_path / "ab" / "photo.jpg", tmp_path / "ab" / "x.part", tmp_path / "zz" / ("0" * 40 + ".emb")]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    folder = EmbeddingFolder(tmp_path, 2 * ONE)
    for number in range(4):
        folder.put(f"k{number}", DATA)
    assert folder.get("k3") == DATA
    assert all(path.stat().st_size == 1000 for path in theirs)


def test_what_a_killed_process_left_is_counted_and_goes_after_an_hour(tmp_path):
    folder = EmbeddingFolder(tmp_path, 3 * ONE)
    folder.put("k0", DATA)
    old, young = (path_of(tmp_path, "k0").with_name(f"{'0' * 40}.emb.{digit * 16}.part") for digit in "12")
    for part in (old, young):
        part.write_bytes(bytes(ONE))
    os.utime(old, (time.time() - ABANDONED_AFTER_S - 10,) * 2)
    (tmp_path / LEDGER).unlink()
    folder.put("k1", DATA)
    assert not old.exists()
    assert young.exists()
    assert held_bytes(tmp_path) <= 3 * ONE
    assert folder.has("k1")


def test_parts_of_others_are_never_put_out_and_never_exceeded(tmp_path):
    folder = EmbeddingFolder(tmp_path, 2 * ONE)
    folder.put("k0", DATA)
    for digit in "12":
        path_of(tmp_path, "k0").with_name(f"{'0' * 40}.emb.{digit * 16}.part").write_bytes(bytes(ONE))
    (tmp_path / LEDGER).unlink()
    folder.put("k1", DATA)
    assert len(list(tmp_path.rglob("*.part"))) == 2
    assert held_bytes(tmp_path) == 2 * ONE
    assert folder.get("k1") is None


@pytest.mark.parametrize("ledger", [b"", b"-1", b"many", b"9" * 31, b"\xff\xfe"])
def test_a_damaged_ledger_is_made_again(tmp_path, ledger):
    folder = EmbeddingFolder(tmp_path, 2 * ONE)
    folder.put("k0", DATA)
    (tmp_path / LEDGER).write_bytes(ledger)
    folder.put("k1", DATA)
    assert (folder.get("k0"), folder.get("k1")) == (DATA, DATA)
    assert int((tmp_path / LEDGER).read_bytes()) == 2 * ONE


@pytest.mark.parametrize("step", ["write_part", "replace"])
def test_a_failed_write_is_told_leaves_nothing_behind_and_costs_no_room(tmp_path, monkeypatch, step):
    folder = EmbeddingFolder(tmp_path, 2 * ONE)
    folder.put("k0", DATA)
    with monkeypatch.context() as patch:

        def fail(*_args, **_more):
            raise OSError(28, "No space left on device")

        patch.setattr(*((shelves, step) if step == "write_part" else (os, step)), fail)
        for _ in range(5):
            with pytest.raises(OSError, match="No space"):
                folder.put("k1", DATA)
    assert held_bytes(tmp_path) == ONE
    folder.put("k1", DATA)
    assert (folder.get("k0"), folder.get("k1")) == (DATA, DATA)


def test_a_failed_write_books_nothing_into_a_damaged_ledger(tmp_path, monkeypatch):
    folder = EmbeddingFolder(tmp_path, 2 * ONE)
    folder.put("k0", DATA)
    folder.put("k1", DATA)
    folder.forget("k1")

    def fail(*_args):
        (tmp_path / LEDGER).write_bytes(b"")  # as a process leaves it that dies while it writes
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shelves, "write_part", fail)
        with pytest.raises(OSError, match="No space"):
            folder.put("k2", DATA)
    for number in range(3, 9):
        folder.put(f"k{number}", DATA)
        assert held_bytes(tmp_path) <= 2 * ONE


def test_a_process_that_was_stopped_with_the_lock_keeps_nobody_from_reading_and_writers_give_up(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "LOCK_WAIT_S", 0.1)
    folder = EmbeddingFolder(tmp_path, 1000)
    folder.put("k0", DATA)
    with EmbeddingFolder(tmp_path, 1000)._locked():
        assert folder.get("k0") == DATA
        with pytest.raises(BlockingIOError):
            folder.put("k1", DATA)
    folder.put("k1", DATA)
    assert folder.get("k1") == DATA
    assert held_bytes(tmp_path) == 2 * ONE


def test_a_lock_that_is_lost_while_a_file_is_written_leaves_no_part_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "LOCK_WAIT_S", 0.05)
    folder, write_part, held = EmbeddingFolder(tmp_path, 1000), shelves.write_part, contextlib.ExitStack()

    def write_and_lock(*args):
        write_part(*args)
        held.enter_context(EmbeddingFolder(tmp_path, 1000)._locked())

    monkeypatch.setattr(shelves, "write_part", write_and_lock)
    with held, pytest.raises(BlockingIOError):
        folder.put("k0", DATA)
    assert held_bytes(tmp_path) == 0


def test_a_limit_on_file_sizes_fails_the_write_and_nothing_else(tmp_path):
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom sam2_backend.embedding_disk import EmbeddingFolder\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"folder = EmbeddingFolder(Path({str(tmp_path)!r}), 100_000)\n"
        "folder.put('k0', bytes(100))\n"
        "try:\n    folder.put('k1', bytes(6000))\nexcept OSError as error:\n    print(error.errno)\n"
        "print(folder.get('k0') == bytes(100), folder.get('k1'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["27", "True", "None"]
    assert held_bytes(tmp_path) == ONE


def test_writers_and_readers_at_a_time_keep_the_budget_and_get_whole_files(tmp_path):
    contents = {f"k{n}": bytes([n]) * 1000 for n in range(20)}
    failures: list[object] = []

    def work(seed: int) -> None:
        folder = EmbeddingFolder(tmp_path, 5500)  # its own object, as another process has
        for step in range(40):
            key = f"k{(seed * 7 + step * 3) % 20}"
            folder.put(key, contents[key])
            with folder._locked():
                complete = sum(file.n_bytes for file in shelves.files(tmp_path))
            if complete > 5500 or folder.get(key) not in {contents[key], None}:
                failures.append((complete, key))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert held_bytes(tmp_path) <= 5500


class FolderMachine(RuleBasedStateMachine):
    """The folder against an ordered dictionary that does the same by the book."""

    BUDGET = 10 * ONE

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.folder = EmbeddingFolder(self.path, self.BUDGET)
        self.model: OrderedDict[str, bytes] = OrderedDict()
        self.booked = 0

    def teardown(self) -> None:
        shutil.rmtree(self.path)

    @rule(number=st.integers(0, 9), n_bytes=st.integers(1, 400))
    def put(self, number: int, n_bytes: int) -> None:
        key, size = f"k{number}", n_bytes + EXTRA
        data = bytes([number]) * n_bytes
        self.folder.put(key, data)
        if self.booked + size > self.BUDGET:  # counted: what was replaced or thrown away no longer counts
            self.booked = self.used_bytes()
            if self.booked + size > self.BUDGET:
                while self.model and self.booked + size > self.BUDGET * KEPT_SHARE:
                    self.booked -= len(self.model.popitem(last=False)[1]) + EXTRA
        self.model.pop(key, None)
        self.model[key] = data
        self.booked += size

    @rule(number=st.integers(0, 9))
    def get(self, number: int) -> None:
        key = f"k{number}"
        assert self.folder.get(key) == self.model.get(key)
        if key in self.model:
            self.model.move_to_end(key)

    @rule(number=st.integers(0, 9))
    def forget(self, number: int) -> None:
        self.folder.forget(f"k{number}")
        self.model.pop(f"k{number}", None)

    @rule()
    def restart(self) -> None:
        self.folder = EmbeddingFolder(self.path, self.BUDGET)
        self.folder.trim()

    def used_bytes(self) -> int:
        return sum(len(data) + EXTRA for data in self.model.values())

    @invariant()
    def the_budget_holds(self) -> None:
        assert held_bytes(self.path) == self.used_bytes() <= self.BUDGET


TestFolderMachine = FolderMachine.TestCase
TestFolderMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
