"""Conflicts are what the contexts say: the heads, against who really had read what."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.errors import HandlerError
from synckit_streams.model.clock import Dot, HybridTime
from synckit_streams.sync.conflict import Conflict, Decision, Resolution, conflict_of, heads, resolve
from synckit_streams.sync.resolvers import LastWriteWins
from tests.sync.histories import AGGREGATE, TOPIC, History, event, histories

START = HybridTime(1_000, 0)
ROOT = event("ann@1", 1, read=frozenset(), at=START)


@given(histories())
def test_heads_are_the_events_after_which_nobody_wrote(history: History) -> None:
    """The merged contexts find exactly the maximal events of the transitive closure."""
    assert {each.dot for each in heads(history.events)} == history.maximal()


@given(histories(twins=True), st.randoms(use_true_random=False))
def test_a_conflict_does_not_depend_on_the_order_of_arrival(history: History, dice: random.Random) -> None:
    """Replicas that hold the same events see the same conflict, in the same order."""
    shuffled = list(history.events)
    dice.shuffle(shuffled)
    one, other = conflict_of(TOPIC, AGGREGATE, history.events), conflict_of(TOPIC, AGGREGATE, shuffled)
    assert one == other
    assert list(one.events) == sorted(one.events, key=lambda each: each.canonical_order)


@given(histories(twins=True))
def test_a_fact_written_twice_counts_once_and_is_known_to_whoever_knew_a_copy(history: History) -> None:
    """Each (id, content) is there once.

    It is a head if a copy is maximal, and nobody wrote after any copy of it, unless it overwrote that one elsewhere.
    """
    conflict = conflict_of(TOPIC, AGGREGATE, history.events)
    facts: dict[tuple[str, bytes], set[Dot]] = {}
    for each in history.events:
        facts.setdefault((each.id, each.payload), set()).add(each.dot)
    assert len(conflict.events) == len(facts)
    assert sum(len(copies) for copies in conflict.copies.values()) == len(history.events) - len(facts)
    # The closure of "somebody wrote it who had read a copy of that".
    after = {
        (one, other)
        for one, dots in facts.items()
        for other, others in facts.items()
        if any(history.read[dot] & others for dot in dots)
    }
    for middle in facts:
        after |= {(one, other) for one in facts for other in facts if {(one, middle), (middle, other)} <= after}
    maximal = history.maximal()
    standing = [fact for fact, dots in facts.items() if dots & maximal]
    expected = {
        fact
        for fact in standing
        if not any((other, fact) in after and (fact, other) not in after for other in standing)
    }
    assert expected
    assert {(head.id, head.payload) for head in conflict.heads} == expected


@given(histories(twins=True))
def test_writing_with_a_resolution_s_context_settles_the_conflict(history: History) -> None:
    """Whoever writes what follows from `resolve()` leaves one head: his own event."""
    conflict = conflict_of(TOPIC, AGGREGATE, history.events)
    context = resolve(LastWriteWins(), conflict).context
    at = HybridTime(9_000, 0)
    answer = event("dan@4", 1, read=frozenset(Dot(origin, seq) for origin, seq in context.items()), at=at)
    after = conflict_of(TOPIC, AGGREGATE, [*history.events, answer])
    assert [head.dot for head in after.heads] == [answer.dot]


def test_two_events_of_one_origin_can_be_concurrent() -> None:
    """Who read, was overtaken by a sync on his own node, and saved: his save did not know what came."""
    came = event("bob@2", 1, read=frozenset({ROOT.dot}), at=HybridTime(1_001, 0))
    told = event("ann@1", 2, read=frozenset({ROOT.dot, came.dot}), at=HybridTime(1_002, 0), prev=1)
    saved = event("ann@1", 3, read=frozenset({ROOT.dot}), at=HybridTime(1_003, 0), prev=2)
    assert [head.dot for head in heads([ROOT, came, told, saved])] == [told.dot, saved.dot]


def test_the_same_id_with_other_content_is_a_conflict() -> None:
    """Two nodes gave one id to two facts while offline: none of them is dropped."""
    one = event("ann@1", 1, read=frozenset(), at=START, data=b"1", id="x")
    other = event("bob@2", 1, read=frozenset(), at=START, data=b"2", id="x")
    conflict = conflict_of(TOPIC, AGGREGATE, [one, other])
    assert conflict.events == conflict.heads == (one, other)
    assert not conflict.copies


def test_an_aggregate_without_events_resolves_to_nothing() -> None:
    """No resolver is asked about nothing."""
    answer = resolve(LastWriteWins(), conflict_of(TOPIC, AGGREGATE, []))
    assert answer == Resolution(None, None, (), Decision.NOOP, ("no event",))
    assert not answer.context


class Raises:
    """A resolver with a defect."""

    name = "raises"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        raise KeyError("total")


class SaysNothing(Raises):
    """Another defect."""

    name = "says-nothing"

    def resolve(self, conflict: Conflict) -> Resolution:
        return None  # type: ignore[return-value]


@pytest.mark.parametrize("resolver", [Raises(), SaysNothing()], ids=lambda resolver: resolver.name)
def test_a_resolver_that_fails_is_named(resolver: Raises) -> None:
    """The user's defect is a HandlerError that names the resolver, with the cause chained."""
    with pytest.raises(HandlerError, match=resolver.name) as raised:
        resolve(resolver, conflict_of(TOPIC, AGGREGATE, [ROOT]))
    assert resolver.name != "raises" or isinstance(raised.value.__cause__, KeyError)
