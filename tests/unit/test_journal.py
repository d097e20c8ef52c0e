"""Events: what they say, what they count, and that keeping them delays nobody and loses nothing unsaid."""

from __future__ import annotations

import threading
import time

import pytest

from backend import journal
from backend.advice import grouped, meanwhile, who
from backend.events import Event, Problem, click_event, error_event, open_event, preannotate_events, tidy, track_event
from backend.journal import Journal
from backend.journal_store import ERRORS, KEEP_S, MOST_OF_TASK, RECENT, TASK, JournalStore
from backend.tallies import Tally, counts_of, share_ready
from sam2_backend.errors import ERRORS_BY_CODE, MediaRefusedError, QueueDownError

FACTS = {"task": "17", "points": 2, "objects": 1, "cache": "device", "score": 0.91, "worker": "gpu0", "media": ["a1"]}
TIMINGS_MS = {"queue": 3.0, "decode": 20.0, "total": 28.0}


class FakeStore:
    """Keeps what is written, unless it is away or slow."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.is_away = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def write(self, events) -> None:
        self.may_go_on.wait(30)
        if self.is_away:
            raise QueueDownError("Redis does not answer.")
        self.events += events


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def written(store: FakeStore, monkeypatch) -> Journal:
    monkeypatch.setattr(journal, "_RETRY_S", 0.01)
    monkeypatch.setattr(journal, "GATHER_S", 0.01)
    return Journal(store, lambda text: text.replace("hunter2", "(hidden)"))


def test_a_click_is_told_with_what_was_asked_found_and_how():
    event = click_event("3.1", FACTS, TIMINGS_MS, 1)
    assert (event.kind, event.outcome, event.task, event.worker, event.total_ms) == ("click", "answered", "17", "gpu0", 28.0)
    assert event.words == "2 points → 1 region, score 0.91 (image ready, from the device)."
    nothing = click_event("3.1", FACTS | {"points": 0, "cache": "none"}, TIMINGS_MS, 0)
    assert (nothing.outcome, nothing.words) == (
        "nothing", "1 shape → nothing found there (the image was not ready and had to be embedded first).",
    )  # fmt: skip


def test_a_click_that_was_superseded_counts_no_time_and_no_look_up():
    event = click_event("3.1", FACTS | {"cache": "superseded", "worker": "-"}, TIMINGS_MS, 0)
    assert event.outcome == "superseded"
    assert counts_of(event) == {"outcome|click|superseded": 1}


def test_a_task_that_is_opened_and_a_batch_are_told_apart():
    opened = open_event("3.1", [{"id": 17}], ["http://a.test/1.png"])
    batch = open_event("3.1", [{"id": 1}, {"id": 2}], ["http://a.test/1.png"], MediaRefusedError("It is private."))
    assert (opened.task, opened.outcome, opened.words) == (
        "17", "prepared", "The task was opened: 1 image made ready for clicks in the background.",
    )  # fmt: skip
    assert (batch.task, batch.outcome, batch.code) == ("", "failed", "media_refused")
    assert "a.test" not in opened.to_json()


def test_late_predictions_and_tracks_say_that_more_comes():
    (late,) = preannotate_events("3.1", [{"id": 1}, {"id": 2}], 1, 1, [], 9.0)
    assert (late.outcome, late.words) == ("late", "Predictions asked for 2 tasks → 1 prediction, 1 to follow when made.")
    facts = {"task": "17", "objects": 2, "phase": "running", "done": 3, "frames": 9, "worker": "gpu0"}
    assert track_event("3.1", facts, {}).outcome == "waiting"
    assert track_event("3.1", facts | {"phase": "done"}, {}).outcome == "answered"


def test_a_problem_of_a_batch_stands_under_its_own_task_and_of_one_task_beside_its_request():
    problem = Problem("It is private.", "2", "media_refused")
    of_task, whole = preannotate_events("3.1", [{"id": 1}, {"id": 2}], 1, 0, [problem], 9.0)
    assert (of_task.task, of_task.outcome, of_task.code) == ("2", "failed", "media_refused")
    assert (whole.task, whole.outcome, whole.words) == ("", "answered", "Predictions asked for 2 tasks → 1 prediction, 1 failed.")
    (only,) = preannotate_events("3.1", [{"id": 2}], 0, 0, [problem], 9.0)
    assert (only.task, only.outcome, only.code, only.words) == ("2", "failed", "media_refused", "Opened → 0 predictions. It is private.")


def test_an_event_comes_back_as_it_was_kept():
    event = tidy(error_event("3.1700000000", "17", "/predict", "no_worker", "No worker.\r\nSet-Cookie: x", 12.34))
    assert Event.from_json(event.to_json()) == event
    assert event.words == "No worker. Set-Cookie: x"
    for text in ("[]", "{", '{"kind": "click"}', '{"kind": 1, "outcome": 2, "words": 3, "stranger": 4}'):
        with pytest.raises((ValueError, TypeError)):
            Event.from_json(text)


def test_counts_read_back_are_what_happened():
    clicks = [click_event("3.1", FACTS | {"cache": tier}, TIMINGS_MS, 1) for tier in ("device", "device", "redis", "none")]
    failed = error_event("3.1", "17", "/predict", "overloaded", "Too many.", 1.0)
    tally = Tally.read([counts_of(clicks[0], frozenset({"a1"})), *map(counts_of, clicks[1:]), counts_of(failed), {"of|another|version": 1}])
    assert tally.n("click", "answered") == tally.clicks.n == tally.workers["gpu0"].n == 4
    assert (tally.n_failed, tally.errors["overloaded"], tally.n("click")) == (1, 1, 5)
    assert (share_ready(tally.tiers), share_ready(tally.firsts), share_ready({})) == (0.75, 1.0, None)
    assert tally.clicks.p50_ms == pytest.approx(28, rel=0.1)


def test_failures_are_grouped_by_their_code():
    def failed(code, task, at):
        return Event("click", "failed", f"{code} of {task}.", task=task, code=code, at=at)

    newest_first = [failed("no_worker", "3", 9), failed("overloaded", "2", 8), failed("no_worker", "2", 7), failed("no_worker", "3", 6)]
    first, second = grouped(newest_first)
    assert (first.count, first.newest.words, first.tasks) == (3, "no_worker of 3.", ("3", "2"))
    assert (second.count, second.code) == (1, "overloaded")


@pytest.mark.parametrize("code", [*ERRORS_BY_CODE, "", "of_the_future"])
def test_every_error_says_who_can_put_it_right_and_what_to_do_meanwhile(code):
    assert who(code).endswith(".")
    assert meanwhile(code).endswith(".")


def test_keeping_an_event_waits_for_nobody(written, store):
    store.may_go_on.clear()
    started = time.monotonic()
    for n in range(500):
        written.record(Event("note", "noted", str(n)))
    assert time.monotonic() - started < 5
    assert len(written.remembered()) == journal.MOST_REMEMBERED
    assert written.remembered()[0].words == "499"
    store.may_go_on.set()
    assert written.flush(30)
    assert [event.words for event in store.events] == [str(n) for n in range(500)]


def test_secrets_are_hidden_before_anything_is_kept(written, store):
    written.record(Event("note", "noted", "redis://x:hunter2@redis"))
    assert written.flush(30)
    assert store.events[0].words == written.remembered()[0].words == "redis://x:(hidden)@redis"


def test_while_redis_is_away_events_wait_and_beyond_the_bound_the_oldest_are_dropped_and_counted(written, store, monkeypatch):
    monkeypatch.setattr(journal, "MOST_UNWRITTEN", 10)
    store.is_away = True
    written.record(Event("note", "noted", "first"))
    assert not written.flush(30)
    for n in range(14):
        written.record(Event("note", "noted", str(n)))
    assert written.backlog().dropped == 4
    store.is_away = False
    deadline = time.monotonic() + 30
    while not written.flush(1) and time.monotonic() < deadline:  # returns early while the last attempt failed
        time.sleep(0.01)
    assert [event.words for event in store.events] == ["first", *(str(n) for n in range(4, 14))]
    assert (written.backlog().waiting, written.backlog().dropped) == (0, 4)


def test_what_cannot_be_written_at_all_stops_nothing(written, store, monkeypatch, caplog):
    write = store.write
    monkeypatch.setattr(store, "write", lambda events: (_ for _ in ()).throw(TypeError("odd")))
    written.record(Event("note", "noted", "odd"))
    assert written.flush(30)
    monkeypatch.setattr(store, "write", write)
    written.record(Event("note", "noted", "even"))
    assert written.flush(30)
    assert ([event.words for event in store.events], written.backlog().dropped) == (["even"], 1)


def test_the_writer_ends_when_nothing_comes_and_begins_again(written, store, monkeypatch):
    monkeypatch.setattr(journal, "_IDLE_S", 0.01)
    written.record(Event("note", "noted", "1"))
    deadline = time.monotonic() + 30
    while written._thread is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert written._thread is None
    written.record(Event("note", "noted", "2"))
    assert written.flush(30)
    assert len(store.events) == 2


def test_lists_are_bounded_and_end(dispatcher):
    kept = JournalStore(dispatcher.redis)
    kept.write([error_event("3.1", "17", "/predict", "no_worker", str(n), 1.0) for n in range(500)])
    client = dispatcher.client
    assert {key: len(texts) for key, texts in client.lists.items()} == {
        RECENT: 100, ERRORS: 200, TASK + "17": MOST_OF_TASK, "sam2:seen:project:3.1": 50,
    }  # fmt: skip
    assert kept.of_task("17")[0].words == "499"
    written_keys = {*client.lists, *client.hashes, *client.sets} | {key for key, ranks in client.rankings.items() if ranks}
    assert written_keys <= set(client.ends_s)
    assert client.ends_s[RECENT] == KEEP_S


def test_only_the_first_click_on_an_image_counts_as_such(dispatcher):
    kept = JournalStore(dispatcher.redis)
    kept.write([click_event("3.1", FACTS | {"cache": tier}, TIMINGS_MS, 1) for tier in ("none", "device")])
    kept.write([click_event("3.1", FACTS, TIMINGS_MS, 1), click_event("3.1", FACTS | {"media": ["b2"]}, TIMINGS_MS, 1)])
    assert kept.totals().firsts == {"none": 1, "device": 1}
    assert kept.n_embedded("3.1") == 2
