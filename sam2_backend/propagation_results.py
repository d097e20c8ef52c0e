"""What a propagation finds, as it is stored: a row for each object and place, and masks where they are wanted."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sam2_backend import masks
from sam2_backend.engine import Sam2Engine
from sam2_backend.frame_sources import Frames
from sam2_backend.messages import RunLengths
from sam2_backend.propagation_format import ROW, PackedMask, pack_masks
from sam2_backend.propagation_plan import Run
from sam2_backend.propagation_prompts import NOWHERE, Box, drawn_box, drawn_mask, shares_of
from sam2_backend.video_messages import PropagateJob


class Found:
    """What was found and not taken away yet.

    On a keyframe a box or a mask that a person drew, and nothing else with it, is reported as it was drawn.
    """

    def __init__(self, job: PropagateJob, frames: Frames, engine: Sam2Engine) -> None:
        self._job, self._frames, self._engine = job, frames, engine
        self._rows = bytearray()
        self._masks: list[PackedMask] = []

    def take(self) -> tuple[bytes, tuple[bytes, ...]]:
        """(packed ROWs, packed masks: one chunk or none); what is added from now on comes next time."""
        taken = bytes(self._rows), (pack_masks(self._masks),) if self._masks else ()
        self._rows, self._masks = bytearray(), []
        return taken

    def add(self, run: Run, frame_idx: int, logits: Tensor, score: float) -> None:
        """An object on a frame: logits (S/4, S/4) float32. Told of every place of the run that shows the frame."""
        shown = self._frames.grid_of_frame(frame_idx)
        places = range(max(shown.start, run.first_grid_idx), min(shown.stop - 1, run.last_grid_idx) + 1)
        if not places:
            return
        drawn = next((c.prompt for c in reversed(run.conditioning) if c.grid_idx in places), None)
        mask = drawn_mask(drawn, self._frames.size_hw) if drawn else None
        runs = self._runs(logits) if mask is None else masks.runs_from_mask(mask)
        box_px = masks.box_xyxy_px(runs)
        box = drawn_box(drawn, self._job.size_hw) if drawn else None
        self._add_rows(run.object_idx, places, box or shares_of(box_px, runs.size_hw), score)
        if self._job.options.wants_masks and box_px:
            self._masks.append(PackedMask(run.object_idx, places[0], places[-1], score, runs.counts))

    def add_gone(self, run: Run) -> None:
        """An object that a person said is not there."""
        self._add_rows(run.object_idx, range(run.first_grid_idx, run.last_grid_idx + 1), NOWHERE, 0.0)

    def _runs(self, logits: Tensor) -> RunLengths:
        size_hw, options = self._frames.size_hw, self._job.options.mask
        if not (options.fill_holes_px or options.remove_sprinkles_px):
            return self._engine.runs(logits, size_hw, options.mask_threshold)
        above = self._engine.upsample(logits, size_hw, options.mask_threshold)
        return masks.runs_from_mask(masks.clean(above, options.fill_holes_px, options.remove_sprinkles_px))

    def _add_rows(self, object_idx: int, places: range, box: Box, score: float) -> None:
        rows = np.zeros(len(places), ROW)
        rows["object_idx"], rows["grid_idx"], rows["box"], rows["score"] = object_idx, places, box, score
        self._rows += rows.tobytes()
