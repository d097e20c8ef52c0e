"""Who may ask what."""

from __future__ import annotations

import base64
import hmac

import flask
import pytest

from backend import auth
from backend.app import create_app
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


# ----------------------------------------------------------------------------------------------- every endpoint there is


def _endpoints(app: flask.Flask) -> list[tuple[str, str]]:
    """(method, path) of everything that the app answers, with something in the place of each variable."""
    adapter, found = app.url_map.bind("localhost"), []
    for rule in app.url_map.iter_rules():
        methods = sorted((rule.methods or set()) - {"OPTIONS", "HEAD"})
        path = adapter.build(rule.endpoint, dict.fromkeys(rule.arguments, "1"), method=methods[0])
        found += [(method, path) for method in methods]
    return found


def test_with_a_password_only_health_and_webhooks_are_open(client_of, dispatcher, propagations):
    endpoints = _endpoints(create_app(CLOSED, dispatcher, propagations))
    assert len(endpoints) >= 12
    client = client_of(CLOSED)
    answers = {(method, path): client.open(path, method=method, json={"action": "TASKS_CREATED"}).status_code for method, path in endpoints}
    assert {path for (_, path), status in answers.items() if status != 401} == {"/health", "/webhook"}


@pytest.mark.parametrize(
    "path",
    ["//predict", "/health/../predict", "/health%2f..%2fpredict", "/webhook/", "/predict;/health", "/health/x", "/HEALTH", "/./setup"],
)
def test_no_spelling_of_a_path_goes_around_the_password(client_of, path):
    for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert client_of(CLOSED).open(path, method=method).status_code in {401, 308, 404} - ({404} if method in {"GET", "POST"} else set())


# ------------------------------------------------------------------------------------------------------- comparing secrets


def test_secrets_are_compared_by_digests_of_one_length(client_of, monkeypatch):
    """What is presented never meets what is expected, so neither its contents nor its length tell anything by the time that it takes."""
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(auth.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    client = client_of(Settings(basic_auth_user="ls", basic_auth_password="pä:ss", api_key="k" * 40, webhook_secret="hush"))
    for wrong in ("", "p", "x" * 5000, "pä:ss", "\udcff"):
        client.get(
            "/versions",
            headers=_basic("ls", wrong.encode("utf-8", "replace").decode())
            | {"X-API-Key": wrong.encode("utf-8", "replace").decode("latin-1")},
        )
        client.post("/webhook", json={"action": "X"}, headers={"X-Webhook-Secret": wrong.encode("utf-8", "replace").decode("latin-1")})
    assert len(compared) >= 4 * 5
    assert {len(side) for pair in compared for side in pair} == {32}


def test_user_password_and_key_are_all_compared_whichever_is_wrong(client_of, monkeypatch):
    compared = []
    same = auth._same
    monkeypatch.setattr(auth, "_same", lambda presented, expected: compared.append(expected) or same(presented, expected))
    client = client_of(Settings(basic_auth_user="ls", basic_auth_password="x", api_key="k"))
    for headers in ({}, _basic("ls", "x"), _basic("no", "x"), {"X-API-Key": "k"}):
        compared.clear()
        client.get("/versions", headers=headers)
        assert compared == ["ls", "x", "k"]


@pytest.mark.parametrize("secret", ["schlüssel", "密码🔑", "k\udcff", "x" * 4096, " "])
def test_a_secret_of_any_characters_lets_in_and_nothing_like_it_does(client_of, secret):
    client = client_of(Settings(basic_auth_user="ls", basic_auth_password=secret))
    for presented in (secret + "x", secret[:-1], "?" * len(secret)):
        assert client.get("/versions", headers=_basic("ls", presented.encode("utf-8", "replace").decode())).status_code == 401
    if "\udcff" not in secret:  # no client can send half a character
        assert client.get("/versions", headers=_basic("ls", secret)).status_code == 200


# ---------------------------------------------------------------------------------------------------- pages of other sites

FOREIGN = [
    {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
    {"Origin": "http://localhost:8080"}, {"Origin": "http://localhost.evil.example"}, {"Origin": "http://["}, {"Origin": ""},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_no_page_of_another_site_makes_a_browser_ask_for_anything(client_of, predict_body, dispatcher, headers):
    """Browsers add the password that they keep; over plain http to another machine they send Origin and no Sec-Fetch-Site."""
    client = client_of(CLOSED)
    for method, path in _endpoints(client.application):
        if method == "POST":
            answer = client.post(path, json=predict_body(), headers=headers | _basic("ls", "pä:ss"))
            assert answer.status_code == 400, path
            assert "Another site's page" in answer.json["error"]["message"]
    assert dispatcher.jobs == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "http://localhost"}, {"Origin": "HTTP://LocalHost"}],
)
def test_label_studio_and_the_pages_own_buttons_are_answered(client, predict_body, headers):
    assert client.post("/predict", json=predict_body(), headers=headers).status_code == 200


def test_behind_a_proxy_that_renames_the_host_the_pages_buttons_work(client, predict_body):
    """Browsers that reach it by https say Sec-Fetch-Site, which no page can forge; the host that the proxy passes on is not looked at then."""
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": "https://masks.example"}
    assert client.post("/predict", json=predict_body(), headers=headers).status_code == 200


def test_every_answer_says_that_it_is_for_no_other_site(client, predict_body):
    answers = [client.get(path) for path in ("/", "/health", "/metrics", "/nowhere")]
    answers += [
        client.get("/", headers={"Accept": "text/html"}),
        client.post("/predict", json=predict_body()),
        client.post("/setup", data=b"{"),
    ]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy and "script" not in policy


def test_a_stranger_sends_no_large_webhook(client_of, monkeypatch):
    monkeypatch.setattr(auth, "MOST_WEBHOOK_BYTES", 1000)
    client = client_of(CLOSED)
    assert client.post("/webhook", data=b'{"action": "TASKS_CREATED"}'.ljust(1000)).status_code == 201
    answer = client.post("/webhook", data=b'{"action": "TASKS_CREATED"}'.ljust(1001))
    assert (answer.status_code, answer.json["error"]["code"]) == (413, "bad_request")


# ----------------------------------------------------------------------------------------------------------- what is unwise


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(), []),
        (Settings(host="0.0.0.0"), ["whoever reaches port 9090"]),
        (Settings(host="0.0.0.0", api_key="k" * 12), []),
        (
            Settings(basic_auth_user="u", basic_auth_password="p" * 11, webhook_secret="w" * 11),
            ["SAM2_BASIC_AUTH_PASSWORD", "SAM2_WEBHOOK_SECRET"],
        ),
    ],
)
def test_an_open_port_and_short_secrets_are_told(settings, words):
    found = auth.weaknesses(settings)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))
    assert not any("p" * 11 in sentence or "w" * 11 in sentence for sentence in found)
