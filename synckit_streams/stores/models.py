"""A transaction of a projection's own: its read model, in the store's SQLite database, and its offset."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from synckit_streams.errors import StoreError
from synckit_streams.model.event import Offset
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.commits import CommitQueue
from synckit_streams.stores.ledger_store import Block


def check_still_open(connection: sqlite3.Connection, sql: str) -> None:
    """That a statement of a projection's has not ended the transaction it runs in.

    Raises:
        StoreError: it has: what follows would not be atomic with the offset.
    """
    if not connection.in_transaction:
        raise StoreError(
            f"{sql[:80]!r} has ended the transaction", hint="the store commits it when its `async with` block ends"
        )


class AppliedInSqlite:
    """Of a transaction on an SQLite database: which states the projections have applied, in a table that is made when
    it is needed first."""

    _there = False

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Transaction`."""
        raise NotImplementedError

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Transaction`."""
        raise NotImplementedError

    async def _make(self) -> None:
        if not self._there:
            await self.execute(
                "CREATE TABLE IF NOT EXISTS projection_applied "
                "(projection TEXT, topic TEXT, aggregate_id TEXT, data BLOB NOT NULL, "
                "PRIMARY KEY (projection, topic, aggregate_id)) WITHOUT ROWID"
            )
            self._there = True

    async def applied(self, projection: str, aggregates: Sequence[tuple[str, str]]) -> Sequence[bytes | None]:
        """See `Transaction`."""
        await self._make()
        rows = await self.execute(
            "SELECT asked.key, data FROM json_each(?) AS asked JOIN projection_applied ON projection = ? "
            "AND topic = asked.value ->> 0 AND aggregate_id = asked.value ->> 1",
            (msgspec.json.encode(aggregates).decode(), projection),
        )
        found = dict(rows)
        return [found.get(at) for at in range(len(aggregates))]

    async def note_applied(self, projection: str, states: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Transaction`."""
        if states:
            await self._make()
            await self.execute_many(
                "INSERT OR REPLACE INTO projection_applied VALUES (?, ?, ?, ?)",
                [(projection, *state) for state in states],
            )


class SqliteTransaction(AppliedInSqlite):
    """See `Transaction`. Statements run on the writer's thread, one after another."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        queue: CommitQueue,
        block: Block,
        translate: Callable[[BaseException], BaseException],
    ) -> None:
        self._writer = writer
        self._queue = queue
        self._block = block
        self._translate = translate

    async def _run(self, sql: str, work: Callable[[], Any]) -> Any:
        self._block.check()

        def translated() -> Any:
            try:
                found = work()
                check_still_open(self._writer, sql)
                return found
            except (sqlite3.ProgrammingError, sqlite3.IntegrityError):
                raise  # the statement's own fault: its author wants SQLite's words
            except sqlite3.Error as error:
                raise self._translate(error) from error

        return await self._queue.run(translated)

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Transaction`."""
        rows: list[tuple[Any, ...]] = await self._run(sql, lambda: self._writer.execute(sql, parameters).fetchall())
        return rows

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Transaction`."""
        await self._run(sql, lambda: self._writer.executemany(sql, rows))

    async def offset(self, consumer: str) -> Offset | None:
        """See `Transaction`."""
        rows = await self.execute("SELECT log, position, fingerprint FROM offsets WHERE consumer = ?", (consumer,))
        return Offset(*rows[0]) if rows else None

    async def set_offset(self, consumer: str, offset: Offset) -> None:
        """See `Transaction`."""
        await self.execute_many(schema.UPSERT_OFFSET, [(consumer, offset.log, offset.position, offset.fingerprint)])
