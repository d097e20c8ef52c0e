"""Commands over whole projects, as the status page tells of them."""

from __future__ import annotations

import pytest

from backend.dataset_events import embedded_event, full_name, summary_event, told
from backend.journal_store import JournalStore
from backend.progress import Counts
from backend.task_runner import Outcome
from sam2_backend.errors import MediaRefusedError

PROJECT = "3.1763600000"


def test_a_project_is_named_as_label_studio_names_it_at_predict():
    assert full_name({"id": 3, "created_at": "2025-11-20T00:53:20.987654Z"}) == PROJECT
    assert full_name({"id": 3}) == "3"


def test_each_task_says_what_became_of_it():
    record: list = []
    outcomes = {1: Outcome("stored", n_regions=2), 2: Outcome("had"), 3: Outcome("nothing", remarks=("No box is drawn.",))}
    work = told(lambda row: outcomes[row["id"]], record.append, PROJECT)
    for task_id, outcome in outcomes.items():
        assert work({"id": task_id}) is outcome
    assert [(event.task, event.outcome) for event in record] == [("1", "stored"), ("2", "had"), ("3", "nothing")]
    assert "2 regions" in record[0].words
    assert "No box is drawn." in record[2].words


def test_a_failure_is_told_and_goes_on():
    record: list = []

    def fail(_row):
        raise MediaRefusedError("images.test is private.")

    with pytest.raises(MediaRefusedError):
        told(fail, record.append, PROJECT)({"id": 7})
    assert [(event.task, event.code, event.words) for event in record] == [
        ("7", "media_refused", "Pre-annotation: images.test is private.")
    ]


def test_thousands_of_tasks_are_counted_and_push_nothing_out_of_the_last_requests(dispatcher):
    store, record = JournalStore(dispatcher.redis), []
    work = told(lambda _row: Outcome("stored", n_regions=1), record.append, PROJECT)
    for task_id in range(300):
        work({"id": task_id})
    record += [embedded_event(PROJECT, 5, ["http://images.test/1.png"]), summary_event(PROJECT, Counts(stored=300), 2)]
    store.write(record)
    assert [event.words for event in store.recent()] == [
        "A command over the project ended: 300 tasks done, 0 had it, 0 held nothing, 2 failed."
    ]
    assert store.totals().made == {"predictions": 300, "prepared": 1}
    assert [event.kind for event in store.of_task("5")] == ["dataset", "dataset"]
