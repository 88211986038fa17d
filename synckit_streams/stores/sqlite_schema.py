"""The SQLite store's tables, its rows as events, and its driver's errors as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import msgspec

from synckit_streams.errors import SchemaNewer, StoreBusy, StoreCorrupt, StoreError, StoreFull
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Event, Stored
from synckit_streams.model.exchange import PlaceRun
from synckit_streams.sync.ledger import Ledger, Stream
from synckit_streams.sync.places import Same

APPLICATION_ID = 0x534B5331
"""In the file's header, so that somebody else's database is not mistaken for ours."""

# One entry a version: what brings a file from the version before it to this one. Never edit one that was released.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- One row per origin and topic: which numbers are here (`ranges`), and the sum of their hashes (`total`).
    CREATE TABLE streams (
        stream INTEGER PRIMARY KEY, topic TEXT NOT NULL, origin TEXT NOT NULL,
        ranges BLOB NOT NULL, total BLOB NOT NULL, at INTEGER NOT NULL, UNIQUE (topic, origin));
    -- The log. `position` ascends in commit order. `aggregate` is a keyed 64-bit hash of topic and aggregate id.
    CREATE TABLE events (
        position INTEGER PRIMARY KEY, stream INTEGER NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL,
        type TEXT NOT NULL, aggregate INTEGER NOT NULL, aggregate_id TEXT NOT NULL, payload BLOB NOT NULL,
        metadata BLOB NOT NULL, prev INTEGER NOT NULL, context BLOB NOT NULL, causes BLOB NOT NULL, at INTEGER NOT NULL,
        schema_version INTEGER NOT NULL, traceparent TEXT NOT NULL, twin INTEGER NOT NULL, hash BLOB NOT NULL);
    CREATE UNIQUE INDEX events_key ON events (stream, seq);
    CREATE INDEX events_id ON events (id);
    CREATE INDEX events_aggregate ON events (aggregate, stream, seq, at);
    -- Events that wait for a cause, and arrivals that were set aside (with a key when they are refused for good).
    CREATE TABLE held (hash BLOB PRIMARY KEY, event BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE quarantine (position INTEGER PRIMARY KEY, reason TEXT NOT NULL, reader TEXT NOT NULL,
        place INTEGER NOT NULL, raw BLOB NOT NULL, topic TEXT, origin TEXT, seq INTEGER);
    CREATE TABLE voids (topic TEXT, origin TEXT, seq INTEGER, PRIMARY KEY (topic, origin, seq)) WITHOUT ROWID;
    -- Where each consumer stands, and where in a broker's log each event was last read.
    CREATE TABLE offsets (consumer TEXT PRIMARY KEY, log TEXT NOT NULL, position INTEGER NOT NULL,
        fingerprint BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE places (run INTEGER PRIMARY KEY, reader TEXT NOT NULL, topic TEXT NOT NULL, origin TEXT NOT NULL,
        first INTEGER NOT NULL, positions BLOB NOT NULL);
    CREATE INDEX places_reader ON places (reader);
    -- For people and SQL: the log with its names.
    CREATE VIEW log AS SELECT e.position, s.topic, e.type, e.aggregate_id, CAST(e.payload AS TEXT) AS data,
        e.id, s.origin, e.seq, e.at >> 16 AS wall_ms, e.twin FROM events e JOIN streams s USING (stream);
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)

EVENT_COLUMNS = (
    "e.id, s.topic, e.type, e.aggregate_id, e.payload, e.metadata, s.origin, e.seq, e.prev, e.context, e.causes, e.at, "
    "e.schema_version, e.traceparent"
)
ROW_COLUMNS = f"e.position, e.twin, e.hash, {EVENT_COLUMNS}"
FROM = "FROM events e JOIN streams s USING (stream)"

INSERT_EVENT = f"INSERT INTO events VALUES ({', '.join('?' * 17)})"
UPDATE_EVENT = (
    "UPDATE events SET stream=?, seq=?, id=?, type=?, aggregate=?, aggregate_id=?, payload=?, metadata=?, prev=?, "
    "context=?, causes=?, at=?, schema_version=?, traceparent=?, hash=? WHERE position=?"
)
UPSERT_STREAM = (
    "INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (stream) DO UPDATE SET ranges=excluded.ranges, "
    "total=excluded.total, at=excluded.at"
)
UPSERT_OFFSET = "INSERT OR REPLACE INTO offsets VALUES (?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_ranges = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode
_decode_positions = msgspec.msgpack.Decoder(list[int]).decode


def translate(error: sqlite3.Error, path: object) -> StoreError:
    """A driver's error as one of ours, with what to do."""
    if "decode to UTF-8" in str(error):
        return StoreCorrupt(f"{path} is damaged: {error}")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"no room left for {path}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"{path} is locked by another program")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreCorrupt(f"{path} is damaged or not a database: {error}")
    if code == sqlite3.SQLITE_READONLY:
        return StoreError(f"{path} cannot be written", hint="check the permissions of the file, its folder and disk")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(f"{path} cannot be opened", hint="its folder must exist and be writable")
    if code == sqlite3.SQLITE_TOOBIG:
        return StoreError(f"a value is too large for {path}: {error}")
    return StoreError(f"{path}: {error}", hint="the disk may be failing; nothing of this call was written")


