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
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from synckit_streams.errors import ConfigError, Invalid, StoreCorrupt, StoreError
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import Arrival, PlaceRun, Summary
from synckit_streams.model.seen import Interval
from synckit_streams.ports.store import Opening, Quarantined, StoreFeatures, Transaction
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.claim import FileClaim
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.ledger_store import LedgerStore, Probe
from synckit_streams.stores.sqlite_facts import SqliteFacts
from synckit_streams.sync.ledger import Changes, Fork, Ledger, Wants


class SqliteStore(LedgerStore):
    """A store in one SQLite file.

    Args:
        url: `sqlite:///relative/path.db` or `sqlite:////absolute/path.db`, with `?durability=normal` if one likes.
        durability: "full" (default): what was appended survives the loss of power. "normal": it survives a crash of
            the process, and up to the last checkpoint the loss of power.
        read_only: For looking on while another process has the store open. Nothing is claimed or written.
        threads: False runs everything in the caller, for a simulation.
        probe: See `Probe`.

    Raises:
        StoreInUse: another node has the file.
        ConfigError: the URL or an option is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: str | None = None,
        read_only: bool = False,
        threads: bool = True,
        probe: Probe | None = None,
    ) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        durability = durability or options.pop("durability", "full")
        if parts.netloc or not parts.path.strip("/"):
            raise ConfigError(
                f"{url!r} names no file",
                hint="write sqlite:///till.db, or sqlite:////var/lib/till.db for an absolute path",
            )
        if options:
            raise ConfigError(f"unknown options in {url!r}: {', '.join(sorted(options))}", hint="durability is known")
        if durability not in ("full", "normal"):
            raise ConfigError(f"durability {durability!r} is unknown", hint='choose "full" or "normal"')
        self.path = Path(unquote(parts.path[1:]))
        super().__init__(str(self.path), threads=threads, probe=probe)
        self.features = StoreFeatures(durable=True, sql=True)
        self.numbers: dict[Fork, int] = {}
        self.writer: sqlite3.Connection
        self._reader: sqlite3.Connection
        self._reads: Executor | None = None
        self._synchronous = durability.upper()
        self._read_only = read_only
        self._claim = None if read_only else FileClaim(self.path)
        self._secret = b""

    # --- opening and closing -----------------------------------------------------------------------------------------

    def _claim_for(self, node: str) -> None:
        if self._claim is not None:
            self._claim.lock(node)

    def _unclaim(self) -> None:
        if self._claim is not None:
            self._claim.release()
        if self._reads is not None:
            self._reads.shutdown(wait=False)
            self._reads = None

    def _translate(self, error: BaseException) -> BaseException:
        return schema.translate(error, self.path) if isinstance(error, sqlite3.Error) else error

    def _connect(self, *, read_only: bool) -> sqlite3.Connection:
        # A path with '?' or '#' in it must not be read as a query.
        quoted = str(self.path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        connection = sqlite3.connect(
            f"file:{quoted}?mode={'ro' if read_only else 'rwc'}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=5.0,
        )
        connection.execute("PRAGMA cache_size=-16000")
        return connection

    def _open(self, opening: Opening) -> str:
        origin = ""
        if self._read_only:
            if not self.path.exists():
                raise StoreError(
                    f"{self.path} does not exist", hint="check the path; a node makes it when it first opens"
                )
            self.writer = self._reader = self._connect(read_only=True)
            (application,) = self.writer.execute("PRAGMA application_id").fetchone()
            if application != schema.APPLICATION_ID:
                raise StoreCorrupt(f"{self.path} is not a synckit-streams store", hint="check the path")
        else:
            token = self._claim.consume_token() if self._claim is not None else ""
            self.writer = self._connect(read_only=False)
            try:
                self.writer.execute("PRAGMA journal_mode=WAL")
                self.writer.execute(f"PRAGMA synchronous={self._synchronous}")
                self.writer.execute("PRAGMA wal_autocheckpoint=4000")
                schema.migrate(self.writer, self.path)
                origin = self._begin_life(opening, token)
                self._reader = self._connect(read_only=True)
            except BaseException:
                self.writer.close()
                raise
        meta = dict(self.writer.execute("SELECT name, value FROM meta"))
        if "store" not in meta or "secret" not in meta:
            raise StoreCorrupt(f"{self.path} lacks its own identity")
        self.id, self._secret = meta["store"], meta["secret"]
        if self._threads:
            self._reads = ThreadPoolExecutor(1, thread_name_prefix="synckit-read")
        return origin

    def _begin_life(self, opening: Opening, token: str) -> str:
        """Give a new file its identity; keep the last incarnation only if nobody touched the file since its close."""
        meta = dict(self.writer.execute("SELECT name, value FROM meta"))
        with self._transaction():
            if "store" not in meta:
                rows = [("store", opening.dice(16).hex()), ("secret", opening.dice(16))]
                self.writer.executemany("INSERT INTO meta VALUES (?, ?)", rows)
            self.writer.execute("DELETE FROM meta WHERE name = 'clean'")
            self.writer.execute("INSERT OR REPLACE INTO meta VALUES ('node', ?)", (opening.node,))
        origin = str(meta.get("origin", ""))
        return origin if token and meta.get("clean") == token and node_of(origin) == opening.node else ""

    def _load(self, ledger: Ledger, node: str) -> None:
        self.numbers = schema.load_ledger(self.writer, ledger, node)

    def _close(self, origin: str) -> None:
        token = ""
        try:
            if not self._read_only:
                self._reader.close()
                if origin:
                    assert self._opening is not None
                    token = self._opening.dice(16).hex()
                    with self._transaction():
                        self.writer.execute("INSERT OR REPLACE INTO meta VALUES ('clean', ?)", (token,))
                    self.writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (sqlite3.Error, OSError):
            token = ""  # a close that cannot leave its token costs a new incarnation at the next open, nothing else
        self.writer.close()
        if token and self._claim is not None:
            with suppress(OSError):
                self._claim.leave_token(token)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _facts(self, wants: Wants) -> SqliteFacts:
        return SqliteFacts(self, wants)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._read_only:
            raise StoreError(f"{self.path} was opened for reading only")
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

    def _handle(self, queue: CommitQueue) -> Transaction:
        return SqliteTransaction(self.writer, queue, self._translate)

    def aggregate_hash(self, fork: Fork) -> int:
        """The hash under which an aggregate is indexed."""
        return schema.aggregate_hash(self._secret, *fork)

    def _number(self, fork: Fork) -> int:
        number = self.numbers.get(fork)
        if number is None:
            number = self.numbers[fork] = len(self.numbers) + 1
        return number

    def _write(self, changes: Changes, origin: str) -> None:
        many = self.writer.executemany
        hashes: dict[Fork, int] = {}

        def values(event: Event) -> tuple[Any, ...]:
            fork = (event.topic, event.aggregate_id)
            aggregate = hashes.get(fork)
            if aggregate is None:
                aggregate = hashes[fork] = self.aggregate_hash(fork)
            return schema.event_values(event, self._number((event.topic, event.origin)), aggregate)

        if changes.rekeyed:
            # A key moves from one row to another: first out of the way, then to its place.
            many(
                "UPDATE events SET seq=-position WHERE position=?", [(position,) for position, _, _ in changes.rekeyed]
            )
            many(schema.UPDATE_EVENT, [(*values(event), hash, position) for position, event, hash in changes.rekeyed])
        if changes.rows:
            rows = [(position, *values(event), twin, hash) for position, event, hash, twin in changes.rows]
            many(schema.INSERT_EVENT, rows)
        if changes.streams:
            streams = self._ledger.streams
            many(
                schema.UPSERT_STREAM,
                [schema.stream_values(self._number(fork), fork, streams[fork[0]][fork[1]]) for fork in changes.streams],
            )
        if origin:
            self.writer.execute("INSERT OR REPLACE INTO meta VALUES ('origin', ?)", (origin,))
        if changes.held_gone:
            many("DELETE FROM held WHERE topic=? AND origin=? AND seq=?", changes.held_gone)
        if changes.held_added:
            encode = msgspec.msgpack.encode
            held = [(*key, hash, encode(event)) for key, (event, hash) in changes.held_added.items()]
            many("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?)", held)
        if changes.asides:
            many(
                "INSERT INTO quarantine VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (reason, *(arrival.place or ("", 0)), _raw(arrival), *(key or (None, None, None)))
                    for arrival, reason, key in changes.asides
                ],
            )
        if changes.voids:
            many("INSERT OR IGNORE INTO voids VALUES (?, ?, ?)", changes.voids)
        if changes.forget:
            many("DELETE FROM places WHERE reader=?", [(reader,) for reader in changes.forget])
        if changes.runs:
            many("INSERT INTO places VALUES (NULL, ?, ?, ?, ?, ?)", [schema.run_values(run) for run in changes.runs])
        if changes.offsets:
            moved = [(who, at.log, at.position, at.fingerprint) for who, at in changes.offsets.items()]
            many(schema.UPSERT_OFFSET, moved)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _fetch(self, shape: Callable[[list[tuple[Any, ...]]], Any], sql: str, parameters: Sequence[Any]) -> Any:
        """Rows, given their shape on the reader's thread."""
        self._opened()

        def fetch() -> Any:
            try:
                return shape(self._reader.execute(sql, parameters).fetchall())
            except sqlite3.Error as error:
                raise schema.translate(error, self.path) from error

        if self._reads is None:
            return fetch()
        return await asyncio.get_running_loop().run_in_executor(self._reads, fetch)

    async def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = await self._fetch(lambda rows: rows, sql, parameters)
        return rows

    async def _stored(self, sql: str, parameters: Sequence[Any]) -> list[Stored]:
        stored: list[Stored] = await self._fetch(lambda rows: schema.stored_of(rows, self.id), sql, parameters)
        return stored

    async def log(self, topic: str | None = None, *, after: Offset | None, limit: int) -> Sequence[Stored]:
        """See `EventStore`."""
        if after is not None and after.log != self.id:
            raise Invalid(f"the offset is of the log {after.log!r}, this one is {self.id!r}")
        position = after.position if after is not None else 0
        only = "" if topic is None else "AND s.topic = ? "
        return await self._stored(
            f"SELECT {schema.ROW_COLUMNS} {schema.FROM} WHERE e.position > ? {only}ORDER BY e.position LIMIT ?",
            (position, limit) if topic is None else (position, topic, limit),
        )

    async def end(self) -> Offset:
        """See `EventStore`."""
        rows = await self._rows("SELECT coalesce(max(position), 0) FROM events")
        return Offset(self.id, rows[0][0])

    async def topics(self) -> Sequence[str]:
        """See `EventStore`."""
        return [row[0] for row in await self._rows("SELECT DISTINCT topic FROM streams ORDER BY topic")]

    async def aggregate(self, topic: str, aggregate_id: str) -> Sequence[Event]:
        """See `EventStore`."""
        stored = await self._stored(
            f"SELECT {schema.ROW_COLUMNS} {schema.FROM} WHERE e.aggregate = ? ORDER BY e.position",
            (self.aggregate_hash((topic, aggregate_id)),),
        )
        found = (each.event for each in stored)
        return [event for event in found if event.aggregate_id == aggregate_id and event.topic == topic]

    async def aggregates(self, topic: str, *, after: str, limit: int) -> Sequence[str]:
        """See `EventStore`."""
        rows = await self._rows(
            "SELECT e.aggregate_id FROM events e JOIN streams s USING (stream) WHERE s.topic = ? AND e.aggregate > ? "
            "GROUP BY e.aggregate, e.aggregate_id ORDER BY e.aggregate LIMIT ?",
            (topic, self.aggregate_hash((topic, after)) if after else -(2**63), limit),
        )
        return [row[0] for row in rows]

    async def summary(self, topic: str) -> Summary:
        """See `EventStore`."""
        if self._read_only:
            self._stale = True  # another process writes it
        return await super().summary(topic)

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """See `EventStore`."""
        rows = await self._rows(
            f"SELECT {schema.ROW_COLUMNS} FROM streams s JOIN events e USING (stream) "
            "WHERE s.topic = ? AND s.origin = ? AND e.seq BETWEEN ? AND ? ORDER BY e.seq LIMIT ?",
            (topic, origin, *interval, limit),
        )
        return [(Event(*row[3:]), row[2]) for row in rows]

    async def runs(self, reader: str) -> Sequence[PlaceRun]:
        """See `EventStore`."""
        rows = await self._rows(
            "SELECT reader, topic, origin, first, positions FROM places WHERE reader = ? ORDER BY run", (reader,)
        )
        return [schema.run_of(row) for row in rows]

    async def offset(self, consumer: str) -> Offset | None:
        """See `EventStore`."""
        rows = await self._rows("SELECT log, position, fingerprint FROM offsets WHERE consumer = ?", (consumer,))
        return Offset(*rows[0]) if rows else None

    async def offsets(self) -> Mapping[str, Offset]:
        """See `EventStore`."""
        rows = await self._rows("SELECT consumer, log, position, fingerprint FROM offsets ORDER BY consumer")
        return {row[0]: Offset(*row[1:]) for row in rows}

    async def quarantine(self, *, after: int, limit: int) -> Sequence[Quarantined]:
        """See `EventStore`."""
        rows = await self._rows(
            "SELECT position, reason, reader, place, raw FROM quarantine WHERE position > ? ORDER BY position LIMIT ?",
            (after, limit),
        )
        return [Quarantined(*row) for row in rows]


