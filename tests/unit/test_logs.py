"""Log lines: one event a line, and no secret in any."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import logs
from sam2_backend.settings import Settings

SECRETIVE = Settings(
    redis_url="redis://app:hunter%2Fseven@redis:6379/0",
    basic_auth_user="ls",
    basic_auth_password='correct "ñ" horse',
    api_key="key-for-robots",
    webhook_secret="hush-hush",
    label_studio_api_key="eyJhbGciOi.eyJ0b2tlbiI.c2lnbmF0dXJl",
)


def _line(settings: Settings, message: str, *, exc_info=None, **fields) -> str:
    formatter = logs.LineFormatter(logs.scrubber(settings), as_json=settings.log_json)
    record = logging.LogRecord("backend.app", logging.INFO, "", 0, "%s", (message,), exc_info)
    record.__dict__ |= fields
    return formatter.format(record)


def test_a_click_is_one_line_with_its_fields_in_order(caplog):
    with caplog.at_level(logging.INFO):
        logs.event(
            logging.getLogger("backend.app"), "click", {"task": 17, "image": "9f3ac1", "points": 3, "queue_ms": 4.0, "worker": "gpu0"}
        )
    assert caplog.messages == ["click task=17 image=9f3ac1 points=3 queue_ms=4 worker=gpu0"]


@given(st.text())
def test_no_value_breaks_its_line_or_forges_a_field(value):
    line = logs.fields_text([("message", value), ("end", 1)])
    assert line.isprintable()
    assert line.endswith(" end=1")
    text = line.removeprefix("message=").removesuffix(" end=1")
    if not text.startswith('"'):
        assert " " not in text
        assert "=" not in text


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach redis://app:hunter%2Fseven@redis:6379/0",
        "AUTH failed for hunter/seven",
        'password correct "ñ" horse refused',
        "X-API-Key: key-for-robots",
        "X-Webhook-Secret: hush-hush",
        "Authorization: Token 0123456789abcdef0123456789abcdef01234567",
        "Authorization: Bearer eyJhbGciOi.eyJ0b2tlbiI.c2lnbmF0dXJl",
        "Authorization: Basic bHM6Y29ycmVjdCBob3JzZQ==",
        '{"access_token": "0123456789abcdef0123456789abcdef01234567"}',
        "https://someone:opensesame@images.test/a.png",
        "https://b.s3.test/a.png?X-Amz-Signature=deadbeef&X-Amz-Credential=opensesame&versionId=3",
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_or_looks_like_a_secret_is_hidden(text, as_json):
    line = _line(Settings(**{f: getattr(SECRETIVE, f) for f in SECRETIVE.__slots__} | {"log_json": as_json}), text)
    for secret in ("hunter", "horse", "robots", "hush", "0123456789abcdef", "eyJ", "bHM6", "opensesame", "deadbeef"):
        assert secret not in line
    assert logs.HIDDEN in line


def test_a_traceback_is_scrubbed_too():
    try:
        raise RuntimeError("GET /x with Token 0123456789abcdef0123456789abcdef01234567")
    except RuntimeError:
        line = _line(SECRETIVE, "error", exc_info=sys.exc_info())
    assert "RuntimeError" in line
    assert "0123456789abcdef" not in line


def test_a_json_line_is_an_object_with_the_event_and_its_fields():
    line = _line(Settings(log_json=True), "ignored", event_name="click", event_fields={"task": 17, "queue_ms": 4.0})
    value = json.loads(line)
    assert (value["event"], value["task"], value["queue_ms"], value["level"]) == ("click", 17, 4.0, "info")


def test_a_secret_inside_a_quoted_field_is_hidden(caplog):
    with caplog.at_level(logging.INFO):
        logs.event(logging.getLogger("backend.app"), "error", {"message": 'refused: correct "ñ" horse'})
    assert "horse" not in _line(SECRETIVE, caplog.messages[0])


def test_ordinary_text_is_left_alone():
    assert logs.scrubber(SECRETIVE)("The token is missing; see https://labelstud.io/guide/ml.html?page=2") == (
        "The token is missing; see https://labelstud.io/guide/ml.html?page=2"
    )


@pytest.mark.parametrize("as_json", ["true", "false"])
def test_the_web_servers_own_lines_have_the_same_form(monkeypatch, capsys, as_json):
    from gunicorn.config import Config

    from backend.gunicorn_logs import LineLogger

    monkeypatch.setenv("SAM2_LOG_JSON", as_json)
    monkeypatch.setenv("SAM2_API_KEY", "key-for-robots")
    LineLogger(Config()).error_log.error("Worker failed to boot: key-for-robots")
    line = capsys.readouterr().err.strip()
    assert "key-for-robots" not in line
    if as_json == "true":
        assert json.loads(line)["message"] == f"Worker failed to boot: {logs.HIDDEN}"
    else:
        assert line.endswith(f"ERROR Worker failed to boot: {logs.HIDDEN}")


@pytest.mark.parametrize(
    "url", ["redis://:hunter2pw@[::1/0", "rediss://u:hunter2pw@host:1/0", "redis://:hunter2pw@host:port/0", "redis://:hunter2%70w@host/0"]
)
def test_the_password_of_redis_is_hidden_also_where_its_address_is_malformed(url):
    scrub = logs.scrubber(Settings(redis_url=url))
    assert "hunter2pw" not in scrub(f"cannot use {url}") + scrub("the password hunter2pw")
