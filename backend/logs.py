"""Log lines of the web tier: one event a line, fixed keys in a fixed order, as text or JSON, and no secret in any of them.

`event(log, "click", {"task": 17, "points": 3})` writes `click task=17 points=3`. Bodies, tokens and headers are never passed in; the
formatter still removes what looks like one, because tracebacks quote messages of other libraries.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from sam2_backend.settings import Settings

HIDDEN = "(hidden)"
_SHORTEST_SECRET = 4
_PLAIN_VALUE = re.compile(r"[\w.:/@%+,()-]+", re.ASCII)
_SECRET_SHAPES = (
    re.compile(r"(?i)(?<=://)[^\s/@]+(?=@)"),  # user:password@ in an address
    re.compile(r"(?i)(?<=\bbearer )[\w.~+/=-]+|(?<=\btoken )[0-9a-f]{20,}|(?<=\bbasic )[\w+/=]{6,}"),
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"),  # a JSON web token, as Label Studio's personal access tokens are
    re.compile(r"(?i)(?<=access_token)\W{1,8}[\w.-]+"),
    re.compile(r"(?i)(?<=[?&])(?:x-amz-[\w-]+|signature|sig|token|api_?key|awsaccesskeyid|x-goog-[\w-]+)=[^&\s\"']+"),  # presigned
)


def secrets_of(settings: Settings) -> tuple[str, ...]:
    """Every secret value that the settings hold, the password inside an address too; longest first."""
    values = {str(getattr(settings, f.name)) for f in dataclasses.fields(settings) if f.metadata["secret"]}
    values |= _passwords(settings.redis_url)
    values |= {json.dumps(value, ensure_ascii=False)[1:-1] for value in values}  # as a quoted field shows them
    return tuple(sorted((value for value in values if len(value) >= _SHORTEST_SECRET), key=len, reverse=True))


def _passwords(url: str) -> set[str]:
    """The password in an address, as written and as meant; of one that is malformed, all before its last @."""
    try:
        found = urlsplit(url).password or ""
    except ValueError:
        found = url.rpartition("@")[0].partition("://")[2].lstrip(":")
    return {found, unquote(found)}


def scrubber(settings: Settings) -> Callable[[str], str]:
    """A function that hides the settings' secrets, and whatever has the shape of a token, in a text."""
    secrets = secrets_of(settings)

    def scrub(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, HIDDEN)
        for shape in _SECRET_SHAPES:
            text = shape.sub(HIDDEN, text)
        return text

    return scrub


def one_line(text: str, limit: int = 500) -> str:
    """The text without line breaks and control characters, at most `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def fields_text(fields: Iterable[tuple[str, Any]]) -> str:
    """`key=value` pairs; a value that is not one plain word is quoted as JSON, so that it cannot break the line."""
    return " ".join(f"{key}={_value_text(value)}" for key, value in fields)


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:.0f}"
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(one_line(text), ensure_ascii=False)


def event(log: logging.Logger, name: str, fields: Mapping[str, Any], *, level: int = logging.INFO, exc_info: bool = False) -> None:
    """Write one canonical line: the event's name and its fields, in the order given."""
    if log.isEnabledFor(level):
        text = f"{name} {fields_text(fields.items())}".rstrip()
        log.log(level, "%s", text, exc_info=exc_info, extra={"event_name": name, "event_fields": dict(fields)})


class LineFormatter(logging.Formatter):
    """Text or JSON, scrubbed. A traceback follows its line in text, and is a field in JSON."""

    def __init__(self, scrub: Callable[[str], str], *, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime
        self._scrub = scrub
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        return self._scrub(self._json(record) if self._as_json else super().format(record))

    def _json(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": self.formatTime(record, self.datefmt), "level": record.levelname.lower(), "logger": record.name}
        name = getattr(record, "event_name", None)
        line |= {"event": name, **getattr(record, "event_fields", {})} if name else {"event": "log", "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(settings: Settings) -> None:
    """Send every log line of this process to stderr, in the form that the settings ask for. Called once, by the process's entry."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(scrubber(settings), as_json=settings.log_json))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("urllib3", "rq", "werkzeug"):  # they say again what a line of ours says
        logging.getLogger(noisy).setLevel(logging.WARNING)