class SqliteTransaction:
    """See `Transaction`. Statements run on the writer's thread, one after another."""

    def __init__(
        self, writer: sqlite3.Connection, queue: CommitQueue, translate: Callable[[BaseException], BaseException]
    ) -> None:
        self._writer = writer
        self._queue = queue
        self._translate = translate

    async def _run(self, work: Callable[[], Any]) -> Any:
        def translated() -> Any:
            try:
                return work()
            except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
                raise  # the statement's own fault: its author wants SQLite's words
            except sqlite3.Error as error:
                raise self._translate(error) from error

        return await self._queue.run(translated)

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Transaction`."""
        rows: list[tuple[Any, ...]] = await self._run(lambda: self._writer.execute(sql, parameters).fetchall())
        return rows

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Transaction`."""
        await self._run(lambda: self._writer.executemany(sql, rows))

    async def offset(self, consumer: str) -> Offset | None:
        """See `Transaction`."""
        rows = await self.execute("SELECT log, position, fingerprint FROM offsets WHERE consumer = ?", (consumer,))
        return Offset(*rows[0]) if rows else None

    async def set_offset(self, consumer: str, offset: Offset) -> None:
        """See `Transaction`."""
        await self.execute_many(schema.UPSERT_OFFSET, [(consumer, offset.log, offset.position, offset.fingerprint)])


def _raw(arrival: Arrival) -> bytes:
    """What quarantine keeps of an arrival."""
    return arrival.raw or (msgspec.msgpack.encode(arrival.event) if arrival.event is not None else b"")
