"""An app with one read model of two tables; also in processes of its own, which are killed."""

from __future__ import annotations

import asyncio
from typing import Any

from synckit_streams import App, Batch, Draft
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.driver import World
from synckit_streams.runtime.switch import Want, switches
from tests.stores.child import say


def marks(url: str, count: int) -> str:
    """The places of so many parameters."""
    return ", ".join(f"${at}" if url.startswith("postgres") else "?" for at in range(1, count + 1))


class Shop:
    """An app with one read model of two tables: a row for each order, and how many there are."""

    def __init__(self, url: str, *, world: World | None = None, **how: Any) -> None:
        self.factor = 1
        self.calls = 0
        self.alone = 0
        """How often it was given one order that it cannot take, and nothing else."""
        self.refuses = -1
        """An order that it cannot take."""
        self.columns = "id TEXT PRIMARY KEY, n BIGINT NOT NULL"
        self.row = f"INSERT INTO sales VALUES ({marks(url, 2)})"
        self.turned = False
        """Whether the number comes before the id."""
        self.app = App("shop", store=url, worker_lease_s=0.5, world=world)
        how.setdefault("tables", ["sales", "totals"])
        projection = self.app.projection("sales", topics=["orders"], batch=50, **how)
        self.projection = projection(self._apply)
        self.projection.on_reset(self._reset)
        self._sum = f"UPDATE totals SET orders = orders + {marks(url, 1)}"

    async def _apply(self, batch: Batch, tx: Transaction) -> None:
        self.calls += 1
        orders = [(each.event.aggregate_id, each.event.data["n"] * self.factor) for each in batch.stored]
        if self.refuses in [each.event.data["n"] for each in batch.stored]:
            self.alone += len(batch.stored) == 1
            raise ValueError("no")
        await tx.execute_many(self.row, [each[::-1] for each in orders] if self.turned else orders)
        await tx.execute(self._sum, (len(orders),))

    async def _reset(self, tx: Transaction) -> None:
        await tx.execute("DROP TABLE IF EXISTS sales")
        await tx.execute(f"CREATE TABLE sales ({self.columns})")
        await tx.execute("CREATE INDEX sales_by_n ON sales (n)")
        await tx.execute("CREATE TABLE IF NOT EXISTS totals (orders BIGINT NOT NULL)")
        await tx.execute("DELETE FROM totals")
        await tx.execute("INSERT INTO totals VALUES (0)")


def orders(first: int, count: int) -> list[Draft]:
    return [Draft("orders", "order.placed", f"o-{n}", {"n": n}) for n in range(first, first + count)]


async def building(app: App, name: str = "sales") -> bool:
    """Whether something is being built, or about to be."""
    found = (await switches(app.node.store)).get(name)
    return found is not None and (found.rebuild is not None or found.want is not Want.RUN)


async def serve(url: str) -> None:
    """Write orders for ever, and have the model built anew as soon as it has been; say what is certain."""
    app = Shop(url).app
    async with app:
        at = (await app.node.store.end()).position
        say("building" if await building(app) else "built")
        while True:
            if not await building(app):
                say("built")
                await app.node.switch(["sales"], Want.REBUILD)
                say("building")
            await app.node.append_many(orders(at, 5))
            at += 5
            await asyncio.sleep(0)
