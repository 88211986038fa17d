"""A read model that fails, or that asks for too much, is told so; the log and the other nodes do not suffer from it."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from synckit_connectors.memory import memory_broker
from synckit_streams import Batch, Conflict, Draft, ProjectionFailed, Resolution, StoreError, SyncNode
from synckit_streams.ports.store import Transaction
from synckit_streams.stores.sqlite import SqliteStore
from tests.acceptance.kit import eventually


class Orders:
    """A table of the orders that were touched."""

    name = "orders"
    topics = ()
    types = ()
    resolved = True

    def __init__(self, also: Callable[[], Awaitable[object]] | None = None) -> None:
        self._also = also

    async def reset(self, tx: Transaction) -> None:
        """Make the table."""
        await tx.execute("DROP TABLE IF EXISTS orders")
        await tx.execute("CREATE TABLE orders (id TEXT)")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Enter them, and do what the test wants besides."""
        await tx.execute_many("INSERT INTO orders VALUES (?)", [(change.aggregate_id,) for change in batch.changes])
        if self._also is not None:
            await self._also()


class Unspeakable:
    """A resolver whose state no JSON can hold."""

    name = "unspeakable"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        """An object."""
        return Resolution(None, object())


ORDER = Draft(topic="orders", type="order.placed", aggregate_id="o-1", data={})


async def test_who_follows_outlives_a_store_that_fails(tmp_path: Path) -> None:
    """The disk is full for a while: what follows the log waits, and goes on by itself."""
    refused = 0
    full = False

    def committing(step: str) -> None:
        nonlocal refused
        if step == "commit" and full:
            refused += 1
            raise sqlite3.OperationalError("database or disk is full")

    orders = Orders()
    store = SqliteStore(f"sqlite:///{tmp_path / 'till.db'}", probe=committing)
    async with SyncNode("till-7", store=store, projections=[orders]) as node:
        await node.append(ORDER)
        full = True
        following = asyncio.create_task(node.follow())
        await eventually(lambda: refused > 1, what="it was tried again")
        full = False

        async def entered() -> bool:
            async with node.store.transaction() as tx:
                tables = await tx.execute("SELECT 1 FROM sqlite_master WHERE name = 'orders'")
                return bool(tables) and await tx.execute("SELECT id FROM orders") == [("o-1",)]

        await eventually(entered)
        assert not following.done()
        following.cancel()


async def test_a_first_commit_that_fails_is_made_up_for(tmp_path: Path) -> None:
    """The disk was full when the tables were made: they are made the next time, and not missed for ever."""
    full = True

    def committing(step: str) -> None:
        if step == "commit" and full:
            raise sqlite3.OperationalError("database or disk is full")

    full = False
    store = SqliteStore(f"sqlite:///{tmp_path / 'till.db'}", probe=committing)
    async with SyncNode("till-7", store=store, projections=[Orders()]) as node:
        full = True
        with pytest.raises(StoreError):
            await node.project()
        full = False
        await node.append(ORDER)
        assert await node.project() == 1


async def test_a_state_that_is_no_json_is_the_read_models_failure() -> None:
    """Not the sync's, which has done all else; and auto-sync stays live."""
    name = uuid.uuid4().hex
    settings = {"topics": ["orders"], "resolver": Unspeakable(), "projections": [Orders()]}
    async with (
        SyncNode("till-7", store="memory:", connectors=[f"memory://{name}"], **settings) as node,  # type: ignore[arg-type]
        SyncNode("till-8", store="memory:", connectors=[f"memory://{name}"], topics=["orders"]) as other,
    ):
        await node.append(ORDER)
        result = await node.sync()
        assert result.complete
        assert [type(error) for error in result.errors] == [ProjectionFailed]
        assert "'o-1'" in str(result.errors[0])
        await node.start_auto_sync(interval_s=3600)
        await node.append(ORDER)
        await eventually(lambda: len(memory_broker(name).messages("orders")) == 2)
        assert (await other.sync()).events_pulled == 2


async def test_a_read_model_whose_own_task_was_cancelled_has_failed() -> None:
    """Nobody cancelled the one who asked."""

    async def wait_for_another() -> None:
        other = asyncio.create_task(asyncio.sleep(3600))
        other.cancel()
        await other

    async with SyncNode("till-7", store="memory:", projections=[Orders(wait_for_another)]) as node:
        await node.append(ORDER)
        with pytest.raises(ProjectionFailed, match="CancelledError"):
            await node.project()


async def test_a_read_model_in_whose_task_group_something_raised_has_failed() -> None:
    """The group leaves its task asked to end; it goes on all the same, and ends when it is really asked."""

    async def refused() -> None:
        raise ConnectionError("refused")

    async def gather() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(refused())

    async with SyncNode("till-7", store="memory:", projections=[Orders(gather)]) as node:
        await node.append(ORDER)
        for _ in range(2):
            with pytest.raises(ProjectionFailed, match="TaskGroup"):
                await node.project()
        following = asyncio.create_task(node.follow())
        await asyncio.wait([following], timeout=0.3)
        assert not following.done()
        following.cancel()
        await asyncio.wait([following], timeout=10)
        assert following.cancelled()


@pytest.mark.parametrize("store", ["memory:", "sqlite"])
@pytest.mark.parametrize("asked", ["append", "project", "sync", "close"])
async def test_what_would_wait_for_its_own_transaction_is_refused(tmp_path: Path, store: str, asked: str) -> None:
    """A read model that writes events, while it holds the writer: an error that says so, and no wait without end."""
    url = store if store == "memory:" else f"sqlite:///{tmp_path / 'till.db'}"

    async def ask() -> object:
        return await (node.append(ORDER) if asked == "append" else getattr(node, asked)())

    async with asyncio.timeout(10):
        connectors = [f"memory://{uuid.uuid4().hex}"]
        async with SyncNode(
            "till-7", store=url, connectors=connectors, topics=["orders"], projections=[Orders(ask)]
        ) as node:
            await node.append(ORDER)
            with pytest.raises(ProjectionFailed, match="transaction"):
                await node.project()
