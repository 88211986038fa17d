"""Rows of one's own and events, in one commit: the log is the outbox.

A service that changes its tables and then tells a broker can die in between, or tell what it then does not commit. Here
both are one transaction of the node's store, and what was told goes out from the log whenever a broker can be reached.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from synckit_streams.model.event import Draft, Stored
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.driver import Driver


class NodeTransaction:
    """See `SyncNode.transaction`.

    Args:
        driver: Of the node.
        tx: The store's transaction, which is open.
        check: Raises for a draft that this node cannot write.
        traceparent: W3C trace context that the events carry.
    """

    def __init__(self, driver: Driver, tx: Transaction, check: Callable[[Draft], None], traceparent: str) -> None:
        self._driver = driver
        self._tx = tx
        self._check = check
        self._traceparent = traceparent

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement of the store's SQL, and return its rows.

        Raises:
            FeatureUnsupported: the store has no SQL.
            StoreError: the statement failed.
        """
        return await self._tx.execute(sql, parameters)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each row, in one call."""
        await self._tx.execute_many(sql, rows)

    async def append(self, draft: Draft) -> None:
        """Write an event with the transaction; it is numbered when the block ends, so the block does not see it.

        Raises:
            Invalid, TooLarge, ClockSkew: the draft cannot be written.
        """
        await self.append_many([draft])

    async def append_many(self, drafts: Sequence[Draft]) -> None:
        """Write some events; see `append`."""
        drafts = tuple(drafts)
        for draft in drafts:
            self._check(draft)
        if drafts:
            await self._driver.write_in(self._tx, drafts, traceparent=self._traceparent)

    @property
    def appended(self) -> Sequence[Stored]:
        """The events, once the block has ended; nothing before."""
        result = self._tx.appended
        return () if result is None else result.appended


@asynccontextmanager
async def together(driver: Driver, check: Callable[[Draft], None]) -> AsyncIterator[NodeTransaction]:
    """See `SyncNode.transaction`."""
    with driver.operation("append") as traceparent:
        async with driver.transaction() as tx:
            yield NodeTransaction(driver, tx, check, traceparent)
