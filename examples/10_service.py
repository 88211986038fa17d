"""A small service: an order comes in, an invoice goes out, and a read model says what every customer owes.

Run it: python examples/10_service.py
Over a real broker: CONNECTOR=nats://127.0.0.1:4222 python examples/10_service.py (or kafka://…, redis://…)
As a service, with metrics and health: cd examples && CONNECTOR=nats://127.0.0.1:4222 synckit run 10_service:app
"""

import asyncio
import logging
import os
import tempfile

from pydantic import BaseModel

from synckit_streams import App, Batch, Draft, HandlerContext, Retry, SyncNode
from synckit_streams.ports.store import Transaction

CONNECTOR = os.environ.get("CONNECTOR", "memory://shop")
app = App("billing", store=os.environ.get("STORE", "sqlite:///billing.db"), connectors=[CONNECTOR])


class OrderPlaced(BaseModel):
    customer: str
    total_cents: int


@app.on_startup
async def tables() -> None:
    async with app.node.store.transaction() as tx:
        await tx.execute("CREATE TABLE IF NOT EXISTS bills (number INTEGER PRIMARY KEY, order_id TEXT UNIQUE)")


@app.handler("orders", "order.placed", retry=Retry(max_attempts=3, base_ms=50), dead_letter="orders.dlq")
async def bill(order: OrderPlaced, ctx: HandlerContext) -> Draft:
    """The row, the invoice and our place in the log commit together: no number is lost, and none is given twice."""
    order_id = ctx.event.aggregate_id
    sql = "INSERT INTO bills (order_id) VALUES (?) RETURNING number"
    ((number,),) = await ctx.tx.execute(sql, (order_id,))
    if order.total_cents > 100_000 and ctx.attempt == 1:
        raise RuntimeError("the credit limit cannot be read")  # the row is undone; others go on; it is tried again
    data = {"number": number, "customer": order.customer, "cents": order.total_cents}
    return Draft("invoices", "invoice.written", order_id, data)


@app.projection("owed", topics=["invoices"], tables=["owed"])
async def owed(batch: Batch, tx: Transaction) -> None:
    invoices = [each.event.data for each in batch.stored]
    await tx.execute_many(
        "INSERT INTO owed VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET cents = cents + excluded.cents",
        [(invoice["customer"], invoice["cents"]) for invoice in invoices],
    )


@owed.on_reset
async def nobody_owes(tx: Transaction) -> None:
    await tx.execute("CREATE TABLE IF NOT EXISTS owed (customer TEXT PRIMARY KEY, cents INTEGER)")
    await tx.execute("DELETE FROM owed")


# ---------------------------------------------------------------------------------------- somebody who uses the service


def order(number: int, customer: str, total_cents: object) -> Draft:
    return Draft("orders", "order.placed", f"o-{number}", {"customer": customer, "total_cents": total_cents})


async def answers(shop: SyncNode, count: int) -> list[str]:
    """What the shop has got back, when there is so much of it."""
    async with asyncio.timeout(30):
        while True:
            await shop.sync()
            invoices = [each.event async for each in shop.log("invoices")]
            letters = [each.event.data async for each in shop.log("orders.dlq")]
            if len(invoices) + len(letters) >= count:
                break
            await asyncio.sleep(0.05)
    return sorted(
        [f"{each.aggregate_id}: an invoice to {each.data['customer']}" for each in invoices]
        + [f"{each['event']['aggregate_id']}: given up at attempt {each['attempts']}" for each in letters]
    )


async def read_model() -> dict[str, int]:
    """A read model follows its log: at once, and not in the same instant."""
    await app.node.project()
    async with app.node.store.transaction() as tx:
        return dict(await tx.execute("SELECT customer, cents FROM owed ORDER BY customer"))


async def main() -> None:
    topics = ["orders", "invoices", "orders.dlq"]
    async with SyncNode("shop", store="memory:", connectors=[CONNECTOR], topics=topics) as shop:
        async with app:
            await shop.append_many(
                [
                    order(1, "Ada", 500),
                    order(2, "Bob", 250_000),
                    order(3, "Ada", 700),
                    order(4, "Eve", "a lot"),  # never fits the model: a dead letter at once
                ]
            )
            print(*await answers(shop, 4), sep="\n")
            print("owed:", await read_model())
        async with app:  # again, from the same file: everything is as it was, and nothing is done twice
            await shop.append(order(5, "Bob", 1))
            print((await answers(shop, 5))[-1])
            print("owed:", await read_model())


if __name__ == "__main__":
    logging.disable()  # what is given up is also an error in the log
    with (
        tempfile.TemporaryDirectory() as folder,
        app.surrounded(store=f"sqlite:///{folder}/billing.db", connectors=[CONNECTOR]),
    ):
        asyncio.run(main())
