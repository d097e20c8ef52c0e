"""What comes in: JSON objects as Label Studio sends them, and the names of its events. Knows no HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

from backend.fast_json import loads
from sam2_backend.errors import RequestError

KNOWN_ACTIONS = frozenset(
    f"{noun}_{verb}"
    for noun, verbs in {
        "ANNOTATION": ("CREATED", "UPDATED", "DELETED"),
        "ANNOTATIONS": ("CREATED", "DELETED"),
        "TASKS": ("CREATED", "DELETED"),
        "PROJECT": ("CREATED", "UPDATED", "DELETED"),
        "LABEL_LINK": ("CREATED", "UPDATED", "DELETED"),
        "START": ("TRAINING",),
    }.items()
    for verb in verbs
)
_ACTION_FIRST = re.compile(rb'\s*\{\s*"action"\s*:\s*"([A-Z_]{1,40})"\s*[,}]')


def webhook_action(raw: bytes) -> str:
    """The event's name. Label Studio writes it first, so that megabytes of annotation need not be parsed.

    Raises:
        RequestError: there is none.
    """
    if match := _ACTION_FIRST.match(raw):
        return match[1].decode("ascii")
    action = json_object(raw).get("action")
    if not isinstance(action, str):
        raise RequestError("A webhook needs `action`, the event's name.")
    return action


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        RequestError: the body is no JSON, no object, nested without end, or holds half a surrogate pair, which no storage takes.
    """
    try:
        value = loads(raw)
        if b"\\u" in raw and re.search(rb"\\u[dD][89a-fA-F]", raw):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RequestError("The request's body is not valid JSON. Send it as Label Studio does.") from error
    if not isinstance(value, dict):
        raise RequestError("The request's body must be a JSON object. Send it as Label Studio does.")
    return value
