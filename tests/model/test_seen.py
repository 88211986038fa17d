"""Seen is a set of dots: every operation, against Python's sets."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.errors import Invalid
from synckit_streams.model import seen as intervals_of
from synckit_streams.model.clock import COUNTER_MAX, Dot, Key
from synckit_streams.model.seen import Interval, Intervals, Seen, add_interval
from tests.model.strategies import DOTS, ORIGINS

SETS = st.frozensets(DOTS, max_size=30)


def well_formed(seen: Seen) -> bool:
    """Each origin has intervals; they ascend from 1, and between two of them at least one number is missing."""
    return all(
        intervals
        and intervals[0][0] >= 1
        and all(first <= last for first, last in intervals)
        and all(left[1] + 1 < right[0] for left, right in pairwise(intervals))
        for intervals in seen.ranges.values()
    )


def agrees(seen: Seen, model: set[Dot] | frozenset[Dot]) -> bool:
    """Whether a Seen is well formed and holds just the model's dots, asked in every way there is."""
    everywhere = {Dot(origin, seq) for origin in ("till-1@a", "till-2@b", "till-3@c~0123abcd") for seq in range(15)}
    return (
        well_formed(seen)
        and set(seen) == model
        and len(seen) == len(model)
        and bool(seen) == bool(model)
        and {dot for dot in everywhere if dot in seen} == model
    )


@given(SETS)
def test_it_holds_just_what_it_was_given(model: frozenset[Dot]) -> None:
    assert agrees(Seen.of(model), model)
    assert agrees(Seen(), set())


@given(st.lists(DOTS, max_size=30))
def test_dots_may_come_in_any_order_and_any_number_of_times(dots: list[Dot]) -> None:
    """One at a time or all at once, forwards or backwards: equal sets are equal values."""
    slowly = Seen()
    for origin, seq in dots:
        slowly = slowly.with_ranges({origin: ((seq, seq),)})
        assert well_formed(slowly)
    at_once = Seen.of(reversed(dots))
    assert slowly == at_once
    assert hash(slowly) == hash(at_once)
    assert agrees(slowly, set(dots))


@given(SETS, SETS)
def test_union_is_union(ours: frozenset[Dot], theirs: frozenset[Dot]) -> None:
    assert agrees(Seen.of(ours).union(Seen.of(theirs)), ours | theirs)


@given(SETS, SETS)
def test_minus_is_difference(ours: frozenset[Dot], theirs: frozenset[Dot]) -> None:
    assert agrees(Seen.of(ours).minus(Seen.of(theirs)), ours - theirs)


@given(SETS, SETS)
def test_covers_is_inclusion(ours: frozenset[Dot], theirs: frozenset[Dot]) -> None:
    assert Seen.of(ours).covers(Seen.of(theirs)) == (ours >= theirs)
    assert Seen.of(ours).covers(Seen.of(ours & theirs))


@given(SETS)
def test_gaps_are_what_is_missing_below_the_highest(model: frozenset[Dot]) -> None:
    highest: dict[str, int] = {}
    for origin, seq in model:
        highest[origin] = max(seq, highest.get(origin, 0))
    below = {Dot(origin, seq) for origin, last in highest.items() for seq in range(1, last)}
    assert agrees(Seen.of(model).gaps(), below - model)


@given(SETS, ORIGINS)
def test_the_mark_is_the_end_of_the_unbroken_run_from_one(model: frozenset[Dot], origin: str) -> None:
    mark = 0
    while Dot(origin, mark + 1) in model:
        mark += 1
    assert Seen.of(model).mark(origin) == mark


@given(SETS, st.integers(0, 10))
def test_rounding_claims_less_and_never_more(model: frozenset[Dot], intervals_max: int) -> None:
    """A summary that claimed an event which is not here would keep it away for ever."""
    seen = Seen.of(model)
    rounded = seen.rounded(intervals_max)
    assert well_formed(rounded)
    assert rounded.intervals_count() <= intervals_max
    assert set(rounded) <= model
    if seen.intervals_count() <= intervals_max:
        assert rounded == seen
    else:
        assert rounded.intervals_count() == intervals_max
    for origin, intervals in rounded.ranges.items():
        assert intervals == seen.ranges[origin][: len(intervals)]


def test_rounding_keeps_the_contiguous_marks_as_long_as_it_can() -> None:
    seen = Seen({"a": ((1, 5), (7, 7), (9, 9), (11, 11)), "b": ((1, 2),), "c": ((3, 4), (8, 8))})
    assert seen.rounded(4) == Seen({"a": ((1, 5),), "b": ((1, 2),), "c": ((3, 4), (8, 8))})
    assert seen.rounded(3) == Seen({"a": ((1, 5),), "b": ((1, 2),), "c": ((3, 4),)})


@given(SETS, st.integers(-1, 40))
def test_the_head_is_the_first_dots_in_order(model: frozenset[Dot], limit: int) -> None:
    assert agrees(Seen.of(model).head(limit), set(sorted(model)[: max(limit, 0)]))


@given(SETS, st.integers(1, 7))
def test_pages_of_heads_make_up_the_whole(model: frozenset[Dot], limit: int) -> None:
    rest, pages = Seen.of(model), Seen()
    while rest:
        page = rest.head(limit)
        assert 1 <= len(page) <= limit
        pages, rest = pages.union(page), rest.minus(page)
    assert pages == Seen.of(model)


