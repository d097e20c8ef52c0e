"""What a process owes is written down again where Redis lost it, and only there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backend import promises
from backend.dispatch import Dispatcher
from backend.owed_tasks import OWED, OwedTasks
from backend.projects import ProjectStore, judged

PROJECT, CONFIG = "1.1700000000", "<View/>"


@pytest.fixture
def dispatcher(settings) -> Iterator[Dispatcher]:
    opened = Dispatcher(settings)
    yield opened
    opened.close()


def test_tasks_that_a_redis_has_lost_are_owed_again(dispatcher):
    owed, client = OwedTasks(dispatcher.redis), dispatcher.redis()
    owed.renew()
    owed.owe([1, 2], PROJECT, CONFIG, "m@1", 0.0)
    [first] = owed.take(1)
    owed.settle(first)
    owed.renew()
    client.flushall()
    owed.renew()
    [left] = owed.take(10)
    assert {first.task_id, left.task_id} == {1, 2}
    assert owed.label_config(left) == CONFIG
    owed.settle(left)
    client.flushall()
    owed.renew()
    assert owed.count() == 0


def test_what_was_asked_while_redis_was_away_is_owed_when_it_is_back(dispatcher, monkeypatch):
    owed, client = OwedTasks(dispatcher.redis), dispatcher.redis()
    with monkeypatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(owed, "_redis", lambda: int("Redis is away"))
        owed.owe([1], PROJECT, CONFIG, "m@1", 0.0)
    assert not client.exists(OWED)
    owed.renew()
    assert [one.task_id for one in owed.take(10)] == [1]


def test_a_redis_that_goes_away_again_in_the_middle_costs_nothing(dispatcher, monkeypatch):
    owed, client = OwedTasks(dispatcher.redis), dispatcher.redis()
    owed.renew()
    owed.owe([1], PROJECT, CONFIG, "m@1", 0.0)
    client.flushall()
    with monkeypatch.context() as patch, pytest.raises(ValueError):
        patch.setattr(owed._promises, "_are_there", lambda _names: int("Redis is away"))
        owed.renew()
    owed.renew()
    assert owed.count() == 1


def test_what_another_process_has_settled_is_forgotten(dispatcher, monkeypatch):
    monkeypatch.setattr(promises, "_TIDY_EVERY_S", 0.0)
    mine, others, client = OwedTasks(dispatcher.redis), OwedTasks(dispatcher.redis), dispatcher.redis()
    mine.owe([1], PROJECT, CONFIG, "m@1", 0.0)
    [taken] = others.take(1)
    others.settle(taken)
    mine.renew()
    client.flushall()
    mine.renew()
    assert mine.count() == 0


def test_extra_parameters_of_a_project_outlive_the_data_of_redis(dispatcher, monkeypatch):
    monkeypatch.setattr("backend.projects.FRESH_S", -1.0)
    store, client = ProjectStore(dispatcher.redis), dispatcher.redis()
    store.remember(judged(PROJECT, CONFIG, {"model_multimask": "false"}))
    client.flushall()
    assert "model_multimask" in store.extra_params(PROJECT)
    assert "model_multimask" in ProjectStore(dispatcher.redis).extra_params(PROJECT), "other processes have it again"
