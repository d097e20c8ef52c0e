"""What this process owes through Redis, remembered here as well: a Redis that loses its data, or was away, does not lose the debt.

Owner of `sam2:data-mark`, which names the data of a Redis: where it changes, they were lost. Whoever owed something then writes it down
again. Another process may have settled it meanwhile; settling bears being done twice.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from redis import Redis

Debt = TypeVar("Debt")

MARK, _MARK_KEPT_S = "sam2:data-mark", 7 * 24 * 3600
_TIDY_EVERY_S = 60.0


class Promises(Generic[Debt]):
    """Debts of this process by name. Safe to share between threads.

    Args:
        are_there: Asks Redis which names it still knows.
        most: Remembered at most; of more, the oldest are forgotten here.
    """

    def __init__(self, redis: Callable[[], Redis], are_there: Callable[[Sequence[str]], Sequence[bool]], most: int) -> None:
        self._redis, self._are_there, self._most = redis, are_there, most
        self._debts: dict[str, Debt] = {}
        self._unwritten: set[str] = set()
        self._lock = threading.Lock()
        self._mark: bytes | str | None = None
        self._tidy_at = 0.0

    def make(self, name: str, debt: Debt) -> None:
        """Remember; it counts as unwritten until `written`."""
        with self._lock:
            self._debts.pop(name, None)
            self._debts[name] = debt
            self._unwritten.add(name)
            while len(self._debts) > self._most:
                self._drop(next(iter(self._debts)))

    def written(self, names: Sequence[str]) -> None:
        """Redis knows these.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        if self._mark is None:
            self._mark = self._read_mark()  # of the data that they are among
        with self._lock:
            self._unwritten -= set(names)

    def settled(self, name: str) -> None:
        """Nothing is owed any more."""
        with self._lock:
            self._drop(name)

    def missing(self) -> dict[str, Debt]:
        """What is to be written down, again or at last; to be called every second or so.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        mark, now = self._read_mark(), time.monotonic()
        is_new = self._mark not in {None, mark}
        with self._lock:
            names = [name for name in self._debts if name not in self._unwritten] if is_new or now >= self._tidy_at else []
        if names:
            gone = [name for name, is_there in zip(names, self._are_there(names), strict=True) if not is_there]
            with self._lock:
                for name in gone:
                    # Where the data are those of before, another process has settled it.
                    self._unwritten.add(name) if is_new else self._drop(name)
        self._mark = mark  # now, when nothing can fail any more
        if is_new or now >= self._tidy_at:
            self._tidy_at = now + _TIDY_EVERY_S
        with self._lock:
            return {name: self._debts[name] for name in self._unwritten if name in self._debts}

    def are_other_data(self) -> bool:
        """Whether Redis lost its data since `missing` was called last; what is gone then is not settled."""
        return self._read_mark() != self._mark

    def _read_mark(self) -> bytes | str | None:
        client = self._redis()
        client.set(MARK, secrets.token_hex(8), nx=True, ex=_MARK_KEPT_S)
        return client.getex(MARK, ex=_MARK_KEPT_S)

    def _drop(self, name: str) -> None:
        self._debts.pop(name, None)
        self._unwritten.discard(name)
