"""Rows of a service's own and its events commit together, and the events go out like any others."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from synckit_streams import Draft, FeatureUnsupported, IdReused, Invalid, SyncNode
from tests.acceptance.kit import eventually

Made = Callable[..., SyncNode]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A node on each store that has SQL."""
    if request.param == "postgres":
        url: str = request.getfixturevalue("database")
    else:
        url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path / 'shop.db'}"
    return lambda **more: SyncNode("shop", store=url, topics=["orders"], **more)


@pytest.fixture
def broker() -> str:
    return f"memory://together-{uuid.uuid4().hex[:8]}"


def order(number: int) -> Draft:
    return Draft("orders", "order.placed", f"o-{number}", {"number": number}, id=f"order-{number}")


async def make(node: SyncNode) -> None:
    async with node.transaction() as tx:
        await tx.execute("DROP TABLE IF EXISTS orders")
        await tx.execute("CREATE TABLE orders (number INTEGER)")


async def rows(node: SyncNode) -> list[int]:
    async with node.transaction() as tx:
        return [number for (number,) in await tx.execute("SELECT number FROM orders ORDER BY number")]


async def test_a_row_and_its_event_are_there_together(shop: Made, broker: str) -> None:
    """The row, and the event here and at everybody else's."""
    async with (
        shop(connectors=[broker]) as node,
        SyncNode("office", store="memory:", connectors=[broker], topics=["orders"]) as office,
    ):
        await make(node)
        async with node.transaction() as tx:
            await tx.execute_many("INSERT INTO orders VALUES (1)", [()])
            await tx.append(order(1))
            await tx.append_many([order(2), order(3)])
            assert not tx.appended
        assert [each.event.aggregate_id for each in tx.appended] == ["o-1", "o-2", "o-3"]
        assert await rows(node) == [1]
        assert (await node.sync()).complete
        await office.sync()
        assert [each.event.data["number"] async for each in office.log("orders")] == [1, 2, 3]


async def test_who_is_live_sends_it_by_itself(shop: Made, broker: str) -> None:
    """As with `append`: nobody has to ask."""
    async with (
        shop(connectors=[broker]) as node,
        SyncNode("office", store="memory:", connectors=[broker], topics=["orders"]) as office,
    ):
        await node.start_auto_sync(interval_s=60)
        await office.start_auto_sync(interval_s=60)
        await make(node)
        async with node.transaction() as tx:
            await tx.append(order(1))

        async def there() -> bool:
            return len([each async for each in office.log("orders")]) == 1

        await eventually(there, what="the event came")


async def test_what_raises_undoes_both(shop: Made) -> None:
    """Whoever raises, and whatever it is."""
    async with shop() as node:
        await make(node)

        async def place(number: int, draft: Draft, *, fail: bool = False) -> None:
            async with node.transaction() as tx:
                await tx.execute("INSERT INTO orders VALUES (7)")
                await tx.append(draft)
                if fail:
                    raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await place(1, order(1), fail=True)
        with pytest.raises(Invalid, match="not a topic of this node"):
            await place(2, Draft("elsewhere", "order.placed", "o-2"))
        await node.append(order(3))
        with pytest.raises(IdReused):
            await place(3, Draft("orders", "order.placed", "o-3", {"number": 33}, id="order-3"))
        assert await rows(node) == []
        assert [each.event.aggregate_id async for each in node.log("orders")] == ["o-3"]


async def test_a_store_without_sql_says_so(tmp_path: Path) -> None:
    """Events it takes all the same."""
    async with SyncNode("shop", store=f"rocksdb:///{tmp_path / 'shop'}", topics=["orders"]) as node:
        async with node.transaction() as tx:
            with pytest.raises(FeatureUnsupported):
                await tx.execute("SELECT 1")
            await tx.append(order(1))
        assert [each.event.aggregate_id async for each in node.log("orders")] == ["o-1"]
