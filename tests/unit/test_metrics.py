"""/metrics: what was answered, and what workers say of themselves."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def _samples(client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_requests_are_counted_by_endpoint_and_code(client):
    client.get("/health")
    client.get("/health")
    client.get("/secret-path")
    client.post("/predict", data=b"{")
    samples = _samples(client)
    assert samples["sam2_requests_total", (("code", "200"), ("endpoint", "health"))] == 2
    assert samples["sam2_requests_total", (("code", "404"), ("endpoint", "unknown"))] == 1
    assert samples["sam2_errors_total", (("error", "bad_request"),)] == 1


def test_a_click_is_split_by_stage(client, predict_body):
    client.post("/predict", json=predict_body())
    samples = _samples(client)
    assert samples["sam2_predict_seconds_sum", (("stage", "decode"),)] == 0.038
    assert samples["sam2_predict_seconds_count", (("stage", "total"),)] == 1


def test_strangers_cannot_make_new_series(client):
    for n in range(20):
        client.get(f"/x{n}")
        client.post("/webhook", json={"action": f"EVENT_{'ABCDEFGHIJKLMNOPQRST'[n]}"})
    names = [labels for name, labels in _samples(client) if name in {"sam2_requests_total", "sam2_webhooks_total"}]
    assert len(names) == 3


def test_workers_and_queues_are_read_at_every_scrape(client, dispatcher):
    samples = _samples(client)
    assert samples["sam2_queue_length", (("queue", "interactive@cpu0"),)] == 2
    assert samples["sam2_embedding_lookups_total", (("tier", "device"), ("worker", "cpu0"))] == 2
    assert samples["sam2_worker_jobs_total", (("outcome", "failed"), ("worker", "cpu0"))] == 1
    dispatcher.alive = []
    assert not any(name == "sam2_worker" for name, _ in _samples(client))


def test_two_apps_do_not_share_their_counters(client_of):
    first, second = client_of(), client_of()
    first.get("/health")
    assert not any(dict(labels).get("endpoint") == "health" for _, labels in _samples(second))
