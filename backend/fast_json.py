"""JSON as quick as masks need it: a brush region is up to a million numbers, and Label Studio sends every stored one with every click.

orjson is several times as quick as the standard library (benchmarks/json_text.py). It is also stricter, so what it refuses to read is read
once more by the standard library, which takes NaN and decides on the rest.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    """Write JSON, in UTF-8.

    Raises:
        TypeError: it holds what is none of JSON's.
    """
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate pair, which JSON's text came with and UTF-8 cannot hold: it is escaped again
        return json.dumps(value).encode("ascii")


def loads(text: bytes) -> Any:
    """Read JSON in UTF-8.

    Raises:
        ValueError: it is none, or in another encoding: the standard library would take half a surrogate pair out of those.
        RecursionError: it is nested too deep.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text.decode("utf-8-sig"))
