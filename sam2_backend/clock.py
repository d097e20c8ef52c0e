"""Where the time of a job goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """Milliseconds by step; a step inside another is taken off the outer one."""

    spent_ms: dict[str, float] = field(default_factory=dict)
    _inner_ms: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        outer_inner_ms, self._inner_ms = self._inner_ms, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            whole_ms = (time.perf_counter() - start) * 1000
            self.spent_ms[name] = round(self.spent_ms.get(name, 0.0) + whole_ms - self._inner_ms, 3)
            self._inner_ms = outer_inner_ms + whole_ms
