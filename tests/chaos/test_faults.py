"""Every fault for real, under load: no click lost or wrong, no background job lost or done twice, nothing left behind."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
from arena import DEAD_AFTER_S, Arena, wait_for
from clicking import N_THREADS, Annotators, click_by_rule
from form import CLICKS, IS_FULL, TIMES, WORK
from ledger import Ledger
from worker_processes import until
from working import Work

from sam2_backend.redis_connection import SOCKET_TIMEOUT_S

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


def a_worker_is_killed(arena: Arena) -> None:
    for strike in range(TIMES):
        name = f"w{strike % 2}"
        arena.kill(name)
        wait_for(1.0)
        arena.restart(name)
        wait_for(2 * DEAD_AFTER_S if strike + 1 < TIMES else 0)


def a_worker_is_stopped_and_goes_on(arena: Arena) -> None:
    for _ in range(TIMES):
        arena.kill("w0", signal.SIGSTOP)
        wait_for(DEAD_AFTER_S + 1.0)
        arena.kill("w0", signal.SIGCONT)
        wait_for(1.0)


def a_worker_is_asked_to_stop(arena: Arena) -> None:
    for strike in range(TIMES):
        arena.kill(f"w{strike % 2}", signal.SIGTERM)
        arena.restart(f"w{strike % 2}")
        wait_for(1.0)


def redis_restarts_with_its_data(arena: Arena) -> None:
    for strike in range(TIMES):
        arena.redis.stop(kills=strike != 1)
        wait_for(0.3 + 2.5 * strike)
        arena.redis.start()
        wait_for(1.0)


def redis_restarts_empty(arena: Arena) -> None:
    for strike in range(TIMES):
        arena.redis.stop(kills=True)
        arena.redis.lose_data()
        wait_for(0.3 + 2.5 * strike)
        arena.redis.start()
        wait_for(1.0)


def the_disk_of_redis_is_full(arena: Arena) -> None:
    for _ in range(TIMES):
        arena.disk.fill()
        wait_for(1.5)
        arena.disk.free()
        wait_for(0.5)


def the_web_tier_is_asked_to_stop(arena: Arena) -> None:
    for _ in range(TIMES):
        arena.kill("web", signal.SIGTERM)
        arena.restart("web")
        wait_for(3.0)


def the_web_tier_is_killed(arena: Arena) -> None:
    for _ in range(TIMES):
        arena.kill("web")
        arena.restart("web")
        wait_for(3.0)


def label_studio_is_away_and_loses_answers(arena: Arena) -> None:
    arena.studio.loses_every = 5
    for _ in range(TIMES):
        arena.studio.stop()
        wait_for(2.0 if IS_FULL else 1.0)
        arena.studio.start()
        wait_for(1.0)
    arena.studio.loses_every = 0


def the_web_tier_is_cut_off_redis(arena: Arena) -> None:
    for _ in range(4 * TIMES):
        arena.web_cable.cut()
        wait_for(0.2)
        arena.web_cable.cut_replies_in_half(3)
        wait_for(0.2)


def the_workers_are_cut_off_redis(arena: Arena) -> None:
    for _ in range(4 * TIMES):
        arena.worker_cable.cut()
        wait_for(0.2)
        arena.worker_cable.cut_replies_in_half(3)
        wait_for(0.2)


def the_way_from_the_web_tier_to_redis_is_silent(arena: Arena) -> None:
    for _ in range(TIMES):
        arena.web_cable.go_silent()
        wait_for(SOCKET_TIMEOUT_S + 0.5)
        arena.web_cable.speak()
        wait_for(1.0)


def the_way_from_the_workers_to_redis_is_silent(arena: Arena) -> None:
    for _ in range(TIMES):
        arena.worker_cable.go_silent()
        wait_for(DEAD_AFTER_S + 1.0)
        arena.worker_cable.speak()
        wait_for(1.0)


FAULTS = [
    a_worker_is_killed,
    a_worker_is_stopped_and_goes_on,
    redis_restarts_with_its_data,
    redis_restarts_empty,
    the_disk_of_redis_is_full,
    the_web_tier_is_killed,
    label_studio_is_away_and_loses_answers,
    the_web_tier_is_cut_off_redis,
    the_workers_are_cut_off_redis,
    the_way_from_the_web_tier_to_redis_is_silent,
    the_way_from_the_workers_to_redis_is_silent,
]
if IS_FULL:
    FAULTS += [a_worker_is_asked_to_stop, the_web_tier_is_asked_to_stop]


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__.replace("_", " ") for fault in FAULTS])
def test_nothing_is_lost_wrong_or_there_twice(arena: Arena, ledger: Ledger, fault: Callable[[Arena], None]) -> None:
    if fault is the_disk_of_redis_is_full and not arena.disk.is_mounted:
        pytest.skip("needs the right to mount a file system")
    arena.settle()
    amount = WORK if fault is not redis_restarts_empty else replace(WORK, opened=max(2, WORK.opened))
    work = Work(arena.settings, arena.url, arena.studio, ledger, amount, fault.__name__)
    annotators = Annotators(arena.url, ledger, CLICKS, click_by_rule)
    annotators.start()
    try:
        work.start()
        until(lambda: work.n_stored >= WORK.images // 5 and ledger.right >= N_THREADS, 25)
        fault(arena)
        work.finish(240 if IS_FULL else 25)
    finally:
        work.abandon()
        annotators.finish()
        print(arena.told())
    ledger.check()
    arena.settle()
    arena.check_clean()
