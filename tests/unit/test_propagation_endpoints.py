"""What is tracked, on the status page and in the API, and how it is stopped."""

from __future__ import annotations

import dataclasses

import pytest

from sam2_backend.settings import Settings
from sam2_backend.video_messages import PropagationState

SESSION = "0123456789abcdef" * 2
PAGE = {"Accept": "text/html"}


@pytest.fixture
def running(propagations) -> PropagationState:
    state = PropagationState(SESSION, "running", "project 3 task <17>", 300, 120, worker="gpu0", model_version="m")
    propagations.states[SESSION] = state
    return state


def test_the_api_says_how_far_everything_is(client, running):
    (item,) = client.get("/propagations").json["propagations"]
    assert (item["session"], item["phase"], item["n_done"], item["n_frames"]) == (SESSION, "running", 120, 300)
    assert "tracks" not in item
    assert client.get("/ready").json["propagations"] == [item]


def test_the_status_page_shows_progress_and_a_button(client, running):
    page = client.get("/", headers=PAGE).get_data(as_text=True)
    assert 'value="120"' in page
    assert f'<form method="post" action="propagations/{SESSION}/cancel">' in page
    assert "project 3 task &lt;17&gt;" in page


@pytest.mark.parametrize(("phase", "error"), [("done", ""), ("failed", "video_unreadable: Damaged."), ("cancelled", "")])
def test_what_has_ended_has_no_button(client, propagations, running, phase, error):
    propagations.states[SESSION] = dataclasses.replace(running, phase=phase, error=error)
    page = client.get("/", headers=PAGE).get_data(as_text=True)
    assert 'method="post"' not in page
    assert phase in page
    assert error in page


def test_cancel_stops_it_and_answers_in_json(client, propagations, running):
    assert client.post(f"/propagations/{SESSION}/cancel").json == {"session": SESSION, "phase": "cancelled"}
    assert propagations.states[SESSION].phase == "cancelled"


def test_the_button_comes_back_to_the_page(client, propagations, running):
    answer = client.post(f"/propagations/{SESSION}/cancel", data={})
    answer = client.post(f"/propagations/{SESSION}/cancel", content_type="application/x-www-form-urlencoded")
    assert (answer.status_code, answer.headers["Location"]) == (303, "../../")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_cannot_cancel(client, propagations, running, site):
    answer = client.post(f"/propagations/{SESSION}/cancel", headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 400
    assert propagations.states[SESSION].phase == "running"


@pytest.mark.parametrize("session", ["f" * 32, "x", "..", "%2e%2e", "0" * 31])
def test_what_is_not_there_cannot_be_cancelled(client, session):
    assert client.post(f"/propagations/{session}/cancel").status_code == 404


def test_a_get_cancels_nothing(client, propagations, running):
    assert client.get(f"/propagations/{SESSION}/cancel").status_code == 405
    assert propagations.states[SESSION].phase == "running"


def test_both_need_the_password_where_there_is_one(client_of, running):
    closed = client_of(Settings(basic_auth_user="u", basic_auth_password="p"))
    assert closed.get("/propagations").status_code == 401
    assert closed.post(f"/propagations/{SESSION}/cancel").status_code == 401
    assert closed.post(f"/propagations/{SESSION}/cancel", auth=("u", "p")).status_code == 200


def test_without_redis_the_page_says_so(client, dispatcher):
    dispatcher.client.is_down = True
    assert "Redis does not answer" in client.get("/", headers=PAGE).get_data(as_text=True)
    assert client.get("/propagations").status_code == 503
