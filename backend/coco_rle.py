"""COCO's run lengths: column by column, as text that pycocotools reads. Source: cocoapi `maskApi.c`, `rleToString` and `rleFrString`."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

_BITS, _SIGN, _MORE, _FIRST = 5, 0x10, 0x20, 48


class CocoRle(TypedDict):
    """`size` is [height, width]; `counts` the compressed text."""

    size: list[int]
    counts: str


def coco_rle(mask: NDArray[np.bool_]) -> CocoRle:
    """A mask (H, W) as COCO's compressed run lengths."""
    flat = np.concatenate([[False], mask.T.ravel(), [True]])
    # The sentinel at the end is one run too long where the mask ends in False, and one too many where it ends in True.
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = np.append(changes[changes < mask.size], mask.size)
    return {"size": [int(side) for side in mask.shape], "counts": _text(np.diff(ends, prepend=0).tolist())}


def mask_of(rle: CocoRle) -> NDArray[np.bool_]:
    """The mask (H, W) of compressed run lengths."""
    height, width = rle["size"]
    counts = _counts(rle["counts"])
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


def _text(counts: list[int]) -> str:
    """Each count but the first three as its difference from the one of the same value before, five bits a character."""
    out = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & (_MORE - 1)
            value >>= _BITS
            more = value != (-1 if bits & _SIGN else 0)
            out.append((bits | (_MORE if more else 0)) + _FIRST)
    return out.decode("ascii")


def _counts(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        bits = character - _FIRST
        value |= (bits & (_MORE - 1)) << shift
        shift += _BITS
        if not bits & _MORE:
            value -= (1 << shift) if bits & _SIGN else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
