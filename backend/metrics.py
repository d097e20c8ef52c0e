"""/metrics in Prometheus' text format: what this process answered, and what the fleet says of itself in Redis. Every app has its own registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from backend.events import TIERS, Event
from backend.fleet_metrics import FleetCollector, Tier, Totals, Tracks
from backend.journal import Backlog

CONTENT_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 80)


class Metrics:
    """The counters of one app."""

    def __init__(self, tier: Tier, tracks: Tracks, totals: Totals, backlog: Callable[[], Backlog]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "sam2_requests", "Requests answered, by endpoint and HTTP status.", ("endpoint", "code"), registry=registry
        )
        self._errors = Counter("sam2_errors", "Requests that failed, by the error's code.", ("error",), registry=registry)
        self._stages = Histogram("sam2_predict_seconds", "Clicks, by stage.", ("stage",), registry=registry, buckets=_BUCKETS_S)
        self._clicks = Counter("sam2_clicks", "Clicks, by outcome.", ("outcome",), registry=registry)
        self._images = Counter("sam2_click_embeddings", "Images clicked on, by where their embedding was.", ("tier",), registry=registry)
        self._webhooks = Counter("sam2_webhooks", "Webhooks taken, by action.", ("action",), registry=registry)
        waiting = Gauge("sam2_journal_waiting", "Events of this process that wait to be written into Redis.", registry=registry)
        waiting.set_function(lambda: backlog().waiting)
        dropped = Gauge("sam2_journal_dropped", "Events of this process that the status page lacks.", registry=registry)
        dropped.set_function(lambda: backlog().dropped)
        registry.register(FleetCollector(tier, tracks, totals))
        ProcessCollector(registry=registry)

    def count_request(self, endpoint: str, code: int) -> None:
        self._requests.labels(endpoint, str(code)).inc()

    def count_error(self, code: str) -> None:
        self._errors.labels(code).inc()

    def count_webhook(self, action: str) -> None:
        self._webhooks.labels(action).inc()

    def count_event(self, event: Event) -> None:
        """Of clicks: their outcome, and where embeddings were."""
        if event.kind == "click":
            self._clicks.labels(event.outcome).inc()
        for _, tier in event.images:
            self._images.labels(tier if tier in TIERS else "none").inc()

    def observe_click(self, timings_ms: Mapping[str, float]) -> None:
        for stage, spent_ms in timings_ms.items():
            self._stages.labels(stage).observe(spent_ms / 1e3)

    def render(self) -> bytes:
        return generate_latest(self._registry)
