"""What hypothesis draws for the tests of the model."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from synckit_streams.model.clock import COUNTER_MAX, Dot, Key, VersionVector, keys_bytes
from synckit_streams.model.codec import encode_metadata
from synckit_streams.model.event import Event

SIGNS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
"""Everything that a name may hold: Unicode without NUL and halves of surrogate pairs."""


NASTY = st.sampled_from("%\"' /?#\\{}\n\x7f\x85\ufffe\ufdd0€😀+=~@|")
ANY_NAME = st.one_of(
    st.sampled_from(["o-1", "order.placed", "till-7@ab12"]),
    st.text(st.one_of(NASTY, SIGNS), min_size=1, max_size=8),  # at most 32 bytes
)
"""Names as a caller may choose them, with a liking for what encodings get wrong."""

ORIGINS = st.sampled_from(["till-1@a", "till-2@b", "till-3@c~0123abcd"])
DOTS = st.builds(Dot, ORIGINS, st.integers(1, 12))
COUNTERS = st.dictionaries(ORIGINS, st.integers(0, 6))
VECTORS = COUNTERS.map(VersionVector)
KEYS = st.builds(Key, ANY_NAME, ANY_NAME, st.integers(1, COUNTER_MAX))

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(SIGNS, max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(SIGNS, max_size=6), inner, max_size=4)
    ),
    max_leaves=4,
)

JSON_PAYLOADS = st.one_of(
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    JSON_VALUES.map(lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()),
    JSON_VALUES.map(lambda value: json.dumps(value, indent=2).encode()),
    st.sampled_from([b'{"b":1e3,"a":1,"a":2}', b' {"padded": true} ', b"[" * 70 + b"]" * 70, b'"\\u0000"', b"-0.0"]),
)
PAYLOADS = st.one_of(JSON_PAYLOADS, st.binary(max_size=40), st.sampled_from([b"", b"NaN", b'{"a":1', b'"\xff"']))

METADATA = st.one_of(
    st.just(b""),
    st.dictionaries(ANY_NAME, JSON_VALUES, min_size=1, max_size=3).map(encode_metadata),
    # As another implementation might write it: any JSON object is kept as it came.
    st.sampled_from([b' {"a": 1}', b'{\n"a": 1}', b'{"a":"\x7f%"}', b"{}"]),
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """An event as a store could hold it, anything allowed."""
    seq = draw(st.integers(1, COUNTER_MAX))
    return Event(
        id=draw(ANY_NAME),
        topic=draw(ANY_NAME),
        type=draw(ANY_NAME),
        aggregate_id=draw(ANY_NAME),
        payload=draw(PAYLOADS),
        metadata_json=draw(METADATA),
        origin=draw(st.one_of(ORIGINS, ANY_NAME)),
        seq=seq,
        prev=draw(st.integers(0, seq - 1)),
        context_bytes=draw(VECTORS).to_bytes(),
        after_bytes=keys_bytes(draw(st.lists(KEYS, max_size=3))),
        at_packed=draw(st.integers(0, COUNTER_MAX)),
        schema_version=draw(st.integers(0, 2**31 - 1)),
        traceparent=draw(st.one_of(st.just(""), st.just(f"00-{'0af7' * 8}-{'b9c7' * 4}-01"), ANY_NAME)),
    )


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some flipped, dropped, doubled or cut off."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        if not raw:
            break
        at = draw(st.integers(0, len(raw) - 1))
        match draw(st.sampled_from(["flip", "set", "drop", "insert", "cut", "double"])):
            case "flip":
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                raw[at] = draw(st.integers(0, 255))
            case "drop":
                del raw[at]
            case "insert":
                raw.insert(at, draw(st.integers(0, 255)))
            case "cut":
                del raw[at:]
            case "double":
                raw[at:at] = raw[at : at + draw(st.integers(1, 40))]
    return bytes(raw)
