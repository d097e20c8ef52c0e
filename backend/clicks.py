"""What one /predict did, in numbers and words, for the answer, the log, the metrics and the status page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backend import logs
from backend.prompts import DrawnObject
from sam2_backend.messages import ImageReply

STAGES = ("queue", "media", "embed", "decode", "runs", "regions", "total")
"""What a click's time is split into; `regions` is `rle_ms` in the log."""


@dataclass(frozen=True, slots=True)
class Click:
    """One /predict.

    Attributes:
        predictions: Exactly one per task.
        timings_ms: Of `STAGES`, as far as they happened.
        facts: What the canonical log line says beside the timings; empty: nothing was segmented.
    """

    predictions: list[dict[str, Any]]
    timings_ms: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def click_facts(task: Mapping[str, Any], objects: Sequence[DrawnObject], replies: Sequence[ImageReply], score: float) -> dict[str, Any]:
    """What was asked and who answered; one reply per image, none where a newer click superseded all."""
    facts: dict[str, Any] = {
        "task": task_name([task]),
        "image": ",".join(reply.image_hash[:6] for reply in replies) or "-",
        "objects": len(objects),
        "points": sum(len(drawn.prompt.points) for drawn in objects),
        "cache": ",".join(reply.cache for reply in replies) or "superseded",
        "worker": ",".join(dict.fromkeys(reply.worker for reply in replies)) or "-",
        "score": score,
    }
    return facts | ({"model_version": replies[0].model_version} if replies else {})


def slowest(timings_ms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Pages are worked on side by side: of each stage, the slowest counts."""
    stages = dict.fromkeys(stage for timings in timings_ms for stage in timings)
    return {stage: max(timings.get(stage, 0.0) for timings in timings_ms) for stage in stages}


def task_name(tasks: Any) -> str:
    """The first task's id as it may stand in a key and in a log line; "-": it has none."""
    first = tasks[0] if isinstance(tasks, list) and tasks else None
    task_id = first.get("id") if isinstance(first, dict) else None
    return logs.one_line(str(task_id), limit=40) if isinstance(task_id, int | str) else "-"
