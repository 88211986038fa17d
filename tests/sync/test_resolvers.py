"""Resolvers are pure functions of the set of events: no order of arrival, no replica and no repetition changes them."""

from __future__ import annotations

import json
import math
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.errors import ConfigError
from synckit_streams.model.clock import Dot, HybridTime
from synckit_streams.model.event import Event
from synckit_streams.sync.conflict import ConflictResolver, Decision, Resolution, conflict_of, resolve
from synckit_streams.sync.resolvers import AdditiveMerge, FirstWriteWins, LastWriteWins
from tests.sync.histories import AGGREGATE, TOPIC, History, event, histories

MERGE = AdditiveMerge({"qty": "sum", "tags": "union"})
ALL: list[ConflictResolver] = [LastWriteWins(), FirstWriteWins(), MERGE]
EACH = pytest.mark.parametrize("resolver", ALL, ids=lambda resolver: resolver.name)


def ask(resolver: ConflictResolver, *events: Event) -> Resolution:
    return resolve(resolver, conflict_of(TOPIC, AGGREGATE, events))


def written(origin: str, wall_ms: int, data: Any, *, id: str = "", seq: int = 1, read: tuple[Event, ...] = ()) -> Event:
    at = HybridTime(wall_ms, 0)
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return event(origin, seq, read=frozenset(each.dot for each in read), at=at, data=raw, id=id, prev=seq - 1)


@EACH
@given(history=histories(twins=True), dice=st.randoms(use_true_random=False))
def test_the_order_of_arrival_changes_nothing(
    resolver: ConflictResolver, history: History, dice: random.Random
) -> None:
    """Permuted events give the same winner, data and heads."""
    shuffled = list(history.events)
    dice.shuffle(shuffled)
    assert ask(resolver, *history.events) == ask(resolver, *shuffled)


@EACH
@given(history=histories(), which=st.integers(0, 100))
def test_a_twin_changes_nothing(resolver: ConflictResolver, history: History, which: int) -> None:
    """A second node that wrote the same fact, later by its clock, adds nothing to the answer."""
    original = history.events[which % len(history.events)]
    twin = event(
        "zoe@9", 1, read=history.read[original.dot], at=HybridTime(8_000, 0), data=original.payload, id=original.id
    )
    one, other = ask(resolver, *history.events), ask(resolver, *history.events, twin)
    assert (one.winner, one.data, one.heads) == (other.winner, other.data, other.heads)


@EACH
@given(history=histories())
def test_the_winner_is_a_head(resolver: ConflictResolver, history: History) -> None:
    """What nobody has seen overwritten stands; an answer never resurrects what somebody replaced."""
    answer = ask(resolver, *history.events)
    assert {head.dot for head in answer.heads} == history.maximal()
    if answer.decision is not Decision.MERGE and resolver is not MERGE:
        assert answer.winner in answer.heads
        assert answer.winner is not None
        assert answer.data == answer.winner.data


@given(history=histories())
def test_last_write_wins_takes_the_greatest_head(history: History) -> None:
    """By (hybrid time, origin, number)."""
    maximal = [each for each in history.events if each.dot in history.maximal()]
    assert ask(LastWriteWins(), *history.events).winner == max(maximal, key=lambda each: each.canonical_order)


@given(history=histories())
def test_first_write_wins_takes_the_greatest_head_that_descends_from_the_first_root(history: History) -> None:
    """Against who really had read what."""
    roots = [each for each in history.events if not history.read[each.dot]]
    first = min(roots, key=lambda each: each.canonical_order)
    maximal = history.maximal()
    heirs = [each for each in history.events if each.dot in maximal and history.descends(each.dot, first.dot)]
    assert ask(FirstWriteWins(), *history.events).winner == max(heirs, key=lambda each: each.canonical_order)


def test_ties_break_by_origin_whoever_asks() -> None:
    """Two writes in the same instant: "prefer the remote one" would make two replicas swap values for ever."""
    ann, bob = written("ann@1", 5, 1), written("bob@2", 5, 2)
    assert ask(LastWriteWins(), ann, bob).winner == ask(LastWriteWins(), bob, ann).winner == bob
    assert ask(FirstWriteWins(), ann, bob).winner == ask(FirstWriteWins(), bob, ann).winner == ann


