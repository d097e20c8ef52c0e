"""Runs that an earlier session has found already, as far as this one needs them: copied, rows and masks, before the work begins."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sam2_backend.propagation_claims import Claims, Progress
from sam2_backend.propagation_format import PackedMask, Rows, pack_masks, with_places
from sam2_backend.propagation_plan import Run

_CHUNK_MASKS = 64


class Plan(Protocol):
    """The part of `propagation.Propagation` that copying needs; see there."""

    @property
    def runs(self) -> tuple[Run, ...]: ...
    def run_digest(self, run: Run) -> str: ...
    def mark_copied(self, run_idx: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Copy:
    """A run of ours, and which object it is in the session that it is copied from."""

    run: Run
    object_idx: int


def copy_known_runs(claims: Claims, session: str, plan: Plan, progress: Progress) -> None:
    """Put what is known into `progress`, mark it in the plan, and note where the runs of this session are from now on.

    Raises:
        redis.RedisError: Redis does not answer; nothing that was put there must be used.
    """
    rows_of: dict[str, Rows] = {}
    copies: defaultdict[str, list[_Copy]] = defaultdict(list)
    for run_idx, run in enumerate(plan.runs):
        digest = plan.run_digest(run) if run.conditioning else ""
        if not digest:
            continue
        note = json.loads(claims.run_note(digest) or "{}")
        progress.run_notes[digest] = json.dumps(
            {"session": session, "object_idx": run.object_idx, "first": run.first_grid_idx, "last": run.last_grid_idx}
        )
        if not note or note["session"] == session or not (note["first"] <= run.first_grid_idx and run.last_grid_idx <= note["last"]):
            continue
        donor = note["session"]
        if donor not in rows_of:
            rows_of[donor] = claims.store.rows(donor)
        rows = _of_run(rows_of[donor], run, note["object_idx"])
        if len(rows) == run.n_places:
            progress.rows += rows.tobytes()
            copies[donor].append(_Copy(run, note["object_idx"]))
            plan.mark_copied(run_idx)
    for donor, wanted in copies.items():
        progress.chunks += tuple(_chunks(_copied_masks(claims.store.masks(donor), wanted)))


def _of_run(rows: Rows, run: Run, object_idx: int) -> Rows:
    """The donor's rows of a run, as our object's; fewer than the run has places where the donor has not come so far."""
    places = rows["grid_idx"]
    found: Rows = rows[(rows["object_idx"] == object_idx) & (places >= run.first_grid_idx) & (places <= run.last_grid_idx)].copy()
    found["object_idx"] = run.object_idx
    return found


def _copied_masks(masks: Iterator[PackedMask], wanted: Sequence[_Copy]) -> Iterator[PackedMask]:
    for mask in masks:
        for copy in wanted:
            if mask.object_idx == copy.object_idx:
                ours = with_places(mask, copy.run.object_idx, copy.run.first_grid_idx, copy.run.last_grid_idx)
                if ours:
                    yield ours


def _chunks(masks: Iterator[PackedMask]) -> Iterator[bytes]:
    batch: list[PackedMask] = []
    for mask in masks:
        batch.append(mask)
        if len(batch) == _CHUNK_MASKS:
            yield pack_masks(batch)
            batch = []
    if batch:
        yield pack_masks(batch)
