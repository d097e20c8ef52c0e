"""Names, keys and envelopes that both ends of the queue agree on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_backend.errors import JobRefusedError, OverloadedError
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MediaRef, ObjectMask, RunLengths, from_wire
from sam2_backend.queue_format import (
    MAX_ARGUMENT_BYTES,
    call_of,
    choose_worker,
    pack_answer,
    pack_job,
    queues_served,
    unpack_answer,
    unpack_job,
)


class Blobs:
    """SET and GET of a Redis."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, ex: int) -> None:
        assert 60 <= ex <= 3600
        self.values[key] = value

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)


def job_of(n_bytes: int) -> ImageJob:
    return ImageJob(MediaRef("http://a/1.png"), (9, 9), (ImagePrompt("p", mask=RunLengths((9, 9), b"\x07" * n_bytes)),))


@pytest.mark.parametrize("n_bytes", [0, 5_000, 8_000, 100_000])
def test_an_argument_is_small_and_the_message_whole(n_bytes):
    blobs = Blobs()
    envelope = pack_job(job_of(n_bytes), blobs)
    assert len(json.dumps(envelope)) < MAX_ARGUMENT_BYTES + 100
    assert bool(blobs.values) == (n_bytes > 7_400)
    message, sent_at = unpack_job(json.loads(json.dumps(envelope)), blobs)
    assert from_wire(ImageJob, message) == job_of(n_bytes)
    assert sent_at == envelope["sent_at"]


@pytest.mark.parametrize("envelope", [None, "x", [], {}, {"sent_at": "now"}, {"sent_at": 1.0, "blob": "gone"}, {"message": {}}])
def test_a_foreign_envelope_is_refused(envelope):
    with pytest.raises(JobRefusedError):
        unpack_job(envelope, Blobs())


def test_answers_arrive_as_they_were():
    reply = ImageReply("hash", "model", "w0", "device", (ObjectMask("p", RunLengths((1, 2), b"\x02\0\0\0"), 0.5),), {"decode": 1.5})
    assert unpack_answer(pack_answer(reply)) == reply
    error = unpack_answer(pack_answer(OverloadedError("Full.", retry_after_s=3.0)))
    assert (type(error), error.message, error.retry_after_s) == (OverloadedError, "Full.", 3.0)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b'{"ok": true}', b'{"ok": true, "reply": {}}', b'{"ok": false}', b"\xff"])
def test_a_malformed_answer_is_an_error_and_no_crash(data):
    assert type(unpack_answer(data)) is JobRefusedError


def test_the_worker_serves_clicks_before_warming_its_own_before_the_shared_and_datasets_last():
    assert queues_served("w") == ["interactive@w", "interactive", "warm@w", "warm", "preannotate"]


def test_only_the_call_decides_who_is_newer():
    assert call_of("abc-0") == call_of("abc-11") != call_of("abd-0")


@given(st.lists(st.text(min_size=1), min_size=1, max_size=6, unique=True), st.text())
def test_the_choice_depends_on_neither_order_nor_process(names, uri):
    assert choose_worker(uri, names) == choose_worker(uri, names[::-1])
    assert choose_worker("http://a/1.png", ["w0", "w1", "w2"]) == "w1"


def test_a_worker_that_goes_moves_only_its_own_images():
    uris = [f"http://a/{index}.png" for index in range(300)]
    before = {uri: choose_worker(uri, ["w0", "w1", "w2"]) for uri in uris}
    after = {uri: choose_worker(uri, ["w0", "w2"]) for uri in uris}
    assert all(after[uri] == worker for uri, worker in before.items() if worker != "w1")
    assert all(60 < list(before.values()).count(name) < 140 for name in ("w0", "w1", "w2"))
