"""Who may hold a thread."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack

import pytest

from backend.admission import Admission
from sam2_backend.errors import OverloadedError, error_from_code


def entered(admission: Admission) -> int:
    """How many get in before one is refused; all leave again."""
    for count in range(1000):
        try:
            admission.enter()
        except OverloadedError as error:
            assert error.retry_after_s > 0
            break
    for _ in range(count):
        admission.leave()
    return count


def waiting(admission: Admission) -> int:
    with ExitStack() as stack:
        return sum(stack.enter_context(admission.waiting()) for _ in range(1000))


@pytest.mark.parametrize(("n_threads", "n_all", "n_waiting"), [(64, 62, 56), (12, 10, 4), (9, 7, 1), (4, 2, 1), (1, 1, 1)])
def test_some_threads_are_kept_from_clicks_and_a_few_from_all_but_health(n_threads, n_all, n_waiting):
    admission = Admission(n_threads)
    assert (entered(admission), waiting(admission)) == (n_all, n_waiting)
    assert (entered(admission), waiting(admission)) == (n_all, n_waiting), "what was held is free again"


def test_a_request_that_fails_lets_go_of_its_thread(client_of, predict_body, web_settings):
    client = client_of(dataclasses.replace(web_settings, web_threads=3))
    for _ in range(5):
        assert client.get("/nowhere").status_code == 404
        assert client.post("/predict", data="no JSON").status_code == 400
        assert client.post("/predict", json=predict_body()).status_code == 200


def test_refused_requests_are_told_when_to_come_back_and_health_is_never_refused(client_of, web_settings, monkeypatch):
    client = client_of(web_settings)
    monkeypatch.setattr(Admission, "enter", lambda _self: (_ for _ in ()).throw(OverloadedError("Busy.", retry_after_s=2)))
    answer = client.get("/ready")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2")
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("error", ["queue_down", "no_worker", "overloaded", "gpu_out_of_memory"])
def test_what_may_be_over_soon_says_so(client, dispatcher, predict_body, error):
    dispatcher.raises = error_from_code(error, "Not now.")
    answer = client.post("/predict", json=predict_body())
    assert answer.status_code in {429, 503}
    assert int(answer.headers["Retry-After"]) > 0
