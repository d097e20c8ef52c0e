"""Options as text → values: what an option may be, and the sentence that says so."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

OptionValue = bool | float | str | tuple[int, int] | tuple[tuple[str, str], ...]

MOST_PHRASES = 256
MOST_PHRASE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Option:
    """One option: its kind, the least and the greatest value, a sentence for the documentation, and the words that it may be (kind str).

    Kind `range` is "first-last", either of them left out where it is open. Kind `dict` is "name: text; name: text".
    """

    kind: type
    least: float
    greatest: float
    help: str
    words: tuple[str, ...] = ()


def parse_option(option: Option, value: Any) -> OptionValue | None:
    """What a value means; None: it is not what the option may be."""
    text = str(value).strip().lower()
    if option.kind is str:
        return text if text in option.words else None
    if option.kind is range:
        return _parse_range(option, text)
    if option.kind is dict:
        return _parse_phrases(str(value))
    if option.kind is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text)
    try:
        number = math.nan if isinstance(value, bool) else float(text)
    except ValueError:
        return None
    if not option.least <= number <= option.greatest or (option.kind is int and number != int(number)):
        return None
    return int(number) if option.kind is int else number


def expected(option: Option) -> str:
    """What the option may be, as the end of a sentence: "must be …"."""
    if option.kind is str:
        return " or ".join([", ".join(option.words[:-1]), option.words[-1]])
    if option.kind is range:
        return "two numbers from 1 with a hyphen between, the smaller first, either of them left out where the range is open"
    if option.kind is dict:
        return 'a list of "label: words; label: words"'
    if option.kind is bool:
        return "true or false"
    return f"a {'whole ' if option.kind is int else ''}number from {option.least:g} to {option.greatest:g}"


def _parse_range(option: Option, text: str) -> tuple[int, int] | None:
    """First and last, 0 as last: to the end."""
    match = re.fullmatch(r"(\d{0,9})\s*-\s*(\d{0,9})", text)
    if not match or not any(match.groups()):
        return None
    first, last = (int(number) if number else None for number in match.groups())
    first = 1 if first is None else first
    is_in_bounds = all(option.least <= number <= option.greatest for number in (first, last) if number is not None)
    return (first, last or 0) if is_in_bounds and (last is None or first <= last) else None


def _parse_phrases(text: str) -> tuple[tuple[str, str], ...] | None:
    pairs = [tuple(part.strip() for part in phrase.split(":", 1)) for phrase in text.split(";") if phrase.strip()]
    is_right = 0 < len(pairs) <= MOST_PHRASES and all(len(pair) == 2 and all(pair) for pair in pairs)
    if not is_right or any(len(words) > MOST_PHRASE_CHARACTERS for _, words in pairs):
        return None
    return tuple((name, words) for name, words in pairs)
