"""The decoder's small logits → how stable a mask is, its box and its run lengths at full size, one mask at a time.

Only the part of the image where the mask can be is ever made: a pixel between logits that are all below a threshold is below it as well.
So a small object on a large photograph costs as much as on a small one, and what is found is what upsampling the whole would have found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sam2_backend.messages import RunLengths

Logits = NDArray[np.float32]

#: Rows that are made at a time: bounds the memory of a mask that fills a large image.
_STRIP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One side of the image: between which two logits each pixel lies, by pixel centres.

    Attributes:
        before, after: (n,) int64, which logits; the same one beyond the outermost centres.
        share: (n,) float32, how much of `after` a pixel takes.
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    share: NDArray[np.float32]

    @classmethod
    def of(cls, n_logits: int, n_px: int) -> Axis:
        place = np.clip((np.arange(n_px) + 0.5) * (n_logits / n_px) - 0.5, 0, n_logits - 1)
        before = np.floor(place).astype(np.int64)
        return cls(before, np.minimum(before + 1, n_logits - 1), (place - before).astype(np.float32))

    def reached(self, logits: NDArray[np.int64]) -> slice:
        """The pixels that take anything of these logits, and those in between."""
        if not logits.size:
            return slice(0, 0)
        return slice(int(np.searchsorted(self.after, logits.min())), int(np.searchsorted(self.before, logits.max(), side="right")))


@dataclass(frozen=True, slots=True)
class FullSizeMask:
    """A mask at the size of the image that it is part of.

    Attributes:
        runs: Of the whole image.
        box_xyxy_px: The first and last columns and rows with a pixel of the mask, all included; four 0 for an empty mask.
        stability: How much of the mask stays where the threshold is raised, of what it is where the threshold is lowered; NaN: empty.
    """

    runs: RunLengths
    box_xyxy_px: tuple[int, int, int, int]
    stability: float


class Upsampler:
    """Makes masks of logits (h, w), for a crop of an image.

    Args:
        logits_hw: Height and width of the logits.
        crop_xyxy_px: What they show, in pixels of the image.
        image_size_hw: The masks have this size.
    """

    def __init__(self, logits_hw: tuple[int, int], crop_xyxy_px: tuple[int, int, int, int], image_size_hw: tuple[int, int]) -> None:
        left, top, right, bottom = crop_xyxy_px
        self._rows, self._columns = Axis.of(logits_hw[0], bottom - top), Axis.of(logits_hw[1], right - left)
        self._left, self._top, self._size_hw = left, top, image_size_hw
        n_rows, n_columns = (np.bincount(axis.before, minlength=n) for axis, n in zip((self._rows, self._columns), logits_hw, strict=True))
        self._n_px = np.outer(n_rows, n_columns)

    def mask(self, logits: Logits, threshold: float, offset: float, min_stability: float) -> FullSizeMask | None:
        """The mask above the threshold; None where it is less stable than min_stability (0: never)."""
        if min_stability > 0 and self._most_stability(logits, threshold, offset) < min_stability:
            return None
        high_rows, high_columns = np.nonzero(logits > threshold - offset)
        rows, columns = self._rows.reached(high_rows), self._columns.reached(high_columns)
        mask = np.empty((rows.stop - rows.start, columns.stop - columns.start), dtype=np.bool_)
        n_inner = n_outer = 0
        for first, strip in self._strips(logits, rows, columns):
            n_inner += np.count_nonzero(strip > threshold + offset)
            n_outer += np.count_nonzero(strip > threshold - offset)
            np.greater(strip, threshold, out=mask[first : first + len(strip)])
        stability = n_inner / n_outer if n_outer else float("nan")
        if min_stability > 0 and not stability >= min_stability:
            return None
        left, top = columns.start + self._left, rows.start + self._top
        return FullSizeMask(runs_of_part(mask, left, top, self._size_hw), _box(mask, left, top), stability)

    def _most_stability(self, logits: Logits, threshold: float, offset: float) -> float:
        """What the stability is not above. A pixel between four logits is neither above the highest of them nor below the lowest."""
        below, right = np.vstack([logits[1:], logits[-1:]]), np.hstack([logits[:, 1:], logits[:, -1:]])
        across = np.hstack([below[:, 1:], below[:, -1:]])
        highest = np.maximum(np.maximum(logits, below), np.maximum(right, across))
        lowest = np.minimum(np.minimum(logits, below), np.minimum(right, across))
        most_inner = self._n_px[highest > threshold + offset].sum()
        least_outer = self._n_px[lowest > threshold - offset].sum()
        return float(most_inner / least_outer) if least_outer else 1.0

    def _strips(self, logits: Logits, rows: slice, columns: slice) -> Iterator[tuple[int, Logits]]:
        """The upsampled logits of these rows and columns, some rows at a time, with the number of the first, counted from 0."""
        wide = _between(logits.T, self._columns, columns).T
        n_rows = max(1, _STRIP_BYTES // max(1, 4 * wide.shape[1]))
        for start in range(rows.start, rows.stop, n_rows):
            yield start - rows.start, _between(wide, self._rows, slice(start, min(start + n_rows, rows.stop)))


def _between(logits: Logits, axis: Axis, pixels: slice) -> Logits:
    """Rows (h, w) → (n, w), bilinear along the first axis."""
    before = np.take(np.ascontiguousarray(logits), axis.before[pixels], axis=0)
    after = np.take(logits, axis.after[pixels], axis=0)
    after -= before
    after *= axis.share[pixels, None]
    after += before
    return after


def _box(mask: NDArray[np.bool_], left: int, top: int) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]) + left, int(rows[0]) + top, int(columns[-1]) + left, int(rows[-1]) + top


def runs_of_part(mask: NDArray[np.bool_], left: int, top: int, size_hw: tuple[int, int]) -> RunLengths:
    """As `masks.runs_from_mask`, of an image that is False but for this part (h, w) bool, whose first pixel is at (left, top)."""
    height, width = mask.shape
    edges = np.zeros((height, width + 1), dtype=np.bool_)
    edges[:, 1:width] = mask[:, 1:] != mask[:, :-1]
    if width:
        edges[:, 0], edges[:, width] = mask[:, 0], mask[:, -1]
    row, column = np.nonzero(edges)
    at = (row + top) * size_hw[1] + column + left
    starts, ends = at[::2], at[1::2]
    goes_on = starts[1:] == ends[:-1]  # from the end of a row into the next one
    starts, ends = starts[np.append(True, ~goes_on)[: starts.size]], ends[np.append(~goes_on, True)[: ends.size]]
    changes = np.stack([starts, ends], axis=1).reshape(-1)
    counts = np.diff(changes, prepend=0, append=size_hw[0] * size_hw[1])
    return RunLengths(size_hw, (counts if counts[-1] or counts.size == 1 else counts[:-1]).astype("<u4").tobytes())
