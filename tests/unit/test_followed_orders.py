"""Whom people follow, found out by where they come to; and what is made ready for them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from data_manager import Studio, like, task

from backend import followed_orders
from backend.followed_orders import FollowedOrders, most_ahead
from backend.upcoming_tasks import ProjectOrders
from sam2_backend.settings import Settings


class People:
    """A project that is worked on: `come_to` a task, and what would be ready then."""

    def __init__(self, studio: Studio, n_ahead: int = 3) -> None:
        self.studio = studio
        self._orders = ProjectOrders(1, Settings(), 2 * most_ahead(n_ahead))
        self._followed = FollowedOrders(n_ahead)

    def come_to(self, task_id: int) -> list[int]:
        return [task.task_id for task in self._followed.come_to(task_id, self._orders.current(self.studio))]


@pytest.fixture
def slow(monkeypatch):
    """People who need two minutes for a task."""
    monkeypatch.setattr(followed_orders, "_PACE_S", 0.0)


def test_in_a_label_stream_the_next_tasks_are_ready(brush_config, slow):
    people = People(Studio(brush_config, [task(n) for n in range(1, 50)]))
    assert people.come_to(0) == [1, 2, 3]
    assert people.come_to(1) == [2, 3, 4]
    assert people.come_to(2) == [3, 4, 5]


def test_each_annotator_has_the_next_ones_ready_wherever_they_are(brush_config, slow):
    people = People(Studio(brush_config, [task(n) for n in range(1, 500)]))
    assert people.come_to(10) == [11, 12, 13]
    assert people.come_to(300) == [301, 302, 303]
    assert people.come_to(11) == [12, 13, 14]
    assert people.come_to(301) == [302, 303, 304]


def test_where_many_share_a_stream_what_others_are_at_does_not_count_as_ready(brush_config, slow):
    people = People(Studio(brush_config, [task(n) for n in range(1, 50)]))
    for number in range(1, 11):
        ready = people.come_to(number)
    assert ready == [11, 12, 13]
    assert people.come_to(1) == [11, 12, 13]


def test_quick_people_have_more_ready_within_limits(brush_config):
    people = People(Studio(brush_config, [task(n) for n in range(1, 500)]))
    sizes = [len(people.come_to(number)) for number in range(1, 60)]
    assert sizes[:5] == [3, 3, 3, 4, 5]
    assert max(sizes) == most_ahead(3)


def test_whoever_labels_a_tab_as_displayed_is_followed_there(brush_config, slow):
    studio = Studio(brush_config, [task(n, score=(n * 37) % 101) for n in range(1, 101)])
    studio.tab(4, "tasks:data.score")
    shown = [row["id"] for row in sorted(studio.tasks, key=lambda row: row["data"]["score"])]
    people = People(studio)
    first = people.come_to(shown[0])
    assert first == [shown[0] + 1, shown[0] + 2, shown[0] + 3, shown[1]], "the stream, and one of the tab"
    people.come_to(shown[1])
    for place in range(2, 10):
        ready = people.come_to(shown[place])
        assert ready[:3] == shown[place + 1 : place + 4]
        assert len(ready) == 4, "one is left for whoever begins a label stream"


def test_a_stream_and_a_tab_at_the_same_time_are_both_followed(brush_config, slow):
    studio = Studio(brush_config, [task(n, kind="rare" if n % 11 == 0 else "") for n in range(1, 400)])
    studio.tab(4, items=[like("data.kind", "equal", "rare")])
    people = People(studio)
    for step in range(1, 6):
        people.come_to(step)
        people.come_to(200 + 11 * step - 200 % 11 - 11)
    assert set(people.come_to(6)) >= {7, 8, 9}
    at = 200 + 11 * 6 - 200 % 11 - 11
    assert set(people.come_to(at)) >= {at + 11, at + 22, at + 33}


def test_sampled_at_random_a_bounded_number_is_ready_and_others_as_those_are_labelled(brush_config, slow):
    studio = Studio(brush_config, [task(n) for n in range(1, 100)], sampling="Uniform sampling")
    people = People(studio)
    assert people.come_to(50) == [*range(1, 31), 51], "and one for whoever goes from row to row"
    assert people.come_to(7) == [n for n in range(1, 32) if n != 7]
    small = People(Studio(brush_config, [task(n) for n in range(1, 12)], sampling="Uniform sampling"))
    assert small.come_to(4) == [n for n in range(1, 12) if n != 4], "all of a small project"


def test_without_tasks_nothing_is_ready(brush_config):
    assert People(Studio(brush_config, [])).come_to(1) == []
