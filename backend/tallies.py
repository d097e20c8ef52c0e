"""Events as counts: what each adds to which counter, and counters read back as figures. Knows no Redis.

A counter is a field `<what>|<label>|…`. Labels come from fixed lists, from the live workers' names and from the tree of errors, so the
number of fields is bounded; adding the counters of several processes or of several minutes loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from backend.events import TIERS, Event
from backend.latency_histogram import bucket_of, quantiles_ms

STAGE, WORKER, TIER, FIRST, OUTCOME, ERROR, MADE = "stage", "worker", "tier", "first", "outcome", "error", "made"
READY_TIERS = tuple(tier for tier in TIERS if tier != "none")


def counts_of(event: Event, first_images: frozenset[str] = frozenset()) -> Counter[str]:
    """What an event adds.

    Args:
        first_images: Those of its images that nobody has clicked on before.
    """
    counts: Counter[str] = Counter({f"{OUTCOME}|{event.kind}|{event.outcome}": 1})
    if event.code:
        counts[f"{ERROR}|{event.code}"] += 1
    for stage, spent_ms in event.timings_ms.items():
        counts[f"{STAGE}|{stage}|{bucket_of(spent_ms)}"] += 1
    if event.timings_ms and event.worker and "," not in event.worker:
        counts[f"{WORKER}|{event.worker}|{bucket_of(event.total_ms)}"] += 1
    for image, tier in event.images:
        known = tier if tier in TIERS else "none"
        counts[f"{TIER}|{known}"] += 1
        if image in first_images:
            counts[f"{FIRST}|{known}"] += 1
    for what, count in (("predictions", event.n_predictions), ("prepared", len(event.prepared))):
        if count:
            counts[f"{MADE}|{what}"] += count
    return counts


@dataclass(frozen=True, slots=True)
class Times:
    """A distribution of times, by bucket."""

    counts: Counter[int] = field(default_factory=Counter)

    @property
    def n(self) -> int:
        return sum(self.counts.values())

    @property
    def p50_ms(self) -> float | None:
        return quantiles_ms(self.counts, (0.5,))[0]

    @property
    def p95_ms(self) -> float | None:
        return quantiles_ms(self.counts, (0.95,))[0]

    @property
    def p99_ms(self) -> float | None:
        return quantiles_ms(self.counts, (0.99,))[0]


@dataclass(frozen=True, slots=True)
class Tally:
    """Counters of some time, project or process, read back.

    Attributes:
        stages, workers: Times of clicks by stage (`total` among them) and by who answered.
        tiers, firsts: Images clicked on, and those of them that were clicked on for the first time, by where their embedding was.
        outcomes: By (kind, outcome) of `events`.
        made: `predictions` that Label Studio got, images `prepared` ahead.
    """

    stages: dict[str, Times] = field(default_factory=dict)
    workers: dict[str, Times] = field(default_factory=dict)
    tiers: Counter[str] = field(default_factory=Counter)
    firsts: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, hashes: Iterable[Mapping[str, int]]) -> Tally:
        """All counters together; a field of another version is passed over."""
        tally = cls()
        for counters in hashes:
            for name, count in counters.items():
                tally._add(name.split("|"), count)
        return tally

    @property
    def clicks(self) -> Times:
        """From the request's arrival to its answer."""
        return self.stages.get("total", Times())

    def n(self, kind: str, *outcomes: str) -> int:
        """How often a kind of event had one of these outcomes, or any."""
        return sum(count for (k, outcome), count in self.outcomes.items() if k == kind and (not outcomes or outcome in outcomes))

    @property
    def n_failed(self) -> int:
        return sum(self.errors.values())

    def _add(self, parts: list[str], count: int) -> None:
        match parts:
            case ["stage", stage, bucket] if bucket.isdecimal():
                self.stages.setdefault(stage, Times()).counts[int(bucket)] += count
            case ["worker", worker, bucket] if bucket.isdecimal():
                self.workers.setdefault(worker, Times()).counts[int(bucket)] += count
            case ["tier", tier]:
                self.tiers[tier] += count
            case ["first", tier]:
                self.firsts[tier] += count
            case ["outcome", kind, outcome]:
                self.outcomes[kind, outcome] += count
            case ["error", code]:
                self.errors[code] += count
            case ["made", what]:
                self.made[what] += count
            case _:
                pass


def share_ready(tiers: Mapping[str, int]) -> float | None:
    """The share of images whose embedding was there, in any tier; None: nothing was asked for."""
    total = sum(tiers.values())
    return 1 - tiers.get("none", 0) / total if total else None
