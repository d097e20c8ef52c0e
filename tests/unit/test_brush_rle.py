"""The brush codec against the reference implementation, and against what Label Studio's editor wrote."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_converter import brush

from backend import rle_pack
from backend.brush_rle import decode_mask, decode_runs, decode_words, encode_mask, encode_runs, encode_words
from sam2_backend.errors import MediaTooLargeError, PromptError
from sam2_backend.masks import runs_from_mask
from sam2_backend.messages import RunLengths

FIXTURES = Path(__file__).parents[1] / "fixtures"
EDITOR = json.loads((FIXTURES / "brush" / "written_by_the_editor.json").read_text())["regions"]

some_masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20), fill=st.just(value=False))
runs_of_words = st.lists(st.tuples(st.integers(0, 255), st.one_of(st.integers(1, 20), st.sampled_from([255, 256, 257]))), min_size=1)


def as_words(runs: list[tuple[int, int]]) -> np.ndarray:
    return np.repeat(np.array([value for value, _ in runs], np.uint8), [count for _, count in runs])


def as_stream(tokens: list[tuple[bool, list[int]]], sizes: tuple[int, ...] = (3, 4, 8, 16), n_words: int | None = None) -> bytes:
    """A stream written by hand: each token is "repeat" with [count, value], or not with its words."""
    n_told = sum(what[0] if is_repeat else len(what) for is_repeat, what in tokens)
    bits = f"{n_told if n_words is None else n_words:032b}00111" + "".join(f"{size - 1:04b}" for size in sizes)
    for is_repeat, what in tokens:
        count, words = (what[0], what[1:]) if is_repeat else (len(what), what)
        kind = next(kind for kind in range(4) if count <= 1 << sizes[kind])
        bits += f"{is_repeat:b}{kind:02b}{count - 1:0{sizes[kind]}b}" + "".join(f"{word:08b}" for word in words)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


words_in_pieces = st.one_of(
    st.tuples(st.just(value=True), st.tuples(st.integers(1, 700), st.integers(0, 255)).map(list)),
    st.tuples(st.just(value=False), st.lists(st.integers(0, 255), min_size=1, max_size=40)),
)


@settings(max_examples=500)
@given(some_masks)
def test_masks_are_written_and_read_as_the_reference_does(mask):
    reference = brush.mask2rle(mask.astype(np.uint8) * 255)
    assert list(encode_mask(mask)) == list(encode_runs(runs_from_mask(mask))) == reference
    assert np.array_equal(decode_mask(reference, mask.shape), mask)
    assert decode_runs(reference, mask.shape) == runs_from_mask(mask)


@settings(max_examples=500)
@given(runs_of_words)
@example([(7, 65535), (8, 65536), (9, 65537), (0, 1)])
@example([(0, 3 * 65536), (1, 131072 + 1), (0, 131072 + 8), (2, 1)])
def test_words_are_written_and_read_as_the_reference_does(runs):
    words = as_words(runs)
    reference = brush.encode_rle(words)
    assert list(encode_words(words)) == reference
    assert np.array_equal(decode_words(reference), words)
    assert np.array_equal(brush.decode_rle(reference), words)


@settings(max_examples=300)
@given(st.lists(words_in_pieces, max_size=30), st.tuples(*[st.integers(1, 16)] * 3).map(sorted))
def test_streams_with_literals_and_other_counter_sizes_are_read_as_the_reference_does(tokens, sizes):
    stream = as_stream(tokens, (*sizes, 16))
    assert np.array_equal(decode_words(stream), brush.decode_rle(stream))


@given(some_masks, st.integers(1, 255))
def test_run_lengths_and_words_make_the_same_stream(mask, on):
    assert encode_runs(runs_from_mask(mask), on) == encode_words(np.repeat(mask.ravel() * np.uint8(on), 4))


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4)), elements=st.sampled_from([0, 1, 37, 255])))
def test_alpha_alone_decides_whatever_the_colours_are(rgba):
    stream = encode_words(rgba.ravel())
    assert np.array_equal(decode_mask(stream, rgba.shape[:2]), rgba[:, :, 3] > 0)
    assert decode_runs(stream, rgba.shape[:2]) == runs_from_mask(rgba[:, :, 3] > 0)


@pytest.mark.parametrize("name", EDITOR)
def test_what_the_editor_wrote_is_read_as_the_editor_reads_it(name):
    size_hw, rle = tuple(EDITOR[name]["size_hw"]), list(base64.b64decode(EDITOR[name]["rle"]))
    words = np.frombuffer(zlib.decompress(base64.b64decode(EDITOR[name]["words"])), np.uint8)
    assert np.array_equal(decode_words(rle), words)
    assert np.array_equal(decode_mask(rle, size_hw), words.reshape(*size_hw, 4)[:, :, 3] > 0)
    assert np.array_equal(decode_words(encode_words(words)), words)


def test_the_editors_streams_do_hold_literals_of_many_words():
    stream = base64.b64decode(EDITOR["literals"]["rle"])
    (edges,) = rle_pack._token_edges(stream, rle_pack.read_header(stream)[1])
    assert edges.size - 1 < rle_pack.unpack(stream)[0].size / 3


def recorded() -> dict[str, tuple[tuple[int, int], list[int]]]:
    """Every brush region in the recorded requests, each once."""
    found = {}
    for path in sorted((FIXTURES / "requests").glob("*.json")):
        pending = [json.loads(path.read_text())]
        while pending:
            node = pending.pop()
            children = list(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            pending += children
            if isinstance(node, dict) and isinstance(node.get("value"), dict) and isinstance(node["value"].get("rle"), list):
                rle = node["value"]["rle"]
                found[f"{path.stem}-{zlib.crc32(bytes(rle)):08x}"] = ((node["original_height"], node["original_width"]), rle)
    return found


@pytest.mark.parametrize(("size_hw", "rle"), recorded().values(), ids=recorded())
def test_every_recorded_brush_region_is_read_as_the_reference_reads_it_and_written_back_alike(size_hw, rle):
    words = brush.decode_rle(rle)
    assert np.array_equal(decode_mask(rle, size_hw), words.reshape(*size_hw, 4)[:, :, 3] > 0)
    written = list(encode_mask(decode_mask(rle, size_hw)))
    assert written in (rle, [*rle, 0])  # newer versions of the reference leave out a whole byte of padding


def test_a_stream_of_several_chunks_is_read_across_their_seams():
    words = np.random.default_rng(3).integers(0, 256, 300_000).astype(np.uint8)
    tokens = [(False, words[i : i + 1000].tolist()) for i in range(0, words.size, 1000)]
    stream = as_stream(tokens)
    assert len(stream) > 4 * 65536
    assert np.array_equal(decode_words(stream), words)
    assert np.array_equal(decode_words(encode_words(words)), words)


def test_every_kind_of_token_is_read_across_the_seam_of_two_chunks(monkeypatch):
    monkeypatch.setattr(rle_pack, "_CHUNK_BYTES", 3)
    rng = np.random.default_rng(5)
    for _ in range(200):
        words = np.repeat(rng.integers(0, 256, 30), rng.choice([1, 2, 9, 17, 300], 30)).astype(np.uint8)
        assert np.array_equal(decode_words(encode_words(words)), words)
        pieces = np.split(words[:200], np.sort(rng.integers(0, 200, 20)))
        stream = as_stream([(False, piece.tolist()) if rng.random() < 0.5 else (True, [7, 9]) for piece in pieces if piece.size])
        assert np.array_equal(decode_words(stream), brush.decode_rle(stream))


def test_a_large_mask_of_noise_is_read_back():
    mask = np.random.default_rng(1).random((600, 800)) < 0.5
    assert len(encode_mask(mask)) > 3 * 65536
    assert np.array_equal(decode_mask(encode_mask(mask), mask.shape), mask)


SIZE_HW = (6, 8)
GOOD = encode_mask(np.arange(48).reshape(SIZE_HW) % 5 < 2)


@pytest.mark.parametrize(
    "rle",
    [
        b"",
        [],
        GOOD[:3],
        GOOD[:6],
        GOOD[:7],
        GOOD[:-2],
        [256, 0],
        [-1] * 20,
        [0.5] * 20,
        [None] * 9,
        "text",
        10**15,
        None,
        [[1, 2]],
        {"a": 1},
    ],
    ids=lambda rle: str(rle)[:20],
)
def test_damaged_brush_regions_are_the_annotators_error(rle):
    for decode in (lambda: decode_mask(rle, SIZE_HW), lambda: decode_words(rle)):
        with pytest.raises(PromptError, match="brush mask"):
            decode()


flipped = st.tuples(st.integers(7, len(GOOD) - 1), st.integers(1, 255)).map(
    lambda at: bytes(b ^ (at[1] * (i == at[0])) for i, b in enumerate(GOOD))
)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda tail: GOOD[:7] + tail), flipped))
def test_whatever_bytes_come_there_is_a_mask_of_the_right_size_or_that_error(rle):
    try:
        mask = decode_mask(rle, SIZE_HW)
    except PromptError:
        return
    assert mask.shape == SIZE_HW
    assert mask.dtype == bool


@given(st.integers(0, len(GOOD) * 8), st.binary(max_size=9))
def test_a_stream_cut_anywhere_before_its_padding_is_an_error_and_one_with_more_after_it_is_not(n_bits, more):
    assert np.array_equal(decode_mask(GOOD + more, SIZE_HW), decode_mask(GOOD, SIZE_HW))
    if n_bits // 8 < len(GOOD) - 1:
        with pytest.raises(PromptError):
            decode_mask(GOOD[: n_bits // 8], SIZE_HW)


def test_a_last_run_that_is_too_long_is_cut_as_the_editor_does():
    assert decode_words(as_stream([(True, [9, 3])], n_words=5)).tolist() == [3] * 5
    assert decode_words(as_stream([(False, [1, 2, 3, 4, 5])], n_words=3)).tolist() == [1, 2, 3]


@pytest.mark.parametrize("n_words", [0, 188, 196, 2**32 - 1])
def test_a_stream_of_another_size_is_refused(n_words):
    with pytest.raises(PromptError, match=r"where its image has 192"):
        decode_mask(as_stream([(True, [65536, 255])] * 3, n_words=n_words), SIZE_HW)


def test_a_header_that_claims_gigabytes_takes_no_memory():
    tiny, long = as_stream([(True, [65536, 255])], n_words=2**32 - 1), as_stream([(True, [65536, 255])] * 8192)
    assert len(long) < 30_000
    tracemalloc.start()
    for stream in (tiny, long):
        with pytest.raises(PromptError):
            decode_words(stream)
        with pytest.raises(PromptError):
            decode_mask(stream, SIZE_HW)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_words_that_are_not_bytes_are_refused():
    with pytest.raises(PromptError, match="does not begin"):
        decode_words(GOOD[:4] + bytes([GOOD[4] | 0b10000000]) + GOOD[5:])


def test_an_image_too_large_for_the_format_is_an_error_and_not_a_wrong_header():
    with pytest.raises(MediaTooLargeError, match="tiles"):
        encode_runs(RunLengths((1 << 15, 1 << 15), np.array([1 << 30], "<u4").tobytes()))


def test_the_empty_and_the_full_mask_are_read_back():
    for mask in (np.zeros(SIZE_HW, bool), np.ones(SIZE_HW, bool)):
        assert np.array_equal(decode_mask(encode_mask(mask), SIZE_HW), mask)
    assert decode_words(encode_words(np.zeros(0, np.uint8))).size == 0


def test_a_large_mask_is_written_in_a_small_part_of_the_references_time():
    mask = np.add.outer(np.arange(900), np.arange(1200)) % 700 < 350
    pixels = mask.astype(np.uint8) * 255
    runs = runs_from_mask(mask)
    ours, reference = (
        min(_seconds(lambda: encode_runs(runs)) for _ in range(3)),
        min(_seconds(lambda: brush.mask2rle(pixels)) for _ in range(3)),
    )
    assert ours < reference / 4


def _seconds(call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
