"""A transaction of a projection's own: its read model, in the store's SQLite database, and its offset."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from synckit_streams.errors import StoreError
from synckit_streams.model.event import Offset
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.block import Appending, Block, Thread


def check_still_open(connection: sqlite3.Connection, sql: str) -> None:
    """That a statement of a projection's has not ended the transaction it runs in.

    Raises:
        StoreError: it has: what follows would not be atomic with the offset.
    """
    if not connection.in_transaction:
        raise StoreError(
            f"{sql[:80]!r} has ended the transaction", hint="the store commits it when its `async with` block ends"
        )


def check_open(connection: sqlite3.Connection) -> None:
    """That a transaction is open.

    Raises:
        StoreError: it has been ended, or rolled back by an error.
    """
    if not connection.in_transaction:
        raise StoreError(
            "the transaction had ended before its block", hint="a statement in it had failed; see its error"
        )


class SqliteTransaction(Appending):
    """See `Transaction`. Statements run on the writer's thread, one after another."""

    def __init__(
        self,
        writer: sqlite3.Connection,
        queue: Thread,
        block: Block,
        translate: Callable[[BaseException], BaseException],
    ) -> None:
        super().__init__(block)
        self._writer = writer
        self._queue = queue
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
        await self.set_offsets({consumer: offset})

    async def set_offsets(self, offsets: Mapping[str, Offset]) -> None:
        """See `Transaction`."""
        rows = [(each, at.log, at.position, at.fingerprint) for each, at in offsets.items()]
        if rows:
            await self.execute_many(schema.UPSERT_OFFSET, rows)

    async def applied(self, projection: str, aggregates: Sequence[tuple[str, str]]) -> Sequence[bytes | None]:
        """See `Transaction`."""
        asked = msgspec.json.encode(aggregates).decode()
        found = dict(await self.execute(schema.SELECT_APPLIED, (asked, projection)))
        return [found.get(at) for at in range(len(aggregates))]

    async def note_applied(self, projection: str, states: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Transaction`."""
        gone = [(projection, topic, aggregate_id) for topic, aggregate_id, state in states if not state]
        kept = [(projection, *each) for each in states if each[2]]
        if gone:
            await self.execute_many(schema.REMOVE_APPLIED, gone)
        if kept:
            await self.execute_many(schema.UPSERT_APPLIED, kept)

    async def forget_applied(self, projection: str) -> None:
        """See `Transaction`."""
        await self.execute(schema.FORGET_APPLIED, (projection,))
