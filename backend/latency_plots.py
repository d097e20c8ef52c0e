"""Times of clicks as a small picture: three lines over time on a logarithmic scale, the number of clicks as bars below. Text in, SVG out.

Colours and strokes are the stylesheet's, by class, so that they follow light and dark and need no inline style. The numbers stand in a table
beside the picture for whoever cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

from backend.tallies import Times

WIDTH, HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP = 44, 354, 8
_BOTTOM, _FLOOR = 104, 132
"""Lowest line of the times; where the bars of counts stand."""
_LINES = (("p50", "p50_ms"), ("p95", "p95_ms"), ("p99", "p99_ms"))


@dataclass(frozen=True, slots=True)
class Series:
    """Clicks over time.

    Attributes:
        title: What the picture is of.
        times: One distribution for each step, oldest first.
        ticks: (step, text) of the marks below, steps counted from 0.
    """

    title: str
    times: Sequence[Times]
    ticks: Sequence[tuple[float, str]]


def plot(series: Series) -> Markup:
    """The picture, as an SVG element."""
    low, high = _decades(series.times)
    parts = [
        *_grid(low, high),
        *_ticks(series),
        *_bars(series.times),
        *(mark for css, name in _LINES for mark in _line(css, [getattr(t, name) for t in series.times], low, high)),
    ]
    label = escape(f"{series.title}. {_summary(series.times)}")
    # Every number in the parts is ours, every text is escaped.
    return Markup(f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>')  # noqa: S704


def gathered(times: Sequence[Times], size: int) -> list[Times]:
    """Neighbouring steps added up, `size` at a time."""
    return [_sum(times[start : start + size]) for start in range(0, len(times), size)]


def duration_text(spent_ms: float | None) -> str:
    """A time for people, with two digits."""
    if spent_ms is None:
        return "–"
    if spent_ms < 999.5:
        return f"{spent_ms:.0f} ms" if spent_ms >= 9.5 else f"{spent_ms:.1f} ms"
    return f"{spent_ms / 1000:.1f} s" if spent_ms < 9950 else f"{spent_ms / 1000:.0f} s"


def _sum(times: Sequence[Times]) -> Times:
    total = Times()
    for one in times:
        total.counts.update(one.counts)
    return total


def _summary(times: Sequence[Times]) -> str:
    whole = _sum(times)
    if not whole.n:
        return "No clicks."
    return f"{whole.n} clicks: half within {duration_text(whole.p50_ms)}, 95 % within {duration_text(whole.p95_ms)}, 99 % within {duration_text(whole.p99_ms)}."


def _decades(times: Sequence[Times]) -> tuple[int, int]:
    """The scale's ends as powers of ten of a millisecond; two decades at least."""
    found = [value for t in times for value in (t.p50_ms, t.p99_ms) if value]
    low = math.floor(math.log10(max(1.0, min(found)))) if found else 1
    high = math.ceil(math.log10(max(found))) if found else 3
    return low, max(high, low + 2)


def _y(spent_ms: float, low: int, high: int) -> float:
    share = (math.log10(max(spent_ms, 10.0**low)) - low) / (high - low)
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)


def _x(step: float, count: int) -> float:
    """The middle of a step."""
    return round(_LEFT + (step + 0.5) * (_RIGHT - _LEFT) / count, 1)


def _grid(low: int, high: int) -> Iterator[str]:
    for power in range(low, high + 1):
        y = _y(10.0**power, low, high)
        text = duration_text(10.0**power).replace(".0", "")
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y}" y2="{y}"/><text x="{_LEFT - 4}" y="{y + 4}" text-anchor="end">{text}</text>'


def _ticks(series: Series) -> Iterator[str]:
    for step, text in series.ticks:
        x = _x(step, len(series.times))
        anchor = "end" if x > WIDTH - 30 else "start" if x < _LEFT + 10 else "middle"
        yield f'<text x="{x}" y="{HEIGHT - 5}" text-anchor="{anchor}">{escape(text)}</text>'


def _bars(times: Sequence[Times]) -> Iterator[str]:
    most = max((t.n for t in times), default=0)
    width = round((_RIGHT - _LEFT) / max(1, len(times)) * 0.8, 1)
    for step, one in enumerate(times):
        if one.n:
            height = round(max(1.0, one.n / most * (_FLOOR - _BOTTOM - 6)), 1)
            x = round(_x(step, len(times)) - width / 2, 1)
            yield f'<rect class="load" x="{x}" y="{round(_FLOOR - height, 1)}" width="{width}" height="{height}"/>'


def _line(css: str, values: Sequence[float | None], low: int, high: int) -> Iterator[str]:
    """A line through neighbouring steps; it breaks where nobody clicked, and a step alone is a dot."""
    for has_value, steps in groupby(range(len(values)), key=lambda step: values[step] is not None):
        if has_value:
            points = [(_x(step, len(values)), _y(values[step] or 0.0, low, high)) for step in steps]
            if len(points) == 1:
                yield f'<circle class="{css}" cx="{points[0][0]}" cy="{points[0][1]}" r="1.6"/>'
            else:
                yield f'<polyline class="{css}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>'
