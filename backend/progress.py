"""How far long work is, on a terminal in one line that is written over, elsewhere in a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TextIO

_WINDOW_S = 60.0
_TERMINAL_EVERY_S = 0.25
_LOG_EVERY_S = 15.0
_BAR = 24


@dataclass(slots=True)
class Counts:
    """What became of the tasks so far; `had` were done before."""

    stored: int = 0
    had: int = 0
    nothing: int = 0
    failed: int = 0
    images: int = 0
    hits: int = 0
    regions: int = 0
    model_ms: float = 0.0

    @property
    def seen(self) -> int:
        return self.stored + self.had + self.nothing + self.failed


@dataclass
class Progress:
    """Shows counts while they grow; safe to use from several threads.

    Args:
        total: Tasks that there are; 0: not known.
        what: What is counted, in the plural.
    """

    total: int = 0
    what: str = "tasks"
    out: TextIO = field(default_factory=lambda: sys.stderr)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._is_terminal = self.out.isatty()
        self._shown_at = 0.0
        self._recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    def begin(self, total: int) -> None:
        """The work begins now: rates count from here."""
        with self._lock:
            self.total = total
            self._recent = deque([(time.monotonic(), self.counts.seen - self.counts.had)])

    def add(self, **counts: float) -> None:
        """Count something, by the names of `Counts`, and show it if it is time to."""
        with self._lock:
            for name, value in counts.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)
            now = time.monotonic()
            self._recent.append((now, self.counts.seen - self.counts.had))
            while len(self._recent) > 2 and self._recent[0][0] < now - _WINDOW_S:
                self._recent.popleft()
            if now - self._shown_at >= (_TERMINAL_EVERY_S if self._is_terminal else _LOG_EVERY_S):
                self._shown_at = now
                self._write(self.line())

    def say(self, words: str) -> None:
        """A line of its own, above the bar."""
        with self._lock:
            self.out.write(f"\r\x1b[K{words}\n" if self._is_terminal else f"{words}\n")
            self.out.flush()

    def close(self) -> None:
        """Show the last state, and end the line."""
        with self._lock:
            self._write(self.line())
            if self._is_terminal:
                self.out.write("\n")

    def rate(self) -> float:
        """Tasks worked on per second, over the last minute."""
        (since, before), (until, now) = self._recent[0], self._recent[-1]
        return (now - before) / (until - since) if until > since else 0.0

    def line(self) -> str:
        """The state in one line."""
        counts, rate = self.counts, self.rate()
        total = max(self.total, counts.seen)
        parts = [f"{counts.seen} of {total} {self.what}" if self.total else f"{counts.seen} {self.what}", f"{rate:.2f}/s"]
        if self.total and rate and total > counts.seen:
            parts.append(f"{_clock((total - counts.seen) / rate)} left")
        parts += [f"{counts.failed} failed"] if counts.failed else []
        parts += [f"{counts.had} had it"] if counts.had else []
        parts += [f"{100 * counts.hits / counts.images:.0f} % cached"] if counts.images else []
        bar = f"[{'#' * round(_BAR * counts.seen / total):<{_BAR}}] " if self.total else ""
        return bar + " · ".join(parts)

    def _write(self, line: str) -> None:
        self.out.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        self.out.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
