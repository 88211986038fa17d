"""What a conflict is: an aggregate with more than one head. It is answered when somebody reads it.

A resolver is a pure function of the aggregate's *set* of events, so every replica that holds the same events gives the
same answer, whatever the order in which they came. The answer is derived and never appended: appended resolutions would
conflict again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import msgspec

from synckit_streams.errors import HandlerError
from synckit_streams.model.clock import Dot, VersionVector
from synckit_streams.model.codec import event_content_hash
from synckit_streams.model.event import Event


class Decision(StrEnum):
    """How a resolution came about."""

    NOOP = "noop"
    """Nothing had to be decided: no event, or one head."""
    KEEP = "keep"
    """One head's data stands for the aggregate."""
    MERGE = "merge"
    """The data was computed from several events."""


class Conflict(msgspec.Struct, frozen=True):
    """What a resolver sees. Both tuples are in canonical order (hybrid time, origin, seq).

    Args:
        topic: Of the aggregate.
        aggregate_id: Which one.
        events: Every event of the aggregate, each fact once: what two nodes wrote under one id *and* alike is one fact.
        heads: The maximal ones among them; two or more are a conflict.
        copies: The events that were left out, under the dot of the one that stands for them. For resolvers that follow
            causes: a context may cover either.
    """

    topic: str
    aggregate_id: str
    events: tuple[Event, ...]
    heads: tuple[Event, ...]
    copies: Mapping[Dot, tuple[Event, ...]] = {}


class Resolution(msgspec.Struct, frozen=True):
    """What an aggregate resolves to.

    Args:
        winner: The event whose data stands, or None when the data was computed or there is no event.
        data: What the aggregate's state is; None if there is no event.
        heads: The aggregate's maximal events.
        decision: How.
        reasons: Why, for people.
    """

    winner: Event | None
    data: Any
    heads: tuple[Event, ...] = ()
    decision: Decision = Decision.NOOP
    reasons: tuple[str, ...] = ()

    @property
    def context(self) -> VersionVector:
        """Everything that this resolution has seen: pass it as `Draft.context` when writing what follows from it."""
        vector = VersionVector()
        for head in self.heads:
            vector = vector.merge(head.context).with_dot(head.dot)
        return vector


@runtime_checkable
class ConflictResolver(Protocol):
    """A pure function of an aggregate's events; the order of heads is irrelevant, and no clock or dice are looked at.

    Attributes:
        name: Travels in digests, so that replicas that resolve differently notice.
        version: Raised when the rule changes.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    def resolve(self, conflict: Conflict) -> Resolution:
        """The answer, also when there is one head."""


def heads(events: Iterable[Event]) -> tuple[Event, ...]:
    """The maximal events, in canonical order: those that no other event's context covers."""
    found = list(events)
    covered: dict[str, int] = {}
    for event in found:
        _learn(covered, event)
    # An event's own context never covers itself, so one merged vector serves for all.
    left = [event for event in found if covered.get(event.origin, 0) < event.seq]
    return tuple(sorted(left, key=lambda event: event.canonical_order))


def _learn(vector: dict[str, int], event: Event) -> None:
    """Add what the writer of an event knew."""
    if event.context_bytes:
        for origin, seq in event.context.items():
            if seq > vector.get(origin, 0):
                vector[origin] = seq


def conflict_of(topic: str, aggregate_id: str, events: Sequence[Event]) -> Conflict:
    """The aggregate as a resolver sees it. A fact that two nodes wrote under one id and alike counts once.

    Whoever knew one copy of a fact knew the fact. So a fact that stands at the end of the history as one copy and was
    overwritten as another one is not maximal, unless each was written after the other somewhere.
    """
    ordered = sorted(events, key=lambda event: event.canonical_order)
    maximal = heads(ordered)
    times = Counter(event.id for event in ordered)
    if len(times) == len(ordered):
        return Conflict(topic, aggregate_id, tuple(ordered), maximal)
    facts: dict[tuple[str, bytes], list[Event]] = {}
    kept: list[Event] = []
    stands: dict[Dot, Dot] = {}
    for event in ordered:
        fact = [event]
        if times[event.id] > 1:
            fact = facts.setdefault((event.id, event_content_hash(event)), [])
            fact.append(event)
        stands[event.dot] = fact[0].dot
        if len(fact) == 1:
            kept.append(event)
    copied = [fact for fact in facts.values() if len(fact) > 1]
    standing = {stands[event.dot]: event for event in maximal}
    knows = {dot: _known(facts_of, copied) for dot, facts_of in _written(standing, copied).items()} if copied else {}
    left = {
        dot
        for dot in standing
        if not any(dot in theirs and other not in knows[dot] for other, theirs in knows.items() if other != dot)
    }
    return Conflict(
        topic,
        aggregate_id,
        tuple(kept),
        tuple(event for event in kept if event.dot in left),
        {fact[0].dot: tuple(fact[1:]) for fact in copied},
    )


def _written(standing: Mapping[Dot, Event], copied: Sequence[Sequence[Event]]) -> dict[Dot, Sequence[Event]]:
    """For each fact that stands at the end, all its copies."""
    copies = {fact[0].dot: fact for fact in copied}
    return {dot: copies.get(dot, (event,)) for dot, event in standing.items()}


def _known(fact: Sequence[Event], copied: Sequence[Sequence[Event]]) -> set[Dot]:
    """Which of the copied facts were known, under whatever dot, to those who wrote this one."""
    vector: dict[str, int] = {}
    for copy in fact:
        _learn(vector, copy)
    known: set[Dot] = set()
    grows = True
    while grows:
        grows = False
        for other in copied:
            if other[0].dot not in known and any(vector.get(copy.origin, 0) >= copy.seq for copy in other):
                known.add(other[0].dot)
                for copy in other:
                    _learn(vector, copy)
                grows = True
    return known


def resolve(resolver: ConflictResolver, conflict: Conflict) -> Resolution:
    """Ask the resolver, also with one head; an aggregate without events resolves to nothing.

    Raises:
        HandlerError: the resolver raised, or gave something else than a `Resolution`.
    """
    if not conflict.events:
        return Resolution(None, None, (), Decision.NOOP, ("no event",))
    try:
        answer = resolver.resolve(conflict)
    except Exception as error:
        raise HandlerError(f"the resolver {resolver.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(answer, Resolution):
        raise HandlerError(f"the resolver {resolver.name!r} gave {answer!r:.80}, which is no Resolution")
    return msgspec.structs.replace(answer, heads=conflict.heads)
