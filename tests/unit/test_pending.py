"""When a job that somebody waits for is lost."""

from __future__ import annotations

from backend.pending import Pending, _is_lost
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import ImageJob, MediaRef

LIVE = {"w0:1:0.000"}
NOWHERE = (None, None)


def pending() -> Pending:
    return Pending("call-0", ImageJob(MediaRef("http://a/1.png"), (2, 2), ()), "w0")


def looks(job: Pending, *seen) -> list[bool]:
    return [_is_lost(job, facts, LIVE) for facts in seen]


def test_a_job_that_waits_or_is_worked_on_is_not_lost():
    waits_here = (0, (b"queued", None), 3, None)
    handed_on = (0, (b"queued", None), None, 0)
    in_hand = (0, (b"started", b"w0:1:0.000"), *NOWHERE)
    answered = (1, (None, None), *NOWHERE)
    assert looks(pending(), *[waits_here, handed_on, in_hand, answered] * 5) == [False] * 20


def test_a_job_between_two_hands_is_lost_only_when_seen_so_twice():
    between = (0, (b"queued", None), *NOWHERE)
    job = pending()
    assert looks(job, between, (0, (b"queued", None), 0, None), between, between) == [False, False, False, True]


def test_a_job_without_a_record_is_lost():
    gone = (0, (None, None), 0, None)
    assert looks(pending(), gone, gone) == [False, True]


def test_a_job_in_a_dead_hand_is_lost_at_once_also_when_the_name_lives_again():
    assert looks(pending(), (0, (b"started", b"w0:1:9.000"), *NOWHERE)) == [True]
    assert looks(pending(), (0, (b"started", None), *NOWHERE)) == [True]


def test_a_job_that_killed_two_workers_is_not_sent_to_a_third():
    dead = (0, (b"started", b"w1:1:0.000"), *NOWHERE)
    job = pending()
    assert looks(job, dead, dead) == [True, False]
    assert type(job.answer) is Sam2BackendError
