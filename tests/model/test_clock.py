"""Identities, version vectors and hybrid time, against sets of numbers and bytes written by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.errors import FrameMalformed, Invalid
from synckit_streams.model.clock import (
    COUNTER_MAX,
    WALL_MS_MAX,
    Dot,
    HybridTime,
    Key,
    Order,
    VersionVector,
    keys_bytes,
    keys_from_bytes,
)
from tests.model.strategies import COUNTERS, DOTS, KEYS, ORIGINS, VECTORS, damaged


def known(vector: VersionVector) -> set[Dot]:
    """The model of a version vector: every dot that its holder knew."""
    return {Dot(origin, seq) for origin, last in vector.items() for seq in range(1, last + 1)}


# ------------------------------------------------------------------------------------------------------ version vectors


@given(VECTORS, VECTORS)
def test_merge_knows_just_what_either_knew(ours: VersionVector, theirs: VersionVector) -> None:
    assert known(ours.merge(theirs)) == known(ours) | known(theirs)


@given(VECTORS, VECTORS, VECTORS)
def test_merge_is_the_least_upper_bound(a: VersionVector, b: VersionVector, c: VersionVector) -> None:
    """Commutative, associative, idempotent, above both, and below everything else that is above both."""
    merged = a.merge(b)
    assert merged == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    assert a.merge(VersionVector()) == a
    at_most = (Order.BEFORE, Order.EQUAL)
    assert a.compare(merged) in at_most
    assert b.compare(merged) in at_most
    if a.compare(c) in at_most and b.compare(c) in at_most:
        assert merged.compare(c) in at_most


@given(VECTORS, VECTORS)
def test_compare_says_which_one_knows_more(ours: VersionVector, theirs: VersionVector) -> None:
    """The order of the vectors is the inclusion of the sets, with CONCURRENT where neither includes the other."""
    left, right = known(ours), known(theirs)
    if left == right:
        expected = Order.EQUAL
    elif left < right:
        expected = Order.BEFORE
    elif left > right:
        expected = Order.AFTER
    else:
        expected = Order.CONCURRENT
    assert ours.compare(theirs) is expected
    mirror = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    assert theirs.compare(ours) is mirror.get(expected, expected)


@given(VECTORS, DOTS)
def test_covers_is_membership(vector: VersionVector, dot: Dot) -> None:
    assert vector.covers(dot) == (dot in known(vector))


@given(VECTORS, DOTS)
def test_with_dot_adds_the_event_and_what_its_origin_wrote_before(vector: VersionVector, dot: Dot) -> None:
    before = {Dot(dot.origin, seq) for seq in range(1, dot.seq + 1)}
    assert known(vector.with_dot(dot)) == known(vector) | before


@given(COUNTERS)
def test_an_origin_at_zero_is_an_origin_that_is_absent(counters: dict[str, int]) -> None:
    """So equal knowledge has equal vectors, hashes and bytes, in whatever order they were written."""
    vector = VersionVector(counters)
    same = VersionVector({origin: seq for origin, seq in reversed(counters.items()) if seq})
    assert vector == same
    assert hash(vector) == hash(same)
    assert vector.to_bytes() == same.to_bytes()
    assert 0 not in vector.values()


def test_a_vector_equals_no_other_type() -> None:
    assert VersionVector({"a": 1}) != {"a": 1}
    assert len({VersionVector({"a": 1}), VersionVector({"a": 1}), VersionVector()}) == 2


def test_the_canonical_bytes_are_these() -> None:
    """MessagePack by hand: arrays 0x92, strings 0xa0 | length, integers in their shortest form."""
    vector = VersionVector({"b": 1, "a": 300})
    assert vector.to_bytes() == b"\x92\x92\xa1a\xcd\x01\x2c\x92\xa1b\x01"
    assert VersionVector().to_bytes() == b""
    assert repr(vector) == "VersionVector({'a': 300, 'b': 1})"


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, COUNTER_MAX)))
def test_a_vector_survives_its_bytes(counters: dict[str, int]) -> None:
    vector = VersionVector(counters)
    assert VersionVector.from_bytes(vector.to_bytes()) == vector


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x92\x92\xa1b\x01\x92\xa1a\x01", id="not sorted"),
        pytest.param(b"\x91\x92\xa1a\x00", id="a zero"),
        pytest.param(b"\x90", id="empty, and not the empty string"),
        pytest.param(b"\x92\x92\xa1a\x01\x92\xa1a\x01", id="an origin twice"),
        pytest.param(b"\x91\x92\xa1a\xcc\x01", id="a number longer than needed"),
        pytest.param(b"\x91\x92\xd9\x01a\x01", id="a length longer than needed"),
        pytest.param(b"\xdc\x00\x01\x92\xa1a\x01", id="an array longer than needed"),
        pytest.param(b"\x91\x92\xa1a\x01\x00", id="a byte too many"),
        pytest.param(b"\x91\x92\xa1a", id="cut off"),
        pytest.param(b"\x91\x92\xa1a\xca\x3f\x80\x00\x00", id="a float"),
        pytest.param(b"\x91\x92\xa1\xff\x01", id="not UTF-8"),
        pytest.param(b"\x81\xa1a\x01", id="a map"),
        pytest.param(b"\x91" * 10_000, id="nested deep"),
    ],
)
def test_bytes_that_are_not_canonical_are_refused(raw: bytes) -> None:
    """Two spellings of one context would give one event two hashes."""
    with pytest.raises(FrameMalformed) as caught:
        VersionVector.from_bytes(raw)
    assert caught.value.code == "SK201"


@pytest.mark.parametrize("counter", [-1, 2**63, 2**64, 1.5, True, "1", None])
def test_a_counter_outside_63_bits_is_refused(counter: Any) -> None:
    with pytest.raises(Invalid) as caught:
        VersionVector({"a": counter})
    assert caught.value.code == "SK205"


def test_the_largest_counter_is_allowed_and_one_more_is_not() -> None:
    def encoded(seq: int) -> bytes:
        return msgspec.msgpack.encode([("a", seq)])

    assert VersionVector.from_bytes(encoded(2**63 - 1))["a"] == 2**63 - 1
    for seq in (2**63, 2**64 - 1, -1):
        with pytest.raises(Invalid):
            VersionVector.from_bytes(encoded(seq))


def test_an_origin_with_half_a_surrogate_pair_has_no_bytes() -> None:
    with pytest.raises(Invalid):
        VersionVector({"\ud800": 1}).to_bytes()


@given(st.data(), VECTORS.filter(bool))
def test_damaged_vectors_are_refused_or_are_other_vectors(data: st.DataObject, vector: VersionVector) -> None:
    raw = data.draw(damaged(vector.to_bytes()))
    with contextlib.suppress(FrameMalformed, Invalid):
        assert VersionVector.from_bytes(raw).to_bytes() == raw


# --------------------------------------------------------------------------------------------------------------- keys


def test_a_key_is_a_dot_in_a_topic() -> None:
    assert Key("orders", "till@1", 7).dot == Dot("till@1", 7)


@given(st.lists(KEYS, max_size=5))
def test_keys_survive_their_bytes_sorted_and_once(keys: list[Key]) -> None:
    assert keys_from_bytes(keys_bytes(keys)) == tuple(sorted(set(keys)))
    assert keys_bytes(reversed(keys)) == keys_bytes([*keys, *keys])


def test_the_canonical_bytes_of_keys_are_these() -> None:
    keys = [Key("t", "b", 2), Key("t", "a", 1), Key("t", "b", 2)]
    assert keys_bytes(keys) == b"\x92\x93\xa1t\xa1a\x01\x93\xa1t\xa1b\x02"
    assert keys_bytes([]) == b""
    assert keys_from_bytes(b"") == ()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x92\x93\xa1t\xa1b\x02\x93\xa1t\xa1a\x01", id="not sorted"),
        pytest.param(b"\x92\x93\xa1t\xa1a\x01\x93\xa1t\xa1a\x01", id="a key twice"),
        pytest.param(b"\x90", id="empty, and not the empty string"),
        pytest.param(b"\x91\x92\xa1t\x01", id="two parts"),
        pytest.param(b"\x91\x93\xa1t\xa1a\x01\xff", id="a byte too many"),
        pytest.param(b"\x91\x93\xa1t\xa1\xff\x01", id="not UTF-8"),
    ],
)
def test_keys_that_are_not_canonical_are_refused(raw: bytes) -> None:
    with pytest.raises(FrameMalformed):
        keys_from_bytes(raw)


@pytest.mark.parametrize("seq", [0, -1, 2**63, 2**64 - 1])
def test_a_cause_that_can_never_arrive_is_refused(seq: int) -> None:
    """Whoever waited for event 0 of an origin would wait for ever."""
    with pytest.raises(Invalid):
        keys_from_bytes(msgspec.msgpack.encode([("t", "a", seq)]))


@pytest.mark.parametrize("key", [Key("t", "a", 2**64), Key("\ud800", "a", 1)])
def test_a_key_that_has_no_bytes_is_a_clear_error(key: Key) -> None:
    with pytest.raises(Invalid):
        keys_bytes([key])


@given(st.data(), st.lists(KEYS, min_size=1, max_size=3))
def test_damaged_keys_are_refused_or_are_other_keys(data: st.DataObject, keys: list[Key]) -> None:
    raw = data.draw(damaged(keys_bytes(keys)))
    with contextlib.suppress(FrameMalformed, Invalid):
        assert keys_bytes(keys_from_bytes(raw)) == raw


# -------------------------------------------------------------------------------------------------------- hybrid time

TIMES = st.builds(HybridTime, st.integers(0, WALL_MS_MAX), st.integers(0, 2**16 - 1))


@given(TIMES, TIMES)
def test_packed_times_sort_as_times_do(one: HybridTime, other: HybridTime) -> None:
    assert (one.packed < other.packed) == (one < other)
    assert (one.packed == other.packed) == (one == other)


@given(TIMES)
def test_a_time_survives_packing(time: HybridTime) -> None:
    assert HybridTime.from_packed(time.packed) == time


def test_a_packed_time_is_the_wall_time_and_16_bits() -> None:
    assert HybridTime(1, 2).packed == 65_538
    assert HybridTime(WALL_MS_MAX, 65_535).packed == COUNTER_MAX


@pytest.mark.parametrize(
    "time", [HybridTime(-1, 0), HybridTime(0, -1), HybridTime(0, 2**16), HybridTime(WALL_MS_MAX + 1, 0)]
)
def test_a_time_that_does_not_fit_is_refused_and_not_mixed_up(time: HybridTime) -> None:
    """A counter of 2^16 would run into the wall time and equal another time."""
    with pytest.raises(Invalid):
        _ = time.packed


@pytest.mark.parametrize("packed", [-1, 2**63, 2**64])
def test_a_packed_time_outside_63_bits_is_refused(packed: int) -> None:
    with pytest.raises(Invalid):
        HybridTime.from_packed(packed)


def test_the_edges_of_numbers_are_allowed() -> None:
    assert HybridTime.from_packed(0) == HybridTime(0, 0)
    assert HybridTime.from_packed(COUNTER_MAX) == HybridTime(WALL_MS_MAX, 65_535)
    keys = (Key("t", "a", 1), Key("t", "a", COUNTER_MAX))
    assert keys_from_bytes(keys_bytes(keys)) == keys


def test_the_next_packed_time_carries_into_the_next_millisecond() -> None:
    assert HybridTime.from_packed(HybridTime(5, 65_535).packed + 1) == HybridTime(6, 0)


# --------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("compare", [lambda a, b: a < b, lambda a, b: a + b, lambda a, b: -a])
def test_an_order_is_never_a_number(compare: Callable[[Any, Any], Any]) -> None:
    """CONCURRENT has no place on a line, so nothing may sort by it."""
    with pytest.raises(TypeError):
        compare(Order.BEFORE, Order.AFTER)


@given(ORIGINS, st.integers(1, 9))
def test_dots_of_two_origins_are_not_in_each_others_vectors(origin: str, seq: int) -> None:
    """Numbers mean something within an origin only."""
    assert not VersionVector({origin: seq}).covers(Dot(origin + "!", 1))
