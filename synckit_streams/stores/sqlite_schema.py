"""The SQLite store's tables, its rows as events, and its driver's errors as ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from synckit_streams.errors import SchemaNewer, StoreBusy, StoreCorrupt, StoreError, StoreFull
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Event, Stored
from synckit_streams.sync.ledger import Ledger, Stream

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
    -- The log. `position` ascends in commit order; `body` is the event in its canonical form, which is what is hashed.
    -- `id` and `aggregate` are 64-bit hashes: of the event's id, and (keyed) of topic and aggregate id.
    CREATE TABLE events (
        position INTEGER PRIMARY KEY, stream INTEGER NOT NULL, seq INTEGER NOT NULL, id INTEGER NOT NULL,
        aggregate INTEGER NOT NULL, at INTEGER NOT NULL, twin INTEGER NOT NULL, hash BLOB NOT NULL, body BLOB NOT NULL);
    CREATE UNIQUE INDEX events_key ON events (stream, seq);
    CREATE INDEX events_id ON events (id);
    -- Where the events of an aggregate are, up to the position in meta's `indexed`. Filled in sorted portions: entered
    -- one by one, these hashes would make every commit write most of the index's pages.
    CREATE TABLE aggregates (aggregate INTEGER, position INTEGER, PRIMARY KEY (aggregate, position)) WITHOUT ROWID;
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
    """,
    """
    -- What must not be passed over in silence: one of each kind and topic, and how often it was raised.
    CREATE TABLE alarms (kind TEXT, topic TEXT, evidence TEXT NOT NULL, times INTEGER NOT NULL,
        first_ms INTEGER NOT NULL, last_ms INTEGER NOT NULL, PRIMARY KEY (kind, topic)) WITHOUT ROWID;
    """,
    """
    -- What each projection noted of an aggregate: the state that it applied last. Some files have it already.
    CREATE TABLE IF NOT EXISTS projection_applied (projection TEXT, topic TEXT, aggregate_id TEXT, data BLOB NOT NULL,
        PRIMARY KEY (projection, topic, aggregate_id)) WITHOUT ROWID;
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)

PAGE_BYTES = 8 * 1024 * 1024
"""A page of events ends when they come to so much, however many were asked for."""

EVENT_COLUMNS = 9
ROWS_TOGETHER = 100
_ROW = f"({', '.join('?' * EVENT_COLUMNS)})"
INSERT_EVENT = f"INSERT INTO events VALUES {_ROW}"
INSERT_TOGETHER = f"INSERT INTO events VALUES {', '.join([_ROW] * ROWS_TOGETHER)}"
# A key moves from one row to another: first out of the way, then to its place. Id and aggregate stay.
PARK_EVENT = "UPDATE events SET seq = -position WHERE position = ?"
MOVE_EVENT = "UPDATE events SET stream = ?, seq = ?, hash = ?, body = ? WHERE position = ?"
UNINDEX_EVENT = (
    "DELETE FROM aggregates WHERE (aggregate, position) IN (SELECT aggregate, position FROM events WHERE position = ?)"
)
INDEX_EVENTS = "INSERT INTO aggregates SELECT aggregate, position FROM events WHERE position > ? ORDER BY aggregate"
INDEXED = "coalesce((SELECT value FROM meta WHERE name = 'indexed'), 0)"
# By hash: from the index, and from the events beyond it. One event of each tells its aggregate's id.
AGGREGATES_PAGE = (
    "SELECT * FROM (SELECT a.aggregate, e.body FROM aggregates a CROSS JOIN events e USING (position) "
    "CROSS JOIN streams s USING (stream) WHERE s.topic = ? AND a.aggregate > ? "
    "GROUP BY a.aggregate ORDER BY a.aggregate LIMIT ?) "
    "UNION ALL SELECT * FROM (SELECT e.aggregate, e.body FROM events e CROSS JOIN streams s USING (stream) "
    f"WHERE e.position > {INDEXED} AND s.topic = ? AND e.aggregate > ? "
    "GROUP BY e.aggregate ORDER BY e.aggregate LIMIT ?)"
)
UPSERT_STREAM = (
    "INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (stream) DO UPDATE SET ranges=excluded.ranges, "
    "total=excluded.total, at=excluded.at"
)
FORGET_UNREAD = "DELETE FROM quarantine WHERE topic IS NULL AND position <= (SELECT max(position) FROM quarantine) - ?"
UPSERT_ALARM = (
    "INSERT INTO alarms VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (kind, topic) DO UPDATE SET evidence=excluded.evidence, "
    "times=times + excluded.times, last_ms=excluded.last_ms"
)
UPSERT_OFFSET = "INSERT OR REPLACE INTO offsets VALUES (?, ?, ?, ?)"
SELECT_APPLIED = (
    "SELECT asked.key, data FROM json_each(?) AS asked CROSS JOIN projection_applied ON projection = ? "
    "AND topic = asked.value ->> 0 AND aggregate_id = asked.value ->> 1"
)
UPSERT_APPLIED = "INSERT OR REPLACE INTO projection_applied VALUES (?, ?, ?, ?)"
REMOVE_APPLIED = "DELETE FROM projection_applied WHERE (projection, topic, aggregate_id) = (?, ?, ?)"
FORGET_APPLIED = "DELETE FROM projection_applied WHERE projection = ?"
NOTED = "SELECT DISTINCT projection FROM projection_applied ORDER BY projection"
APPLIED_PAGE = (
    "SELECT topic, aggregate_id, data FROM projection_applied WHERE projection = ? AND (topic, aggregate_id) > (?, ?) "
    "ORDER BY topic, aggregate_id LIMIT ?"
)

_encode = encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_ranges = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode


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
    """Bring a file up to the last schema, or make it if it is new: in one transaction, so that whoever looks meanwhile
    sees nothing that is half made."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version >= len(migrations):
        return
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE; {' '.join(migrations[version:])} PRAGMA user_version={len(migrations)}; "
            f"PRAGMA application_id={APPLICATION_ID}; COMMIT;"
        )
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def stored_of(rows: Iterable[tuple[Any, ...]], log: str) -> list[Stored]:
    """Rows of position, twin and body as stored events."""
    return [Stored(decode_event(body), position, log, twin == 1) for position, twin, body in rows]


def page_of(cursor: sqlite3.Cursor, body: int) -> list[tuple[Any, ...]]:
    """Rows until their bodies, the column `body`, come to about `PAGE_BYTES`; at least one, if there is one."""
    rows: list[tuple[Any, ...]] = []
    size, count = 0, 8
    while size < PAGE_BYTES and (more := cursor.fetchmany(count)):
        rows += more
        size += sum([len(row[body]) for row in more])
        # By what they have been so far; not too many at once, because the next ones may be larger.
        count = max(1, min(64, (PAGE_BYTES - size) * len(rows) // (size + 1)))
    cursor.close()
    return rows


def stream_values(number: int, key: tuple[str, str], stream: Stream) -> tuple[Any, ...]:
    """One row of `streams`."""
    return (number, *key, _encode(stream.ranges), stream.total.to_bytes(32, "big"), stream.at_packed)


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
