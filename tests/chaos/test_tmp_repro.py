import os, signal, time
from dataclasses import replace
import pytest
from arena import wait_for
from form import WORK
from ledger import Ledger
from worker_processes import until
from working import Work
pytestmark = [pytest.mark.chaos]
@pytest.mark.parametrize("n", range(6))
def test_x(arena, n):
    ledger = Ledger("x")
    arena.settle()
    work = Work(arena.settings, arena.url, arena.studio, ledger, replace(WORK, images=2, warmed=1), f"repro{n}")
    work.start()
    with arena.redis.connect() as c:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not any(c.exists(k.replace(b"sam2:push:", b"sam2:push-lock:")) for k in c.keys("sam2:push:*")):
            pass
        print("LOCK SEEN", time.monotonic() < deadline)
    os.kill(arena.redis.pid, signal.SIGKILL)
    arena.redis.stop(kills=True); arena.redis.lose_data(); wait_for(0.3); arena.redis.start()
    try:
        work.finish(15)
    finally:
        print(arena.told()); work.abandon()
        with arena.redis.connect() as c:
            for k in c.keys("sam2:p*")+c.keys("sam2:data*"):
                t = c.type(k)
                print("KEY", k, c.zrange(k,0,-1,withscores=True) if t==b"zset" else c.hgetall(k) if t==b"hash" else c.lrange(k,0,-1) if t==b"list" else c.smembers(k) if t==b"set" else c.get(k)[:60])
            print(time.time())
    ledger.check()
