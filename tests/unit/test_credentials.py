"""Who gets the key, and in which words; the exchange itself is in tests/integration/test_media.py."""

from __future__ import annotations

import base64
import json
import threading
import time

import pytest

from sam2_backend.credentials import OriginCredentials, jwt_claims
from sam2_backend.errors import SettingsError

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(**claims: object) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2lnbmF0dXJl"


PAT = jwt(token_type="refresh")


def exchanging(monkeypatch: pytest.MonkeyPatch, *accesses: str) -> tuple[OriginCredentials, list[float]]:
    """Credentials whose exchange answers with these tokens, in turn, and the times at which it was asked."""
    credentials = OriginCredentials("http://ls:8080/sub", PAT)
    asked: list[float] = []

    def exchange() -> str:
        asked.append(time.monotonic())
        return accesses[len(asked) - 1]

    monkeypatch.setattr(credentials, "_exchange", exchange)
    return credentials, asked


@pytest.mark.parametrize("key", [LEGACY, "short", "with.two.dots", "a.!!.c", "e30.W10.e30"])
def test_anything_but_a_jwt_is_sent_as_a_legacy_token(key):
    assert OriginCredentials("http://ls:8080", key).headers_for("http://ls:8080/data/upload/1/a.png") == {"Authorization": f"Token {key}"}


@pytest.mark.parametrize(
    "url",
    [
        "https://ls:8080/a", "http://ls:8081/a", "http://ls/a", "http://ls.evil:8080/a", "http://evil/?http://ls:8080/", "http://ls:8080@evil/a",
        "http://evil\\@ls:8080/a", "http://evil#@ls:8080/a", "//ls:8080/a", "/a", "file:///ls:8080", "",
    ],
)  # fmt: skip
def test_no_other_origin_gets_the_key(url):
    assert OriginCredentials("http://ls:8080/sub", LEGACY).headers_for(url) == {}


@pytest.mark.parametrize("url", ["http://ls:80/x", "HTTP://LS/x", "http://ls./x", "http://user:pw@ls/x"])
def test_spellings_of_the_origin_are_the_origin(url):
    assert OriginCredentials("http://ls", LEGACY).headers_for(url)


def test_without_a_key_or_an_address_there_is_no_header():
    assert OriginCredentials("http://ls", "").headers_for("http://ls/x") == {}
    assert OriginCredentials("", LEGACY).headers_for("http://ls/x") == {}


def test_a_personal_access_token_itself_is_never_sent_as_authorization(monkeypatch):
    credentials, _ = exchanging(monkeypatch, "ACCESS")
    assert credentials.headers_for("http://ls:8080/x") == {"Authorization": "Bearer ACCESS"}


def test_an_access_token_is_kept_until_shortly_before_it_expires(monkeypatch):
    first, second = jwt(iat=5_000, exp=5_300, n=1), jwt(iat=5_000, exp=5_300, n=2)
    credentials, asked = exchanging(monkeypatch, first, second)
    now = time.monotonic()
    for later_s, access, n_asked in ((0, first, 1), (265, first, 1), (275, second, 2)):
        monkeypatch.setattr(time, "monotonic", lambda moment=now + later_s: moment)
        assert credentials.headers_for("http://ls:8080/x") == {"Authorization": f"Bearer {access}"}
        assert len(asked) == n_asked


def test_threads_that_ask_together_exchange_once(monkeypatch):
    credentials, asked = exchanging(monkeypatch, "A", "B", "C", "D", "E", "F", "G", "H")
    threads = [threading.Thread(target=credentials.headers_for, args=("http://ls:8080/x",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1


@pytest.mark.parametrize("key", ["line\nbreak", "sp ace", "naïve", "tab\t"])
def test_a_key_that_no_header_can_carry_stops_the_start_and_is_not_shown(key):
    with pytest.raises(SettingsError, match="LABEL_STUDIO_API_KEY") as caught:
        OriginCredentials("http://ls", key)
    assert key not in caught.value.message


def test_an_address_that_is_none_stops_the_start():
    with pytest.raises(SettingsError, match="LABEL_STUDIO_URL"):
        OriginCredentials("labelstudio:8080", LEGACY)


def test_claims_are_read_without_padding_and_only_from_objects():
    assert jwt_claims(jwt(a=1)) == {"a": 1}
    assert jwt_claims(jwt(ab="x" * 7)) == {"ab": "x" * 7}
    assert jwt_claims("e30.MQ.x") is None
