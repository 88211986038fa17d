"""A transaction of a projection's own: its read model, in the store's PostgreSQL database, and its offset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from synckit_streams.errors import StoreError, StoreUnavailable
from synckit_streams.model.event import Offset
from synckit_streams.stores.block import Appending, Block, Thread
from synckit_streams.stores.postgres_line import STATEMENT_OWN_S, Line, translate
from synckit_streams.stores.postgres_schema import Statements, check_name


def check_begun(line: Line, block: Block, name: str) -> None:
    """That the transaction of a block is still open.

    Raises:
        StoreError: a statement has ended it.
        StoreUnavailable: it went with its connection.
    """
    if block.ended_by:
        raise StoreError(
            f"{block.ended_by[:80]!r} has ended the transaction",
            hint="the store commits it when its `async with` block ends",
        )
    if not line.in_transaction:
        raise StoreUnavailable(f"{name}: the connection was lost, and with it the transaction")


class PostgresTransaction(Appending):
    """See `Transaction`. Placeholders are `$1`, `$2`, …; statements run one after another.

    Args:
        line: In a transaction.
        queue: Of the writer, whose thread the statements run on.
        block: Of the caller.
        statements: Of the store's schema.
        name: For messages.
    """

    def __init__(self, line: Line, queue: Thread, block: Block, statements: Statements, name: str) -> None:
        super().__init__(block)
        self._line = line
        self._queue = queue
        self._statements = statements
        self._name = name

    async def _run(self, sql: str, work: Callable[[], Any]) -> Any:
        self._block.check()

        def translated() -> Any:
            check_begun(self._line, self._block, self._name)
            try:
                found = work()
            except Exception as error:
                failure = translate(error, self._name)
                if type(failure) is StoreError:  # the statement's own fault, most likely
                    failure = StoreError(f"{sql[:80]!r}: {error}", hint="nothing of the transaction is written")
                raise failure from error
            if not self._line.in_transaction:
                if self._line.connected:  # else it was lost just after the answer, and nobody has ended it
                    self._block.ended_by = sql
                check_begun(self._line, self._block, self._name)
            return found

        return await self._queue.run(translated)

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """See `Transaction`."""
        rows: list[Any] = await self._run(sql, lambda: self._line.fetch(sql, *parameters, timeout_s=STATEMENT_OWN_S))
        return [tuple(row) for row in rows]

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """See `Transaction`."""
        await self._run(sql, lambda: self._line.execute_many(sql, rows, timeout_s=STATEMENT_OWN_S))

    async def offset(self, consumer: str) -> Offset | None:
        """See `Transaction`. Another process that asks for the same consumer waits until this transaction has ended."""
        await self.execute(self._statements.hold_consumer, (consumer,))
        rows = await self.execute(self._statements.offset, (consumer,))
        return Offset(*rows[0]) if rows else None

    async def set_offset(self, consumer: str, offset: Offset) -> None:
        """See `Transaction`."""
        await self.set_offsets({consumer: offset})

    async def set_offsets(self, offsets: Mapping[str, Offset]) -> None:
        """See `Transaction`."""
        if offsets:
            rows = [(each, at.log, at.position, at.fingerprint) for each, at in sorted(offsets.items())]
            await self.execute(self._statements.put_offsets, [list(column) for column in zip(*rows, strict=True)])

    async def applied(self, projection: str, aggregates: Sequence[tuple[str, str]]) -> Sequence[bytes | None]:
        """See `Transaction`."""
        keys = [applied_key(projection, *each) for each in aggregates]
        found = dict(await self.execute(self._statements.applied, (keys,)))
        return [found.get(key) for key in keys]

    async def note_applied(self, projection: str, states: Sequence[tuple[str, str, bytes]]) -> None:
        """See `Transaction`."""
        check_name(projection)
        # By key, since one statement cannot change a row twice: the last state counts.
        rows = {applied_key(projection, *each[:2]): (projection, *each) for each in states}
        kept = [(key, *row) for key, row in rows.items() if row[3]]
        if gone := [key for key, row in rows.items() if not row[3]]:
            await self.execute(self._statements.remove_applied, (gone,))
        if kept:
            await self.execute(self._statements.note_applied, [list(column) for column in zip(*kept, strict=True)])

    async def forget_applied(self, projection: str) -> None:
        """See `Transaction`."""
        await self.execute(self._statements.forget_applied, (projection,))


def applied_key(*names: str) -> bytes:
    """Of a note, by its projection, topic and aggregate id: an aggregate id may be longer than an index entry."""
    return blake2b("\0".join(names).encode(), digest_size=16).digest()
