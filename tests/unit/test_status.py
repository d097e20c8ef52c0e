"""What is missing, in sentences; the status page; the journal."""

from __future__ import annotations

import dataclasses
import time

import pytest

from backend.status import JOURNAL_ENTRIES, Journal, bytes_text
from sam2_backend.errors import MediaRefusedError
from sam2_backend.settings import GIB, MIB, Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_a_backend_that_can_answer_a_click_is_ready(client):
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert (answer.json["status"], answer.json["missing"], answer.json["warnings"]) == ("ready", [], [])


@pytest.mark.parametrize("path", ["/ready", "/", "/metrics"])
def test_redis_being_away_is_answered_not_raised(client, dispatcher, path):
    dispatcher.client.is_down = True
    answer = client.get(path)
    assert answer.status_code == (503 if path == "/ready" else 200)
    assert "Redis" in answer.text or "sam2_redis_up 0.0" in answer.text


def test_no_worker_is_said_with_the_next_step(client, dispatcher):
    dispatcher.alive = []
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert "sam2-backend worker" in answer.json["missing"][0]


def test_a_worker_that_still_loads_is_not_ready_and_one_beside_it_is(client, dispatcher):
    idle = dispatcher.alive[0]
    dispatcher.alive = [dataclasses.replace(idle, name="slow", state="loading")]
    assert "slow is still loading" in client.get("/ready").json["missing"][0]
    dispatcher.alive.append(idle)
    assert client.get("/ready").status_code == 200


def test_random_weights_are_called_so_in_words(client, dispatcher):
    dispatcher.alive = [dataclasses.replace(dispatcher.alive[0], model_version="random-weights-small@0123456789ab")]
    answer = client.get("/ready")
    assert answer.status_code == 200
    assert "masks mean nothing" in answer.json["warnings"][0]
    assert "random weights: its masks mean nothing" in client.get("/", headers=BROWSER).text


def test_uploads_that_cannot_be_fetched_are_said(client_of, brush_config):
    client = client_of(Settings())
    assert client.get("/ready").json["warnings"] == []
    client.post("/setup", json={"project": "3.1", "schema": brush_config})
    assert "LABEL_STUDIO_URL" in client.get("/ready").json["warnings"][0]
    assert "LABEL_STUDIO_API_KEY" in client_of(Settings(label_studio_url="http://studio.test")).get("/ready").json["warnings"][0]


def test_browsers_get_a_page_and_others_json(client):
    page = client.get("/", headers=BROWSER)
    assert page.mimetype == "text/html"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for accept in ("application/json", "*/*", None):
        assert client.get("/", headers={"Accept": accept} if accept else {}).json["status"] == "UP"


def test_the_page_shows_workers_queues_projects_and_the_last_requests(client, dispatcher, brush_config, predict_body):
    client.post("/setup", json={"project": "31.1700000000", "schema": brush_config})
    client.post("/predict", json=predict_body())
    dispatcher.failures["*"] = MediaRefusedError("images.test is private.")
    client.post("/predict", json=predict_body())
    page = client.get("/", headers=BROWSER).text
    for text in (
        "cpu0",
        "waiting for work",
        "8 MiB on the device",
        "made 1",
        "interactive@cpu0: 2 waiting",
        "Project 31",
        "Task 17: 1 point → 1 region, score 0.90",
        "embedding from device",
        "Task 17: images.test is private. (media_refused)",
    ):
        assert text in page, text


def test_nothing_on_the_page_is_markup_of_others(client, dispatcher, brush_config, predict_body):
    evil = "<script>alert(1)</script>"
    dispatcher.alive = [dataclasses.replace(dispatcher.alive[0], name=evil, model_version=evil, device=evil)]
    dispatcher.raises = MediaRefusedError(evil)
    client.post("/setup", json={"project": evil, "schema": brush_config.replace("smart", f"model_{'x'}='1' smart", 1)})
    client.post("/predict", json=predict_body(tasks=[{"id": evil, "data": {"image": "http://a.test/"}}]))
    page = client.get("/", headers=BROWSER).text
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http-equiv", "")


def test_the_page_needs_nothing_from_elsewhere_and_fits_a_phone(client):
    page = client.get("/", headers=BROWSER).text
    assert "width=device-width" in page
    for outside in ("<script", "<link", "<img", "@import", "url("):
        assert outside not in page


def test_the_journal_keeps_the_newest_first_and_no_more():
    journal = Journal()
    for n in range(JOURNAL_ENTRIES + 5):
        journal.error(f"Task {n}", "no_worker", "No worker.\r\nSet-Cookie: x")
    entries = journal.newest()
    assert len(entries) == JOURNAL_ENTRIES
    assert entries[0].words == f"Task {JOURNAL_ENTRIES + 4}: No worker. Set-Cookie: x (no_worker)"
    assert entries[0].is_error


def test_the_journals_clock_is_utc():
    journal = Journal()
    journal.error("/setup", "x", "y")
    assert journal.newest()[0].clock == time.strftime("%H:%M:%S", time.gmtime(journal.newest()[0].at))


def test_bytes_are_written_for_people():
    assert (bytes_text(0), bytes_text(8 * MIB), bytes_text(1.5 * GIB)) == ("0 MiB", "8 MiB", "1.5 GiB")