def test_first_write_wins_is_judged_over_roots() -> None:
    """The counter-example: over heads, the first write would lose its place as soon as it is updated."""
    first, second = written("ann@1", 1, "first"), written("bob@2", 2, "second")
    assert ask(FirstWriteWins(), first, second).data == "first"
    update = written("ann@1", 9, "first, put right", seq=2, read=(first,))
    answer = ask(FirstWriteWins(), first, second, update)
    assert answer.data == "first, put right"
    assert any("provisional" in reason for reason in answer.reasons)


def test_first_write_wins_counts_a_copy_of_the_first_write_as_the_first_write() -> None:
    """The same fact written on two nodes, and updated on the second one: the update descends from the first write."""
    one, copy = written("ann@1", 1, "fact", id="f"), written("bob@2", 2, "fact", id="f")
    other = written("cyd@3", 3, "other")
    update = written("bob@2", 4, "update", seq=2, read=(copy,))
    late = written("cyd@3", 9, "late", seq=2, read=(other,))
    answer = ask(FirstWriteWins(), one, copy, other, update, late)
    assert [head.data for head in answer.heads] == ["update", "late"]
    assert answer.data == "update"


def test_first_write_wins_is_quick_on_a_long_history() -> None:
    """Five thousand changes of one aggregate, one after the other and beside one another."""
    events: list[Event] = []
    last: dict[str, Event] = {}
    for number in range(5_000):
        origin = f"w{number % 5}@1"
        read = tuple(last.values()) if number % 3 else (last[origin],) if origin in last else ()
        last[origin] = written(origin, number + 1, number, seq=number // 5 + 1, read=read)
        events.append(last[origin])
    assert ask(FirstWriteWins(), *events).winner in ask(LastWriteWins(), *events).heads


def test_a_single_head_needs_no_decision() -> None:
    """One writer after another: the last one, and NOOP."""
    first = written("ann@1", 1, {"n": 1})
    last = written("bob@2", 2, {"n": 2}, read=(first,))
    for resolver in (LastWriteWins(), FirstWriteWins()):
        answer = ask(resolver, first, last)
        assert (answer.winner, answer.data, answer.decision) == (last, {"n": 2}, Decision.NOOP)


def test_an_undecodable_payload_can_win_and_has_no_data() -> None:
    """It is an event like any other; folds pass it over."""
    bad = written("bob@2", 9, b"\xff{")
    good = written("ann@1", 1, {"qty": 4})
    answer = ask(LastWriteWins(), bad, good)
    assert answer.winner == bad
    assert answer.data is None
    assert ask(MERGE, bad, good).data == {"qty": 4}


class TestAdditiveMerge:
    """Adds what everybody wrote, each id once."""

    def test_every_event_counts_not_only_the_heads(self) -> None:
        """Three deliveries on one shelf, the second after the first."""
        first = written("ann@1", 1, {"qty": 5, "tags": ["cold"], "note": "a"})
        second = written("ann@1", 2, {"qty": 3, "note": "b"}, seq=2, read=(first,))
        beside = written("bob@2", 3, {"qty": -1, "tags": ["fragile", "cold"]})
        answer = ask(MERGE, beside, second, first)
        assert answer.data == {"qty": 7, "tags": ["cold", "fragile"], "note": "b"}
        assert answer.decision is Decision.MERGE
        assert answer.winner is None

    def test_one_head_is_folded_all_the_same(self) -> None:
        """Resolving goes through the resolver also when nothing has to be decided."""
        first = written("ann@1", 1, {"qty": 5})
        assert ask(MERGE, first, written("ann@1", 2, {"qty": 3}, seq=2, read=(first,))).data == {"qty": 8}

    def test_one_event_is_no_merge(self) -> None:
        """Its data stands, without repeats."""
        answer = ask(MERGE, written("ann@1", 1, {"qty": 5, "tags": ["a", "a"]}))
        assert answer.data == {"qty": 5, "tags": ["a"]}
        assert answer.decision is Decision.NOOP

    def test_each_id_counts_once(self) -> None:
        """A delivery that two tills booked under one id is one delivery; with other content, the first one."""
        one = written("ann@1", 1, {"qty": 5}, id="delivery-7")
        copy = written("bob@2", 2, {"qty": 5}, id="delivery-7")
        other = written("cyd@3", 3, {"qty": 6}, id="delivery-7")
        assert ask(MERGE, one, copy).data == {"qty": 5}
        assert ask(MERGE, other, copy, one).data == {"qty": 5}

    def test_union_keeps_the_order_of_first_appearance(self) -> None:
        """By the events' own order, whichever came first here; equal as JSON means equal."""
        one = written("ann@1", 1, {"tags": ["b", 1, True]})
        other = written("bob@2", 2, {"tags": ["a", 1.0, "b", {"x": 1, "y": 2}]})
        third = written("cyd@3", 3, {"tags": {"y": 2, "x": 1}})
        assert [repr(tag) for tag in ask(MERGE, third, other, one).data["tags"]] == [
            "'b'", "1", "True", "'a'", "1.0", "{'x': 1, 'y': 2}"
        ]  # fmt: skip

    def test_nested_values_are_told_apart_as_json_does(self) -> None:
        """[1] and [true] are two items, though Python calls them equal."""
        assert ask(MERGE, written("ann@1", 1, {"tags": [[1], [True]]})).data == {"tags": [[1], [True]]}

    @given(st.lists(st.integers(-(2**70), 2**70), min_size=2, max_size=12))
    def test_integers_are_added_exactly(self, numbers: list[int]) -> None:
        """Of any size: no float is involved."""
        events = [written(f"w{at}@1", at + 1, {"qty": number}) for at, number in enumerate(numbers)]
        assert ask(MERGE, *events).data["qty"] == sum(numbers)

    @given(
        st.lists(
            st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False)),
            min_size=2,
            max_size=12,
        ),
        st.randoms(use_true_random=False),
    )
    def test_with_a_float_among_them_the_exact_sum_is_rounded_once(
        self, numbers: list[int | float], dice: random.Random
    ) -> None:
        """So that every replica gets the same bits, in whatever order it adds."""
        events = [written(f"w{at}@1", dice.randint(1, 99), {"qty": number}) for at, number in enumerate(numbers)]
        total = ask(MERGE, *events).data["qty"]
        exact = sum(Fraction(number) for number in numbers)
        if all(isinstance(number, int) for number in numbers):
            assert total == exact
            return
        try:
            expected: float | int = float(exact)
        except OverflowError:
            expected = int(exact)
        assert total == expected

    def test_a_running_total_would_be_another_one(self) -> None:
        """The reason for fsum: added one after the other, these give 0.0 or 1.0, by their order."""
        numbers = [1e16, 1.0, -1e16]
        assert sum(numbers) == 0.0
        assert math.fsum(numbers) == 1.0
        events = [written(f"w{at}@1", at + 1, {"qty": number}) for at, number in enumerate(numbers)]
        assert ask(MERGE, *events).data["qty"] == 1.0

    def test_what_is_not_a_number_is_not_added(self) -> None:
        """Text and booleans have no sum."""
        events = [written(f"w{at}@1", at + 1, {"qty": value}) for at, value in enumerate([2, True, "7", None, 3])]
        assert ask(MERGE, *events).data == {"qty": 5}

    def test_its_name_says_what_it_folds(self) -> None:
        """Replicas that fold other fields must notice, and the name is what travels in digests."""
        assert AdditiveMerge({"a": "sum", "b": "union"}).name == AdditiveMerge({"b": "union", "a": "sum"}).name
        assert AdditiveMerge({"a": "sum"}).name != AdditiveMerge({"a": "union"}).name

    @pytest.mark.parametrize("fields", [{}, {"qty": "max"}])
    def test_it_is_told_what_to_do(self, fields: dict[str, str]) -> None:
        """A kind that is not known, or nothing to fold, is an error when it is made."""
        with pytest.raises(ConfigError):
            AdditiveMerge(fields)


@given(history=histories(), unseen=st.sets(st.integers(0, 13)))
def test_a_replica_that_lacks_events_agrees_once_it_has_them(history: History, unseen: set[int]) -> None:
    """Nothing of an earlier answer stays: what was resolved on the way does not matter."""
    partial = [each for at, each in enumerate(history.events) if at not in unseen]
    known = {each.dot for each in partial}
    # A store releases an event only after its causes.
    partial = [each for each in partial if history.read[each.dot] <= known]
    for resolver in ALL:
        if partial:
            ask(resolver, *partial)
        assert ask(resolver, *partial, *[each for each in history.events if each not in partial]) == ask(
            resolver, *history.events
        )
    assert all(isinstance(dot, Dot) for dot in history.maximal())
