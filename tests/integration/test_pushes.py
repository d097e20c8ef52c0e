"""What is owed, in a real Redis, looked after by several web tiers at once."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import redis

from backend import pushes
from backend.dispatch import Dispatcher
from backend.pushes import INDEX, KEY, LOCK, Prediction, Pushes, Request
from sam2_backend.errors import QueueDownError
from sam2_backend.video_messages import PropagationState

SESSION = "ab" * 16
RESULT = [{"id": "r1", "type": "videorectangle", "value": {"sequence": [{"frame": 1, "x": 0.1}]}}]


class Tracking:
    phase = "running"

    def __init__(self):
        self.begun = []

    def recent(self):
        return [PropagationState(SESSION, self.phase)]

    def begin(self, request):
        self.begun.append(request)

    def whole(self, _request):
        return Prediction(RESULT, 0.5)


class Studio:
    """A Label Studio that is slow enough for two to meet in it."""

    predictions: list = []
    inside = threading.Semaphore(0)

    def __init__(self, *_): ...

    def task(self, task_id):
        return {"id": task_id, "predictions": list(Studio.predictions)}

    def create_prediction(self, task_id, result, **_):
        Studio.inside.acquire(timeout=0.3)
        Studio.predictions.append({"result": result})

    def close(self): ...


@pytest.fixture
def tiers(settings, monkeypatch):
    """Four web tiers on one Redis."""
    Studio.predictions = []
    monkeypatch.setattr(pushes, "LabelStudio", Studio)
    monkeypatch.setattr(Pushes, "start", lambda _self: None)
    told = dataclasses.replace(settings, label_studio_url="http://studio.test", label_studio_api_key="x")
    dispatchers, sessions = [Dispatcher(told) for _ in range(4)], Tracking()
    yield [Pushes(told, dispatcher.redis, sessions) for dispatcher in dispatchers], sessions
    for dispatcher in dispatchers:
        dispatcher.close()


def request():
    return Request({"id": 17, "data": {"video": "http://v.test/a.mp4"}}, "<View/>", {"result": [{"id": "r1"}]}, "3.1", "m")


def test_of_many_web_tiers_one_pushes(tiers, redis_server):
    several, sessions = tiers
    for tier in several:
        tier.owe([SESSION], request())
    assert sum(tier.look() for tier in several) == 0
    sessions.phase = "done"
    pushed: list[int] = []
    threads = [threading.Thread(target=lambda tier=tier: pushed.extend(tier.look() for _ in range(3))) for tier in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(pushed) == 1
    assert Studio.predictions == [{"result": RESULT}]
    with redis_server.connect() as connection:
        assert not connection.exists(INDEX)
        assert not connection.keys(f"{KEY}*")
        assert not connection.keys(f"{LOCK}*")


def test_what_is_owed_ends_some_day(tiers, redis_server):
    several, _ = tiers
    several[0].owe([SESSION], request())
    with redis_server.connect() as connection:
        (key,) = connection.keys(f"{KEY}*")
        assert connection.ttl(key) > 0
        connection.delete(key)  # as if its time had come
        several[1].look()
        assert not connection.exists(INDEX)


def test_an_answer_that_was_whole_settles_the_debt_for_all(tiers):
    several, sessions = tiers
    several[0].owe([SESSION], request())
    several[1].settle([SESSION])
    sessions.phase = "done"
    assert sum(tier.look() for tier in several) == 0
    assert not Studio.predictions


def test_what_a_redis_has_lost_is_tracked_anew_and_pushed_once(tiers, redis_server):
    several, tracking = tiers
    for tier in several:
        tier.look()
    several[0].owe([SESSION], request())
    with redis_server.connect() as connection:
        connection.flushall()
    assert sum(tier.look() for tier in several) == 0
    assert tracking.begun == [request()], "by the one that owed it"
    tracking.phase = "done"
    assert sum(tier.look() for tier in several) == 1
    assert sum(tier.look() for tier in several) == 0
    assert len(Studio.predictions) == 1
    with redis_server.connect() as connection:
        assert not connection.exists(INDEX)


def test_what_another_process_has_pushed_is_not_owed_again(tiers, redis_server, monkeypatch):
    monkeypatch.setattr("backend.promises._TIDY_EVERY_S", 0.0)
    several, tracking = tiers
    several[0].owe([SESSION], request())
    tracking.phase = "done"
    assert several[1].look() == 1
    several[0].look()
    with redis_server.connect() as connection:
        connection.flushall()
    assert sum(tier.look() for tier in several) == 0
    assert not tracking.begun


def test_what_a_redis_lost_before_anybody_looked_is_tracked_anew(tiers, redis_server):
    several, tracking = tiers
    several[0].owe([SESSION], request())
    with redis_server.connect() as connection:
        connection.flushall()
    several[0].look()
    assert tracking.begun == [request()]


def test_what_redis_does_not_take_is_owed_when_it_does(tiers, redis_server, monkeypatch):
    several, tracking = tiers
    with monkeypatch.context() as patch:
        patch.setattr(several[0], "_redis", Away)
        several[0].owe([SESSION], request())
        with pytest.raises(QueueDownError):
            several[0].settle([SESSION])
    tracking.phase = "done"
    assert several[0].look() == 1
    assert len(Studio.predictions) == 1


class Away:
    def __getattr__(self, _name):
        raise redis.ConnectionError
