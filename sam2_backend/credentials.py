"""The key that Label Studio's media ask for, and the promise that it travels to Label Studio's own origin only."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from typing import Any

from urllib3 import Timeout
from urllib3.exceptions import HTTPError

from sam2_backend.errors import MediaUnreachableError, SettingsError
from sam2_backend.guarded_pool import guarded_pool_manager
from sam2_backend.ssrf import HostPolicy, origin_of, shown_url

ACCESS_LIFETIME_S = 300.0
"""Label Studio's, for an access token that does not say when it expires."""
RENEW_EARLY_S = 30.0
EXCHANGE_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 64 << 10


class OriginCredentials:
    """Authorization headers for one origin; nothing for any other. Safe to share between threads.

    A legacy key is sent as `Token KEY`. A personal access token is a JWT that only buys access tokens: it is exchanged at
    `base_url/api/token/refresh/`, and the access token is sent as `Bearer ACCESS` until shortly before it expires.

    Args:
        base_url: Label Studio's address, sub-path included; empty: no origin is trusted.
        api_key: LABEL_STUDIO_API_KEY; empty: no header is ever made.

    Raises:
        SettingsError: the address is no http(s) URL, or the key holds characters that no header can carry.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        if base_url and origin_of(base_url) is None:
            raise SettingsError("LABEL_STUDIO_URL is not an address such as http://localhost:8080.")
        if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise SettingsError("LABEL_STUDIO_API_KEY holds spaces, line breaks or other characters that no key has. Copy it again.")
        self.has_key = bool(api_key)
        self._origin = origin_of(base_url)
        self._refresh_url = f"{base_url.rstrip('/')}/api/token/refresh/"
        self._api_key = api_key
        self._is_exchanged = jwt_claims(api_key) is not None
        self._pool = guarded_pool_manager(HostPolicy(trusted_url=base_url), connections_per_host=1)
        self._lock = threading.Lock()
        self._access = ""
        self._renew_at = 0.0

    def is_trusted(self, url: str) -> bool:
        """Whether a URL has Label Studio's scheme, host and port."""
        return self._origin is not None and origin_of(url) == self._origin

    def headers_for(self, url: str) -> dict[str, str]:
        """The headers to send with a request for `url`: `{}` unless it is of the trusted origin and there is a key.

        Raises:
            MediaUnreachableError: Label Studio cannot be asked for an access token, or refuses the personal access token.
        """
        if not self.has_key or not self.is_trusted(url):
            return {}
        if not self._is_exchanged:
            return {"Authorization": f"Token {self._api_key}"}
        with self._lock:
            if time.monotonic() >= self._renew_at:
                asked_at = time.monotonic()
                self._access = self._exchange()
                self._renew_at = asked_at + max(_lifetime_s(self._access) - RENEW_EARLY_S, 0)
            return {"Authorization": f"Bearer {self._access}"}

    def _exchange(self) -> str:
        try:
            answer = self._pool.request(
                "POST",
                self._refresh_url,
                json={"refresh": self._api_key},
                redirect=False,
                timeout=Timeout(total=EXCHANGE_TIMEOUT_S),
                preload_content=False,
            )
            try:
                body = answer.read(MAX_ANSWER_BYTES)
            finally:
                answer.release_conn()
        except HTTPError:
            raise MediaUnreachableError(
                f"Label Studio does not answer at {shown_url(self._refresh_url)}, where LABEL_STUDIO_API_KEY is exchanged. Check LABEL_STUDIO_URL."
            ) from None
        access = _access_token(body) if answer.status == 200 else None
        if access is None:
            raise MediaUnreachableError(
                f"Label Studio refused LABEL_STUDIO_API_KEY ({answer.status} from {shown_url(self._refresh_url)}). "
                "Make a new personal access token in Label Studio under Account & Settings, and check LABEL_STUDIO_URL."
            )
        return access


def jwt_claims(token: str) -> dict[str, Any] | None:
    """What a JSON web token says of itself, unverified; None: it is not one."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None


def _access_token(body: bytes) -> str | None:
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    access = answer.get("access") if isinstance(answer, dict) else None
    return access if isinstance(access, str) and access.isascii() and access.isprintable() else None


def _lifetime_s(access: str) -> float:
    # By the difference of its own two times: the clocks of the two machines need not agree.
    claims = jwt_claims(access) or {}
    issued_at, expires_at = claims.get("iat"), claims.get("exp")
    if isinstance(issued_at, int | float) and isinstance(expires_at, int | float):
        return float(expires_at - issued_at)
    return ACCESS_LIFETIME_S
