"""A read model beside the log: a table that follows what every order resolves to, exactly once, also after a crash.

Run it: python examples/03_read_model.py
"""

import asyncio
import tempfile

from synckit_streams import Batch, Draft, SyncNode
from synckit_streams.ports.store import Transaction


class TotalPerCustomer:
    """What each customer owes. Its rows and its place in the log are one transaction."""

    name = "total-per-customer"
    topics = ("orders",)
    types = ()
    resolved = True  # `changes` instead of bare events: what an order was counted as, and what it is now

    async def reset(self, tx: Transaction) -> None:
        await tx.execute("CREATE TABLE IF NOT EXISTS owed (customer TEXT PRIMARY KEY, total INTEGER)")
        await tx.execute("DELETE FROM owed")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        rows = []
        for change in batch.changes:
            if change.previous is not None:
                rows.append((change.previous["customer"], -change.previous["total"]))
            rows.append((change.current["customer"], change.current["total"]))
        await tx.execute_many(
            "INSERT INTO owed VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET total = total + excluded.total", rows
        )


def order(number: int, customer: str, total: int) -> Draft:
    data = {"customer": customer, "total": total}
    return Draft(topic="orders", type="order.changed", aggregate_id=f"o-{number}", data=data)


async def owed(node: SyncNode) -> dict[str, int]:
    async with node.store.transaction() as tx:
        return dict(await tx.execute("SELECT customer, total FROM owed WHERE total <> 0 ORDER BY customer"))


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:

        def node(name: str) -> SyncNode:
            return SyncNode(
                name,
                store=f"sqlite:///{folder}/{name}.db",
                topics=["orders"],
                connectors=["memory://shops"],
                projections=[TotalPerCustomer()],
            )

        async with node("shop") as shop, node("depot") as depot:
            await shop.append_many([order(1, "Ada", 5), order(2, "Bob", 7)])
            await shop.sync()
            await depot.sync()
            print("both:", await owed(depot))

            # The same order is changed on both sides while offline: one change will stand, and be counted once.
            await depot.append(order(1, "Ada", 50))
            await asyncio.sleep(0.01)
            await shop.append(order(1, "Bob", 6))
            await depot.project()
            await shop.project()
            print("depot, offline:", await owed(depot))
            print("shop, offline:", await owed(shop))

            for each in (shop, depot, shop):
                await each.sync()
            print("depot:", await owed(depot))
            print("shop:", await owed(shop))


if __name__ == "__main__":
    asyncio.run(main())
