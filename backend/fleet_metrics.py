"""What /metrics reads anew at every scrape: workers, queues, propagations, Redis, and counters that all processes share.

Every web process shows the same numbers here, so queries take the greatest of them (`max by`). A Redis that does not answer costs these
numbers, not the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import RedisError

from backend.overview import redis_memory
from backend.tallies import Tally
from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import WorkerStatus
from sam2_backend.video_messages import PropagationPhase, PropagationState


class Tier(Protocol):
    """The part of `dispatch.Dispatcher` that the numbers come from."""

    def workers(self) -> list[WorkerStatus]: ...
    def queue_lengths(self) -> dict[str, int]: ...
    def redis(self) -> Any: ...


class Tracks(Protocol):
    """The part of `propagations.Propagations`."""

    def recent(self) -> list[PropagationState]: ...
    def n_results(self) -> int: ...


class Totals(Protocol):
    """The part of `journal_store.JournalStore`."""

    def totals(self) -> Tally: ...


class FleetCollector(Collector):
    """Reads at every scrape."""

    def __init__(self, tier: Tier, tracks: Tracks, totals: Totals) -> None:
        self._tier, self._tracks, self._totals = tier, tracks, totals

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask Redis."""
        return ()

    def collect(self) -> Iterable[Metric]:
        redis_up = GaugeMetricFamily("sam2_redis_up", "1: Redis answered this scrape.")
        try:
            lengths, workers = self._tier.queue_lengths(), self._tier.workers()
            sessions, n_results, totals = self._tracks.recent(), self._tracks.n_results(), self._totals.totals()
        except (Sam2BackendError, RedisError, OSError):
            redis_up.add_metric((), 0)
            return (redis_up,)
        redis_up.add_metric((), 1)
        shared = (_redis_bytes(self._tier.redis()), *_propagations(sessions, n_results), *_totals(totals))
        return (redis_up, _queue_lengths(lengths), *_workers(workers), *shared)


def _queue_lengths(lengths: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily("sam2_queue_length", "Jobs waiting, by queue.", labels=("queue",))
    for queue, length in lengths.items():
        family.add_metric((queue,), length)
    return family


def _workers(workers: Iterable[WorkerStatus]) -> Iterable[Metric]:
    alive = GaugeMetricFamily("sam2_worker", "1 for every live worker.", labels=("worker", "state", "device", "model_version"))
    jobs = CounterMetricFamily("sam2_worker_jobs", "Jobs of a live worker.", labels=("worker", "outcome"))
    hits = CounterMetricFamily("sam2_embedding_lookups", "Embeddings, by where they were found.", labels=("worker", "tier"))
    used = GaugeMetricFamily("sam2_embedding_cache_bytes", "Embeddings kept.", labels=("worker", "tier"))
    memory = GaugeMetricFamily("sam2_device_bytes", "Memory of the worker's device.", labels=("worker", "kind"))
    for worker in workers:
        alive.add_metric((worker.name, worker.state, worker.device, worker.model_version), 1)
        jobs.add_metric((worker.name, "done"), worker.jobs_done)
        jobs.add_metric((worker.name, "failed"), worker.jobs_failed)
        used.add_metric((worker.name, "device"), worker.device_cache_bytes)
        used.add_metric((worker.name, "host"), worker.host_cache_bytes)
        memory.add_metric((worker.name, "used"), worker.device_used_bytes)
        memory.add_metric((worker.name, "total"), worker.device_total_bytes)
        for tier, count in worker.hits.items():
            hits.add_metric((worker.name, tier), count)
    return alive, jobs, hits, used, memory


def _propagations(sessions: Sequence[PropagationState], n_results: int) -> Iterable[Metric]:
    phases = GaugeMetricFamily("sam2_propagations", "Propagations that are kept, by phase.", labels=("phase",))
    for phase in get_args(PropagationPhase):
        phases.add_metric((phase,), sum(session.phase == phase for session in sessions))
    results = CounterMetricFamily("sam2_propagation_results", "Frames times objects that all workers have tracked.")
    results.add_metric((), n_results)
    return phases, results


def _redis_bytes(client: Any) -> Metric:
    family = GaugeMetricFamily(
        "sam2_redis_bytes", "Memory of Redis: used, its limit (0: none), and the embeddings in it.", labels=("kind",)
    )
    if memory := redis_memory(client):
        for kind, count in (("used", memory.used_bytes), ("limit", memory.limit_bytes), ("embeddings", memory.embeddings_bytes)):
            family.add_metric((kind,), count)
    return family


def _totals(totals: Tally) -> Iterable[Metric]:
    events = CounterMetricFamily("sam2_events", "What happened, in all processes, by kind and outcome.", labels=("kind", "outcome"))
    for (kind, outcome), count in sorted(totals.outcomes.items()):
        events.add_metric((kind, outcome), count)
    firsts = CounterMetricFamily(
        "sam2_first_clicks", "Images clicked on for the first time, by where their embedding was.", labels=("tier",)
    )
    for tier, count in sorted(totals.firsts.items()):
        firsts.add_metric((tier,), count)
    made = CounterMetricFamily("sam2_made", "Predictions that Label Studio got, and images sent to be embedded ahead.", labels=("what",))
    for what, count in sorted(totals.made.items()):
        made.add_metric((what,), count)
    return events, firsts, made
