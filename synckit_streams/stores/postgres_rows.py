"""What one transaction looks up in PostgreSQL, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Stored
from synckit_streams.model.exchange import Raised
from synckit_streams.ports.store import QUARANTINED_MAX
from synckit_streams.stores.aggregate_hash import AggregateHash
from synckit_streams.stores.place_rows import PLACES_REACH, RunRows
from synckit_streams.stores.postgres_line import Line
from synckit_streams.stores.postgres_schema import (
    EVENT_COLUMNS,
    Statements,
    encode_event,
    pack_key,
    pack_ranges,
    plain,
    stored_of,
)
from synckit_streams.sync.ledger import Changes, Fork, Known, Ledger, Row, Wants


class StreamNumbers:
    """The numbers of the streams, both ways."""

    def __init__(self) -> None:
        self._numbers: dict[Fork, int] = {}
        self.names: dict[int, Fork] = {}
        """(topic, origin) by number."""

    def learn(self, number: int, fork: Fork) -> None:
        """What the table says."""
        self._numbers[fork] = number
        self.names[number] = fork

    def get(self, fork: Fork) -> int | None:
        """Of a stream that has one."""
        return self._numbers.get(fork)

    def of(self, fork: Fork) -> int:
        """Of a stream; a new one gets the next. Under the lock of the head, where nobody else gives numbers."""
        number = self._numbers.get(fork)
        if number is None:
            number = max(self.names, default=0) + 1
            self.learn(number, fork)
        return number


class PostgresFacts:
    """The rows that a ledger wants, looked up in a few large queries; what was not foreseen costs one each."""

    def __init__(
        self,
        line: Line,
        statements: Statements,
        numbers: StreamNumbers,
        aggregate_hash: AggregateHash,
        log: str,
        wants: Wants,
    ) -> None:
        self._line = line
        self._statements = statements
        self._numbers = numbers
        self._hash = aggregate_hash
        self._log = log
        self._looked_up: set[Fork] = set()
        self._ids: dict[str, Stored | None] = {}
        self._keys: dict[Key, bytes | None] = dict.fromkeys(wants.keys)
        self._aggregates: dict[Fork, Known] = {}
        if wants.ids:
            self._look_up_ids(wants.ids)
        by_stream: dict[Fork, list[int]] = {}
        for key in wants.keys:
            by_stream.setdefault((key.topic, key.origin), []).append(key.seq)
        for (topic, origin), numbers_wanted in by_stream.items():
            found = line.fetch(statements.hashes, numbers.get((topic, origin)), numbers_wanted)
            self._keys.update((Key(topic, origin, seq), hash) for seq, hash in found)
        if wants.aggregates:
            self._look_up(wants.aggregates)
        self.nothing_known = not self._aggregates

    def _look_up_ids(self, ids: Sequence[str]) -> None:
        self._ids.update(dict.fromkeys(ids))
        for stored in stored_of(self._line.fetch(self._statements.by_ids, ids), self._log):
            self._ids[stored.event.id] = stored  # the last one that is entered here is the first in the log

    def _look_up(self, forks: Sequence[Fork]) -> None:
        by_hash = {self._hash(fork): fork for fork in forks}
        self._looked_up.update(forks)
        names = self._numbers.names
        for hash, stream, seq, at in self._line.fetch(self._statements.known, list(by_hash)):
            known = self._aggregates.setdefault(by_hash[hash], Known({}, 0))
            known.last[names[stream][1]] = seq
            known.at_packed = max(known.at_packed, at)

    def by_id(self, id: str) -> Stored | None:
        """See `Facts`."""
        if id not in self._ids:
            self._look_up_ids([id])
        return self._ids[id]

    def hash_of(self, key: Key) -> bytes | None:
        """See `Facts`."""
        if key not in self._keys:
            rows = self._line.fetch(self._statements.hashes, self._numbers.get((key.topic, key.origin)), [key.seq])
            self._keys[key] = rows[0][1] if rows else None
        return self._keys[key]

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """See `Facts`."""
        rows = self._line.fetch(self._statements.by_key, self._numbers.get((key.topic, key.origin)), key.seq)
        return (stored_of(rows, self._log)[0], rows[0][2]) if rows else None

    def aggregate(self, fork: Fork) -> Known | None:
        """See `Facts`."""
        if fork not in self._looked_up:
            self._look_up([fork])
        return self._aggregates.get(fork)


class RowWriter:
    """Writes what a transaction has decided. Thrown away when a transaction fails.

    Args:
        line: Where to.
        statements: Of the schema.
        numbers: Of the streams.
        aggregate_hash: The store's hash of topic and aggregate id.
    """

    def __init__(
        self, line: Line, statements: Statements, numbers: StreamNumbers, aggregate_hash: AggregateHash
    ) -> None:
        self._line = line
        self._statements = statements
        self._numbers = numbers
        self._hash = aggregate_hash
        self._places: RunRows | None = None

    def others_wrote(self) -> None:
        """Somebody else has written places, perhaps; ours go on in rows of their own."""
        self._places = None

    def write(self, changes: Changes, ledger: Ledger, commits: int, aside: int, life: str) -> None:
        """All of it, the head last.

        Args:
            changes: What to write.
            ledger: As it is after them.
            commits: Number of the transaction.
            aside: Of the last one that changed more than the log's end.
            life: Of the database.
        """
        execute, s = self._line.execute, self._statements
        if changes.reused:
            self._move(changes)
        if changes.rows:
            self._insert(changes.rows)
        if changes.held_gone:
            execute(s.drop_held, changes.held_gone)
        if changes.held_added:
            execute(
                s.put_held, list(changes.held_added), [encode_event(event) for event in changes.held_added.values()]
            )
        if changes.asides:
            execute(
                s.set_aside,
                [plain(each.reason) for each in changes.asides],
                [plain(each.reader) for each in changes.asides],
                [each.place for each in changes.asides],
                [each.raw for each in changes.asides],
                [None if each.key is None else pack_key(each.key) for each in changes.asides],
            )
            execute(s.forget_unread, QUARANTINED_MAX)
        if changes.voids:
            execute(s.put_voids, [pack_key(key) for key in changes.voids])
        if changes.forget or changes.runs:
            self._put_places(changes)
        if changes.offsets:
            at = list(changes.offsets.values())
            execute(
                s.put_offsets,
                list(changes.offsets),
                [each.log for each in at],
                [each.position for each in at],
                [each.fingerprint for each in at],
            )
        if changes.alarms:
            execute(s.put_alarms, *map(list, zip(*once(changes.alarms), strict=True)))
        execute(
            s.finish_and_tell if changes.rows else s.finish,
            *self._streams(sorted(changes.streams), ledger, commits),
            *(ledger.position, commits, aside, ledger.origin, life),
        )

    def _insert(self, rows: Sequence[Row]) -> None:
        # COPY costs half of an INSERT, for the server and for us, and one row is no dearer. It knows no ON CONFLICT,
        # which nobody needs who numbers under the lock.
        number, aggregate_hash = self._numbers.of, self._hash
        self._line.copy(
            self._statements.events,
            EVENT_COLUMNS,
            [
                (
                    row.position, number((event.topic, event.origin)), event.seq, event.id, event.type,
                    event.aggregate_id, event.payload, event.metadata_json, event.prev, event.context_bytes,
                    event.after_bytes, event.at_packed, event.schema_version, event.traceparent,
                    aggregate_hash((event.topic, event.aggregate_id)), row.twin, row.hash,
                )
                for row in rows
                for event in (row.event,)
            ],
        )  # fmt: skip

    def _streams(self, forks: Sequence[Fork], ledger: Ledger, commits: int) -> list[list[Any]]:
        """The columns of those that grew."""
        streams = [ledger.streams[topic][origin] for topic, origin in forks]
        return [
            [self._numbers.of(fork) for fork in forks],
            [topic for topic, _ in forks],
            [origin for _, origin in forks],
            [pack_ranges(stream.ranges) for stream in streams],
            [stream.total.to_bytes(32, "big") for stream in streams],
            [stream.at_packed for stream in streams],
            [commits] * len(forks),
        ]

    def _move(self, changes: Changes) -> None:
        """What a reused key did to rows that were there before."""
        if changes.removed:
            self._line.execute(self._statements.remove_events, changes.removed)
        if changes.rekeyed:
            moved = list(changes.rekeyed.values())
            positions = [row.position for row in moved]
            self._line.execute(self._statements.park_events, positions)
            self._line.execute(
                self._statements.move_events,
                positions,
                [self._numbers.of((row.event.topic, row.event.origin)) for row in moved],
                [row.event.seq for row in moved],
                [row.event.prev for row in moved],
                [row.hash for row in moved],
            )

    def _put_places(self, changes: Changes) -> None:
        if self._places is None:
            self._places = RunRows(self._line.row(self._statements.last_run)[0], reach=PLACES_REACH)
        if changes.forget:
            self._line.execute(self._statements.forget_places, changes.forget)
            self._places.forget(changes.forget)
        if changes.runs:
            rows = self._places.add(changes.runs)
            self._line.execute(self._statements.put_places, *map(list, zip(*rows, strict=True)))


def once(alarms: Sequence[Raised]) -> list[Raised]:
    """One of each kind and topic, for one statement cannot change a row twice."""
    found: dict[tuple[str, str], Raised] = {}
    for alarm in alarms:
        before = found.get((alarm.kind, alarm.topic))
        times = alarm.times + (before.times if before else 0)
        first_ms = before.first_ms if before else alarm.first_ms
        found[alarm.kind, alarm.topic] = alarm._replace(evidence=plain(alarm.evidence), times=times, first_ms=first_ms)
    return list(found.values())
