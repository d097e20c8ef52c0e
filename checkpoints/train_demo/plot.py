"""Draw a course's log as an SVG: the loss above, the held-out figures below, over the trained minutes."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, BETWEEN, BOTTOM = 760, 210, 60, 190, 30, 34, 44
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#000000")
N_TICKS = 5
#: What stands in a line of the log beside figures.
NOT_FIGURES = {"time", "step", "trained_s", "best", "loss", "rate"}

Line = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: `top` its upper edge in px, `lowest` and `highest` the ends of its y axis."""

    title: str
    top: int
    lowest: float
    highest: float
    last_minute: float

    def xy(self, minute: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * minute / self.last_minute
        return x, self.top + PANEL_HEIGHT * (1 - (value - self.lowest) / (self.highest - self.lowest))

    def axes(self) -> Iterable[str]:
        right, bottom = WIDTH - RIGHT, self.top + PANEL_HEIGHT
        yield f'<rect x="{LEFT}" y="{self.top}" width="{right - LEFT}" height="{PANEL_HEIGHT}" fill="none" stroke="#888"/>'
        yield f'<text x="{LEFT}" y="{self.top - 8}" font-weight="bold">{self.title}</text>'
        for i in range(N_TICKS + 1):
            value = self.lowest + (self.highest - self.lowest) * i / N_TICKS
            _, y = self.xy(0, value)
            yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>'
            yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
            x, _ = self.xy(self.last_minute * i / N_TICKS, 0)
            yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{self.last_minute * i / N_TICKS:.0f}</text>'

    def curve(self, name: str, place: int, points: Line) -> Iterable[str]:
        color, label_y = COLORS[place % len(COLORS)], self.top + 12 + 17 * place
        places = " ".join("{:.1f},{:.1f}".format(*self.xy(*point)) for point in points)
        yield f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="1.8"/>'
        yield f'<text x="{WIDTH - RIGHT + 10}" y="{label_y}" fill="{color}">{name} {points[-1][1]:.2f}</text>'


def curves(log: Iterable[str]) -> tuple[Line, dict[str, Line]]:
    """The lines of a log → loss and figures over the minutes trained, where the log goes back (a run begun anew), without what it left."""
    rows: list[Mapping[str, float]] = []
    for row in map(json.loads, log):
        while rows and rows[-1]["trained_s"] >= row["trained_s"]:
            rows.pop()
        rows.append(row)
    names = [name for name in rows[-1] if name not in NOT_FIGURES]
    figures = {name: [(row["trained_s"] / 60, row[name]) for row in rows if name in row] for name in names}
    return [(row["trained_s"] / 60, row["loss"]) for row in rows], figures


def svg(title: str, loss: Line, figures: Mapping[str, Line]) -> str:
    last_minute, highest_loss = loss[-1][0], max(value for _, value in loss)
    above = Panel(f"{title}: loss", TOP, 0.0, highest_loss, last_minute)
    below = Panel("held-out figures (mean IoU; share of clips)", TOP + PANEL_HEIGHT + BETWEEN + 20, 0.0, 1.0, last_minute)
    height = below.top + PANEL_HEIGHT + BOTTOM
    parts = [*above.axes(), *above.curve("loss", 0, loss), *below.axes()]
    for place, (name, points) in enumerate(figures.items()):
        parts += below.curve(name.replace("_", " "), place, points)
    parts.append(f'<text x="{(WIDTH - RIGHT + LEFT) / 2}" y="{height - 8}" text-anchor="middle">minutes of training</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True, help="images-log.jsonl or video-log.jsonl of the work folder")
    parser.add_argument("--title", required=True)
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.to.write_text(svg(arguments.title, *curves(arguments.log.read_text().splitlines())))


if __name__ == "__main__":
    main()
