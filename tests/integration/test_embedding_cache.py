"""The embedding cache against a real Redis: budgets, order, one maker at a time, and what happens when Redis or a maker goes away."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sam2_backend import embedding_cache
from sam2_backend.embedding_cache import EmbeddingCache, EmbeddingKey
from sam2_backend.engine import ImageEmbedding

CPU = torch.device("cpu")


def key(number: int, model: str = "m") -> EmbeddingKey:
    return EmbeddingKey(f"image{number}", model, "p1", "upright")


def embedding(number: float, values: int = 64) -> ImageEmbedding:
    tensor = torch.full((1, 1, 1, values), float(number))
    return ImageEmbedding(tensor, tensor.clone(), tensor.clone())


ON_DEVICE = embedding(0).nbytes
STORED = len(embedding(0).to_bytes())


def cache(connection=None, device=4, host=0, shared=0) -> EmbeddingCache:
    return EmbeddingCache(
        connection,
        CPU,
        torch.float32,
        device_budget_bytes=device * ON_DEVICE,
        host_budget_bytes=host * STORED,
        redis_budget_bytes=shared * STORED,
    )


def must_not_make() -> ImageEmbedding:
    raise AssertionError("encoded although a tier has it")


def same(a: ImageEmbedding, b: ImageEmbedding) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.high_res_0, b.high_res_0) and torch.equal(a.high_res_1, b.high_res_1)


def test_each_tier_answers_after_the_one_above_forgot_and_with_the_same_values(redis_server):
    connection = redis_server.connect()
    first = cache(connection, device=1, host=1, shared=4)
    made, tier = first.get_or_make(key(1), lambda: embedding(1))
    assert tier == "none"
    assert first.get_or_make(key(1), must_not_make)[1] == "device"
    first.empty_device_tier()
    revived, tier = first.get_or_make(key(1), must_not_make)
    assert tier == "host" and same(revived, made)
    other_worker = cache(connection, shared=4)
    revived, tier = other_worker.get_or_make(key(1), must_not_make)
    assert tier == "redis" and same(revived, made)
    assert first.stats().hits == {"device": 1, "host": 1, "redis": 0, "disk": 0, "bucket": 0, "none": 1}


def test_another_model_or_precision_is_a_miss(redis_server):
    connection = redis_server.connect()
    cache(connection, shared=4).get_or_make(key(1), lambda: embedding(1))
    assert cache(connection, shared=4).get_or_make(key(1, model="changed"), lambda: embedding(2))[1] == "none"
    half = EmbeddingCache(connection, CPU, torch.bfloat16, device_budget_bytes=0, host_budget_bytes=0, redis_budget_bytes=STORED * 4)
    assert half.get_or_make(key(1), lambda: embedding(3))[1] == "none"


class Tiers(RuleBasedStateMachine):
    """Device and Redis against two plain ordered dicts."""

    server = None
    DEVICE, SHARED = 2, 3

    @initialize()
    def empty(self) -> None:
        self.connection = self.server.connect()
        self.connection.flushall()
        self.cache = cache(self.connection, device=self.DEVICE, shared=self.SHARED)
        self.device: list[int] = []
        self.shared: list[int] = []

    @rule(number=st.integers(0, 5))
    def ask(self, number: int) -> None:
        expected = "device" if number in self.device else "redis" if number in self.shared else "none"
        found, tier = self.cache.get_or_make(key(number), lambda: embedding(number))
        self.cache._in_redis.settle()
        assert tier == expected
        assert same(found, embedding(number))
        self.device = ([n for n in self.device if n != number] + [number])[-self.DEVICE :]
        if tier != "device":
            self.shared = ([n for n in self.shared if n != number] + [number])[-self.SHARED :]

    @rule()
    def lose_the_device(self) -> None:
        self.cache.empty_device_tier()
        self.device = []

    @invariant()
    def budgets_hold(self) -> None:
        assert self.cache.stats().device_bytes == len(self.device) * ON_DEVICE <= self.DEVICE * ON_DEVICE
        assert int(self.connection.get("sam2:emb:bytes") or 0) == len(self.shared) * STORED
        assert len(self.connection.keys("sam2:emb:blob:*")) == len(self.shared)


def test_every_history_keeps_the_budgets_and_forgets_the_least_recently_used(redis_server, monkeypatch):
    Tiers.server = redis_server
    monkeypatch.setattr(embedding_cache.gc, "collect", lambda: 0)  # a fifth of a second each, hundreds of times; no garbage here
    run_state_machine_as_test(
        Tiers, settings=hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    )


def test_an_embedding_larger_than_the_budget_is_used_and_not_kept(redis_server):
    small = cache(redis_server.connect(), device=0, shared=1)
    large = lambda: embedding(1, values=1024)
    assert small.get_or_make(key(1), large)[1] == "none"
    assert small.get_or_make(key(1), large)[1] == "none"
    assert small.stats().device_bytes == 0
    assert redis_server.connect().keys("sam2:emb:blob:*") == []


@pytest.mark.parametrize("workers", [1, 3])
def test_however_many_ask_an_image_is_encoded_once(redis_server, workers):
    caches = [cache(redis_server.connect(), shared=4) for _ in range(workers)]
    made = []

    def make():
        time.sleep(0.2)
        made.append(1)
        return embedding(7)

    results = []
    threads = [threading.Thread(target=lambda c=c: results.append(c.get_or_make(key(7), make))) for c in caches for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(results) == 4 * workers and all(same(found, embedding(7)) for found, _ in results)


def test_a_maker_that_fails_leaves_the_next_one_free_to_try(redis_server):
    tried = cache(redis_server.connect(), shared=4)
    with pytest.raises(ValueError, match="no such image"):
        tried.get_or_make(key(1), lambda: (_ for _ in ()).throw(ValueError("no such image")))
    started = time.monotonic()
    assert tried.get_or_make(key(1), lambda: embedding(1))[1] == "none"
    assert time.monotonic() - started < 1


def test_a_maker_killed_in_the_middle_is_replaced(redis_server):
    connection = redis_server.connect()
    connection.set("sam2:emb:making:S2E3:float32:" + key(1).text, "dead", px=500)
    assert cache(connection, shared=4).get_or_make(key(1), lambda: embedding(1))[1] == "none"


def test_a_damaged_blob_is_made_again(redis_server):
    connection = redis_server.connect()
    first = cache(connection, shared=4)
    first.get_or_make(key(1), lambda: embedding(1))
    first.close()
    name = "sam2:emb:blob:S2E3:float32:" + key(1).text
    connection.set(name, connection.get(name)[:-5])
    found, tier = cache(connection, shared=4).get_or_make(key(1), lambda: embedding(1))
    assert tier == "none" and same(found, embedding(1))
    assert cache(connection, shared=4).get_or_make(key(1), must_not_make)[1] == "redis"


def test_without_redis_the_other_tiers_go_on(own_redis_server):
    used = cache(own_redis_server.connect(), shared=4)
    own_redis_server.stop()
    assert used.get_or_make(key(1), lambda: embedding(1))[1] == "none"
    assert used.get_or_make(key(1), must_not_make)[1] == "device"
    own_redis_server.start()
    used.get_or_make(key(2), lambda: embedding(2))
    assert cache(own_redis_server.connect(), shared=4).get_or_make(key(2), must_not_make)[1] == "redis"


def test_whoever_made_an_embedding_goes_on_while_it_is_written_and_others_wait_for_it(redis_server, monkeypatch):
    making, written = cache(redis_server.connect(), shared=4), threading.Event()
    put = making._in_redis.put
    monkeypatch.setattr(making._in_redis, "put", lambda *args: (written.wait(30), put(*args)))
    assert making.get_or_make(key(1), lambda: embedding(1))[1] == "none"
    assert redis_server.connect().keys("sam2:emb:blob:*") == []
    found = []
    other = threading.Thread(target=lambda: found.append(cache(redis_server.connect(), shared=4).get_or_make(key(1), must_not_make)[1]))
    other.start()
    other.join(0.2)
    assert found == []
    written.set()
    other.join()
    assert found == ["redis"]


def test_no_more_than_two_are_on_their_way_to_redis_at_a_time(redis_server, monkeypatch):
    making, goes_on, at_once, lock = cache(redis_server.connect(), shared=8), threading.Event(), [], threading.Lock()

    def put(name: str, _data: bytes) -> None:
        with lock:
            at_once.append(name)
        goes_on.wait(30)

    monkeypatch.setattr(making._in_redis, "put", put)
    done = []
    asking = threading.Thread(target=lambda: done.extend(making.get_or_make(key(n), lambda: embedding(1))[1] for n in range(5)))
    asking.start()
    asking.join(0.3)
    assert asking.is_alive() and len(at_once) == 2
    goes_on.set()
    asking.join()
    making.close(30)
    assert done == ["none"] * 5 and len(at_once) == 5
