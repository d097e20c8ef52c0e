"""Who may ask: optional basic authentication, an API key beside it, and a secret of its own for webhooks.

Label Studio sends basic authentication with everything but webhooks, and asks /health before it has been told a password.
"""

from __future__ import annotations

import hmac

from flask import Request

from sam2_backend.errors import AuthError
from sam2_backend.settings import Settings

OPEN_PATHS = frozenset({"/health", "/webhook"})
"""Answered without basic authentication; /webhook has its own check."""

CHALLENGE = 'Basic realm="sam2-backend", charset="UTF-8"'


def _same(presented: str | None, expected: str) -> bool:
    """Compare in a time that does not depend on the contents."""
    return hmac.compare_digest((presented or "").encode("utf-8", "surrogatepass"), expected.encode())


class Guard:
    """Checks the credentials of a request against the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check(self, request: Request) -> None:
        """Let the request pass, or not.

        Raises:
            AuthError: the path needs credentials and the request carries none, or wrong ones.
        """
        if request.path == "/webhook":
            self._check_webhook(request)
        elif request.path not in OPEN_PATHS and self._is_closed and not self._is_known(request):
            raise AuthError(
                "The user, password or API key is missing or wrong. Enter the backend's user and password in "
                "Label Studio's Model settings (SAM2_BASIC_AUTH_USER and SAM2_BASIC_AUTH_PASSWORD on the backend)."
            )

    @property
    def _is_closed(self) -> bool:
        return bool(self._settings.basic_auth_user or self._settings.api_key)

    def _is_known(self, request: Request) -> bool:
        """Whether basic authentication or the API key is right; all are compared, so the time tells nothing."""
        settings, basic = self._settings, request.authorization
        if basic is None or basic.type != "basic":
            basic = None
        user_is_right = _same(basic.username if basic else None, settings.basic_auth_user)
        password_is_right = _same(basic.password if basic else None, settings.basic_auth_password)
        key_is_right = _same(_utf8(request.headers.get("X-API-Key")), settings.api_key)
        return (bool(settings.basic_auth_user) and user_is_right and password_is_right) or (bool(settings.api_key) and key_is_right)

    def _check_webhook(self, request: Request) -> None:
        expected = self._settings.webhook_secret
        if not expected or _same(_utf8(request.headers.get("X-Webhook-Secret")), expected):
            return
        if self._is_closed and self._is_known(request):  # "Start training" comes here with basic authentication and no secret
            return
        raise AuthError(
            "The webhook secret is missing or wrong. In Label Studio, Settings, Webhooks, add the header X-Webhook-Secret "
            "with the value of SAM2_WEBHOOK_SECRET to this backend's webhook."
        )


def _utf8(header: str | None) -> str | None:
    """A header as the client wrote it: WSGI hands bytes over as latin-1 text."""
    return None if header is None else header.encode("latin-1", "replace").decode("utf-8", "replace")
