"""A device that is full: room is made once, and what could not be done is told in words."""

from __future__ import annotations

import weakref

import pytest
import torch

from sam2_backend.devices import device_errors
from sam2_backend.embedding_cache import EmbeddingCache
from sam2_backend.errors import GpuMemoryError


@pytest.fixture
def cache() -> EmbeddingCache:
    budgets = {"device_budget_bytes": 1 << 20, "host_budget_bytes": 0, "redis_budget_bytes": 0}
    return EmbeddingCache(None, torch.device("cpu"), torch.float32, **budgets)


def allocate_too_much() -> None:
    with device_errors():
        torch.empty(1 << 60, dtype=torch.uint8)


def test_memory_that_torch_cannot_have_is_an_error_in_words():
    with pytest.raises(GpuMemoryError, match="no memory left"):
        allocate_too_much()


def test_what_the_first_try_held_is_free_before_the_second(cache):
    tries: list[weakref.ref] = []

    def work() -> str:
        if tries:
            assert tries[0]() is None
            return "done"
        held = torch.zeros(1000)
        tries.append(weakref.ref(held))
        allocate_too_much()
        return f"not reached with {held}"

    assert cache.with_room(work) == "done"


def test_a_device_that_stays_full_is_told_after_one_more_try(cache):
    tries = []

    def work() -> None:
        tries.append(1)
        allocate_too_much()

    with pytest.raises(GpuMemoryError):
        cache.with_room(work)
    assert len(tries) == 2
