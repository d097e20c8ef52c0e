"""Plots of an evaluation as inline SVG: no script, no font and nothing else is fetched. Colours come from the page's style."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

BINS = 20
MOST_ROWS = 30

_WIDTH, _PLOT_HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 200, 48, 40, 22
_ROW, _NAME_WIDTH, _NAME_CHARACTERS = 26, 170, 24


def histogram(values: NDArray[np.float32], title: str) -> Markup:
    """How many of the values, 0 to 1, lie in each twentieth; the last bin holds 1."""
    counts, edges = np.histogram(values, bins=BINS, range=(0.0, 1.0))
    highest = max(int(counts.max(initial=0)), 1)
    bar_width = (_WIDTH - _LEFT - 10) / BINS
    parts = [_line(_LEFT, _TOP + _PLOT_HEIGHT, _WIDTH - 10, _TOP + _PLOT_HEIGHT)]
    for index, count in enumerate(counts.tolist()):
        height = _PLOT_HEIGHT * count / highest
        x, y = _LEFT + index * bar_width, _TOP + _PLOT_HEIGHT - height
        words = f"{edges[index]:.2f} to {edges[index + 1]:.2f}: {count}"
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{bar_width - 2:.1f}" height="{height:.1f}"><title>{words}</title></rect>'
        )
        if count:
            parts.append(_text(x + bar_width / 2, y - 5, str(count), "middle", "small"))
    parts += [_text(_LEFT + share * (_WIDTH - _LEFT - 10), _TOP + _PLOT_HEIGHT + 18, f"{share:g}", "middle") for share in _TICKS]
    parts.append(_text(_LEFT + (_WIDTH - _LEFT - 10) / 2, _TOP + _PLOT_HEIGHT + 36, title, "middle"))
    parts.append(_text(_LEFT - 8, _TOP + 4, str(highest), "end"))
    parts.append(_text(_LEFT - 8, _TOP + _PLOT_HEIGHT, "0", "end"))
    return _svg(_TOP + _PLOT_HEIGHT + _BOTTOM, parts, f"Histogram: {title}")


def quartiles(rows: Sequence[tuple[str, NDArray[np.float32]]], title: str) -> Markup:
    """A row for each name: the middle half of its values, 0 to 1, as a bar, the median as a line, the mean as a dot."""
    height = _TOP + len(rows) * _ROW
    left, width = _NAME_WIDTH, _WIDTH - _NAME_WIDTH - 70
    parts = [_line(left + share * width, _TOP - 6, left + share * width, height, "grid") for share in _TICKS]
    parts += [_text(left + share * width, height + 18, f"{share:g}", "middle") for share in _TICKS]
    for index, (name, values) in enumerate(rows):
        middle = _TOP + index * _ROW + _ROW / 2
        shown = name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"
        parts.append(_text(left - 10, middle + 4, shown, "end"))
        if not values.size:
            continue
        q1, median, q3 = (left + width * float(share) for share in np.percentile(values, (25, 50, 75)))
        mean = left + width * float(values.mean(dtype=np.float64))
        words = escape(f"{name}: median {np.median(values):.3f}, mean {values.mean(dtype=np.float64):.3f}, {values.size} regions")
        parts.append(
            f'<g><title>{words}</title><rect class="bar" x="{q1:.1f}" y="{middle - 7:.1f}" width="{max(q3 - q1, 2):.1f}" height="14"/>'
            f'{_line(median, middle - 10, median, middle + 10, "median")}<circle class="mean" cx="{mean:.1f}" cy="{middle:.1f}" r="4"/></g>'
        )
        parts.append(_text(_WIDTH - 4, middle + 4, f"{values.size}", "end", "small"))
    parts.append(_text(left + width / 2, height + 36, title, "middle"))
    return _svg(height + _BOTTOM, parts, title)


_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def _svg(height: float, parts: Sequence[str], title: str) -> Markup:
    body = "".join(parts)
    return Markup(  # noqa: S704  every text inside was escaped
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'
    )


def _line(x0: float, y0: float, x1: float, y1: float, kind: str = "axis") -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