def version_of(connection: sqlite3.Connection, path: object) -> int:
    """The schema version of a file; 0 when it is new and empty.

    Raises:
        SchemaNewer: a later release wrote it.
        StoreCorrupt: it is somebody else's database.
    """
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables or application or version:
            raise StoreCorrupt(f"{path} is a database of another program", hint="give the store a path of its own")
    if version > SCHEMA_VERSION:
        raise SchemaNewer(f"{path} has schema {version}; this release knows {SCHEMA_VERSION}")
    return int(version)


def migrate(connection: sqlite3.Connection, path: object, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring a file up to the last schema; make it if it is new. Each step is one transaction."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for step in range(version, len(migrations)):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE; {migrations[step]} PRAGMA user_version={step + 1}; "
                f"PRAGMA application_id={APPLICATION_ID}; COMMIT;"
            )
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def aggregate_hash(secret: bytes, topic: str, aggregate_id: str) -> int:
    """A signed 64-bit hash, keyed so that nobody can aim for a collision; readers compare the text as well."""
    digest = blake2b(f"{topic}\0{aggregate_id}".encode(), digest_size=8, key=secret).digest()
    return int.from_bytes(digest, "big", signed=True)


def event_values(event: Event, stream: int, aggregate: int) -> tuple[Any, ...]:
    """The columns of an event between `position` and `twin`."""
    return (
        stream, event.seq, event.id, event.type, aggregate, event.aggregate_id, event.payload, event.metadata_json,
        event.prev, event.context_bytes, event.after_bytes, event.at_packed, event.schema_version, event.traceparent,
    )  # fmt: skip


def stored_of(rows: Iterable[tuple[Any, ...]], log: str) -> list[Stored]:
    """Rows of `ROW_COLUMNS` as stored events."""
    return [Stored(Event(*row[3:]), row[0], log, bool(row[1])) for row in rows]


def stream_values(number: int, key: tuple[str, str], stream: Stream) -> tuple[Any, ...]:
    """One row of `streams`."""
    return (number, *key, _encode(stream.ranges), stream.total.to_bytes(32, "big"), stream.at_packed)


def run_values(run: PlaceRun) -> tuple[Any, ...]:
    """One row of `places`."""
    return (run.reader, run.topic, run.origin, run.first, _encode(_deltas(run.positions)))


def _deltas(positions: Iterable[int]) -> list[int]:
    """Positions as what each adds to the one before, and a constant step as `[start, step, how often]`."""
    found = list(positions)
    steps = {later - earlier for earlier, later in pairwise(found)}
    if len(found) > 3 and len(steps) == 1:
        return [found[0], steps.pop(), len(found)]
    return [-1, *found]


def run_of(row: tuple[Any, ...]) -> PlaceRun:
    """The reverse of `run_values`."""
    reader, topic, origin, first, raw = row
    packed = _decode_positions(raw)
    if packed[0] == -1:
        return PlaceRun(reader, topic, origin, first, packed[1:])
    start, step, times = packed
    if step == 0:
        return PlaceRun(reader, topic, origin, first, Same(start, times))
    return PlaceRun(reader, topic, origin, first, range(start, start + step * times, step))


def load_ledger(connection: sqlite3.Connection, ledger: Ledger, node: str) -> dict[tuple[str, str], int]:
    """Fill a ledger from the file; gives the numbers of the streams."""
    numbers: dict[tuple[str, str], int] = {}
    for number, topic, origin, ranges, total, at in connection.execute("SELECT * FROM streams"):
        numbers[topic, origin] = number
        if raw := _decode_ranges(ranges):
            ledger.streams.setdefault(topic, {})[origin] = Stream(raw, int.from_bytes(total, "big"), at)
        if node_of(origin) == node:
            ledger.at_packed = max(ledger.at_packed, at)
    (ledger.position,) = connection.execute("SELECT coalesce(max(position), 0) FROM events").fetchone()
    ledger.voids.update(Key(*row) for row in connection.execute("SELECT topic, origin, seq FROM voids"))
    refused = "SELECT topic, origin, seq, reason FROM quarantine WHERE topic IS NOT NULL"
    ledger.refused.update((key, row[3]) for row in connection.execute(refused) if (key := Key(*row[:3])) not in ledger)
    for hash, raw in connection.execute("SELECT hash, event FROM held"):
        ledger.load_held(decode_event(raw), hash)
    return numbers
