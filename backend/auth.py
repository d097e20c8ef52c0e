"""Who may ask: optional basic authentication, an API key beside it, and a secret of its own for webhooks.

Label Studio sends basic authentication with everything but webhooks, and asks /health before it has been told a password. Wrong
passwords lock nobody out, for that would let a stranger lock Label Studio out: secrets are to be long (docs/security.md).
"""

from __future__ import annotations

import hmac
import secrets

from flask import Request, Response

from sam2_backend.errors import AuthError, RequestError
from sam2_backend.settings import PREFIX, Settings

OPEN_PATHS = frozenset({"/health", "/webhook"})
"""Answered without basic authentication; /webhook has its own check."""

CHALLENGE = 'Basic realm="sam2-backend", charset="UTF-8"'

MOST_WEBHOOK_BYTES = 64 << 20
"""Whoever reaches the port may send webhooks where no secret is set; Label Studio's hold one annotation."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of every answer, where it does not say otherwise: nothing here is for another site's page."""

SHORTEST_SECRET = 12
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_COMPARING_KEY = secrets.token_bytes(32)


def _same(presented: str | None, expected: str) -> bool:
    """Compare in a time that depends neither on the contents nor, for what is expected, on the length."""
    digests = [hmac.digest(_COMPARING_KEY, text.encode("utf-8", "surrogatepass"), "sha256") for text in (presented or "", expected)]
    return hmac.compare_digest(*digests)


def weaknesses(settings: Settings) -> list[str]:
    """What is unwise about who may ask, in sentences."""
    found = []
    if settings.host not in _LOOPBACK and not (settings.basic_auth_user or settings.api_key):
        found.append(
            f"SAM2_HOST={settings.host} lets other machines in, and no password is set: whoever reaches port {settings.port} may use the backend. "
            "Set SAM2_BASIC_AUTH_USER and SAM2_BASIC_AUTH_PASSWORD."
        )
    for name in ("basic_auth_password", "api_key", "webhook_secret"):
        if 0 < len(getattr(settings, name)) < SHORTEST_SECRET:
            setting = f"{PREFIX}{name.upper()}"
            found.append(
                f"{setting} has fewer than {SHORTEST_SECRET} characters and can be guessed. `openssl rand -hex 24` makes one that cannot."
            )
    return found


def hardened(response: Response) -> Response:
    """The answer with `HEADERS`."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


class Guard:
    """Checks the credentials of a request against the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def check(self, request: Request) -> None:
        """Let the request pass, or not.

        Raises:
            AuthError: the path needs credentials and the request carries none, or wrong ones.
            RequestError: a browser sends it in the name of another site's page.
        """
        if request.method not in _READING and _comes_from_elsewhere(request):
            raise RequestError("Another site's page asked for this. Use the button of the status page.")
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
        request.max_content_length = min(MOST_WEBHOOK_BYTES, self._settings.max_request_bytes)
        expected = self._settings.webhook_secret
        if not expected or _same(_utf8(request.headers.get("X-Webhook-Secret")), expected):
            return
        if self._is_closed and self._is_known(request):  # "Start training" comes here with basic authentication and no secret
            return
        raise AuthError(
            "The webhook secret is missing or wrong. In Label Studio, Settings, Webhooks, add the header X-Webhook-Secret "
            "with the value of SAM2_WEBHOOK_SECRET to this backend's webhook."
        )


def _comes_from_elsewhere(request: Request) -> bool:
    """Whether a page of another origin sent it: the browser adds the password that it keeps, whoever asks. Servers name no origin."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = request.headers.get("Origin")  # all that browsers send over plain http to another machine
    return origin is not None and origin.partition("://")[2].lower() != request.host.lower()


def _utf8(header: str | None) -> str | None:
    """A header as the client wrote it: WSGI hands bytes over as latin-1 text."""
    return None if header is None else header.encode("latin-1", "replace").decode("utf-8", "replace")
