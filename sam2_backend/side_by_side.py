"""Pieces of work that are too small to be shared among the cores, side by side: each on one core, so that none waits at a barrier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class SideBySide:
    """Threads for the steps of torch on the CPU, as many as torch may use, started when they are first needed."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """`work` of each item, in order. Where it raises, what was not begun is not begun; what was comes to its end."""
        todo = list(items)
        if torch.get_num_threads() == 1 or len(todo) < 2:
            return map(work, todo)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(torch.get_num_threads(), "side-by-side", initializer=torch.set_num_threads, initargs=(1,))
        return self._threads.map(work, todo)
