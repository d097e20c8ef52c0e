"""A store as a tier: what fails, hangs or lags costs its tier, and nobody waits for it a second time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from sam2_backend import embedding_tier
from sam2_backend.embedding_tier import MOST_WAITING, LowerTier, lower_tiers
from sam2_backend.errors import SettingsError
from sam2_backend.settings import Settings

FOR_EVER_S = 3600.0


class FakeStore:
    """A dictionary that does as it is told: `before` runs at the beginning of every call."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda _call: None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.before(name)

    def get(self, key: str) -> bytes | None:
        self._call("get")
        return self.kept.get(key)

    def has(self, key: str) -> bool:
        self._call("has")
        return key in self.kept

    def put(self, key: str, data: bytes) -> None:
        self._call("put")
        self.kept[key] = data

    def forget(self, key: str) -> None:
        self._call("forget")
        self.kept.pop(key, None)


def tier(store: FakeStore, wait_s: float = 30.0, rest_s: float = FOR_EVER_S) -> LowerTier:
    return LowerTier("disk", store, wait_s=wait_s, rest_s=rest_s)


def until(is_true: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < ends_at, "waited in vain"
        time.sleep(0.005)


def refuse(_call: str) -> None:
    raise OSError(5, "Input/output error")


def test_what_is_put_is_written_and_found():
    store = FakeStore()
    used = tier(store)
    used.put("a", b"1")
    used.close(30)
    assert store.kept == {"a": b"1"}
    assert tier(store).get("a") == b"1"
    assert tier(store).get("b") is None


def test_what_waits_to_be_written_is_found_already_and_delays_nobody():
    store, goes_on = FakeStore(), threading.Event()
    store.before = lambda call: goes_on.wait(30) if call == "put" else None
    used = tier(store)
    used.put("a", b"1")
    assert store.kept == {}
    assert used.get("a") == b"1"
    assert used.holds("a")
    goes_on.set()
    used.close(30)
    assert store.kept == {"a": b"1"}


def test_no_more_than_the_bound_wait_and_the_rest_is_told_once(caplog):
    store, goes_on = FakeStore(), threading.Event()
    store.before = lambda _call: goes_on.wait(30)
    used = tier(store)
    used.put("first", b"")
    until(lambda: store.calls == ["put"])
    for number in range(MOST_WAITING + 10):
        used.put(f"{number}", b"")
    assert sum(used.holds(f"{number}") for number in range(MOST_WAITING + 10)) == MOST_WAITING
    goes_on.set()
    used.close(30)
    assert len(store.kept) == 1 + MOST_WAITING
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_is_there_is_not_written_again_when_it_is_offered():
    store = FakeStore()
    store.kept["a"] = b"1"
    used = tier(store)
    used.offer("a", b"1")
    used.offer("b", b"2")
    until(lambda: store.kept == {"a": b"1", "b": b"2"} and used.holds("a"))
    assert store.calls == ["has", "has", "put"]
    used.offer("a", b"1")
    assert used.get("b") == b"2"
    used.offer("b", b"2")
    used.close(30)
    assert store.calls == ["has", "has", "put", "get"]


def test_what_others_may_have_put_out_is_offered_again_after_a_while(monkeypatch):
    store = FakeStore()
    used = tier(store)
    monkeypatch.setattr(embedding_tier, "KNOWN_S", 0.0)
    used.put("a", b"1")
    until(lambda: store.kept == {"a": b"1"} and not used.holds("a"))
    store.kept.clear()
    used.offer("a", b"1")
    used.close(30)
    assert store.kept == {"a": b"1"}


def test_a_store_that_fails_is_a_miss_asked_once_and_told_once(caplog):
    store = FakeStore()
    store.before = refuse
    used = tier(store)
    assert [used.get("a") for _ in range(5)] == [None] * 5
    assert store.calls == ["get"]
    [record] = caplog.records
    assert "disk tier" in record.getMessage()
    assert "Input/output error" in record.getMessage()


def test_a_store_that_hangs_is_waited_for_once():
    store, goes_on = FakeStore(), threading.Event()
    store.before = lambda _call: goes_on.wait(60)
    used = tier(store, wait_s=0.1)
    started = time.monotonic()
    assert [used.get("a") for _ in range(50)] == [None] * 50
    assert time.monotonic() - started < 5
    assert store.calls == ["get"]
    goes_on.set()


def test_an_answer_that_comes_too_late_does_not_make_others_wait_again():
    store = FakeStore()
    store.kept["a"] = b"1"
    store.before = lambda _call: time.sleep(0.3)
    used = tier(store, wait_s=0.05)
    assert used.get("a") is None
    time.sleep(0.6)
    assert used.get("a") is None
    assert store.calls == ["get"]


def test_a_store_that_came_back_is_found_out_in_the_background(caplog):
    caplog.set_level(logging.INFO)
    store = FakeStore()
    store.kept["a"] = b"1"
    store.before = refuse
    used = tier(store, rest_s=0.05)
    assert used.get("a") is None
    store.before = lambda _call: None
    until(lambda: used.get("a") == b"1")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_while_it_is_away_nobody_waits_for_the_attempts_either():
    store = FakeStore()
    store.before = refuse
    used = tier(store, wait_s=0.1, rest_s=0.01)
    assert used.get("a") is None
    threads = []
    store.before = lambda _call: threads.append(threading.current_thread().name)
    time.sleep(0.05)
    used.get("a")
    used.close(30)
    assert threads == ["disk-writer"]


def test_writing_that_fails_does_not_keep_anyone_from_reading(caplog):
    store = FakeStore()
    store.kept["a"] = b"1"
    store.before = lambda call: refuse(call) if call == "put" else None
    used = tier(store)
    for number in range(5):
        used.put(f"{number}", b"2")
    used.close(30)
    assert store.calls == ["put"]
    assert used.get("a") == b"1"
    assert not used.holds("0")
    [record] = caplog.records
    assert "writing to the disk tier" in record.getMessage()


def test_a_write_that_works_again_ends_the_rest():
    store = FakeStore()
    store.before = refuse
    used = tier(store, rest_s=0.05)
    used.put("a", b"1")
    until(lambda: store.calls == ["put"] and not used.holds("a"))
    store.before = lambda _call: None

    def is_kept() -> bool:
        used.put("b", b"2")
        return "b" in store.kept

    until(is_kept)


def test_what_was_damaged_is_forgotten_before_the_next_is_written():
    store = FakeStore()
    store.kept["a"] = b"damaged"
    used = tier(store)
    assert used.get("a") == b"damaged"
    used.forget("a")
    assert store.kept == {}
    assert not used.holds("a")
    used.put("a", b"whole")
    used.close(30)
    assert store.kept == {"a": b"whole"}


def test_closing_waits_no_longer_than_it_may_and_says_what_is_lost(caplog):
    store, goes_on = FakeStore(), threading.Event()
    store.before = lambda _call: goes_on.wait(60)
    used = tier(store)
    for number in range(3):
        used.put(f"{number}", b"")
    started = time.monotonic()
    used.close(0.1)
    assert time.monotonic() - started < 5
    assert "3 embeddings were not written to the disk tier" in caplog.text
    goes_on.set()


def test_the_settings_say_which_tiers_there_are(tmp_path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(embedding_tier, "EmbeddingBucket", opened.append)
    nothing = Settings(data_dir=tmp_path, disk_cache_bytes=0)
    assert lower_tiers(nothing) == ()
    assert [one.name for one in lower_tiers(replace(nothing, disk_cache_bytes=1))] == ["disk"]
    both = lower_tiers(replace(nothing, disk_cache_bytes=1, embedding_bucket="s3://bucket/a"))
    assert [one.name for one in both] == ["disk", "bucket"]
    assert opened == ["s3://bucket/a"]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_in_the_data_folder_unless_it_is_named(tmp_path):
    assert Settings(data_dir=tmp_path).embedding_folder == tmp_path / "embeddings"
    assert Settings(embedding_dir=str(tmp_path / "x")).embedding_folder == tmp_path / "x"
    assert "~" not in str(Settings(embedding_dir="~/x").embedding_folder)


@pytest.mark.parametrize("url", ["bucket", "https://bucket", "s3://", "s3:///prefix", "s3://Bucket!", "s3://b?x=y"])
def test_what_is_no_bucket_stops_the_worker_in_words(url):
    with pytest.raises(SettingsError, match="SAM2_EMBEDDING_BUCKET"):
        lower_tiers(Settings(disk_cache_bytes=0, embedding_bucket=url))


def test_a_missing_boto3_stops_the_worker_in_words(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    with pytest.raises(SettingsError, match=r"sam2-label-studio\[s3\]"):
        lower_tiers(Settings(disk_cache_bytes=0, embedding_bucket="s3://bucket/prefix"))
