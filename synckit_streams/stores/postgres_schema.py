"""The PostgreSQL store's tables, and the statements on them.

Everything is in one schema of the database, so that a read model of the user's own may stand beside it and be written
in one transaction with it. Nothing that can be long is in an index by itself: aggregates are found by a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from synckit_streams.errors import Invalid
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event, Stored

MARK = "synckit-streams: a store"
"""The comment on the table `store`, so that somebody else's is not mistaken for ours."""

CHANNEL = "synckit"
"""Of NOTIFY; the payload is the store's id."""

PAGE_BYTES = 8 * 1024 * 1024
"""A page of events ends when their payloads come to so much, however many were asked for."""

NAME_BYTES_MAX = 1_000
"""Of a consumer, a reader, a log, a lease or a projection: what an index entry holds without doubt."""

DAMAGE_NAMED = 20
"""So many places that are damaged are named."""

# One entry a version: what brings a schema from the version before it to this one. Never edit one that was released.
# `{s}` is the schema's name, quoted.
MIGRATIONS: tuple[str, ...] = (
    """
    -- One row: whose store it is, and its head. Every transaction that appends locks it first, which is what makes the
    -- order of positions the order of commits. `commits` counts those transactions; `aside` is the last of them that
    -- changed more than the log's end: held events, voids, refused keys, or rows that were there before.
    CREATE TABLE {s}.store (
        one boolean PRIMARY KEY DEFAULT true CHECK (one), id text NOT NULL, secret bytea NOT NULL,
        node text NOT NULL, nodes text NOT NULL, origin text NOT NULL, life text NOT NULL,
        position bigint NOT NULL, commits bigint NOT NULL, aside bigint NOT NULL, version integer NOT NULL);
    -- One row per origin and topic: which numbers are here (`ranges`), the sum of their hashes (`total`), and the
    -- transaction that changed it last.
    CREATE TABLE {s}.streams (
        stream integer PRIMARY KEY, topic text NOT NULL, origin text NOT NULL, ranges bytea NOT NULL,
        total bytea NOT NULL, at bigint NOT NULL, commits bigint NOT NULL, UNIQUE (topic, origin));
    CREATE INDEX streams_commits ON {s}.streams (commits);
    -- The log. `aggregate` is a keyed hash of topic and aggregate id; `at` the hybrid time, milliseconds << 16.
    CREATE TABLE {s}.events (
        position bigint PRIMARY KEY, stream integer NOT NULL, seq bigint NOT NULL, id text COLLATE "C" NOT NULL,
        type text NOT NULL, aggregate_id text NOT NULL, payload bytea NOT NULL, metadata bytea NOT NULL,
        prev bigint NOT NULL, context bytea NOT NULL, after bytea NOT NULL, at bigint NOT NULL,
        schema_version bigint NOT NULL, traceparent text NOT NULL, aggregate bigint NOT NULL, twin boolean NOT NULL,
        hash bytea NOT NULL);
    CREATE UNIQUE INDEX events_key ON {s}.events (stream, seq);
    CREATE INDEX events_id ON {s}.events (id);
    CREATE INDEX events_aggregate ON {s}.events (aggregate, position);
    CREATE VIEW {s}.log AS
        SELECT e.position, s.topic, s.origin, e.seq, e.id, e.type, e.aggregate_id, e.payload, e.metadata,
            to_timestamp((e.at >> 16) / 1000.0) AS written_at, e.schema_version, e.twin
        FROM {s}.events e JOIN {s}.streams s USING (stream);
    -- Events that wait for a cause, arrivals that were set aside (with a key when they are refused for good), and keys
    -- that nobody holds any more.
    CREATE TABLE {s}.held (hash bytea PRIMARY KEY, event bytea NOT NULL);
    CREATE TABLE {s}.quarantine (position bigint PRIMARY KEY, reason text NOT NULL, reader text NOT NULL,
        place bigint NOT NULL, raw bytea NOT NULL, key bytea);
    CREATE TABLE {s}.voids (key bytea NOT NULL);
    CREATE UNIQUE INDEX voids_key ON {s}.voids (sha256(key));
    -- Where each consumer stands, and where in a broker's log each event was last read.
    CREATE TABLE {s}.offsets (consumer text COLLATE "C" PRIMARY KEY, log text NOT NULL, position bigint NOT NULL,
        fingerprint bytea NOT NULL);
    CREATE TABLE {s}.places (run bigint PRIMARY KEY, reader text COLLATE "C" NOT NULL, topic text NOT NULL,
        origin text NOT NULL, first bigint NOT NULL, positions bytea NOT NULL);
    CREATE INDEX places_reader ON {s}.places (reader);
    -- The state of each aggregate that a projection of resolved topics applied last. `key` hashes its names.
    CREATE TABLE {s}.applied (key bytea PRIMARY KEY, projection text NOT NULL, topic text NOT NULL,
        aggregate_id text NOT NULL, data bytea NOT NULL);
    -- What must not be passed over in silence: one of each kind and topic, and how often it was raised.
    CREATE TABLE {s}.alarms (kind text, topic text, evidence text NOT NULL, times bigint NOT NULL,
        first_ms bigint NOT NULL, last_ms bigint NOT NULL, PRIMARY KEY (kind, topic));
    """,
    """
    -- Who has what to himself, and until when by the server's clock. `token` ascends; a row is never deleted.
    CREATE TABLE {s}.leases (name text COLLATE "C" PRIMARY KEY, holder text NOT NULL, token bigint NOT NULL,
        until timestamptz NOT NULL);
    """,
    """
    CREATE INDEX applied_projection ON {s}.applied (projection COLLATE "C", key);
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)
TABLES = (
    "store",
    "streams",
    "events",
    "log",
    "held",
    "quarantine",
    "voids",
    "offsets",
    "places",
    "applied",
    "alarms",
    "leases",
)

_encode = encode_event = msgspec.msgpack.Encoder().encode
decode_event = msgspec.msgpack.Decoder(Event).decode
_decode_ranges = msgspec.msgpack.Decoder(list[tuple[int, int]]).decode
_decode_key = msgspec.msgpack.Decoder(tuple[bytes, bytes, int]).decode

_COLUMNS = (
    "e.position, e.twin, e.hash, e.id, s.topic, e.type, e.aggregate_id, e.payload, e.metadata, s.origin, e.seq, "
    "e.prev, e.context, e.after, e.at, e.schema_version, e.traceparent"
)
EVENT_COLUMNS = (
    "position", "stream", "seq", "id", "type", "aggregate_id", "payload", "metadata", "prev", "context", "after", "at",
    "schema_version", "traceparent", "aggregate", "twin", "hash",
)  # fmt: skip
"""Of the table `events`, as they are written."""


def _unnest(types: Sequence[str], first: int = 1) -> str:
    return f"unnest({', '.join(f'${first + at}::{type}[]' for at, type in enumerate(types))})"


def quoted(name: str) -> str:
    """A name as PostgreSQL takes it literally."""
    return '"' + name.replace('"', '""') + '"'


class Statements:
    """Every statement that is used again and again, for one schema.

    Args:
        schema: Its name.
    """

    def __init__(self, schema: str) -> None:
        s = self.schema = quoted(schema)
        head = f"SELECT id, secret, node, nodes, origin, life, position, commits, aside, version FROM {s}.store"
        event = f"SELECT {_COLUMNS} FROM {s}.events e JOIN {s}.streams s USING (stream)"
        self.head = head
        self.lock_head = f"{head} FOR UPDATE"
        self.commits = f"SELECT commits FROM {s}.store"
        # Facts.
        self.by_ids = f"{event} WHERE e.id = ANY($1::text[]) ORDER BY e.position DESC"
        self.by_key = f"{event} WHERE e.stream = $1 AND e.seq = $2"
        self.hashes = f"SELECT seq, hash FROM {s}.events WHERE stream = $1 AND seq = ANY($2::bigint[])"
        self.known = (
            f"SELECT aggregate, stream, max(seq), max(at) FROM {s}.events WHERE aggregate = ANY($1::bigint[]) "
            "GROUP BY aggregate, stream"
        )
        self.hash_at = f"SELECT hash FROM {s}.events WHERE position = $1"
        # The mirror.
        self.streams = f"SELECT stream, topic, origin, ranges, total, at FROM {s}.streams WHERE commits > $1"
        self.news = (
            f"SELECT stream, aggregate_id, max(seq), max(at) FROM {s}.events WHERE position > $1 "
            "GROUP BY stream, aggregate_id"
        )
        self.voids = f"SELECT key FROM {s}.voids"
        self.refused = f"SELECT key, reason FROM {s}.quarantine WHERE key IS NOT NULL"
        self.held = f"SELECT hash, event FROM {s}.held"
        self.last_run = f"SELECT coalesce(max(run), 0) FROM {s}.places"
        # Writing.
        self.events = (schema, "events")
        # One way to the server for both, and the lock is held for so much less. No streams are empty arrays.
        self.finish = (
            f"WITH grown AS (INSERT INTO {s}.streams SELECT * FROM "
            f"{_unnest(['integer', 'text', 'text', 'bytea', 'bytea', 'bigint', 'bigint'])} "
            "ON CONFLICT (stream) DO UPDATE SET ranges = excluded.ranges, total = excluded.total, at = excluded.at, "
            "commits = excluded.commits) "
            f"UPDATE {s}.store SET position = $8, commits = $9, aside = $10, origin = $11, life = $12"
        )
        self.finish_and_tell = f"{self.finish} RETURNING pg_notify('{CHANNEL}', id)"
        # A key moves from one row to another: first out of the way, then to its place. Nothing else of a row changes.
        self.remove_events = f"DELETE FROM {s}.events WHERE position = ANY($1::bigint[])"
        self.park_events = f"UPDATE {s}.events SET seq = -position WHERE position = ANY($1::bigint[])"
        self.move_events = (
            f"UPDATE {s}.events e SET stream = n.stream, seq = n.seq, prev = n.prev, hash = n.hash FROM "
            f"{_unnest(['bigint', 'integer', 'bigint', 'bigint', 'bytea'])} n (position, stream, seq, prev, hash) "
            "WHERE e.position = n.position"
        )
        self.drop_held = f"DELETE FROM {s}.held WHERE hash = ANY($1::bytea[])"
        self.put_held = (
            f"INSERT INTO {s}.held SELECT * FROM {_unnest(['bytea', 'bytea'])} "
            "ON CONFLICT (hash) DO UPDATE SET event = excluded.event"
        )
        self.set_aside = (
            f"INSERT INTO {s}.quarantine SELECT (SELECT coalesce(max(position), 0) FROM {s}.quarantine) + n.at, "
            "n.reason, n.reader, n.place, n.raw, n.key FROM "
            f"ROWS FROM ({_unnest(['text', 'text', 'bigint', 'bytea', 'bytea'])}) "
            "WITH ORDINALITY AS n (reason, reader, place, raw, key, at)"
        )
        self.forget_unread = (
            f"DELETE FROM {s}.quarantine WHERE key IS NULL AND position <= "
            f"(SELECT max(position) FROM {s}.quarantine) - $1::bigint"
        )
        self.put_voids = f"INSERT INTO {s}.voids SELECT unnest($1::bytea[]) ON CONFLICT DO NOTHING"
        self.forget_places = f"DELETE FROM {s}.places WHERE reader = ANY($1::text[])"
        self.put_places = (
            f"INSERT INTO {s}.places SELECT * FROM {_unnest(['bigint', 'text', 'text', 'text', 'bigint', 'bytea'])} "
            "ON CONFLICT (run) DO UPDATE SET first = excluded.first, positions = excluded.positions"
        )
        self.put_offsets = (
            f"INSERT INTO {s}.offsets SELECT * FROM {_unnest(['text', 'text', 'bigint', 'bytea'])} "
            "ON CONFLICT (consumer) DO UPDATE SET log = excluded.log, position = excluded.position, "
            "fingerprint = excluded.fingerprint"
        )
        self.applied = f"SELECT key, data FROM {s}.applied WHERE key = ANY($1::bytea[])"
        self.note_applied = (
            f"INSERT INTO {s}.applied SELECT * FROM {_unnest(['bytea', 'text', 'text', 'text', 'bytea'])} "
            "ON CONFLICT (key) DO UPDATE SET data = excluded.data"
        )
        self.noted = f'SELECT DISTINCT projection COLLATE "C" FROM {s}.applied ORDER BY 1'
        self.remove_applied = f"DELETE FROM {s}.applied WHERE key = ANY($1::bytea[])"
        of_projection = f'{s}.applied WHERE projection COLLATE "C" = $1'
        self.forget_applied = f"DELETE FROM {of_projection}"
        self.applied_page = f"SELECT topic, aggregate_id, data FROM {of_projection} AND key > $2 ORDER BY key LIMIT $3"
        self.put_alarms = (
            f"INSERT INTO {s}.alarms AS a SELECT * FROM "
            f"{_unnest(['text', 'text', 'text', 'bigint', 'bigint', 'bigint'])} ON CONFLICT (kind, topic) DO UPDATE "
            "SET evidence = excluded.evidence, times = a.times + excluded.times, last_ms = excluded.last_ms"
        )
        # Leases. Always locked in the order of their names, so that nobody waits for somebody who waits for him.
        until = "clock_timestamp() + make_interval(secs => $3)"
        self.take_leases = (
            f"INSERT INTO {s}.leases AS l SELECT name, $2, 1, {until} FROM unnest($1::text[]) AS name "
            'ORDER BY name COLLATE "C" ON CONFLICT (name) DO UPDATE SET '
            "holder = excluded.holder, token = l.token + 1, until = excluded.until "
            "WHERE l.until <= clock_timestamp() OR l.holder = excluded.holder RETURNING name, token"
        )
        asked = f"{s}.leases l JOIN {_unnest(['text', 'bigint'])} AS asked (name, token) USING (name, token)"
        mine = f"WITH mine AS (SELECT l.name FROM {asked} ORDER BY l.name FOR UPDATE OF l) UPDATE {s}.leases l SET "
        self.renew_leases = f"{mine} until = {until} FROM mine WHERE l.name = mine.name RETURNING l.name, l.token"
        self.release_leases = f"{mine} until = clock_timestamp() FROM mine WHERE l.name = mine.name"
        # Locked, so that nobody takes one before the commit.
        self.hold_leases = f"SELECT l.name, l.token FROM {asked} ORDER BY l.name FOR SHARE OF l"
        self.leases = (
            f"SELECT name, holder, token FROM {s}.leases WHERE starts_with(name, $1) AND until > clock_timestamp() "
            "ORDER BY name"
        )
        # Pages.
        self.page = self._page("position", "position > $1")
        self.topic_page = self._page(
            "position", f"position > $1 AND stream IN (SELECT stream FROM {s}.streams WHERE topic = $3)"
        )
        self.stream_page = self._page(
            "seq",
            f"stream = (SELECT stream FROM {s}.streams WHERE topic = $3 AND origin = $4) AND seq BETWEEN $1 AND $5",
        )
        self.end = f"SELECT coalesce(max(position), 0) FROM {s}.events"
        self.topics = f'SELECT DISTINCT topic COLLATE "C" FROM {s}.streams ORDER BY 1'
        self.aggregates_events = f"{event} WHERE e.aggregate = ANY($1::bigint[]) ORDER BY e.position"
        self.aggregates = (
            f"SELECT DISTINCT ON (e.aggregate) e.aggregate_id FROM {s}.events e JOIN {s}.streams s USING (stream) "
            "WHERE s.topic = $1 AND e.aggregate > $2 ORDER BY e.aggregate LIMIT $3"
        )
        self.runs = f"SELECT reader, topic, origin, first, positions FROM {s}.places WHERE reader = $1 ORDER BY run"
        self.runs_since = (
            f"SELECT reader, topic, origin, first, positions FROM {s}.places "
            "WHERE reader = $1 AND run > $2 ORDER BY run"
        )
        self.all_runs = f"SELECT reader, topic, origin, first, positions FROM {s}.places ORDER BY reader, run"
        # Whoever reads in a transaction where a consumer stands is about to move it: one at a time, over all processes.
        self.hold_consumer = f"SELECT pg_advisory_xact_lock(hashtextextended($1, '{s}.offsets'::regclass::oid::bigint))"
        self.offset = f"SELECT log, position, fingerprint FROM {s}.offsets WHERE consumer = $1"
        self.offsets = f"SELECT consumer, log, position, fingerprint FROM {s}.offsets ORDER BY consumer"
        self.quarantine = (
            f"SELECT position, reason, reader, place, raw, key FROM {s}.quarantine WHERE position > $1 "
            "ORDER BY position LIMIT $2"
        )
        self.alarms = (
            f"SELECT kind, topic, evidence, times, first_ms, last_ms FROM {s}.alarms "
            'ORDER BY last_ms DESC, kind COLLATE "C", topic COLLATE "C"'
        )

        self.aggregate_columns = (
            f"SELECT e.position, s.topic, e.aggregate_id, e.aggregate FROM {s}.events e "
            f"JOIN {s}.streams s USING (stream) WHERE e.position > $1 ORDER BY e.position LIMIT $2"
        )
        self.damage = (
            f"SELECT 'position ' || e.position || ': of no stream' FROM {s}.events e LEFT JOIN {s}.streams s "
            f"USING (stream) WHERE s.stream IS NULL UNION ALL SELECT 'the next position is ' || position + 1 || "
            f"', which is taken' FROM {s}.store WHERE position < (SELECT max(position) FROM {s}.events)"
        )
        self.size = (
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class "
            "WHERE relnamespace = to_regnamespace($1) AND relname = ANY($2::text[])"
        )

    def _page(self, order: str, where: str) -> str:
        """Events in order, after $1 and at most $2, until their payloads come to `PAGE_BYTES`; at least one."""
        s = self.schema
        return (
            f"WITH page AS (SELECT position, size, sum(size) OVER (ORDER BY {order}) AS upto FROM "
            f"(SELECT position, seq, octet_length(payload) AS size FROM {s}.events "
            f"WHERE {where} ORDER BY {order} LIMIT $2) AS found) "
            f"SELECT {_COLUMNS} FROM page JOIN {s}.events e USING (position) JOIN {s}.streams s USING (stream) "
            f"WHERE page.upto - page.size < {PAGE_BYTES} ORDER BY e.{order}"
        )


def event_of(row: Any) -> Event:
    """Of a row of any of the statements that give events."""
    return Event(*row[3:])


def stored_of(rows: Iterable[Any], log: str) -> list[Stored]:
    """Rows as stored events."""
    return [Stored(event_of(row), row[0], log, row[1]) for row in rows]


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Which numbers of a stream are here."""
    return _encode(ranges)


def ranges_of(raw: bytes) -> list[tuple[int, int]]:
    """What `pack_ranges` gave."""
    return _decode_ranges(raw)


def pack_key(key: Key) -> bytes:
    """A key in bytes: one that is refused may be refused for a name that PostgreSQL's text cannot hold."""
    topic, origin = (name.encode("utf-8", "surrogatepass") for name in key[:2])
    return _encode((topic, origin, key.seq))


def key_of(raw: bytes) -> Key:
    """What `pack_key` gave."""
    topic, origin, seq = _decode_key(raw)
    return Key(topic.decode("utf-8", "surrogatepass"), origin.decode("utf-8", "surrogatepass"), seq)


def plain(text: str) -> str:
    """A text for people, without what PostgreSQL's text cannot hold."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def check_name(name: str) -> None:
    """Raises Invalid: PostgreSQL cannot keep this as the name of something."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = NAME_BYTES_MAX + 1
    if size > NAME_BYTES_MAX or "\0" in name:
        raise Invalid(f"{name!r:.80} cannot be kept: text of at most {NAME_BYTES_MAX} bytes, without NUL, is")