@given(SETS)
def test_a_set_survives_the_wire(model: frozenset[Dot]) -> None:
    seen = Seen.of(model)
    assert Seen.from_wire(seen.to_wire()) == seen


def test_the_wire_form_is_pairs_of_ends() -> None:
    assert Seen.of([("a", 1), ("a", 2), ("a", 5), ("b", 3)]).to_wire() == {"a": [1, 2, 5, 5], "b": [3, 3]}


@pytest.mark.parametrize(
    "flat",
    [
        pytest.param([], id="no interval"),
        pytest.param([1], id="half an interval"),
        pytest.param([1, 2, 4], id="one and a half"),
        pytest.param([0, 2], id="from zero"),
        pytest.param([-3, 2], id="negative"),
        pytest.param([3, 2], id="backwards"),
        pytest.param([1, 4, 3, 6], id="overlapping"),
        pytest.param([1, 2, 3, 4], id="touching"),
        pytest.param([5, 6, 1, 2], id="descending"),
        pytest.param([1, 2**63], id="beyond 63 bits"),
        pytest.param([2**64, 2**64], id="beyond 64 bits"),
        pytest.param([1, "2"], id="text"),
        pytest.param([1.0, 2.0], id="floats"),
        pytest.param([True, 2], id="a boolean"),
        pytest.param("12", id="no list"),
        pytest.param(None, id="null"),
    ],
)
def test_intervals_of_a_peer_that_are_not_canonical_are_refused(flat: Any) -> None:
    with pytest.raises(Invalid) as caught:
        Seen.from_wire({"a": flat})
    assert caught.value.code == "SK205"


def test_the_largest_number_is_allowed() -> None:
    seen = Seen.from_wire({"a": [1, COUNTER_MAX]})
    assert Dot("a", COUNTER_MAX) in seen
    assert Dot("a", COUNTER_MAX + 1) not in seen
    assert seen.minus(Seen.of([("a", 7)])).ranges == {"a": ((1, 6), (8, COUNTER_MAX))}
    assert len(Seen.of([("a", COUNTER_MAX)])) == 1


@pytest.mark.parametrize("seq", [0, -1, 2**63])
def test_a_number_that_no_event_has_is_refused(seq: int) -> None:
    with pytest.raises(Invalid):
        Seen.of([("a", seq)])


def test_a_key_is_not_taken_for_a_dot() -> None:
    """Its topic would be looked up as if it were an origin."""
    seen = Seen.of([("orders", 1)])
    assert Dot("orders", 1) in seen
    assert Key("orders", "till", 1) not in seen
    assert "orders" not in seen
    assert seen != {"orders": ((1, 1),)}


@given(SETS)
def test_an_origin_without_intervals_is_not_there(model: frozenset[Dot]) -> None:
    seen = Seen.of(model)
    empty: dict[str, Intervals] = {"nobody": ()}
    assert seen.with_ranges(empty) == seen
    assert agrees(seen.with_ranges(empty).gaps(), set(seen.gaps()))


@given(SETS, SETS)
def test_no_operation_changes_its_operands(ours: frozenset[Dot], theirs: frozenset[Dot]) -> None:
    seen, other = Seen.of(ours), Seen.of(theirs)
    seen.union(other), seen.minus(other), seen.gaps(), seen.rounded(1), seen.head(1), seen.covers(other)
    assert agrees(seen, ours)
    assert agrees(other, theirs)


# ------------------------------------------------------------------------------------------- intervals of one origin

NUMBERS = st.frozensets(st.integers(1, 40), max_size=30)


def intervals_from(numbers: frozenset[int]) -> Intervals:
    """Runs of consecutive numbers, found the slow way."""
    runs: list[Interval] = []
    for number in sorted(numbers):
        if number - 1 not in numbers:
            last = number
            while last + 1 in numbers:
                last += 1
            runs.append((number, last))
    return tuple(runs)


@given(NUMBERS, NUMBERS)
def test_intervals_obey_the_laws_of_sets(ours: frozenset[int], theirs: frozenset[int]) -> None:
    left, right = intervals_from(ours), intervals_from(theirs)
    assert intervals_of.union(left, right) == intervals_from(ours | theirs)
    assert intervals_of.minus(left, right) == intervals_from(ours - theirs)
    assert intervals_of.count(left) == len(ours)
    assert {number for number in range(-1, 45) if intervals_of.contains(left, number)} == ours


@given(NUMBERS, st.integers(1, 40), st.integers(0, 12))
def test_an_added_interval_joins_what_it_touches(numbers: frozenset[int], first: int, length: int) -> None:
    added = frozenset(range(first, first + length + 1))
    assert add_interval(intervals_from(numbers), first, first + length) == intervals_from(numbers | added)


def test_the_next_number_extends_the_last_interval_and_touches_no_other() -> None:
    assert add_interval(((1, 2), (5, 6)), 7, 7) == ((1, 2), (5, 7))
    assert add_interval(((1, 2), (5, 6)), 8, 9) == ((1, 2), (5, 6), (8, 9))
    assert add_interval(((1, 2), (5, 6)), 3, 4) == ((1, 6),)


def test_its_text_shows_the_runs() -> None:
    seen = Seen.of([("b", 1), ("a", 1), ("a", 2), ("a", 4)])
    assert repr(seen) == "Seen(a: 1..2 4, b: 1)"
