"""The rows that a ledger wants, looked up in a few large queries."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Protocol

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Stored
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.sync.ledger import Fork, Known, Wants

_encode_json = msgspec.json.Encoder().encode


class Rows(Protocol):
    """What of the store this needs."""

    id: str
    writer: sqlite3.Connection
    numbers: dict[Fork, int]

    def aggregate_hash(self, fork: Fork) -> int:
        """The hash under which an aggregate is indexed."""


class SqliteFacts:
    """The rows that a ledger wants, looked up in a few large queries; what was not foreseen costs one each."""

    def __init__(self, store: Rows, wants: Wants) -> None:
        self._store = store
        self._ids: dict[str, Stored | None] = {}
        self._keys: dict[Key, bytes | None] = dict.fromkeys(wants.keys)
        self._aggregates: dict[Fork, Known | None] = dict.fromkeys(wants.aggregates)
        execute = store.writer.execute
        if wants.ids:
            self._ids = dict.fromkeys(wants.ids)
            rows = execute(
                f"SELECT {schema.ROW_COLUMNS} {schema.FROM} WHERE e.id IN (SELECT value FROM json_each(?)) "
                "ORDER BY e.position DESC",
                (_encode_json(wants.ids).decode(),),
            )
            for stored in schema.stored_of(
                rows, store.id
            ):  # the last one written into the dict is the first in the log
                self._ids[stored.event.id] = stored
        spans: dict[Fork, list[int]] = {}
        for key in wants.keys:
            spans.setdefault((key.topic, key.origin), []).append(key.seq)
        for (topic, origin), numbers in spans.items():
            stream = store.numbers.get((topic, origin))
            for first, last in _spans(numbers):
                rows = execute(
                    "SELECT seq, hash FROM events WHERE stream=? AND seq BETWEEN ? AND ?", (stream, first, last)
                )
                self._keys.update((Key(topic, origin, seq), hash) for seq, hash in rows)
        if wants.aggregates:
            self._look_up(wants.aggregates)

    def _look_up(self, forks: Sequence[Fork]) -> None:
        store = self._store
        by_hash = {store.aggregate_hash(fork): fork for fork in forks}
        rows = store.writer.execute(
            "SELECT aggregate, stream, max(seq), at FROM events "
            "WHERE aggregate IN (SELECT value FROM json_each(?)) GROUP BY aggregate, stream",
            (_encode_json(list(by_hash)).decode(),),
        )
        names = {number: origin for (_, origin), number in store.numbers.items()}
        for hash, stream, seq, at in rows:
            fork = by_hash[hash]
            known = self._aggregates.get(fork)
            if known is None:
                known = self._aggregates[fork] = Known({}, 0)
            known.last[names[stream]] = seq
            known.at_packed = max(known.at_packed, at)

    def by_id(self, id: str) -> Stored | None:
        """See `Facts`."""
        if id not in self._ids:
            rows = self._store.writer.execute(
                f"SELECT {schema.ROW_COLUMNS} {schema.FROM} WHERE e.id=? ORDER BY e.position LIMIT 1", (id,)
            )
            self._ids[id] = next(iter(schema.stored_of(rows, self._store.id)), None)
        return self._ids[id]

    def hash_of(self, key: Key) -> bytes | None:
        """See `Facts`."""
        if key not in self._keys:
            rows = self._store.writer.execute(
                "SELECT hash FROM events WHERE stream=? AND seq=?",
                (self._store.numbers.get((key.topic, key.origin)), key.seq),
            ).fetchall()
            self._keys[key] = rows[0][0] if rows else None
        return self._keys[key]

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """See `Facts`."""
        rows = self._store.writer.execute(
            f"SELECT {schema.ROW_COLUMNS} {schema.FROM} WHERE e.stream=? AND e.seq=?",
            (self._store.numbers.get((key.topic, key.origin)), key.seq),
        ).fetchall()
        return (schema.stored_of(rows, self._store.id)[0], rows[0][2]) if rows else None

    def aggregate(self, fork: Fork) -> Known | None:
        """See `Facts`."""
        if fork not in self._aggregates:
            self._aggregates[fork] = None
            self._look_up([fork])
        return self._aggregates[fork]


def _spans(numbers: list[int]) -> list[tuple[int, int]]:
    """Few intervals that contain the numbers: neighbours that are close share one."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number - spans[-1][1] <= 16:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans
