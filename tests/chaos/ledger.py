"""What became of everything that was asked under a fault: the counts of the report's table."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Counts of one fault; safe to share between threads.

    Attributes:
        right: Clicks that got the mask that they must get.
        again: Times that a client had to ask again.
        in_words: Answers that were a clear error of ours, by code.
        cut_off: Requests that got no answer, for their connection was gone.
        lost: Clicks without a right answer within their deadline.
        wrong: Answers that were neither right nor a clear error, in words.
        slowest_s: The longest that one click took, with all its tries.
        work_done, work_lost, work_twice: Background jobs.
    """

    fault: str
    right: int = 0
    again: int = 0
    in_words: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    work_done: int = 0
    work_lost: list[str] = field(default_factory=list)
    work_twice: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Nothing is lost, wrong or there twice."""
        bad = {"lost": self.lost, "wrong": self.wrong, "jobs lost": self.work_lost, "jobs twice": self.work_twice}
        assert not any(bad.values()), bad

    @property
    def row(self) -> str:
        """Of the table, as Markdown."""
        words = ", ".join(f"{count} {code}" for code, count in sorted(self.in_words.items())) or "0"
        clicks = f"{self.right} | {self.again} | {words} | {self.cut_off} | {len(self.lost)} | {len(self.wrong)} | {self.slowest_s:.1f}"
        return f"| {self.fault} | {clicks} | {self.work_done} | {len(self.work_lost)} | {len(self.work_twice)} |"


HEAD = (
    "| fault | clicks right | asked again | errors in words | cut off | lost | wrong | slowest, s | jobs done | lost | twice |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)
