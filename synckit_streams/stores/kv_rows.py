"""What the values of a key-value medium say, and what one transaction writes of the log."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from struct import Struct
from typing import NamedTuple

import msgspec

from synckit_streams.errors import StoreCorrupt
from synckit_streams.model.event import Event, Stored
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import kv_runs as runs
from synckit_streams.stores.event_id import id_hash
from synckit_streams.sync.ledger import Changes, Fork, Known, Ledger, Row, Stream

Writes = MutableMapping[bytes, bytes | None]
"""What a transaction puts, by key; None deletes."""

encode = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
decode_stream = msgspec.msgpack.Decoder(tuple[str, str, list[tuple[int, int]], bytes, int]).decode

HASH_BYTES = 32
_head = Struct(">IQ?")
"""Of an event's row: stream, `seq`, and whether it is a twin. The hash follows, then the event in canonical form."""
_body_at = _head.size + HASH_BYTES
_known = Struct(">IQQ")
"""Of a row of `OF_AGGREGATE`: stream, `seq` and hybrid time of the event."""


class EventRow(NamedTuple):
    """A row of the log, as far as it is read without decoding the event."""

    position: int
    stream: int
    seq: int
    twin: bool
    value: bytes

    @property
    def hash(self) -> bytes:
        """Of the event."""
        return self.value[_head.size : _body_at]

    @property
    def event(self) -> Event:
        """Decoded."""
        return decode_event(memoryview(self.value)[_body_at:])

    def stored(self, log: str) -> Stored:
        """As it is given to readers."""
        return Stored(self.event, self.position, log, self.twin)


def event_row(position: int, value: bytes) -> EventRow:
    """A row of the log from its value.

    Raises:
        StoreCorrupt: it is cut off.
    """
    if len(value) <= _body_at:
        raise StoreCorrupt(f"the event at position {position} is damaged")
    stream, seq, twin = _head.unpack_from(value)
    return EventRow(position, stream, seq, twin, value)


def known_of(values: Iterable[bytes], origins: dict[int, str]) -> Known:
    """What the rows of an aggregate say about it.

    Args:
        values: Of the rows.
        origins: By the number of a stream.
    """
    last: dict[int, int] = {}
    at_packed = 0
    for value in values:
        stream, seq, at = _known.unpack(value)
        if seq > last.get(stream, 0):
            last[stream] = seq
        if at > at_packed:
            at_packed = at
    return Known({origins[stream]: seq for stream, seq in last.items()}, at_packed)


def known_value(stream: int, event: Event) -> bytes:
    """The row of `OF_AGGREGATE` of an event."""
    return _known.pack(stream, event.seq, event.at_packed)


def stream_value(fork: Fork, stream: Stream) -> bytes:
    """A row of `STREAM`."""
    return encode((*fork, stream.ranges, stream.total.to_bytes(HASH_BYTES, "big"), stream.at_packed))


class EventRows:
    """The log and its indexes, as the one who writes them knows them. Thrown away when a transaction fails.

    Args:
        numbers: Of the streams, by topic and origin.
    """

    def __init__(self, numbers: dict[Fork, int]) -> None:
        self.numbers = numbers
        self.origins = {number: origin for (_, origin), number in numbers.items()}

    def number(self, fork: Fork) -> int:
        """Of a stream; a new one gets the next."""
        number = self.numbers.get(fork)
        if number is None:
            number = self.numbers[fork] = len(self.numbers) + 1
            self.origins[number] = fork[1]
        return number

    def write(self, changes: Changes, ledger: Ledger, writes: Writes) -> None:
        """What a transaction does to the log.

        Args:
            changes: Of the transaction.
            ledger: Its mirror; an aggregate that it holds is on the disk already.
            writes: Where the rows go.
        """
        for row in changes.rekeyed.values():
            self._put(row, writes)
        self._append(changes.rows, ledger, writes)
        for key in changes.streams:
            topic, origin = key
            writes[keys.STREAM + keys.stream(self.number(key))] = stream_value(key, ledger.streams[topic][origin])

    def remove(self, row: EventRow, writes: Writes) -> None:
        """A row of the disk whose event stands at another position as well."""
        event = row.event
        writes[keys.event(row.position)] = None
        of_aggregate = keys.OF_AGGREGATE + keys.aggregate(event.topic, event.aggregate_id)
        writes[of_aggregate + keys.number(row.position)] = None

    def _put(self, row: Row, writes: Writes) -> None:
        """Another key for the event at a position; its id and its aggregate stay."""
        event = row.event
        stream = self.number((event.topic, event.origin))
        writes[keys.event(row.position)] = (
            _head.pack(stream, event.seq, row.twin) + row.hash + (row.body or encode(event))
        )
        of_aggregate = keys.OF_AGGREGATE + keys.aggregate(event.topic, event.aggregate_id)
        writes[of_aggregate + keys.number(row.position)] = known_value(stream, event)
        runs.write(keys.OF_KEY + keys.stream(stream), [(event.seq, row.position)], writes)

    def _append(self, rows: list[Row], ledger: Ledger, writes: Writes) -> None:
        known, numbers = ledger.aggregates, self.numbers
        number, name, head, of_event = keys.number, keys.text, _head.pack, _known.pack
        by_stream: dict[int, list[tuple[int, int]]] = {}
        topics: dict[str, bytes] = {}
        for row in rows:
            event, position = row.event, row.position
            topic, aggregate_id, seq = event.topic, event.aggregate_id, event.seq
            stream = numbers.get((topic, event.origin)) or self.number((topic, event.origin))
            if (of_stream := by_stream.get(stream)) is None:
                of_stream = by_stream[stream] = []
            of_stream.append((seq, position))
            if (of_topic := topics.get(topic)) is None:
                of_topic = topics[topic] = name(topic)
            aggregate = of_topic + name(aggregate_id)
            place = number(position)
            writes[keys.EVENT + place] = head(stream, seq, row.twin) + row.hash + (row.body or encode(event))
            writes[keys.OF_AGGREGATE + aggregate + place] = of_event(stream, seq, event.at_packed)
            if (topic, aggregate_id) not in known:
                writes[keys.AGGREGATE + aggregate] = aggregate_id.encode("utf-8", "surrogatepass")
        for stream, pairs in by_stream.items():
            runs.write(keys.OF_KEY + keys.stream(stream), pairs, writes)
        runs.write(keys.OF_ID, [(id_number(row.event.id), row.position) for row in rows], writes)


def id_number(id: str) -> int:
    """The number of an event's id in the index: its hash, from 0 to 2^64 - 1."""
    return id_hash(id) + (1 << 63)
