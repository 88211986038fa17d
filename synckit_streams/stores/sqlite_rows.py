"""The log's rows and their indexes, as the one connection that writes them knows them."""

from __future__ import annotations

import sqlite3
from typing import Any

from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.aggregate_hash import AggregateHash
from synckit_streams.stores.event_id import id_hash
from synckit_streams.stores.tail import Tail
from synckit_streams.sync.ledger import Changes, Fork


class EventRows:
    """The tables `events` and `aggregates`. Thrown away when a transaction fails.

    Args:
        writer: The connection.
        numbers: Of the streams, by topic and origin.
        aggregate_hash: The file's hash of topic and aggregate id.
        index_events: After how many events the index by aggregate gets its next portion.
    """

    def __init__(
        self,
        writer: sqlite3.Connection,
        numbers: dict[Fork, int],
        aggregate_hash: AggregateHash,
        *,
        index_events: int,
    ) -> None:
        self.numbers = numbers
        self.aggregate_hash = aggregate_hash
        self._writer = writer
        self._index_events = index_events
        found = writer.execute("SELECT value FROM meta WHERE name = 'indexed'").fetchone()
        self._indexed: int = found[0] if found else 0
        self._to_index = self._indexed
        rows = "SELECT aggregate, position FROM events WHERE position > ? ORDER BY position"
        self.tail = Tail(writer.execute(rows, (self._indexed,)))
        """Where the events are that the index by aggregate does not have yet."""

    def number(self, fork: Fork) -> int:
        """Of a stream; a new one gets the next."""
        number = self.numbers.get(fork)
        if number is None:
            number = self.numbers[fork] = len(self.numbers) + 1
        return number

    def write(self, changes: Changes) -> None:
        """What a transaction does to the log."""
        if self._to_index > self._indexed:  # by the last one, which is on the disk by now
            self._indexed, self.tail = self._to_index, Tail()
        self._move(changes)
        self._insert(changes)
        position = changes.rows[-1].position if changes.rows else 0
        if position - self._indexed >= self._index_events:
            self._writer.execute(schema.INDEX_EVENTS, (self._indexed,))
            self._writer.execute("INSERT OR REPLACE INTO meta VALUES ('indexed', ?)", (position,))
            self._to_index = position

    def _move(self, changes: Changes) -> None:
        """What a reused key did to rows that were there before."""
        many, encode = self._writer.executemany, schema.encode_event
        if changes.removed:
            positions = [(position,) for position in changes.removed]
            many(schema.UNINDEX_EVENT, positions)
            many("DELETE FROM events WHERE position = ?", positions)
        if changes.rekeyed:
            moved = changes.rekeyed.values()
            many(schema.PARK_EVENT, [(row.position,) for row in moved])
            many(
                schema.MOVE_EVENT,
                [
                    (
                        self.number((row.event.topic, row.event.origin)),
                        row.event.seq,
                        row.hash,
                        encode(row.event),
                        row.position,
                    )
                    for row in moved
                ],
            )

    def _insert(self, changes: Changes) -> None:
        encode, number, aggregate_hash = schema.encode_event, self.number, self.aggregate_hash
        # Column by column, which takes two thirds of the time of row by row.
        events = [row.event for row in changes.rows]
        positions = [row.position for row in changes.rows]
        aggregates = [aggregate_hash((event.topic, event.aggregate_id)) for event in events]
        self.tail.add(zip(aggregates, positions, strict=True))
        columns: list[list[Any]] = [
            positions,
            [number((event.topic, event.origin)) for event in events],
            [event.seq for event in events],
            [id_hash(event.id) for event in events],
            aggregates,
            [event.at_packed for event in events],
            [row.twin for row in changes.rows],
            [row.hash for row in changes.rows],
            [row.body or encode(row.event) for row in changes.rows],
        ]
        flat: list[Any] = [None] * (len(events) * schema.EVENT_COLUMNS)
        for at, column in enumerate(columns):
            flat[at :: schema.EVENT_COLUMNS] = column
        # A hundred rows a statement: two thirds of the time of a statement a row, and few calls that want the GIL.
        width = schema.EVENT_COLUMNS * schema.ROWS_TOGETHER
        whole = len(flat) - len(flat) % width
        for at in range(0, whole, width):
            self._writer.execute(schema.INSERT_TOGETHER, flat[at : at + width])
        width = schema.EVENT_COLUMNS
        self._writer.executemany(schema.INSERT_EVENT, [flat[at : at + width] for at in range(whole, len(flat), width)])
