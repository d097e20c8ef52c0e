"""A job answers with a value, whatever it holds; the system tests of refusal are in tests/integration/test_queue.py."""

from __future__ import annotations

import json
import zlib
from types import SimpleNamespace

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from rq.serializers import JSONSerializer

from sam2_backend import jobs
from sam2_backend.errors import JobRefusedError, PromptError
from sam2_backend.messages import ImageJob, ImagePrompt, ImageReply, MediaRef, to_wire
from sam2_backend.queue_format import SEGMENT_IMAGE
from sam2_backend.safe_job import SafeJob, without_secrets

REPLY = ImageReply("hash", "model", "w0", "device", (), {"decode": 1.0})


def safe_job(function: str, *args, **record) -> SafeJob:
    job = SafeJob("call-0", connection=SimpleNamespace(get=lambda _key: None), serializer=JSONSerializer)
    data = zlib.compress(json.dumps([function, None, args, {}]).encode())
    job.restore({b"data": data, b"status": b"queued", **{name.encode(): value for name, value in record.items()}})
    return job


def envelope() -> dict:
    return {"sent_at": 0.0, "message": to_wire(ImageJob(MediaRef("http://a/1.png"), (2, 2), (ImagePrompt("p"),)))}


@pytest.fixture
def runtime(monkeypatch):
    """A runtime whose `segment` a test may replace."""
    stub = SimpleNamespace(segment=lambda _job, _let_others: REPLY)
    monkeypatch.setattr(jobs, "_runtime", stub)
    return stub


def test_a_job_of_ours_is_done_and_its_wait_measured(runtime):
    answer = safe_job(SEGMENT_IMAGE, envelope()).answer()
    assert answer.image_hash == "hash"
    assert answer.timings_ms["decode"] == 1.0
    assert answer.timings_ms["queue"] > 0


@pytest.mark.parametrize(
    ("raised", "code"),
    [(PromptError("No."), "bad_prompt"), (ValueError("secret"), "internal_error"), (redis.ConnectionError("at host"), "queue_down")],
)
def test_whatever_goes_wrong_is_a_value(runtime, raised, code):
    def segment(_job, _let_others):
        raise raised

    runtime.segment = segment
    answer = safe_job(SEGMENT_IMAGE, envelope()).answer()
    assert answer.code == code
    assert "secret" not in answer.message
    assert "at host" not in answer.message


@pytest.mark.parametrize("name", ["os.system", "sam2_backend.jobs.install", "segment_image", "", None, 5])
def test_only_the_names_on_the_list_run(runtime, name):
    assert safe_job(name, envelope()).answer().code == "job_refused"


def test_rqs_own_way_to_run_a_job_is_closed(runtime):
    with pytest.raises(JobRefusedError):
        safe_job("os.getpid").perform()


def test_callbacks_webhooks_and_what_comes_after_are_not_believed():
    webhooks = json.dumps([{"url": "http://evil.test/", "status": "finished"}]).encode()
    job = safe_job(
        SEGMENT_IMAGE,
        envelope(),
        success_callback_name=b"os.getpid",
        failure_callback_name=b"os.getpid",
        stopped_callback_name=b"os.getpid",
        webhooks=webhooks,
        dependency_ids=b'["a"]',
        repeats_left=b"5",
        retries_left=b"5",
        group_id=b"g",
    )
    assert job.success_callback is job.failure_callback is job.stopped_callback is None
    assert (job.webhooks, job._dependency_ids, job.repeats_left, job.retries_left, job.group_id) == ([], [], None, None, None)


def test_a_second_runtime_is_refused(runtime):
    with pytest.raises(RuntimeError):
        jobs.install(runtime)


def test_addresses_in_a_log_carry_no_secrets():
    text = "url: /c.png?token=t (Caused by x) GET https://me:pw@host/a.png?X-Amz-Signature=abc&x=1 and http://host/b?token=t' and redis://:pw@h:1/0 (really?)"
    assert without_secrets(text) == "url: /c.png (Caused by x) GET https://host/a.png and http://host/b' and redis://h:1/0 (really?)"


@given(st.text())
def test_text_without_addresses_is_kept(text):
    if "?" not in text and "://" not in text:
        assert without_secrets(text) == text
