"""Numbers and times as the status pages write them."""

from __future__ import annotations

import re
import time

from markupsafe import Markup, escape

from sam2_backend.settings import MIB

_BACKTICKED = re.compile(r"`([^`]+)`")


def bytes_text(count: float) -> str:
    """Bytes for people."""
    return f"{count / MIB:.0f} MiB" if count < 1024 * MIB else f"{count / (1024 * MIB):.1f} GiB"


def with_code(text: str) -> Markup:
    """A sentence whose `commands` are set as code; everything else is escaped."""
    return Markup(_BACKTICKED.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704  escaped before


def percent_text(share: float | None) -> str:
    """A share for people; what is nearly all or nearly nothing is not called all or nothing."""
    if share is None:
        return "–"
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return "99.9 %" if share > 0.995 else "99 %"
    return "under 1 %" if rounded == 0 and share > 0 else f"{rounded} %"


def ago_text(at: float, now: float) -> str:
    """How long ago, in the largest unit that fits."""
    age_s = max(0.0, now - at)
    if age_s < 5:
        return "just now"
    for unit_s, name, limit in ((1, "s", 60), (60, "min", 60), (3600, "h", 48), (86400, "days", 10**6)):
        if age_s < unit_s * limit:
            return f"{age_s / unit_s:.0f} {name} ago"
    return "long ago"


def utc_text(at: float) -> str:
    """A moment, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def iso_text(at: float) -> str:
    """A moment for `datetime` attributes."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def count_text(count: float) -> str:
    """A number with thin spaces between thousands."""
    return f"{count:,.0f}".replace(",", "\u202f")
