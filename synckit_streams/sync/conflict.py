"""What a conflict is: an aggregate with more than one head. It is answered when somebody reads it.

A resolver is a pure function of the aggregate's *set* of events, so every replica that holds the same events gives the
same answer, whatever the order in which they came. The answer is derived and never appended: appended resolutions would
conflict again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import msgspec

from synckit_streams.errors import HandlerError
from synckit_streams.model.clock import VersionVector
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
        events: Every event of the aggregate, each id once.
        heads: The maximal ones among them; two or more are a conflict.
    """

    topic: str
    aggregate_id: str
    events: tuple[Event, ...]
    heads: tuple[Event, ...]


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
        if event.context_bytes:
            for origin, seq in event.context.items():
                if seq > covered.get(origin, 0):
                    covered[origin] = seq
    # An event's own context never covers itself, so one merged vector serves for all.
    left = [event for event in found if covered.get(event.origin, 0) < event.seq]
    return tuple(sorted(left, key=lambda event: event.canonical_order))


def conflict_of(topic: str, aggregate_id: str, events: Sequence[Event]) -> Conflict:
    """The aggregate as a resolver sees it. A fact that two nodes wrote under one id and alike counts once."""
    ordered = sorted(events, key=lambda event: event.canonical_order)
    facts: dict[tuple[str, bytes], Event] = {}
    for event in ordered:
        facts.setdefault((event.id, event_content_hash(event)), event)
    dropped = len(facts) < len(ordered)
    kept = tuple(facts.values()) if dropped else tuple(ordered)
    left = heads(ordered)
    if dropped:
        # A twin may be a head while the copy that counts is not: the fact stands where it is maximal.
        alive = {facts[event.id, event_content_hash(event)].key: None for event in left}
        left = tuple(event for event in kept if event.key in alive)
    return Conflict(topic, aggregate_id, kept, left)


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
