"""What the status page's first screen shows, gathered: the last hour and day, what waits, what is full, what failed.

Reads the journal in Redis; where Redis is away, this process's memory of its own requests, and says so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import RedisError

from backend.advice import ErrorGroup, grouped
from backend.events import TIERS, Event
from backend.journal import Backlog, Journal
from backend.journal_store import N_MINUTES, N_QUARTERS, JournalStore
from backend.status import Readiness
from backend.tallies import Tally, Times, share_ready
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import WorkerStatus

FLUSH_S = 0.5
EMBEDDINGS_BYTES = "sam2:emb:bytes"
"""Written by the workers' `embedding_redis`."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What happened.

    Attributes:
        minutes, quarters: The last hour and day, oldest first; empty where Redis is away.
        recent: The last events, newest first.
        is_shared: They are the whole fleet's, from Redis; False: this process's own, from its memory.
        backlog: What this process could not write yet.
    """

    now: float
    minutes: tuple[Tally, ...]
    quarters: tuple[Tally, ...]
    recent: tuple[Event, ...]
    errors: tuple[ErrorGroup, ...]
    is_shared: bool
    backlog: Backlog
    hour: Tally
    day: Tally

    @property
    def first_share(self) -> float | None:
        """Of the images clicked on for the first time in a day, those that were ready."""
        return share_ready(self.day.firsts)

    @property
    def click_share(self) -> float | None:
        """Of all clicks of the last day, those whose image was ready."""
        return share_ready(self.day.tiers)

    def to_json(self) -> dict[str, Any]:
        """The figures, for scripts."""
        return {
            "is_shared": self.is_shared,
            "last_hour": tally_json(self.hour),
            "last_day": tally_json(self.day),
            "errors": [
                {"code": group.code, "count": group.count, "message": group.newest.words, "at": group.newest.at} for group in self.errors
            ],
        }


def tally_json(tally: Tally) -> dict[str, Any]:
    """A tally's figures, for scripts."""
    clicks = tally.clicks
    return {
        "clicks": clicks.n,
        "superseded": tally.n("click", "superseded"),
        "p50_ms": clicks.p50_ms,
        "p95_ms": clicks.p95_ms,
        "p99_ms": clicks.p99_ms,
        "embedding_by_tier": dict(tally.tiers),
        "first_clicks_by_tier": dict(tally.firsts),
        "errors": dict(tally.errors),
        "made": dict(tally.made),
    }


def look(journal: Journal, store: JournalStore, *, redis_answers: bool) -> Seen:
    """What happened, with this process's last event among it."""
    now = time.time()
    if redis_answers:
        journal.flush(FLUSH_S)
        try:
            minutes, quarters = store.minutes(now), store.quarters(now)
            recent, errors = store.recent(), store.errors()
        except Sam2BackendError:
            pass
        else:
            return _seen(now, minutes, quarters, recent, errors, journal.backlog(), is_shared=True)
    recent = journal.remembered()
    errors = [event for event in recent if event.is_error]
    return _seen(now, [Tally()] * N_MINUTES, [Tally()] * N_QUARTERS, recent, errors, journal.backlog(), is_shared=False)


def _seen(
    now: float,
    minutes: Sequence[Tally],
    quarters: Sequence[Tally],
    recent: Sequence[Event],
    errors: Sequence[Event],
    backlog: Backlog,
    *,
    is_shared: bool,
) -> Seen:
    hour, day = merged(minutes), merged(quarters)
    return Seen(now, tuple(minutes), tuple(quarters), tuple(recent), tuple(grouped(errors)), is_shared, backlog, hour, day)


def merged(tallies: Sequence[Tally]) -> Tally:
    """Tallies added up."""
    whole = Tally()
    for tally in tallies:
        for mine, theirs in ((whole.stages, tally.stages), (whole.workers, tally.workers)):
            for name, times in theirs.items():
                mine.setdefault(name, Times()).counts.update(times.counts)
        for name in ("tiers", "firsts", "outcomes", "errors", "made"):
            getattr(whole, name).update(getattr(tally, name))
    return whole


def lookups(workers: Sequence[WorkerStatus]) -> Counter[str]:
    """Embedding look-ups of the live workers together, clicks and work ahead, since each started."""
    total: Counter[str] = Counter()
    for worker in workers:
        total.update({tier: round(count) for tier, count in worker.hits.items()})
    return total


def in_tier_order(tiers: Mapping[str, float]) -> list[tuple[str, float]]:
    """The nearest tier first, then what was made; tiers that nothing came from are left out."""
    order = [*TIERS, *(tier for tier in tiers if tier not in TIERS)]
    return [(tier, tiers[tier]) for tier in order if tiers.get(tier)]


def waiting(state: Readiness) -> dict[str, int]:
    """How much waits by kind of work, shared queues and those of single workers together, most urgent first."""
    kinds: dict[str, int] = {}
    for queue, length in state.queues.items():
        kind = queue.split("@", 1)[0]
        kinds[kind] = kinds.get(kind, 0) + length
    kinds["propagate"] = state.n_tracks_waiting
    return kinds


@dataclass(frozen=True, slots=True)
class RedisMemory:
    """Bytes that Redis holds.

    Attributes:
        limit_bytes: 0: it has no limit of its own.
        embeddings_bytes: Of the embeddings among it.
    """

    used_bytes: int
    limit_bytes: int
    embeddings_bytes: int


def redis_memory(client: Any) -> RedisMemory | None:
    """How full Redis is; None: it does not tell."""
    try:
        info = client.info("memory")
        return RedisMemory(int(info["used_memory"]), int(info.get("maxmemory") or 0), int(client.get(EMBEDDINGS_BYTES) or 0))
    except (RedisError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
