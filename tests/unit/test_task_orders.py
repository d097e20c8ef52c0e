"""The ways through a project, and the queries that ask for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_manager import Studio, found, like, task

from backend.task_orders import MOST_SELECTED, MOST_TABS, orders_of

PROJECT = {"sampling": "Sequential sampling", "maximum_annotations": 1, "show_overlap_first": False}


def ways(project=PROJECT, tabs=()):
    return [(order.group, order.walk) for order in orders_of(project, tabs)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("stream", "by_id")]),
        ({"sampling": None}, [("stream", "by_id")]),
        ({"sampling": "Uniform sampling"}, [("stream", "any"), ("rows", "by_id")]),
        ({"sampling": "Uncertainty sampling"}, [("stream", "listed"), ("stream", "any"), ("rows", "by_id")]),
        ({"maximum_annotations": 3}, [("stream", "any"), ("stream", "by_id")]),
        ({"show_overlap_first": True}, [("stream", "by_id"), ("stream", "by_id")]),
    ],
)
def test_each_sampling_has_its_ways(settings, expected):
    assert ways(PROJECT | settings) == expected


def test_labelled_tasks_and_those_before_are_not_asked_for():
    tasks = [task(1), task(2), task(3, is_labeled=True), task(4), task(5)]
    (stream,) = orders_of(PROJECT, [])
    assert [row["id"] for row in found(tasks, stream.query())] == [1, 2, 4, 5]
    assert [row["id"] for row in found(tasks, stream.query(after_id=2))] == [4, 5]


def test_tasks_that_others_have_begun_come_first_where_several_annotate_each():
    tasks = [task(1), task(2, total_annotations=1), task(3, total_annotations=2, is_labeled=True)]
    begun, stream = orders_of(PROJECT | {"maximum_annotations": 2}, [])
    assert [row["id"] for row in found(tasks, begun.query())] == [2]
    assert [row["id"] for row in found(tasks, stream.query())] == [1, 2]


def test_a_tab_is_asked_for_as_it_is_displayed_without_what_is_labelled():
    studio = Studio("", [task(n, kind="ab"[n % 2], score=10 - n, is_labeled=n == 5) for n in range(1, 10)])
    studio.tab(1, "-tasks:data.score")
    studio.tab(2, items=[like("data.kind", "equal", "b")])
    studio.tab(3, "tasks:data.score", "or", [like("data.kind", "equal", "a"), like("data.score", "less", 4, "Number")])
    studio.tab(4, selected=[2, 5, 8])
    orders = {order.group: order for order in orders_of(PROJECT, studio.listed_tabs)}
    shown = {name: [row["id"] for row in found(studio.tasks, order.query())] for name, order in orders.items()}
    assert shown == {
        "stream": [1, 2, 3, 4, 6, 7, 8, 9],
        "tab 1": [1, 2, 3, 4, 6, 7, 8, 9],
        "tab 2": [1, 3, 7, 9],
        "tab 3": [9, 8, 7, 6, 4, 2],
        "tab 4": [2, 8],
    }
    assert {name: order.walk for name, order in orders.items()} | {"stream": "by_id"} == {
        "stream": "by_id", "tab 1": "listed", "tab 2": "by_id", "tab 3": "listed", "tab 4": "by_id",
    }  # fmt: skip
    assert [row["id"] for row in found(studio.tasks, orders["tab 2"].query(after_id=3))] == [7, 9]


def test_tabs_without_an_order_of_their_own_are_the_stream():
    studio = Studio("", [])
    studio.tab(1)
    studio.tab(2, "tasks:id")
    studio.tab(3, selected=list(range(MOST_SELECTED + 1)))
    nested = like("data.a", "equal", "x") | {"child_filter": like("data.b", "equal", "y")}
    studio.tab(4, "", "or", [nested, like("data.a", "equal", "z")])  # cannot be asked for together with "unlabelled"
    assert ways(tabs=studio.listed_tabs) == [("stream", "by_id")]


def test_only_so_many_tabs_count_the_newest():
    studio = Studio("", [])
    for number in range(1, MOST_TABS + 4):
        studio.tab(number, "-tasks:id")
    assert [group for group, _ in ways(tabs=studio.listed_tabs)] == ["stream", *(f"tab {n}" for n in range(MOST_TABS + 3, 3, -1))]
