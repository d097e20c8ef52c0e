"""Items made ahead: bounded, and the thread is gone when the consumer is."""

from __future__ import annotations

import threading

import pytest

from sam2_backend.prefetch import THREAD_NAME, prefetched


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


class Source:
    """Numbers; tells how many were made and whether it was closed."""

    def __init__(self, n: int, fails_at: int = -1) -> None:
        self.n, self.fails_at, self.n_made, self.is_closed = n, fails_at, 0, False
        self.made = threading.Semaphore(0)

    def __call__(self):
        try:
            for number in range(self.n):
                if number == self.fails_at:
                    raise OSError("broken")
                self.n_made += 1
                self.made.release()
                yield number
        finally:
            self.is_closed = True


def test_all_items_come_in_order_and_the_thread_ends():
    source = Source(100)
    assert list(prefetched(source, 3)) == list(range(100))
    assert source.is_closed
    assert threads() == []


def test_no_more_is_made_ahead_than_was_asked_for():
    source = Source(100)
    items = prefetched(source, 3)
    next(items)
    for _ in range(5):  # the one in hand, three that wait, one being handed over
        assert source.made.acquire(timeout=10)
    assert not source.made.acquire(timeout=0.05)
    items.close()
    assert source.n_made == 5


@pytest.mark.parametrize("taken", [1, 2, 50])
def test_an_early_close_ends_the_thread_and_the_source(taken):
    source = Source(100)
    items = prefetched(source, 3)
    for _ in range(taken):
        next(items)
    items.close()
    assert source.is_closed
    assert threads() == []


def test_a_forgotten_generator_ends_its_thread():
    items = prefetched(Source(100), 3)
    next(items)
    del items
    assert threads() == []


def test_a_generator_that_was_never_begun_starts_nothing():
    items = prefetched(Source(100), 3)
    assert threads() == []
    items.close()


def test_an_error_comes_after_the_items_before_it():
    items = prefetched(Source(100, fails_at=2), 3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="broken"):
        next(items)
    assert threads() == []


def test_an_error_at_the_start_comes_too():
    def fails():
        raise OSError("no file")

    with pytest.raises(OSError, match="no file"):
        next(prefetched(fails, 3))
    assert threads() == []
