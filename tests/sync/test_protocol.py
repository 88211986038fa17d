"""Digests on the wire: what one says the other understands, and nothing else is taken for a digest."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.errors import FrameMalformed
from synckit_streams.model.clock import COUNTER_MAX
from synckit_streams.model.seen import Seen
from synckit_streams.sync.protocol import DIGEST_BYTES_MAX, Digest, digest_bytes, digest_from_bytes
from tests.model.strategies import DOTS, damaged

DIGESTS = st.builds(
    Digest,
    version=st.just(1),
    node=st.sampled_from(["till-1", "büro", "x" * 64]),
    topic=st.sampled_from(["orders", "t" * 100]),
    number=st.integers(0, COUNTER_MAX),
    seen=st.frozensets(DOTS, max_size=20).map(lambda dots: Seen.of(dots).to_wire()),
    whole=st.booleans(),
    checksum=st.binary(min_size=32, max_size=32),
    places=st.dictionaries(
        st.integers(0, 300), st.tuples(st.text(max_size=30), st.integers(0, COUNTER_MAX)), max_size=4
    ),
    refused=st.lists(DOTS.map(tuple), max_size=5),
    voids=st.lists(DOTS.map(tuple), max_size=5),
    held=st.integers(0, 10_000),
    resolver=st.tuples(st.text(max_size=30), st.integers(0, 9)),
    takes=st.booleans(),
)
GOOD = Digest(1, "till-1", "orders", 1, {"a@1": [1, 5]}, True, b"\0" * 32, {0: ("log", 3)}, [], [], 0, ("lww", 1))


@given(DIGESTS)
def test_a_digest_comes_back_the_same(digest: Digest) -> None:
    """With its summary."""
    again, seen = digest_from_bytes(digest_bytes(digest))
    assert again == digest
    assert seen == Seen.from_wire(digest.seen)


@given(DIGESTS, st.data())
def test_a_damaged_digest_is_malformed_or_still_within_the_rules(digest: Digest, data: st.DataObject) -> None:
    """Never another exception, and never numbers that the core could stumble over."""
    raw = data.draw(damaged(digest_bytes(digest)))
    try:
        found, seen = digest_from_bytes(raw)
    except FrameMalformed:
        return
    assert all(0 <= place <= COUNTER_MAX for _, place in found.places.values())
    assert Seen.of([*found.refused, *found.voids]) is not None
    assert len(found.checksum) == 32
    assert all(1 <= first <= last for ranges in seen.ranges.values() for first, last in ranges)


@given(st.binary(max_size=200))
def test_random_bytes_are_no_digest(raw: bytes) -> None:
    """A clear error, whatever they are."""
    with pytest.raises(FrameMalformed):
        digest_from_bytes(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"node": ""},
        {"node": "a b"},
        {"node": "x" * 65},
        {"topic": ""},
        {"topic": "x" * 101},
        {"seen": {"a@1": [0, 5]}},
        {"seen": {"a@1": [-5, 5]}},
        {"seen": {"a@1": [5, 1]}},
        {"seen": {"a@1": [1, 5, 4, 9]}},
        {"seen": {"a@1": [1]}},
        {"seen": {"a@1": [1, 2**63]}},
        {"seen": {"a@1": [1, 2**64 - 1]}},
        {"checksum": b""},
        {"checksum": b"\0" * 33},
        {"places": {0: ("log", -1)}},
        {"places": {0: ("log", 2**63)}},
        {"places": {0: ("log", 2**64 - 1)}},
        {"refused": [("a@1", 0)]},
        {"refused": [("a@1", 2**64 - 1)]},
        {"voids": [("a@1", -1)]},
    ],
    ids=str,
)
def test_a_digest_beyond_the_rules_is_malformed(changes: dict[str, Any]) -> None:
    """Another version, no names, and numbers that are negative, too large or out of order."""
    assert digest_from_bytes(digest_bytes(GOOD))[0] == GOOD
    with pytest.raises(FrameMalformed):
        digest_from_bytes(digest_bytes(msgspec.structs.replace(GOOD, **changes)))


def test_a_digest_without_the_newest_field_is_read() -> None:
    """A peer that does not know it sends an array that is shorter by one."""
    raw = msgspec.msgpack.encode(msgspec.structs.astuple(GOOD)[:-1])
    assert digest_from_bytes(raw)[0] == GOOD


def test_a_digest_that_is_too_large_is_not_decoded() -> None:
    """Its size is looked at first."""
    with pytest.raises(FrameMalformed, match=str(DIGEST_BYTES_MAX)):
        digest_from_bytes(b"\x9d" + b"\0" * DIGEST_BYTES_MAX)
