"""The next tasks of an order, from listings that are asked for rarely."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_manager import Studio, task

from backend import upcoming_tasks
from backend.label_config import parse_label_config
from backend.upcoming_tasks import KEEP_S, ProjectOrders, Upcoming
from sam2_backend.settings import Settings

NOTHING: frozenset[int] = frozenset()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(upcoming_tasks, "time", clock)
    return clock


def the_order(studio: Studio, n_listed: int = 10):
    return ProjectOrders(1, Settings(), n_listed).current(studio)[0]


def ids(tasks: list[Upcoming]) -> list[int]:
    return [task.task_id for task in tasks]


def test_the_next_tasks_follow_the_one_in_work_and_carry_their_addresses(brush_config):
    order = the_order(Studio(brush_config, [task(n) for n in range(1, 30)]))
    assert order.after(7, 3, {8}) == [Upcoming(n, (f"http://images.test/{n}.png",)) for n in (9, 10, 11)]


def test_label_studio_is_asked_again_when_a_listing_is_used_up_and_not_before(brush_config, clock):
    studio = Studio(brush_config, [task(n) for n in range(1, 101)])
    order = the_order(studio)
    for at in range(51):
        clock.now += 1
        assert ids(order.after(at, 3, NOTHING)) == [at + 1, at + 2, at + 3]
    assert studio.asked.count("tasks") == 7  # of 10 each, 8 steps apart


def test_somebody_at_the_end_of_a_listing_has_the_next_ones_at_once(brush_config, clock):
    order = the_order(Studio(brush_config, [task(n) for n in range(1, 101)]))
    for at in range(5, 60, 5):
        assert ids(order.after(at, 2, NOTHING)) == [at + 1, at + 2]


def test_people_at_different_places_cost_a_listing_each(brush_config, clock):
    studio = Studio(brush_config, [task(n) for n in range(1, 1001)])
    order = the_order(studio)
    for step in range(7):
        clock.now += 1
        assert ids(order.after(step, 2, NOTHING)) == [step + 1, step + 2]
        assert ids(order.after(500 + step, 2, NOTHING)) == [501 + step, 502 + step]
    assert studio.asked.count("tasks") == 2


def test_at_the_end_of_a_project_it_asks_again_after_a_while(brush_config, clock):
    studio = Studio(brush_config, [task(n) for n in range(1, 6)])
    order = the_order(studio)
    for _ in range(5):
        assert ids(order.after(4, 3, NOTHING)) == [5]
    assert studio.asked.count("tasks") == 1
    studio.tasks.append(task(6))
    clock.now += 30
    assert ids(order.after(4, 3, NOTHING)) == [5, 6]


def test_a_listing_grows_old(brush_config, clock):
    studio = Studio(brush_config, [task(n) for n in range(1, 30)])
    order = the_order(studio)
    order.after(1, 2, NOTHING)
    studio.label(2, 3)
    clock.now += KEEP_S + 1
    assert ids(order.after(1, 2, NOTHING)) == [4, 5]


def test_in_a_sorted_tab_the_next_is_the_next_displayed_and_the_first_once_the_task_is_labelled(brush_config, clock):
    studio = Studio(brush_config, [task(n, score=-n) for n in range(1, 8)])
    studio.tab(1, "tasks:data.score")
    order = ProjectOrders(1, Settings(), 10).current(studio)[1]
    assert ids(order.after(6, 2, NOTHING)) == [5, 4]
    studio.label(7, 6)
    clock.now += KEEP_S + 1
    assert ids(order.after(6, 2, NOTHING)) == [5, 4]


def test_changed_settings_are_noticed_and_listings_stay_with_what_is_as_it_was(brush_config, clock):
    studio = Studio(brush_config, [task(n) for n in range(1, 30)])
    project = ProjectOrders(1, Settings(), 10)
    (stream,) = project.current(studio)
    clock.now += KEEP_S + 1
    studio.tab(1, "-tasks:id")
    orders = project.current(studio)
    assert [order.order.group for order in orders] == ["stream", "tab 1"]
    assert orders[0] is stream


def test_a_project_without_images_has_no_orders_and_its_tasks_are_not_listed(clock):
    studio = Studio('<View><Video name="v" value="$v"/><VideoRectangle name="b" toName="v"/><Labels name="l" toName="v"/></View>', [])
    assert ProjectOrders(1, Settings(), 10).current(studio) == []
    assert studio.asked == ["project"]


@pytest.mark.parametrize(
    ("data", "uris"),
    [
        ({"image": "http://images.test/1.png"}, ("http://images.test/1.png",)),
        ({"image": ["no", "address"]}, ()),
        ({}, ()),
        ({"image": "data:image/png;base64," + "A" * 100_000}, ()),
        ({"image": "data:image/png;base64,AAAA"}, ("data:image/png;base64,AAAA",)),
    ],
)
def test_a_task_whose_image_cannot_be_named_is_left_to_its_opening(brush_config, data, uris):
    assert Upcoming.listed({"id": 5, "data": data}, parse_label_config(brush_config), Settings()) == Upcoming(5, uris)
