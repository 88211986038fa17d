"""Billing: each order becomes one invoice, a row in its database and an event, whatever dies in between.

    synckit run billing:app

A handler's row, the event that it returns and the place in the log commit together. With its store in PostgreSQL it may
run in as many processes as there is work for: `--workers 4`, on as many machines.
"""

import itertools
import re

from pydantic import BaseModel, PositiveInt

from settings import BILLING_STORE, BROKER
from synckit_streams import App, Draft, HandlerContext, Retry

app = App("billing", store=BILLING_STORE, connectors=[BROKER])


def sql(text: str) -> str:
    """A statement for the store's database: the first parameter is ? in SQLite, and $1 in PostgreSQL."""
    if not BILLING_STORE.startswith("postgres"):
        return text
    numbers = itertools.count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", text)


class OrderPlaced(BaseModel):
    product: str
    cents: PositiveInt


@app.on_startup
async def tables() -> None:
    async with app.node.store.transaction() as tx:
        await tx.execute(
            "CREATE TABLE IF NOT EXISTS invoices "
            "(order_id TEXT PRIMARY KEY, product TEXT NOT NULL, cents INTEGER NOT NULL, cancelled BOOLEAN NOT NULL)"
        )


@app.handler("orders", "order.placed", concurrency=4, retry=Retry(max_attempts=5), dead_letter="orders.dlq")
async def write_invoice(order: OrderPlaced, ctx: HandlerContext) -> Draft:
    """What does not fit the model never comes here: it is a dead letter at once, and nothing waits behind it."""
    order_id = ctx.event.aggregate_id
    insert = sql("INSERT INTO invoices VALUES (?, ?, ?, ?)")
    await ctx.tx.execute(insert, (order_id, order.product, order.cents, False))
    return Draft("invoices", "invoice.written", order_id, {"product": order.product, "cents": order.cents})


@app.handler("orders", "order.cancelled", concurrency=4, dead_letter="orders.dlq")
async def take_invoice_back(_: dict[str, object], ctx: HandlerContext) -> Draft | None:
    """It comes after `order.placed` of the same order: the events of an aggregate are handled one after another."""
    order_id = ctx.event.aggregate_id
    update = sql("UPDATE invoices SET cancelled = ? WHERE order_id = ? RETURNING product, cents")
    rows = await ctx.tx.execute(update, (True, order_id))
    if not rows:
        return None  # it could not be billed either
    ((product, cents),) = rows
    return Draft("invoices", "invoice.cancelled", order_id, {"product": product, "cents": cents})
