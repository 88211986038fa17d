"""A shadow of a SQLite store: a second file beside it, which is the connection's main database while a model is built.

A name without a schema means a table of the main database first, and then one of what is attached: that is the store,
for reading only. So a projection's statements find its own tables in the second file, and everything else where it is;
and what it writes elsewhere is refused by SQLite itself. Its offset is in the same file, so both commit together.

The swap copies the rows into the store in one of its own transactions, which only reads the second file: a commit that
writes two files would not be atomic in WAL mode.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from synckit_streams.errors import StoreError
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import Lease, Transaction
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.block import Block
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.models import SqliteTransaction, check_open
from synckit_streams.stores.shadow import Workbench, outside, shadow_name

LIVE = "synckit_live"
"""What the store is called where a model is built."""
BUILT = "synckit_built"
"""What the second file is called where it is taken over."""
DETACH_AGAIN_S = 0.01
OWN = ("offsets", "projection_applied", "build")
_MADE = """
    CREATE TABLE build (name TEXT PRIMARY KEY);
    CREATE TABLE offsets (consumer TEXT PRIMARY KEY, log TEXT NOT NULL, position INTEGER NOT NULL,
        fingerprint BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE projection_applied (projection TEXT, topic TEXT, aggregate_id TEXT, data BLOB NOT NULL,
        PRIMARY KEY (projection, topic, aggregate_id)) WITHOUT ROWID;
"""
_DEFINITIONS = (
    "SELECT type, sql FROM {}.sqlite_schema WHERE tbl_name = ? COLLATE NOCASE AND type IN ('table', 'index') "
    "AND sql IS NOT NULL ORDER BY type DESC, sql"
)
# An internal table goes with the one that it belongs to.
_TABLES = "SELECT name FROM {}.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite@_%' ESCAPE '@'"


class SqliteShadow(Workbench):
    """See the module's text, and `Shadow`.

    Args:
        store: The store's file.
        projection: Whose.
        tables: Which it writes.
        writing: Gives the store's writing connection and its queue.
    """

    def __init__(
        self,
        store: Path,
        projection: str,
        tables: Sequence[str],
        writing: Callable[[], tuple[sqlite3.Connection, CommitQueue]],
    ) -> None:
        super().__init__()
        self.path = store.with_name(f"{store.name}-rebuild-{shadow_name(projection)}")
        self._store = store
        self._tables = tuple(tables)
        self._writing = writing
        self._connection: sqlite3.Connection | None = None

    # --- while it is built -------------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                _uri(self.path, "rwc"), uri=True, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                # What is lost with the power is built once more: the offset is lost with it.
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(f"ATTACH ? AS {LIVE}", (_uri(self._store, "ro"),))
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    async def stands(self, build: str) -> bool:
        """See `Shadow`."""

        def look() -> bool:
            if not self.path.exists():
                return False
            connection = self._connect()
            if ("build",) not in connection.execute(_TABLES.format("main")).fetchall():
                return False
            return (build,) in connection.execute("SELECT name FROM main.build").fetchall()

        found: bool = await self._do(look)
        return found

    def making(self, build: str, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """See `Shadow`."""

        def begin() -> None:
            self._remove()
            connection = self._connect()
            connection.execute("BEGIN")
            for statement in filter(str.strip, _MADE.split(";")):
                connection.execute(statement)
            connection.execute("INSERT INTO main.build VALUES (?)", (build,))
            for table in self._tables:
                for _, sql in connection.execute(_DEFINITIONS.format(LIVE), (table,)).fetchall():
                    connection.execute(sql)

        return self._block(begin, leases)

    def transaction(self, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """See `Shadow`."""

        def begin() -> None:
            self._connect().execute("BEGIN")

        return self._block(begin, leases)

    def _handle(self, block: Block) -> Transaction:
        return SqliteTransaction(self._connect(), self, block, self._translate)

    def _hold(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        return leases  # nobody else has the store open

    def _commit(self, block: Block) -> None:
        connection = self._connect()
        check_open(connection)
        for (name,) in connection.execute("SELECT name FROM main.sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL %'"):
            raise StoreError(f"{name!r:.80} is a virtual table", hint="rebuild the projection in place")
        connection.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            with suppress(sqlite3.Error):  # some errors have rolled back by themselves
                self._connection.execute("ROLLBACK")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _remove(self) -> None:
        self._disconnect()
        for end in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def _translate(self, error: BaseException) -> BaseException:
        if not isinstance(error, sqlite3.Error):
            return error
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
            return outside("a table")
        return schema.translate(error, self.path)

    # --- when it is taken over ---------------------------------------------------------------------------------------

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """See `Shadow`."""
        writer, queue = self._writing()

        def attach() -> None:
            if BUILT not in [name for _, name, _ in writer.execute("PRAGMA database_list")]:
                writer.execute(f"ATTACH ? AS {BUILT}", (_uri(self.path, "ro"),))

        def detach() -> bool:
            try:
                writer.execute(f"DETACH {BUILT}")
            except sqlite3.OperationalError:  # somebody has a transaction open, and this file is in it
                return False
            return True

        await queue.run(attach)
        try:
            yield
        finally:
            while not await asyncio.shield(queue.run(detach)):  # noqa: ASYNC110 - its end has no event
                await asyncio.sleep(DETACH_AGAIN_S)

    async def offset(self, tx: Transaction, consumer: str) -> Offset | None:
        """See `Shadow`."""
        sql = f"SELECT log, position, fingerprint FROM {BUILT}.offsets WHERE consumer = ?"
        rows = await tx.execute(sql, (consumer,))
        return Offset(*rows[0]) if rows else None

    async def swap(self, tx: Transaction, notes: Sequence[str]) -> None:
        """See `Shadow`."""
        for (table,) in await tx.execute(_TABLES.format(BUILT)):
            if table not in OWN:
                await _take_over(tx, table)
        for name in notes:
            await tx.forget_applied(name)
        await tx.execute(f"INSERT INTO main.projection_applied SELECT * FROM {BUILT}.projection_applied")

    async def drop(self) -> None:
        """See `Shadow`."""
        await self._do(self._remove)


async def _take_over(tx: Transaction, table: str) -> None:
    """Rows into the live table, so that its triggers and whatever names it stay; a table that was made otherwise takes
    its place."""
    built = await tx.execute(_DEFINITIONS.format(BUILT), (table,))
    live = await tx.execute(_DEFINITIONS.format("main"), (table,))
    name = _quoted(table)
    if _meaning(built) == _meaning(live):
        await tx.execute(f"DELETE FROM main.{name}")
        later: Sequence[str] = ()
    else:
        await tx.execute(f"DROP TABLE IF EXISTS main.{name}")
        await tx.execute(built[0][1])
        later = [sql for kind, sql in built if kind == "index"]
    columns = await tx.execute("SELECT name FROM pragma_table_xinfo(?, ?) WHERE hidden = 0", (table, BUILT))
    named = ", ".join(_quoted(column) for (column,) in columns)
    await tx.execute(f"INSERT INTO main.{name} ({named}) SELECT {named} FROM {BUILT}.{name}")
    for sql in later:
        await tx.execute(sql)


def _meaning(definitions: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(sql.split()) for _, sql in definitions]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _uri(path: Path, mode: str) -> str:
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    return f"file:{quoted}?mode={mode}"


class SqliteShadowing:
    """The part of a `SqliteStore` that has shadows."""

    path: Path
    writer: sqlite3.Connection

    def _writable(self) -> CommitQueue:
        raise NotImplementedError

    def shadow(self, projection: str, tables: Sequence[str]) -> SqliteShadow:
        """See `Shadowing`."""
        return SqliteShadow(self.path, projection, tables, lambda: (self.writer, self._writable()))
