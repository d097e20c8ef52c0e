"""thi.ng's rle-pack, the format of Label Studio's brush regions: runs of bytes ↔ a stream of bits. Knows no masks.

A stream, the highest bit of a byte first: 32 bits number of words · 5 bits word size - 1 (here always 8 bits) · 4 × 4 bits counter sizes - 1
(3, 4, 8 and 16 bits) · tokens until all words are there · zeros up to a whole byte. A token: 1 bit "repeat" · 2 bits index of the counter
size · counter: count - 1 · one word that is repeated, or `count` literal words.

Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sam2_backend.errors import MediaTooLargeError, PromptError

_Ints = NDArray[np.int64]
_Flags = NDArray[np.bool_]

_WORD_BITS = 8
_COUNTER_BITS = np.array([3, 4, 8, 16])
_LONGEST_RUN = 1 << 16
_HEADER_BITS, _HEADER_BYTES = 53, 7
_CHUNK_BYTES = 1 << 16  # of a stream that is looked at in one go: bounds memory
_LOOK_AHEAD = bytes(8)


def pack(lengths: _Ints, values: _Ints) -> bytes:
    """Write runs as `label_studio_converter.brush.encode_rle` 0.0.59 writes them, bit by bit.

    It makes no literals of more than one word, cuts runs at 65536 words, and always ends in one to eight bits of padding.

    Args:
        lengths: (n,) int64, words per run, at least 1 each.
        values: (n,) int64 in 0..255; neighbours differ.

    Raises:
        MediaTooLargeError: there are more words than the header can tell.
    """
    n_words = int(lengths.sum())
    if n_words >> 32:
        raise MediaTooLargeError("An image of more than 2^30 pixels cannot hold a brush region. Use polygons, or cut the image into tiles.")
    lengths, values, is_cut = _cut(lengths, values)
    counter = np.where(is_cut, 3, np.searchsorted([8, 16, 256], lengths, side="left"))
    counter_bits = _COUNTER_BITS[counter]
    is_repeat = (lengths > 1) | is_cut
    tokens = ((is_repeat << 2 | counter) << counter_bits | (lengths - 1)) << _WORD_BITS | values
    sizes = (_WORD_BITS - 1) << 16 | int(((_COUNTER_BITS - 1) << np.array([12, 8, 4, 0])).sum())
    header = [n_words >> 16, n_words & 0xFFFF, sizes]
    return _join_bits(np.concatenate([header, tokens]), np.concatenate([[16, 16, 21], 3 + counter_bits + _WORD_BITS]))


def _cut(lengths: _Ints, values: _Ints) -> tuple[_Ints, _Ints, _Flags]:
    """Cut runs that no counter can hold. All pieces of a cut run, however short, take the largest counter, as in the reference."""
    n_pieces = (lengths - 1) // _LONGEST_RUN + 1
    run = np.repeat(np.arange(lengths.size), n_pieces)
    pieces = np.full(run.size, _LONGEST_RUN)
    pieces[np.cumsum(n_pieces) - 1] = lengths - (n_pieces - 1) * _LONGEST_RUN
    return pieces, values[run], n_pieces[run] > 1


def _join_bits(tokens: _Ints, n_bits: _Ints) -> bytes:
    """The lowest `n_bits` (n,) bits of each token (n,), at most 32, one after the other; then at least one zero."""
    aligned = (tokens << (32 - n_bits)).astype(">u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(aligned, axis=1)[np.arange(32) < n_bits[:, None]]
    return np.packbits(np.append(bits, np.uint8(0))).tobytes()


def read_header(stream: bytes) -> tuple[int, tuple[int, ...]]:
    """Number of words, and the four counter sizes in bits.

    Raises:
        PromptError: the stream does not begin with a header, or its words are not bytes.
    """
    header = int.from_bytes(stream[:_HEADER_BYTES]) >> (8 * _HEADER_BYTES - _HEADER_BITS)
    if len(stream) < _HEADER_BYTES or (header >> 16 & 31) + 1 != _WORD_BITS:
        raise PromptError("The brush mask does not begin as Label Studio's do. Draw it again.")
    return header >> 21, tuple((header >> shift & 15) + 1 for shift in (12, 8, 4, 0))


def unpack(stream: bytes) -> tuple[_Ints, NDArray[np.uint8]]:
    """Read the runs of a stream. Takes memory for the runs, not for the words that the header claims.

    What the last token holds beyond the number of words is left out, and so is what follows it: the editor does the same.

    Returns:
        lengths (n,) int64, which add up to the header's number of words and may be 0; values (n,) uint8. A literal word is a run of its own.

    Raises:
        PromptError: the header is not one, or the stream ends before all words are there.
    """
    n_words, counter_bits = read_header(stream)
    chunks: list[tuple[_Ints, NDArray[np.uint8]]] = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8))]
    data, n_left = np.frombuffer(stream + _LOOK_AHEAD, np.uint8), n_words
    chunk_of_tokens = _token_edges(stream, counter_bits)
    while n_left > 0:
        edges = next(chunk_of_tokens, None)
        if edges is None:
            raise PromptError("The brush mask ends before all of its pixels are told. Draw it again.")
        chunks.append(_unfold(data, edges, np.array(counter_bits), n_left))
        n_left -= int(chunks[-1][0].sum())
    lengths, values = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return np.diff(np.minimum(np.cumsum(lengths), n_words), prepend=0), values


def _token_edges(stream: bytes, counter_bits: tuple[int, ...]) -> Iterator[_Ints]:
    """Bit positions (n + 1,) at which the tokens of a chunk start, and the end of the last one, chunk by chunk.

    Where a token starts is only known from the one before: the one loop here that goes through Python.
    """
    steps_by_kind = np.array([0] * 4 + [3 + n + _WORD_BITS for n in counter_bits], dtype=np.uint8)  # 0: literals
    position = _HEADER_BITS
    while position < 8 * len(stream):
        first = position // 8
        bits = np.unpackbits(np.frombuffer(stream[first : first + _CHUNK_BYTES + 1] + _LOOK_AHEAD, np.uint8))
        steps = steps_by_kind[bits[:-2] << 2 | bits[1:-1] << 1 | bits[2:]].tobytes()
        edges, here, end = [], position - 8 * first, 8 * min(_CHUNK_BYTES, len(stream) - first)
        while here < end:
            edges.append(here)
            here += steps[here] or _literal_step(stream, 8 * first + here, counter_bits)
        position = 8 * first + here
        yield np.array([*edges, here]) + 8 * first


def _literal_step(stream: bytes, position: int, counter_bits: tuple[int, ...]) -> int:
    """Length in bits of the token of literals at a bit position."""
    byte = position // 8
    token = int.from_bytes((stream[byte : byte + 4] + _LOOK_AHEAD)[:4]) << position % 8 & 0xFFFFFFFF
    n = counter_bits[token >> 29 & 3]
    return 3 + n + _WORD_BITS * ((token >> (29 - n) & ((1 << n) - 1)) + 1)


def _unfold(data: NDArray[np.uint8], edges: _Ints, counter_bits: _Ints, n_left: int) -> tuple[_Ints, NDArray[np.uint8]]:
    """Lengths and values of the runs that the tokens between these edges hold, as many tokens as `n_left` words need.

    `data` is the stream as bytes (m,) uint8, with the look-ahead behind it.
    """
    kind = _bits(data, edges[:-1], np.int64(3))
    n = counter_bits[kind & 3]
    counts = _bits(data, edges[:-1] + 3, n) + 1
    n_tokens = min(int(np.searchsorted(np.cumsum(counts), n_left)) + 1, counts.size)
    if edges[n_tokens] > 8 * (data.size - len(_LOOK_AHEAD)):
        raise PromptError("The brush mask ends within a run. Draw it again.")
    is_repeat, counts, words_at = kind[:n_tokens] >= 4, counts[:n_tokens], (edges[:-1] + 3 + n)[:n_tokens]
    n_values = np.where(is_repeat, 1, counts)
    token = np.repeat(np.arange(n_tokens), n_values)
    nth = np.arange(token.size) - np.repeat(np.cumsum(n_values) - n_values, n_values)
    values = _bits(data, words_at[token] + _WORD_BITS * nth, np.int64(_WORD_BITS))
    return np.where(is_repeat, counts, 1)[token], values.astype(np.uint8)


def _bits(data: NDArray[np.uint8], positions: _Ints, n: _Ints | np.int64) -> _Ints:
    """The `n` bits (m,), at most 16, at each bit position (m,)."""
    byte = positions >> 3
    window = data[byte].astype(np.int64) << 16 | data[byte + 1].astype(np.int64) << 8 | data[byte + 2]
    found: _Ints = window >> (24 - (positions & 7) - n) & ((1 << n) - 1)
    return found
