"""A handler group's place in the log: 64 lanes by hash of the aggregate id, an offset each, and what waits in them.

An aggregate is always in the same lane, and a lane is worked on by one task at a time, so the events of an aggregate
are handled in order, however many tasks, processes and hosts share the group. What failed waits for its next attempt
*beside* the lane, with whatever comes of the same aggregate behind it; the lane goes on.
"""

from __future__ import annotations

from zlib import crc32

import msgspec

from synckit_streams.model.event import Stored
from synckit_streams.ports.store import Lease

LANES = 64
"""Never another number: a lane's offset would say nothing of the aggregates that had been in another one."""
HANDLER = "handler|"
"""Before a group's name: under `handler|group|lane` the store keeps a lane's offset, and what waits in it."""
PARKED_AGGREGATES_MAX = 1_000
"""In one lane so many aggregates may wait; then it waits itself."""
PARKED_EVENTS_MAX = 10_000
"""Of one aggregate so many events may wait behind the one that failed; then its lane waits."""


def lane_of(aggregate_id: str) -> int:
    """In which lane an aggregate is, in whatever topic: who names two of them alike wants them in order."""
    return crc32(aggregate_id.encode()) % LANES


def lane_name(group: str, number: int) -> str:
    """The consumer under which the store keeps a lane."""
    return f"{HANDLER}{group}|{number}"


class Parked(msgspec.Struct, frozen=True, array_like=True):
    """An aggregate that waits, as the store keeps it beside its topic and id.

    Args:
        positions: Of its events that were passed over, ascending; the first one failed.
        attempts: How often that one was tried.
        due_ms: When it is tried again, by the wall clock.
        reason: Why it failed last.
        handler: Whose the first one is; "" before it was looked at.
    """

    positions: tuple[int, ...]
    attempts: int = 0
    due_ms: int = 0
    reason: str = ""
    handler: str = ""

    def with_more(self, position: int) -> Parked:
        """With one more event behind."""
        return msgspec.structs.replace(self, positions=(*self.positions, position))

    def without_first(self) -> Parked:
        """The next one's turn; falsy when there is none."""
        return Parked(self.positions[1:])

    def __bool__(self) -> bool:
        return bool(self.positions)


Aggregate = tuple[str, str]
"""A topic and an aggregate id."""

encode_parked = msgspec.msgpack.Encoder().encode
decode_parked = msgspec.msgpack.Decoder(Parked).decode


class Lane:
    """One lane that this process has.

    Args:
        number: From 0.
        position: Up to where it was handled or parked, as the store has it.
        parked: What waits.
        lease: By which this process has it; None where nobody else could.
    """

    __slots__ = ("lease", "number", "parked", "position", "read")

    def __init__(self, number: int, position: int, parked: dict[Aggregate, Parked], lease: Lease | None) -> None:
        self.number = number
        self.position = position
        self.read = position
        """Up to where its events were taken from the log, in this life."""
        self.parked = parked
        self.lease = lease

    def waits(self, stored: Stored) -> bool:
        """Whether an event has to wait behind another one of its aggregate."""
        return (stored.event.topic, stored.event.aggregate_id) in self.parked

    @property
    def full(self) -> bool:
        """Whether no more may wait in it."""
        return len(self.parked) >= PARKED_AGGREGATES_MAX
