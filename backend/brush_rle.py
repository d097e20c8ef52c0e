"""Label Studio's brush RLE ↔ masks: every pixel's red, green, blue and alpha, row by row, packed by `rle_pack`.

`encode_*` write the same bytes as `label_studio_converter.brush` 0.0.59; `decode_*` also read what Label Studio's editor writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backend import rle_pack
from sam2_backend.errors import PromptError
from sam2_backend.masks import Mask, mask_from_runs, run_counts, runs_from_mask
from sam2_backend.messages import RunLengths

Rle = bytes | Sequence[int]

_CHANNELS = 4
_MAX_WORDS = _CHANNELS * 100_000_000


def encode_runs(runs: RunLengths, on: int = 255) -> bytes:
    """A mask's run lengths as brush RLE; neither its pixels nor its words are made.

    Args:
        runs: The mask.
        on: What all four channels are where the mask is True, 1 to 255.

    Raises:
        MediaTooLargeError: the image is too large for the format.
    """
    counts = run_counts(runs)
    is_run = counts > 0  # the first one may be empty
    values = np.where(np.arange(counts.size) % 2 == 1, on, 0)
    return rle_pack.pack(_CHANNELS * counts[is_run], values[is_run])


def encode_mask(mask: Mask, on: int = 255) -> bytes:
    """A mask (H, W) bool as brush RLE: the bytes of the reference's `mask2rle(mask * on)`."""
    return encode_runs(runs_from_mask(mask), on)


def encode_words(words: NDArray[np.uint8]) -> bytes:
    """Words (n,) uint8 as brush RLE: the bytes of the reference's `encode_rle(words)`."""
    starts = np.concatenate([[0] if words.size else [], np.flatnonzero(words[1:] != words[:-1]) + 1]).astype(np.int64)
    return rle_pack.pack(np.diff(starts, append=words.size), words[starts].astype(np.int64))


def decode_mask(rle: Rle, size_hw: tuple[int, int]) -> Mask:
    """A brush region as mask (H, W) bool: True where alpha is not zero, as the editor draws it.

    Raises:
        PromptError: the stream is damaged, or of another size.
    """
    return mask_from_runs(decode_runs(rle, size_hw))


def decode_runs(rle: Rle, size_hw: tuple[int, int]) -> RunLengths:
    """What `runs_from_mask` gives for `decode_mask`, without making the mask.

    Raises:
        PromptError: the stream is damaged, or of another size.
    """
    stream = _checked(rle, least=_CHANNELS * size_hw[0] * size_hw[1], most=_CHANNELS * size_hw[0] * size_hw[1])
    lengths, values = rle_pack.unpack(stream)
    pixels = np.diff(np.cumsum(lengths) // _CHANNELS, prepend=0)  # a pixel belongs to the run that holds its alpha, the last word
    has_pixels = pixels > 0
    is_on, ends = values[has_pixels] > 0, np.cumsum(pixels[has_pixels])
    changes = ends[:-1][is_on[1:] != is_on[:-1]]
    edges = np.concatenate([[0], [0] if is_on.size and is_on[0] else [], changes, [size_hw[0] * size_hw[1]]])
    return RunLengths(size_hw, np.diff(edges).astype("<u4").tobytes())


def decode_words(rle: Rle, max_words: int = _MAX_WORDS) -> NDArray[np.uint8]:
    """All words (n,) uint8 of a stream, as the reference's `decode_rle` gives them.

    Raises:
        PromptError: the stream is damaged, or claims more than `max_words`.
    """
    lengths, values = rle_pack.unpack(_checked(rle, least=0, most=max_words))
    return np.repeat(values, lengths)


def _checked(rle: Rle, least: int, most: int) -> bytes:
    """The stream as bytes, with a number of words between these."""
    try:
        stream = b"" if isinstance(rle, int | str) else bytes(rle)  # bytes(int) would be that many zeros
    except (TypeError, ValueError) as error:
        raise PromptError("The brush mask is not a list of bytes. Draw it again.") from error
    n_words, _ = rle_pack.read_header(stream)
    if not least <= n_words <= most:
        raise PromptError(f"The brush mask holds {n_words} values where its image has {most}. Draw it again.")
    return stream
