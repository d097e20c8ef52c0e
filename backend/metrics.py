"""/metrics in Prometheus' text format: what this process answered, and what the workers say of themselves in Redis.

Every app has its own registry. A Redis that does not answer costs the workers' numbers, not the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from redis import RedisError

from sam2_backend.errors import Sam2BackendError
from sam2_backend.messages import WorkerStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 80)


class Tier(Protocol):
    """The part of `dispatch.Dispatcher` that the numbers come from."""

    def workers(self) -> list[WorkerStatus]: ...
    def queue_lengths(self) -> dict[str, int]: ...


class Metrics:
    """The counters of one app."""

    def __init__(self, tier: Tier) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sam2_requests", "Requests answered, by endpoint and HTTP status.", ("endpoint", "code"), registry=self._registry
        )
        self._errors = Counter("sam2_errors", "Requests that failed, by the error's code.", ("error",), registry=self._registry)
        self._stages = Histogram("sam2_predict_seconds", "Clicks, by stage.", ("stage",), registry=self._registry, buckets=_BUCKETS_S)
        self._webhooks = Counter("sam2_webhooks", "Webhooks taken, by action.", ("action",), registry=self._registry)
        self._registry.register(_TierCollector(tier))
        ProcessCollector(registry=self._registry)

    def count_request(self, endpoint: str, code: int) -> None:
        self._requests.labels(endpoint, str(code)).inc()

    def count_error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def count_webhook(self, action: str) -> None:
        self._webhooks.labels(action).inc()

    def observe_click(self, timings_ms: Mapping[str, float]) -> None:
        for stage, spent_ms in timings_ms.items():
            self._stages.labels(stage).observe(spent_ms / 1e3)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class _TierCollector(Collector):
    """Reads workers and queues at every scrape."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask Redis."""
        return ()

    def collect(self) -> Iterable[Metric]:
        redis_up = GaugeMetricFamily("sam2_redis_up", "1: Redis answered this scrape.")
        try:
            lengths, workers = self._tier.queue_lengths(), self._tier.workers()
        except (Sam2BackendError, RedisError, OSError):
            redis_up.add_metric((), 0)
            return (redis_up,)
        redis_up.add_metric((), 1)
        return (redis_up, _queue_lengths(lengths), *_workers(workers))


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
