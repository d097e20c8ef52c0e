from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backend.fast_json import dumps, loads

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values)
def test_what_it_writes_and_reads_is_what_the_standard_library_does(value):
    assert json.loads(dumps(value)) == value == loads(json.dumps(value).encode())


def as_64_bits(digits: str) -> int | float:
    """How orjson reads a whole number: beyond 64 bits as a float."""
    return int(digits) if -(1 << 63) <= int(digits) < 1 << 64 else float(digits)


@given(
    st.binary()
    | st.text().map(str.encode)
    | values.map(lambda value: json.dumps(value)[:-1].encode())
    | st.integers().map(str).map(str.encode)
)
@example(b"20000000000000000001")
@example(b"[20000000000000000001, NaN]")
def test_it_reads_exactly_what_the_standard_library_reads_of_utf8(text):
    try:
        expected = [json.loads(text.decode("utf-8-sig"), parse_int=kind) for kind in (int, as_64_bits)]
    except ValueError:
        with pytest.raises(ValueError):
            loads(text)
    else:
        assert repr(loads(text)) in map(repr, expected)


@pytest.mark.parametrize("text", [b'{"x": NaN}', b"[Infinity, 12345678901234567890123]", b'"\\ud800"'])
def test_what_only_the_standard_library_takes_is_taken(text):
    assert repr(loads(text)) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", ['"\ud800"'.encode("utf-8", "surrogatepass"), '{"a": "\\ud800"}'.encode("utf-16"), '"a"'.encode("utf-32-le")]
)
def test_other_encodings_are_refused_because_half_a_surrogate_pair_hides_in_them(text):
    assert json.loads(text)
    with pytest.raises(ValueError):
        loads(text)


def test_half_a_surrogate_pair_that_came_in_json_goes_out_in_json():
    value = {"label": json.loads('"\\ud800 Cat"'), "rle": [1, 2]}
    assert json.loads(dumps(value)) == value
    with pytest.raises(TypeError):
        dumps({"x": object()})
