"""What is written (`Draft`), what it becomes (`Event`), and where it stands (`Stored`, `Offset`).

An event keeps its payload, metadata, context and causes as the bytes that were hashed; they are decoded when somebody
looks. Pushing, pulling and bridging never look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from synckit_streams.errors import Invalid, PayloadUndecodable
from synckit_streams.model.clock import Dot, HybridTime, Key, VersionVector, keys_from_bytes


class Offset(msgspec.Struct, frozen=True, order=False):
    """Where a reader stands in *one* log: everything up to and including `position` has been read.

    Offsets of different logs have no order; asking for one raises.

    Args:
        log: Identity of the log: a store's id, or a broker's own identity for a topic.
        position: 0 is before the first.
        fingerprint: Of the broker's message at `position`, so that a log put back to an earlier copy is noticed;
            empty for a local log.
    """

    log: str
    position: int
    fingerprint: bytes = b""

    def is_past(self, other: Offset) -> bool:
        """Whether this reader has read more of the log than the other one.

        Raises:
            Invalid: the offsets are of different logs.
        """
        if self.log != other.log:
            raise Invalid(f"offsets of different logs have no order: {self.log!r} and {other.log!r}")
        return self.position > other.position


class Draft(msgspec.Struct, frozen=True):
    """What a caller writes.

    Args:
        topic: The unit of replication; 1 to 100 UTF-8 bytes.
        type: What happened, for example `order.placed`.
        aggregate_id: The thing it happened to: the unit of conflict and of order within the topic.
        data: Anything that JSON can say; `bytes` are taken as they are.
        metadata: The caller's own notes, JSON; they travel with the event.
        id: Makes the append idempotent: the same id with the same content is one event. None draws a UUIDv7.
        context: What the caller had read of the aggregate when it decided to write (`Resolution.context` or the
            merged contexts of `aggregate()`); None means everything the store holds at the append.
        after: Keys of events, of any topic, that must be delivered before this one.
        schema_version: Of the type's data.
    """

    topic: str
    type: str
    aggregate_id: str
    data: Any = None
    metadata: Mapping[str, Any] = {}
    id: str | None = None
    context: VersionVector | None = None
    after: tuple[Key, ...] = ()
    schema_version: int = 1


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One versioned event, for ever the same on every replica.

    The fields are what is hashed, in this order; the properties are their decoded forms.

    Args:
        id: Idempotency key of the fact.
        topic: See `Draft`.
        type: See `Draft`.
        aggregate_id: See `Draft`.
        payload: The data as the bytes that were written; JSON unless the writer gave other bytes.
        metadata_json: The metadata as canonical JSON; empty for none.
        origin: Who numbered it: the writer's node id and incarnation.
        seq: Gap-free per origin and topic, from 1.
        prev: The origin's previous number on this aggregate; 0 for the first.
        context_bytes: What the writer knew of the aggregate, as `VersionVector.to_bytes`.
        after_bytes: The causes beside the aggregate, as `keys_bytes`.
        at_packed: `HybridTime.packed`.
        schema_version: Of the type's data.
        traceparent: W3C trace context of the writing; empty for none.
    """

    id: str
    topic: str
    type: str
    aggregate_id: str
    payload: bytes
    metadata_json: bytes
    origin: str
    seq: int
    prev: int
    context_bytes: bytes
    after_bytes: bytes
    at_packed: int
    schema_version: int = 1
    traceparent: str = ""

    @property
    def dot(self) -> Dot:
        """Its identity within the topic."""
        return Dot(self.origin, self.seq)

    @property
    def key(self) -> Key:
        """Its identity anywhere."""
        return Key(self.topic, self.origin, self.seq)

    @property
    def at(self) -> HybridTime:
        """When it was written, by the writer's hybrid clock."""
        return HybridTime(self.at_packed >> 16, self.at_packed & 0xFFFF)

    @property
    def context(self) -> VersionVector:
        """What its writer knew of the aggregate."""
        return VersionVector.from_bytes(self.context_bytes)

    @property
    def after(self) -> tuple[Key, ...]:
        """The causes beside the aggregate."""
        return keys_from_bytes(self.after_bytes)

    @property
    def data(self) -> Any:
        """The payload, decoded anew at each look (so that nobody can change what others read).

        Raises:
            PayloadUndecodable: the payload is not JSON; `payload` has the bytes.
        """
        try:
            return msgspec.json.decode(self.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PayloadUndecodable(f"the payload of {self.key} is not JSON: {error}") from error

    @property
    def metadata(self) -> dict[str, Any]:
        """The caller's notes."""
        return msgspec.json.decode(self.metadata_json, type=dict[str, Any]) if self.metadata_json else {}

    @property
    def canonical_order(self) -> tuple[int, str, int]:
        """(hybrid time, origin, seq): the order in which folds count and ties break, equal on every replica."""
        return (self.at_packed, self.origin, self.seq)

    def __hash__(self) -> int:
        return hash((self.topic, self.origin, self.seq))


class Stored(msgspec.Struct, frozen=True, gc=False):
    """An event, and where it stands in this store's log.

    Args:
        event: The event.
        position: Its place in the log, from 1, in commit order.
        log: Identity of the log.
        twin: Another event with the same id came earlier into this log (two nodes wrote the fact while offline).
            Whoever counts facts skips twins.
    """

    event: Event
    position: int
    log: str
    twin: bool = False

    @property
    def offset(self) -> Offset:
        """Where a reader stands that has read this event."""
        return Offset(self.log, self.position)
