"""Who may ask what."""

from __future__ import annotations

import base64

import pytest

from sam2_backend.settings import Settings

CLOSED = Settings(basic_auth_user="ls", basic_auth_password="pä:ss")
GUARDED = ("/", "/ready", "/versions", "/metrics", "/nowhere")


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_without_settings_everyone_may_ask(client):
    assert client.get("/versions").status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_a_closed_endpoint_asks_for_the_password(client_of, path):
    answer = client_of(CLOSED).get(path)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    assert answer.json["error"]["code"] == "unauthorized"
    assert "SAM2_BASIC_AUTH_USER" in answer.status


def test_posting_is_refused_before_the_body_is_looked_at(client_of):
    for path in ("/predict", "/setup"):
        assert client_of(CLOSED).post(path, data=b"{broken").status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (_basic("ls", "pä:ss"), 200),
        (_basic("ls", "pä:s"), 401),
        (_basic("", ""), 401),
        (_basic("LS", "pä:ss"), 401),
        ({"Authorization": "Basic %%%"}, 401),
        ({"Authorization": "Bearer pä:ss".encode().decode("latin-1")}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()}, 401),
        ({"X-API-Key": ""}, 401),
    ],
)
def test_only_the_right_user_and_password_pass(client_of, headers, status):
    assert client_of(CLOSED).get("/versions", headers=headers).status_code == status


def test_an_api_key_is_taken_in_place_of_the_password(client_of):
    client = client_of(Settings(basic_auth_user="ls", basic_auth_password="x", api_key="schlüssel"))
    as_sent = "schlüssel".encode().decode("latin-1")
    assert client.get("/versions", headers={"X-API-Key": as_sent}).status_code == 200
    assert client.get("/versions", headers={"X-API-Key": "schlussel"}).status_code == 401
    assert client.get("/versions", headers=_basic("ls", "x")).status_code == 200


def test_an_api_key_alone_closes_the_backend(client_of):
    client = client_of(Settings(api_key="k"))
    assert client.get("/versions").status_code == 401
    assert client.get("/versions", headers=_basic("", "")).status_code == 401
    assert client.get("/versions", headers={"X-API-Key": "k"}).status_code == 200


def test_health_and_webhook_need_no_password(client_of):
    client = client_of(CLOSED)
    assert client.get("/health").status_code == 200
    assert client.post("/webhook", json={"action": "ANNOTATIONS_DELETED"}).status_code == 201


def test_a_webhook_secret_is_demanded_where_one_is_set(client_of):
    client = client_of(Settings(webhook_secret="hush"))
    event = {"action": "TASKS_CREATED"}
    assert client.post("/webhook", json=event).status_code == 401
    assert client.post("/webhook", json=event, headers={"X-Webhook-Secret": "hus"}).status_code == 401
    assert client.post("/webhook", json=event, headers={"X-Webhook-Secret": "hush"}).status_code == 201


def test_start_training_passes_with_the_password_in_place_of_the_secret(client_of):
    client = client_of(Settings(webhook_secret="hush", basic_auth_user="ls", basic_auth_password="x"))
    assert client.post("/webhook", json={"action": "START_TRAINING"}, headers=_basic("ls", "x")).status_code == 201
