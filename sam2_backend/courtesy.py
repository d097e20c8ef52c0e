"""How often an encoder run gives way to clicks that need the decoder alone, and for how long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

#: A look costs a round trip to Redis.
_LOOK_EVERY_S = 0.02


class Courtesy:
    """Of one encoder run, from its beginning.

    Args:
        is_waited_for: Somebody waits for the run itself, and it gives away no more time than it takes: a first click is not starved by
            however many others. An image that is embedded ahead gives all that is wanted.
    """

    def __init__(self, *, is_waited_for: bool) -> None:
        self._is_waited_for = is_waited_for
        self._began_at = time.monotonic()
        self._looked_at, self._given_s = 0.0, 0.0

    @property
    def is_due(self) -> bool:
        """It is time to look who waits."""
        return time.monotonic() - self._looked_at >= _LOOK_EVERY_S and self.has_time

    @property
    def has_time(self) -> bool:
        """More may be given."""
        return not self._is_waited_for or 2 * self._given_s <= time.monotonic() - self._began_at

    @contextmanager
    def giving(self) -> Iterator[None]:
        """What lasts meanwhile is given."""
        started_at = time.monotonic()
        try:
            yield
        finally:
            self._looked_at = time.monotonic()
            self._given_s += self._looked_at - started_at
