"""The default store: one SQLite file, in WAL mode, written by one thread with group commit.

One connection writes, on a thread of its own; another one reads pages. All callers of `append` that come while a
commit is being synced to disk share the next one, so a hundred callers cost little more than one. The ledger decides
(`sync/ledger.py`); this module opens the file, reads pages and writes rows.

Source for one writing connection: SQLite before 3.51.3 can corrupt a WAL that two connections reset at once.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from synckit_streams.errors import ConfigError, Invalid, StoreClosed, StoreCorrupt, StoreError, StoreMissing
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import PlaceRun, Quarantined, Raised
from synckit_streams.model.seen import Interval
from synckit_streams.ports.store import QUARANTINED_MAX, Opening, StoreFeatures, Transaction
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.aggregate_hash import AggregateHash, by_aggregate
from synckit_streams.stores.block import Block
from synckit_streams.stores.claim import FileClaim
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.identity import known_nodes, nodes_of, noted_nodes, warn_of_other_node
from synckit_streams.stores.ledger_store import LedgerStore, Probe
from synckit_streams.stores.models import SqliteTransaction, check_open
from synckit_streams.stores.place_rows import run_of
from synckit_streams.stores.sqlite_damage import check_whole, damage
from synckit_streams.stores.sqlite_facts import SqliteFacts
from synckit_streams.stores.sqlite_places import SELECT_ALL_RUNS, SELECT_RUNS, PlaceRows
from synckit_streams.stores.sqlite_rows import EventRows
from synckit_streams.stores.sqlite_shadow import SqliteShadowing
from synckit_streams.stores.sqlite_url import parse_url
from synckit_streams.sync.ledger import Changes, Ledger, Wants

WRITE_CACHE_KIB = 8_000
READ_CACHE_KIB = 2_000
CHECKPOINT_PAGES = 4_000
"""How long the WAL grows before its pages are brought to their place."""
INDEX_EVENTS = 16_384
"""After how many events they are brought, sorted, into the index by aggregate; until then they are in a `Tail`."""


class SqliteStore(LedgerStore, SqliteShadowing):
    """A store in one SQLite file.

    Args:
        url: `sqlite:///relative/path.db` or `sqlite:////absolute/path.db`, with `?durability=normal` if one likes.
            A `?`, `#` or `%` in the path is written `%3F`, `%23` or `%25`.
        durability: "full" (default): what was appended survives the loss of power. "normal": it survives a crash of
            the process, and up to the last checkpoint the loss of power.
        read_only: See `EventStore`.
        threads: False runs everything in the caller, for a simulation.
        probe: See `Probe`.
        busy_timeout_s: How long to wait for a program that holds the write lock, before `StoreBusy`.

    Raises:
        StoreInUse: another node has the file.
        ConfigError: the URL or an option is wrong.
    """

    index_events = INDEX_EVENTS

    def __init__(
        self,
        url: str,
        *,
        durability: str | None = None,
        read_only: bool = False,
        threads: bool = True,
        probe: Probe | None = None,
        busy_timeout_s: float = 5.0,
    ) -> None:
        self.path, options = parse_url(url)
        durability = durability or options["durability"]
        if durability not in ("full", "normal"):
            raise ConfigError(f"durability {durability!r} is unknown", hint='choose "full" or "normal"')
        super().__init__(str(self.path), threads=threads, probe=probe, read_only=read_only)
        self.features = StoreFeatures(durable=True, sql=True, leases=True)
        self.writer: sqlite3.Connection
        self._reader: sqlite3.Connection
        self._reads: Executor | None = None
        self._synchronous = durability.upper()
        self._busy_timeout_s = busy_timeout_s
        self._claim = None if read_only else FileClaim(self.path)
        self.rows: EventRows
        self._aggregate_hash = AggregateHash(b"")

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _claim_for(self, node: str) -> None:
        if self._claim is not None:
            self._claim.lock(node)

    def _unclaim(self) -> None:
        if self._claim is not None:
            self._claim.release()

    def _translate(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.Error):
            return schema.translate(error, self.path)
        if isinstance(error, msgspec.MsgspecError):
            return StoreCorrupt(f"{self.path} is damaged: {error}")
        return error

    def _connect(self, mode: str, *, cache_kib: int) -> sqlite3.Connection:
        # A path with '?' or '#' in it must not be read as a query.
        quoted = str(self.path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        connection = sqlite3.connect(
            f"file:{quoted}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._busy_timeout_s,
        )
        try:
            connection.execute(f"PRAGMA cache_size=-{cache_kib}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, opening: Opening) -> str:
        origin = self._look() if self.read_only else self._take(opening)
        if self._threads:
            self._reads = ThreadPoolExecutor(1, thread_name_prefix="synckit-read")
        return origin

    def _look(self) -> str:
        """Open for reading only."""
        if not self.path.exists():
            raise StoreMissing(f"{self.path} does not exist")
        try:
            self.writer = self._reader = self._connect("ro", cache_kib=READ_CACHE_KIB)
        except sqlite3.OperationalError:
            # Reading a WAL needs files beside it. Where none can be made, and none is left, nobody writes either.
            if self._wal_bytes():
                raise
            self.writer = self._reader = self._connect("ro&immutable=1", cache_kib=READ_CACHE_KIB)
        try:
            version = schema.version_of(self.writer, self.path)
            if not version:
                raise StoreMissing(f"{self.path} is empty")
            if version < schema.SCHEMA_VERSION:
                raise StoreError(
                    f"{self.path} has schema {version}, which this release first brings to {schema.SCHEMA_VERSION}",
                    hint="open it once with a node of this release",
                )
            if not self.writer.execute("SELECT 1 FROM meta WHERE name = 'store'").fetchone():
                raise StoreMissing(f"{self.path} was begun, and no node has opened it")
            meta = self._read_identity()
        except BaseException:
            self.writer.close()
            raise
        self.nodes = known_nodes(str(meta.get("nodes", "")), str(meta.get("node", "")))
        return str(meta.get("origin", ""))

    def _take(self, opening: Opening) -> str:
        """Open for writing; gives the origin to go on with, or ""."""
        assert self._claim is not None
        token = self._claim.consume_token()
        wal_bytes = self._wal_bytes()
        self.writer = self._connect("rwc", cache_kib=WRITE_CACHE_KIB)
        try:
            schema.version_of(self.writer, self.path)
            if not wal_bytes:
                check_whole(self.writer, self.path)
            self.writer.execute("PRAGMA journal_mode=WAL")
            self.writer.execute(f"PRAGMA synchronous={self._synchronous}")
            self.writer.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
            schema.migrate(self.writer, self.path)
            origin = self._begin_life(opening, token)
            self._read_identity()
            self._reader = self._connect("ro", cache_kib=READ_CACHE_KIB)
        except BaseException:
            self.writer.close()
            raise
        return origin

    def _wal_bytes(self) -> int:
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def _read_identity(self) -> Mapping[str, Any]:
        meta = dict(self.writer.execute("SELECT name, value FROM meta"))
        if "store" not in meta or "secret" not in meta:
            raise StoreCorrupt(f"{self.path} lacks its own identity")
        self.id, self._aggregate_hash = meta["store"], AggregateHash(meta["secret"])
        return meta

    def _begin_life(self, opening: Opening, token: str) -> str:
        """Give a new file its identity; keep the last incarnation only if nobody touched the file since its close."""
        meta = dict(self.writer.execute("SELECT name, value FROM meta"))
        warn_of_other_node(self.name, str(meta.get("node", "")), opening.node)
        self.nodes = nodes_of(str(meta.get("nodes", "")), str(meta.get("node", "")), opening.node)
        with self._transaction():
            if "store" not in meta:
                rows = [("store", opening.dice(16).hex()), ("secret", opening.dice(16))]
                self.writer.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            self.writer.execute("DELETE FROM meta WHERE name = 'clean'")
            rows = [("node", opening.node), ("nodes", noted_nodes(self.nodes))]
            self.writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        origin = str(meta.get("origin", ""))
        return origin if token and meta.get("clean") == token and node_of(origin) == opening.node else ""

    def _load(self, ledger: Ledger, node: str) -> None:
        # One transaction, so that a reader beside a running node loads one moment.
        own = not self.writer.in_transaction
        if own:
            self.writer.execute("BEGIN")
        try:
            numbers = schema.load_ledger(self.writer, ledger, node)
            self.rows = EventRows(self.writer, numbers, self._aggregate_hash, index_events=self.index_events)
            self._places = PlaceRows(self.writer)
        finally:
            if own and self.writer.in_transaction:
                self.writer.execute("ROLLBACK")

    def _close(self, origin: str) -> None:
        if self._reads is not None:
            self._reads.shutdown(wait=True)  # whoever reads a page now gets it
            self._reads = None
        try:
            self._reader.close()
            token = self._mark_clean(origin) if origin and not self.read_only else ""
        except (sqlite3.Error, OSError):
            token = ""  # a close that cannot leave its token costs a new incarnation at the next open, nothing else
        self.writer.close()
        if token and self._claim is not None:
            with suppress(OSError):
                self._claim.leave_token(token)

    def _mark_clean(self, origin: str) -> str:
        """Say in the file that it was left clean; "" if not all of it has reached its place."""
        assert self._opening is not None
        token = self._opening.dice(16).hex()
        with self._transaction():
            rows = [("origin", origin), ("clean", token)]
            self.writer.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        # Where somebody reads the file just now, part of it stays in the WAL, which could be lost without a trace.
        (busy, _, _) = self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return "" if busy else token

    # --- writing -----------------------------------------------------------------------------------------------------

    def _facts(self, wants: Wants) -> SqliteFacts:
        return SqliteFacts(self.writer, self.rows, self.id, wants)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._begin()
        try:
            yield
        except BaseException:
            self._end(commit=False)
            raise
        self._end(commit=True)

    def _begin(self) -> None:
        self.writer.execute("BEGIN IMMEDIATE")

    def _end(self, *, commit: bool) -> None:
        try:
            if commit:
                self._probe("commit")
                self.writer.execute("COMMIT")
        finally:
            if self.writer.in_transaction:
                with suppress(sqlite3.Error):  # some errors have rolled back by themselves
                    self.writer.execute("ROLLBACK")
        if commit:
            self._probe("committed")

    def _check_begun(self) -> None:
        check_open(self.writer)

    def _handle(self, queue: CommitQueue, block: Block) -> Transaction:
        return SqliteTransaction(self.writer, queue, block, self._translate)

    def _write(self, changes: Changes, origin: str) -> None:
        many = self.writer.executemany
        rows = self.rows
        if changes.rows or changes.reused:
            rows.write(changes)
        if changes.streams:
            streams = self._ledger.streams
            many(
                schema.UPSERT_STREAM,
                [schema.stream_values(rows.number(fork), fork, streams[fork[0]][fork[1]]) for fork in changes.streams],
            )
        if origin:
            self.writer.execute("INSERT OR REPLACE INTO meta VALUES ('origin', ?)", (origin,))
        if changes.held_gone:
            many("DELETE FROM held WHERE hash=?", [(hash,) for hash in changes.held_gone])
        if changes.held_added:
            encode = msgspec.msgpack.encode
            held = [(hash, encode(event)) for hash, event in changes.held_added.items()]
            many("INSERT OR REPLACE INTO held VALUES (?, ?)", held)
        if changes.asides:
            many(
                "INSERT INTO quarantine VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (reason, reader, place, raw, *(key or (None, None, None)))
                    for reason, reader, place, raw, key in changes.asides
                ],
            )
            self.writer.execute(schema.FORGET_UNREAD, (QUARANTINED_MAX,))
        if changes.voids:
            many("INSERT OR IGNORE INTO voids VALUES (?, ?, ?)", changes.voids)
        if changes.forget:
            self._places.forget(changes.forget)
        if changes.runs:
            self._places.add(changes.runs)
        if changes.offsets:
            places = [(who, at.log, at.position, at.fingerprint) for who, at in changes.offsets.items()]
            many(schema.UPSERT_OFFSET, places)
        if changes.alarms:
            many(schema.UPSERT_ALARM, changes.alarms)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _fetch(
        self,
        shape: Callable[[list[tuple[Any, ...]]], Any],
        sql: str,
        parameters: Sequence[Any],
        *,
        body: int | None = None,
    ) -> Any:
        """Rows, given their shape on the reader's thread; of a page, whose bodies are this column, as many as fit."""

        def fetch() -> Any:
            cursor = self._reader.execute(sql, parameters)
            return shape(cursor.fetchall() if body is None else schema.page_of(cursor, body))

        return await self._read(fetch)

    async def _read(self, work: Callable[[], Any]) -> Any:
        """Something on the reader's thread."""
        self._opened()

        def fetch() -> Any:
            try:
                return work()
            except (sqlite3.Error, msgspec.MsgspecError) as error:
                raise self._translate(error) from error

        if not self._threads:
            return fetch()
        try:
            pending = asyncio.get_running_loop().run_in_executor(self._reads, fetch)
        except RuntimeError:  # closed by another thread just now
            raise StoreClosed(f"{self.name} is closed") from None
        return await pending

    async def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = await self._fetch(lambda rows: rows, sql, parameters)
        return rows

    async def _stored(self, sql: str, parameters: Sequence[Any], *, body: int | None = None) -> list[Stored]:
        def shape(rows: list[tuple[Any, ...]]) -> list[Stored]:
            return schema.stored_of(rows, self.id)

        stored: list[Stored] = await self._fetch(shape, sql, parameters, body=body)
        return stored

    async def log(self, topic: str | None = None, *, after: Offset | None, limit: int) -> Sequence[Stored]:
        """See `EventStore`."""
        if after is not None and after.log != self.id:
            raise Invalid(f"the offset is of the log {after.log!r}, this one is {self.id!r}")
        position = after.position if after is not None else 0
        # The `+` keeps SQLite from the index by stream, which would sort the whole topic for each page.
        only = "" if topic is None else "AND +stream IN (SELECT stream FROM streams WHERE topic = ?) "
        return await self._stored(
            f"SELECT position, twin, body FROM events WHERE position > ? {only}ORDER BY position LIMIT ?",
            (position, limit) if topic is None else (position, topic, limit),
            body=2,
        )

    async def end(self) -> Offset:
        """See `EventStore`."""
        rows = await self._rows("SELECT coalesce(max(position), 0) FROM events")
        return Offset(self.id, rows[0][0])

    async def topics(self) -> Sequence[str]:
        """See `EventStore`."""
        return [row[0] for row in await self._rows("SELECT DISTINCT topic FROM streams ORDER BY topic")]

    async def aggregate_many(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Sequence[Event]]:
        """See `EventStore`."""
        self._opened()
        hashes = [self._aggregate_hash(each) for each in wanted]
        asked = msgspec.json.encode(hashes).decode()
        # The tail first: what is brought into the index meanwhile is then found there.
        tail = "" if self.read_only else msgspec.json.encode(self.rows.tail.positions({*hashes})).decode()
        late = f"position > {schema.INDEXED}" if self.read_only else "position IN (SELECT value FROM json_each(?))"
        parameters = (asked, asked) if self.read_only else (asked, tail, asked)
        stored = await self._stored(
            "SELECT position, twin, body FROM events WHERE position IN (SELECT position FROM aggregates "
            "WHERE aggregate IN (SELECT value FROM json_each(?)) UNION SELECT position FROM events "
            f"WHERE {late} AND aggregate IN (SELECT value FROM json_each(?))) ORDER BY position",
            parameters,
        )
        return by_aggregate(wanted, stored)

    async def aggregates(self, topic: str, *, after: str, limit: int) -> Sequence[str]:
        """See `EventStore`."""
        self._opened()
        start = self._aggregate_hash((topic, after)) if after else -(2**63)
        rows = await self._rows(schema.AGGREGATES_PAGE, (topic, start, limit, topic, start, limit))
        found = dict(rows)
        return [schema.decode_event(found[hash]).aggregate_id for hash in sorted(found)[:limit]]

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """See `EventStore`."""

        def shape(rows: list[tuple[Any, ...]]) -> list[tuple[Event, bytes]]:
            return [(schema.decode_event(body), hash) for body, hash in rows]

        events: list[tuple[Event, bytes]] = await self._fetch(
            shape,
            "SELECT e.body, e.hash FROM streams s JOIN events e USING (stream) "
            "WHERE s.topic = ? AND s.origin = ? AND e.seq BETWEEN ? AND ? ORDER BY e.seq LIMIT ?",
            (topic, origin, *interval, limit),
            body=0,
        )
        return events

    async def runs(self, reader: str | None) -> Sequence[PlaceRun]:
        """See `EventStore`."""

        def shape(rows: list[tuple[Any, ...]]) -> list[PlaceRun]:
            return list(map(run_of, rows))

        runs: list[PlaceRun] = await (
            self._fetch(shape, SELECT_ALL_RUNS, ()) if reader is None else self._fetch(shape, SELECT_RUNS, (reader,))
        )
        return runs

    async def offset(self, consumer: str) -> Offset | None:
        """See `EventStore`."""
        rows = await self._rows("SELECT log, position, fingerprint FROM offsets WHERE consumer = ?", (consumer,))
        return Offset(*rows[0]) if rows else None

    async def offsets(self) -> Mapping[str, Offset]:
        """See `EventStore`."""
        rows = await self._rows("SELECT consumer, log, position, fingerprint FROM offsets ORDER BY consumer")
        return {row[0]: Offset(*row[1:]) for row in rows}

    async def noted(self) -> Sequence[str]:
        """See `EventStore`."""
        return [row[0] for row in await self._rows(schema.NOTED)]

    async def applied(
        self, projection: str, *, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, bytes]]:
        """See `EventStore`."""
        # Nothing is called "", so it is before all.
        return await self._rows(schema.APPLIED_PAGE, (projection, *(after or ("", "")), limit))

    async def quarantine(self, *, after: int, limit: int) -> Sequence[Quarantined]:
        """See `EventStore`."""
        rows = await self._rows(
            "SELECT position, reason, reader, place, raw, topic, origin, seq FROM quarantine WHERE position > ? "
            "ORDER BY position LIMIT ?",
            (after, limit),
        )
        return [
            Quarantined(at, reason, reader, place, raw, Key(*key) if key[0] is not None else None)
            for at, reason, reader, place, raw, *key in rows
        ]

    async def alarms(self) -> Sequence[Raised]:
        """See `EventStore`."""
        return [Raised(*row) for row in await self._rows("SELECT * FROM alarms ORDER BY last_ms DESC, kind, topic")]

    async def size_bytes(self) -> int:
        """See `EventStore`."""
        self._opened()
        return self.path.stat().st_size + self._wal_bytes()

    async def damage(self) -> Sequence[str]:
        """See `EventStore`."""
        found: list[str] = await self._read(lambda: damage(self._reader, self._aggregate_hash))
        return found
