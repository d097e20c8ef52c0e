"""The journal over a real Redis: shared, bounded, true over all processes, and back after Redis was away."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import pytest
import redis

from backend import journal_store
from backend.dispatch import Dispatcher
from backend.events import Event, click_event, error_event, open_event
from backend.journal import Journal
from backend.journal_store import DAYS, PREFIX, JournalStore
from backend.latency_histogram import quantiles_ms
from backend.overview import look, merged
from sam2_backend.errors import QueueDownError
from sam2_backend.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
from worker_processes import until


def click(task: str = "17", spent_ms: float = 28.0, project: str = "3.1", at: float = 0.0, image: str = "a1") -> Event:
    facts = {"task": task, "points": 1, "objects": 1, "cache": "device", "score": 0.9, "worker": "gpu0", "media": [image]}
    event = click_event(project, facts, {"total": spent_ms}, 1)
    return dataclasses.replace(event, at=at or event.at)


@pytest.fixture
def client(redis_server) -> redis.Redis:
    return redis_server.connect()


@pytest.fixture
def store(client) -> JournalStore:
    return JournalStore(lambda: client)


def test_everything_that_is_kept_has_an_end(store, client):
    store.write([click(), error_event("3.1", "18", "/predict", "no_worker", "No worker.", 1.0), open_event("3.1", [{"id": 1}], ["u"])])
    keys = client.keys("*")
    assert len(keys) >= 10
    assert all(key.startswith(PREFIX.encode()) for key in keys)
    assert [key for key in keys if client.ttl(key) < 0] == []
    assert max(client.ttl(key) for key in keys) <= (DAYS + 1) * 86400


def test_percentiles_are_true_over_two_web_processes(store, redis_server):
    other = JournalStore(redis_server.connect)
    store.write([click(spent_ms=10) for _ in range(90)])
    other.write([click(spent_ms=1000) for _ in range(10)])
    for tallies in (store.minutes(time.time()), other.quarters(time.time()), store.days("3.1", time.time())):
        clicks = merged(tallies).clicks
        assert clicks.n == 100
        assert quantiles_ms(clicks.counts, [0.5, 0.9, 0.95]) == [
            pytest.approx(10, rel=0.1),
            pytest.approx(10, rel=0.1),
            pytest.approx(1000, rel=0.1),
        ]


def test_old_minutes_and_days_are_out_of_sight(store):
    now = time.time()
    store.write([click(at=now - 61 * 60), click(at=now - 25 * 3600), click(at=now)])
    assert merged(store.minutes(now)).clicks.n == 1
    assert merged(store.quarters(now)).clicks.n == 2
    assert merged(store.days("3.1", now)).clicks.n == 3


def test_tasks_and_projects_beyond_the_bound_leave_nothing_behind(store, client, monkeypatch):
    monkeypatch.setattr(journal_store, "MOST_TASKS", 3)
    monkeypatch.setattr(journal_store, "MOST_PROJECTS", 2)
    for n in range(6):
        store.write([click(str(n), project=f"{n}.1", at=time.time() + n)])
    assert {task for task in map(str, range(6)) if store.of_task(task)} == {"3", "4", "5"}
    assert store.projects() == ["5.1", "4.1"]
    assert {key.split(b":")[3] for kind in ("day", "project", "embedded") for key in client.keys(f"{PREFIX}{kind}:*")} == {b"4.1", b"5.1"}


def test_a_process_that_starts_anew_shows_what_the_last_one_kept(settings, store):
    first = Journal(store, str)
    first.record(click())
    assert first.flush(30)
    dispatcher = Dispatcher(settings)
    seen = look(Journal(JournalStore(dispatcher.redis), str), JournalStore(dispatcher.redis), redis_answers=True)
    assert seen.is_shared
    assert [event.task for event in seen.recent] == ["17"]
    dispatcher.close()


def test_what_happens_while_redis_is_away_is_there_when_it_is_back(own_redis_server, tmp_path):
    dispatcher = Dispatcher(Settings(redis_url=own_redis_server.url, data_dir=tmp_path))
    store = JournalStore(dispatcher.redis)
    journal = Journal(store, str)
    own_redis_server.stop()
    journal.record(click("1"))
    assert not journal.flush(30)
    with pytest.raises(QueueDownError):
        store.recent()
    assert [event.task for event in look(journal, store, redis_answers=True).recent] == ["1"]
    own_redis_server.start()
    assert until(lambda: journal.flush(1))
    assert [event.task for event in store.recent()] == ["1"]
    dispatcher.close()
