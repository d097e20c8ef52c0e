"""The bytes of an embedding: what was written is read to the bit, and nothing else is taken for it."""

from __future__ import annotations

import struct
import zlib

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given

from sam2_backend.embedding import FORMAT, ImageEmbedding

CPU = torch.device("cpu")


def made(dtype: torch.dtype = torch.float32) -> ImageEmbedding:
    generator = torch.Generator().manual_seed(1)
    shapes = ((1, 2, 8, 4), (1, 4, 4, 2), (1, 8, 2, 1))  # no two sides alike, so that exchanged ones are seen
    return ImageEmbedding.rounded(tuple(torch.randn(shape, generator=generator) for shape in shapes), dtype)


WRITTEN = made().to_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_read_is_what_was_written_to_the_bit_and_lies_alike_in_memory(dtype):
    embedding = made(dtype)
    read = ImageEmbedding.from_bytes(memoryview(embedding.to_bytes()), CPU, dtype)
    for ours, theirs in zip(read.maps, embedding.maps, strict=True):
        assert ours.dtype == dtype
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous(memory_format=torch.channels_last)
    assert read.to_bytes() == embedding.to_bytes()


@given(at=st.integers(0, len(WRITTEN) - 1), flip=st.integers(1, 255))
def test_no_flipped_byte_goes_unnoticed_wherever_it_is(at, flip):
    damaged = WRITTEN[:at] + bytes([WRITTEN[at] ^ flip]) + WRITTEN[at + 1 :]
    with pytest.raises(ValueError, match="embedding"):
        ImageEmbedding.from_bytes(damaged, CPU, torch.float32)


@given(end=st.integers(0, len(WRITTEN) - 1), more=st.binary(max_size=60))
def test_nothing_that_is_cut_or_goes_on_otherwise_is_read(end, more):
    damaged = WRITTEN[:end] + more
    if damaged != WRITTEN:
        with pytest.raises(ValueError, match="embedding"):
            ImageEmbedding.from_bytes(damaged, CPU, torch.float32)


@example(sides=[0] * 7 + [3_036_988_439, 3_037_012_561], values=b"")
@given(sides=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 6), min_size=9, max_size=9), values=st.binary(max_size=200))
def test_whatever_carries_its_checksum_is_read_as_it_says_or_refused(sides, values):
    body = struct.pack("<9I", *sides) + values
    data = FORMAT.encode() + struct.pack("<I", zlib.crc32(body)) + body
    try:
        read = ImageEmbedding.from_bytes(data, CPU, torch.float32)
    except ValueError:
        return
    assert [side for one in read.maps for side in one.shape[1:]] == sides
    assert sum(one.numel() for one in read.maps) * 2 == len(values)
