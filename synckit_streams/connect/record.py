"""What moves, and what a source and a sink must do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from uuid import UUID, uuid5

import msgspec

from synckit_streams.errors import Invalid, PayloadUndecodable, SyncKitError, Unavailable
from synckit_streams.model.codec import encode_payload
from synckit_streams.model.event import Draft, Event, Offset

NAMESPACE = UUID("5d1f3c9e-2c0b-5b0a-8f43-7c5a1e9b0d64")
"""Of the ids that say where a record lies. Another one would make a second event of each."""


def derived_id(*place: object) -> str:
    """The id of what lies there, for ever the same."""
    return str(uuid5(NAMESPACE, "\0".join(map(str, place))))


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record on its way.

    Args:
        id: Its producer's, or derived from where it lies.
        type: What happened.
        aggregate_id: To what it happened.
        payload: Its data as the bytes that were found; nobody re-serialises what no transform changes.
        topic: Its own at the source; "" if it has none there.
        routed: Where a transform sends it; "" leaves it to the sink.
        metadata: Notes that travel with it.
        schema_version: Of the type's data.
        traceparent: Of its writing, where it was an event; a trace is followed from there by a link.
    """

    id: str
    type: str
    aggregate_id: str
    payload: bytes
    topic: str = ""
    routed: str = ""
    metadata: Mapping[str, Any] = {}
    schema_version: int = 1
    traceparent: str = ""

    @property
    def data(self) -> Any:
        """The payload, decoded anew.

        Raises:
            PayloadUndecodable: it is not JSON.
        """
        try:
            return msgspec.json.decode(self.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PayloadUndecodable(f"the payload is not JSON: {error}") from error

    def with_data(self, data: Any) -> Record:
        """The same with other data."""
        return msgspec.structs.replace(self, payload=encode_payload(data))

    def draft(self, topic: str) -> Draft:
        """What it becomes in a store.

        Args:
            topic: Of the sink; a route goes before it, and it goes before the record's own.

        Raises:
            Invalid: nobody says to which topic it goes.
        """
        where = self.routed or topic or self.topic
        if not where:
            raise Invalid("the record has no topic", hint="give the sink a topic, or add a transform of kind route")
        return Draft(
            topic=where,
            type=self.type,
            aggregate_id=self.aggregate_id,
            data=self.payload,
            metadata=self.metadata,
            id=self.id,
            schema_version=self.schema_version,
        )

    @classmethod
    def of_event(cls, event: Event) -> Record:
        """An event on its way to somewhere else."""
        return cls(
            id=event.id,
            type=event.type,
            aggregate_id=event.aggregate_id,
            payload=event.payload,
            topic=event.topic,
            metadata=event.metadata,
            schema_version=event.schema_version,
            traceparent=event.traceparent,
        )


class Unreadable(NamedTuple):
    """What lies at the source and is no record.

    Args:
        id: Derived from where it lies.
        raw: As it was found.
        error: What is wrong with it.
    """

    id: str
    raw: bytes
    error: SyncKitError


class Portion(NamedTuple):
    """What a source gives at a time.

    Args:
        items: In the source's order.
        position: Behind them; None where the source remembers by itself.
    """

    items: Sequence[Record | Unreadable]
    position: Offset | None


class Refusal(NamedTuple):
    """A record that a sink will never take, and why."""

    record: Record
    error: SyncKitError


class Later(Unavailable):
    """It is away, and may have said for how long.

    Args:
        message: What it said.
        after_s: Seconds before which it does not want to be asked again; 0 if it said nothing.
    """

    def __init__(self, message: str, *, after_s: float) -> None:
        super().__init__(message, hint="the records wait, and come again")
        self.after_s = after_s


class Source(Protocol):
    """Where records come from. One caller at a time; every method may raise, and is then closed and opened anew."""

    @property
    def name(self) -> str:
        """For people, without passwords."""

    async def open(self, position: Offset | None) -> None:
        """Begin behind a position; None is from the beginning."""

    async def read(self, limit: int) -> Portion | None:
        """The next portion, of at most `limit` items; None if there is nothing at this moment. The sink may still be
        busy with the portion before it."""

    async def wait(self) -> None:
        """Until there may be more, or a moment has passed. May be cancelled."""

    async def done(self, portion: Portion) -> None:
        """The sink has it durably. Portions are done in the order in which they were read."""

    async def lag(self) -> int | None:
        """How many records are there and were not read yet; None if that is not known."""

    async def close(self) -> None:
        """Let go of everything. May be called twice, and before `open`."""


class Sink(Protocol):
    """Where records go to. One caller at a time; every method may raise, and is then closed and opened anew."""

    @property
    def name(self) -> str:
        """For people, without passwords."""

    async def open(self) -> None:
        """Make it ready."""

    async def write(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """Take them all durably, but for those that are given back: these it will never take.

        Raises:
            SyncKitError: it is away, or full: the same records come again, and some may have been taken.
        """

    async def settle(self) -> None:
        """Have what was taken reach its end, where that comes later: for `--once`."""

    async def close(self) -> None:
        """Let go of everything. May be called twice, and before `open`."""
