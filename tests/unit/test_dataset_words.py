"""Filters, the progress line, listed versions: what people write and read."""

from __future__ import annotations

import io

import pytest

from backend import progress
from backend.dataset_studio import versions_listed
from backend.progress import Progress
from backend.task_filters import task_filter
from sam2_backend.errors import SettingsError

ROWS = [
    {"id": 1, "total_annotations": 0, "total_predictions": 0, "data": {"image": "/a/cat.png"}},
    {"id": 2, "total_annotations": 2, "total_predictions": 0, "data": {"image": "/a/dog.png"}},
    {"id": 12, "total_annotations": 0, "total_predictions": 1, "data": {"image": "/b/cat.jpg", "site": 3}},
]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], [1, 2, 12]),
        (["labelled"], [2]),
        (["unlabelled"], [1, 12]),
        (["unlabelled", "unpredicted"], [1]),
        (["predicted"], [12]),
        (["id=2-12"], [2, 12]),
        (["id=1,12"], [1, 12]),
        (["data.image=/a/*"], [1, 2]),
        (["data.site=3"], [12]),
        (["data.nothing=x"], []),
    ],
)
def test_filters_choose_tasks_and_all_must_hold(filters, ids):
    wanted = task_filter(filters)
    assert [row["id"] for row in ROWS if wanted(row)] == ids


def test_a_tab_is_left_to_label_studio():
    assert task_filter(["tab=4"]).tab_id == 4


@pytest.mark.parametrize("text", ["", "all", "id=", "id=a", "id=1-", "data.=3", "data.x=", "tab=x", "labelled=yes"])
def test_a_filter_that_is_not_known_is_named(text):
    with pytest.raises(SettingsError, match=r"is not known\. Write labelled"):
        task_filter([text])


def test_listed_versions_are_told_apart_and_a_cut_list_is_not_believed():
    assert versions_listed({"total_predictions": 0}) == set()
    assert versions_listed({"total_predictions": 2, "predictions_model_versions": "demo@1 everything ab, x"}) == {
        "demo@1 everything ab",
        "x",
    }
    assert versions_listed({"total_predictions": 2, "predictions_model_versions": ""}) is None
    assert versions_listed({"total_predictions": 99, "predictions_model_versions": "x" * 500}) is None


def test_the_line_tells_rate_time_left_failures_and_cache_hits(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = Progress(total=100, out=io.StringIO())
    line.add(had=10)
    for _ in range(20):
        now[0] += 0.5
        line.add(stored=1, images=1, hits=1)
    line.add(failed=2, images=2)
    assert line.line() == "[########                ] 32 of 100 tasks · 2.20/s · 0:31 left · 2 failed · 10 had it · 91 % cached"


def test_on_a_terminal_the_line_is_written_over_and_elsewhere_now_and_then():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out, ends in ((Terminal(), "\n"), (io.StringIO(), "\n")):
        line = Progress(total=3, out=out)
        for _ in range(3):
            line.add(stored=1)
        line.say("words")
        line.close()
        assert "words\n" in out.getvalue()
        assert out.getvalue().endswith(ends)
        assert ("\r" in out.getvalue()) == out.isatty()


def test_nothing_to_do_has_no_rate_and_no_time_left():
    assert Progress(out=io.StringIO()).line() == "0 tasks · 0.00/s"
