"""Large bodies are admitted one beside another as long as they fit, and always one."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from backend import body_room
from backend.body_room import SMALL_BYTES, UNTOLD_BYTES, BodyRoom
from sam2_backend.errors import OverloadedError

MIB = 1 << 20


def request(n_bytes: int | None) -> Request:
    length = {"HTTP_TRANSFER_ENCODING": "chunked"} if n_bytes is None else {"CONTENT_LENGTH": str(n_bytes)}
    environ = EnvironBuilder(method="POST").get_environ()
    environ.pop("CONTENT_LENGTH", None)
    return Request(environ | length)


def test_large_bodies_come_beside_one_another_until_there_is_no_room():
    bodies = BodyRoom(10 * MIB)
    held = [bodies.enter(request(4 * MIB)) for _ in range(2)]
    with pytest.raises(OverloadedError) as caught:
        bodies.enter(request(4 * MIB))
    assert caught.value.retry_after_s
    bodies.leave(held[0])
    assert bodies.enter(request(6 * MIB)) == 6 * MIB


def test_one_is_admitted_whatever_its_length():
    assert BodyRoom(MIB).enter(request(500 * MIB)) == 500 * MIB


def test_small_ones_are_always_admitted():
    bodies = BodyRoom(10 * MIB)
    bodies.enter(request(10 * MIB))
    assert [bodies.enter(request(n_bytes)) for n_bytes in (0, 1, SMALL_BYTES)] == [0, 0, 0]


def test_one_that_does_not_tell_its_length_is_held_to_what_it_is_counted_as():
    bodies, untold = BodyRoom(100 * MIB), request(None)
    assert bodies.enter(untold) == UNTOLD_BYTES == untold.max_content_length
    with pytest.raises(OverloadedError):
        bodies.enter(request(None))


@given(st.lists(st.integers(0, 20 * MIB), max_size=20))
def test_what_is_held_never_exceeds_the_room_but_for_a_single_one(sizes):
    bodies, held = BodyRoom(10 * MIB), []
    for n_bytes in sizes:
        try:
            held.append(bodies.enter(request(n_bytes)))
        except OverloadedError:
            pass
        large = [one for one in held if one]
        assert sum(large) <= 10 * MIB or len(large) == 1
        if len(held) > 3:
            bodies.leave(held.pop(0))


def test_the_app_lets_go_of_every_body_also_of_those_that_fail(client_of, predict_body, monkeypatch):
    from sam2_backend.settings import Settings

    monkeypatch.setattr(body_room, "SMALL_BYTES", 10)
    client = client_of(Settings(max_request_bytes=2000, label_studio_url="http://studio.test"))
    for body in (b"{" + b" " * 1500, b'{"tasks": []}' + b" " * 1500, b"x" * 3000, b"") * 3:
        assert client.post("/predict", data=body).status_code in {400, 413}
    assert client.post("/predict", json=predict_body()).status_code == 200


def test_of_many_that_come_together_some_are_told_to_come_back(client_of, dispatcher, predict_body, monkeypatch):
    from sam2_backend.settings import Settings

    monkeypatch.setattr(body_room, "SMALL_BYTES", 10)
    together, segment = threading.Barrier(2), dispatcher.segment
    monkeypatch.setattr(dispatcher, "segment", lambda jobs, wait_s: (together.wait(20) and None) or segment(jobs, wait_s))
    most_bytes = len(json.dumps(predict_body())) * 3 // 2
    app = client_of(Settings(max_request_bytes=most_bytes, label_studio_url="http://studio.test")).application
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: app.test_client().post("/predict", json=predict_body()).status_code)
        while not together.n_waiting:
            time.sleep(0.01)
        refused = app.test_client().post("/predict", json=predict_body())
        together.wait(20)
        assert first.result(20) == 200
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "overloaded")
    assert refused.headers["Retry-After"]
