"""What happened, told to whoever watches: one Observer, frozen detail records, no metrics library.

Every step that an operator will ask about calls `Observer.observe` with one record. Durations are in seconds, sizes in
bytes. An observer must be quick and must not raise; what it raises is logged once and dropped.

The record of an operation comes while `Observer.operation` is still open around it, and in the same task: that is where
an observer of traces adds to the span what only the end of the work could tell.

A trace follows an event by *links*: the writer's context is stored in the event (`Event.traceparent`), and whoever
receives it hours later starts a trace of its own that links to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import msgspec

TRACES_MAX = 32
"""Most trace contexts in one record."""


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """The root of the records: which node it was."""

    node: str


class Appended(Detail, frozen=True, kw_only=True):
    """Local events became durable."""

    topics: Sequence[str]
    events: int
    duration_s: float


class Published(Detail, frozen=True, kw_only=True):
    """The broker acknowledged messages. `again` counts the events that had been published before.

    `traces` says how many different writings the events came from; `traceparents` names at most `TRACES_MAX` of them.
    """

    connector: str
    topic: str
    events: int
    messages: int
    bytes: int
    again: int
    traceparents: Sequence[str]
    traces: int
    duration_s: float


class Received(Detail, frozen=True, kw_only=True):
    """A batch from the broker was durably committed, with the reader's offset; `traces` as in `Published`."""

    connector: str
    topic: str
    messages: int
    bytes: int
    stored: int
    duplicates: int
    held: int
    dropped: int
    quarantined: int
    skew_ms: int
    """How far the greatest received clock was ahead of ours."""
    traceparents: Sequence[str]
    traces: int
    duration_s: float


class Synced(Detail, frozen=True, kw_only=True):
    """One `sync()` ended; `error` is the code of what stopped it, or ""."""

    pushed: int
    pulled: int
    conflicts: int
    complete: bool
    error: str
    duration_s: float


class Projected(Detail, frozen=True, kw_only=True):
    """A projection committed a batch with its offset."""

    projection: str
    events: int
    traceparents: Sequence[str] = ()
    traces: int = 0
    duration_s: float


class Handled(Detail, frozen=True, kw_only=True):
    """A handler was called with so many events; `error` names the exception that it raised, or is "". `traces` as in
    `Published`."""

    group: str
    handler: str
    events: int
    error: str
    traceparents: Sequence[str] = ()
    traces: int = 0
    duration_s: float


class Progressed(Detail, frozen=True, kw_only=True):
    """A handler group committed what came of some events: effects, answers and places."""

    group: str
    events: int
    """That were handled, parked or given up."""
    answers: int
    """Events that were written with it, dead letters included."""
    dead: int
    """Events that were given up."""
    parked: int
    """Aggregates that wait for another attempt now, in this worker's lanes."""
    lag: int
    """Events of the log that this worker has not dealt with yet; those that concern no handler of the group count until
    they have been passed over."""
    lanes: int
    """How many of the group's lanes this worker has."""
    duration_s: float


class Moved(Detail, frozen=True, kw_only=True):
    """A pipeline has delivered a portion: it is with the sink or the dead letter, and the position has moved.

    `traces` as in `Published`, where the records were events.
    """

    pipeline: str
    records: int
    """That the source gave; what a filter passed over is in neither of the others."""
    delivered: int
    """Records that the sink took."""
    dead: int
    """Records that went to the dead letter."""
    traceparents: Sequence[str] = ()
    traces: int = 0
    duration_s: float


class Lagged(Detail, frozen=True, kw_only=True):
    """A pipeline asked its source how much is left; told every few seconds."""

    pipeline: str
    records: int
    """That are there and were not delivered yet."""


class Stalled(Detail, frozen=True, kw_only=True):
    """A pipeline failed, and tries again; `error` is the code of why, or the exception's class."""

    pipeline: str
    error: str


class Link(Detail, frozen=True, kw_only=True):
    """The connection to a broker changed: `up`, `down`, and why."""

    connector: str
    up: bool
    reason: str = ""


class Alarmed(Detail, frozen=True, kw_only=True):
    """Something that must not be passed over in silence; the kinds are those of `sync.protocol.Alarm`."""

    kind: str
    topic: str
    evidence: str


@runtime_checkable
class Observer(Protocol):
    """Whoever watches."""

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        """Around `append`, `sync`, `publish`, `receive`, `handle`, `project` and, of a pipeline, `move`; gives the W3C
        traceparent to store, "" for none."""

    def observe(self, detail: Detail) -> None:
        """One thing that happened."""


Clock = Callable[[], float]
"""Monotonic seconds."""
