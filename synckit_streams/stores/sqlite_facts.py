"""The rows that a ledger wants, looked up in a few large queries."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Stored
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.event_id import id_hash
from synckit_streams.stores.sqlite_rows import EventRows
from synckit_streams.sync.ledger import Fork, Known, Wants

_encode_json = msgspec.json.Encoder().encode


class SqliteFacts:
    """The rows that a ledger wants, looked up in a few large queries; what was not foreseen costs one each."""

    def __init__(self, writer: sqlite3.Connection, rows: EventRows, log: str, wants: Wants) -> None:
        self._execute = execute = writer.execute
        self._rows = rows
        self._log = log
        self._looked_up: set[Fork] = set()
        self._ids: dict[str, Stored | None] = {}
        self._keys: dict[Key, bytes | None] = dict.fromkeys(wants.keys)
        self._aggregates: dict[Fork, Known] = {}
        if wants.ids:
            self._look_up_ids(wants.ids)
        spans: dict[Fork, list[int]] = {}
        for key in wants.keys:
            spans.setdefault((key.topic, key.origin), []).append(key.seq)
        for (topic, origin), numbers in spans.items():
            stream = rows.numbers.get((topic, origin))
            for first, last in _spans(numbers):
                found = execute(
                    "SELECT seq, hash FROM events WHERE stream=? AND seq BETWEEN ? AND ?", (stream, first, last)
                )
                self._keys.update((Key(topic, origin, seq), hash) for seq, hash in found)
        if wants.aggregates:
            self._look_up(wants.aggregates)
        self.nothing_known = not self._aggregates

    def _look_up_ids(self, ids: Sequence[str]) -> None:
        self._ids.update(dict.fromkeys(ids))
        rows = self._execute(
            "SELECT position, twin, body FROM events WHERE id IN (SELECT value FROM json_each(?)) "
            "ORDER BY position DESC",
            (_encode_json([id_hash(id) for id in ids]).decode(),),
        )
        for stored in schema.stored_of(rows, self._log):
            if stored.event.id in self._ids:  # the last one that is entered here is the first in the log
                self._ids[stored.event.id] = stored

    def _look_up(self, forks: Sequence[Fork]) -> None:
        aggregate_hash = self._rows.aggregate_hash
        by_hash = {aggregate_hash(fork): fork for fork in forks}
        self._looked_up.update(forks)
        rows = self._execute(
            "SELECT e.aggregate, e.stream, max(e.seq), max(e.at) FROM aggregates a JOIN events e USING (position) "
            "WHERE a.aggregate IN (SELECT value FROM json_each(?)) GROUP BY e.aggregate, e.stream",
            (_encode_json(list(by_hash)).decode(),),
        ).fetchall()
        late = self._rows.tail.positions_of(by_hash)
        if late:
            rows += self._execute(
                "SELECT aggregate, stream, seq, at FROM events WHERE position IN (SELECT value FROM json_each(?))",
                (_encode_json(late).decode(),),
            ).fetchall()
        if not rows:
            return
        names = {number: origin for (_, origin), number in self._rows.numbers.items()}
        for hash, stream, seq, at in rows:
            known = self._aggregates.setdefault(by_hash[hash], Known({}, 0))
            origin = names[stream]
            known.last[origin] = max(seq, known.last.get(origin, 0))
            known.at_packed = max(known.at_packed, at)

    def by_id(self, id: str) -> Stored | None:
        """See `Facts`."""
        if id not in self._ids:
            self._look_up_ids([id])
        return self._ids[id]

    def hash_of(self, key: Key) -> bytes | None:
        """See `Facts`."""
        if key not in self._keys:
            rows = self._execute(
                "SELECT hash FROM events WHERE stream=? AND seq=?",
                (self._rows.numbers.get((key.topic, key.origin)), key.seq),
            ).fetchall()
            self._keys[key] = rows[0][0] if rows else None
        return self._keys[key]

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """See `Facts`."""
        rows = self._execute(
            "SELECT position, twin, body, hash FROM events WHERE stream=? AND seq=?",
            (self._rows.numbers.get((key.topic, key.origin)), key.seq),
        ).fetchall()
        return (schema.stored_of([rows[0][:3]], self._log)[0], rows[0][3]) if rows else None

    def aggregate(self, fork: Fork) -> Known | None:
        """See `Facts`."""
        if fork not in self._looked_up:
            self._look_up([fork])
        return self._aggregates.get(fork)


def _spans(numbers: list[int]) -> list[tuple[int, int]]:
    """Few intervals that contain the numbers: neighbours that are close share one."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number - spans[-1][1] <= 16:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return spans
