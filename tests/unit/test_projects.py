"""What /setup said, kept for /predict and /ready."""

from __future__ import annotations

import pytest

from backend import projects
from backend.projects import INDEX, KEY, MOST_PARAMS_CHARACTERS, MOST_PROJECTS, Project, ProjectStore, judged


@pytest.fixture
def store(dispatcher) -> ProjectStore:
    return ProjectStore(dispatcher.redis)


def test_a_project_survives_the_process(dispatcher, store):
    kept = Project("3.1", "", ("Unwise.",), '{"a": 1}', 5.0)
    store.remember(kept)
    assert ProjectStore(dispatcher.redis).newest() == [kept]
    assert ProjectStore(dispatcher.redis).extra_params("3.1") == '{"a": 1}'


def test_only_a_change_of_judgement_is_news(store):
    assert store.remember(Project("3.1", seen_at=1))
    assert not store.remember(Project("3.1", seen_at=2))
    assert store.remember(Project("3.1", problems=("Unwise.",), seen_at=3))


def test_the_newest_projects_are_kept_and_no_more(dispatcher, store):
    for n in range(MOST_PROJECTS + 7):
        store.remember(Project(f"{n}.1", seen_at=n))
    assert len(dispatcher.client.texts) == len(dispatcher.client.ranks) == MOST_PROJECTS
    assert KEY + "6.1" not in dispatcher.client.texts
    assert [project.name for project in store.newest(2)] == ["206.1", "205.1"]
    assert len(store._known) == MOST_PROJECTS


def test_another_process_setup_is_seen_after_a_few_seconds(dispatcher, store, monkeypatch):
    store.remember(Project("3.1", extra_params="old"))
    ProjectStore(dispatcher.redis).remember(Project("3.1", extra_params="new"))
    assert store.extra_params("3.1") == "old"
    monkeypatch.setattr(projects, "FRESH_S", -1.0)
    assert store.extra_params("3.1") == "new"


def test_what_was_read_last_is_used_while_redis_is_away(dispatcher, store, monkeypatch):
    store.remember(Project("3.1", extra_params="known"))
    monkeypatch.setattr(projects, "FRESH_S", -1.0)
    dispatcher.client.is_down = True
    assert store.extra_params("3.1") == "known"
    assert [project.name for project in store.newest()] == ["3.1"]


@pytest.mark.parametrize("text", [b"", b"{", b"{}", b"[]", b'{"name": 1, "nonsense": 2, "problems": []}'])
def test_a_damaged_record_costs_the_parameters_only(dispatcher, store, text):
    dispatcher.client.texts[KEY + "3.1"] = text
    dispatcher.client.ranks["3.1"] = 1.0
    assert store.extra_params("3.1") == ""
    assert store.newest() == []


def test_endless_extra_parameters_are_not_kept(brush_config):
    project = judged("3.1", brush_config, {"x": "y" * MOST_PARAMS_CHARACTERS})
    assert project.extra_params == ""
    assert "extra parameters" in project.problems[0]


def test_a_project_name_is_one_short_line(brush_config):
    name = judged("3\r\n.1" + "x" * 1000, brush_config, None).name
    assert name.isprintable()
    assert len(name) <= 200
    assert name != INDEX
