"""/metrics: what was answered, and what workers say of themselves."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from sam2_backend.errors import OverloadedError, SupersededError
from sam2_backend.video_messages import PropagationState


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


def test_propagations_are_counted_by_phase(client, propagations):
    propagations.states = {
        name: PropagationState(name, phase, n_done=50) for name, phase in (("a", "running"), ("b", "done"), ("c", "done"))
    }
    samples = _samples(client)
    assert [samples["sam2_propagations", (("phase", phase),)] for phase in ("waiting", "running", "done")] == [0, 1, 2]
    assert samples["sam2_propagation_results_total", ()] == 150


def test_clicks_are_counted_by_outcome_and_by_where_the_embedding_was(client, dispatcher, predict_body):
    client.post("/predict", json=predict_body(context=None))
    client.post("/predict", json=predict_body())
    dispatcher.failures["*"] = SupersededError("A newer one came.")
    client.post("/predict", json=predict_body())
    dispatcher.raises = OverloadedError("Too many wait.", retry_after_s=1)
    client.post("/predict", json=predict_body())
    client.get("/")  # has the journal written
    samples = _samples(client)
    assert {outcome: samples["sam2_clicks_total", (("outcome", outcome),)] for outcome in ("answered", "superseded", "failed")} == {
        "answered": 1, "superseded": 1, "failed": 1,
    }  # fmt: skip
    assert samples["sam2_click_embeddings_total", (("tier", "device"),)] == 1
    assert samples["sam2_first_clicks_total", (("tier", "device"),)] == 1
    assert samples["sam2_events_total", (("kind", "open"), ("outcome", "prepared"))] == 1
    assert samples["sam2_made_total", (("what", "prepared"),)] == 1
    assert samples["sam2_errors_total", (("error", "overloaded"),)] == 1
    assert samples["sam2_predict_seconds_count", (("stage", "total"),)] == 1
    assert samples["sam2_redis_bytes", (("kind", "limit"),)] == 2 << 30
    assert samples["sam2_journal_waiting", ()] == samples["sam2_journal_dropped", ()] == 0


def test_two_apps_do_not_share_their_counters(client_of):
    first, second = client_of(), client_of()
    first.get("/health")
    assert not any(dict(labels).get("endpoint") == "health" for _, labels in _samples(second))
