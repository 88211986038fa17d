"""An app in a test is the app as it is, and what a test is told when it waits is true."""

from __future__ import annotations

import asyncio
import time

import pytest

from synckit_streams import App, Draft, Event, HandlerContext, Timeout
from synckit_streams.testing import TestApp


async def test_what_was_drained_is_at_the_broker() -> None:
    """Two apps over one broker: what one has written, the other one has when both are drained once."""
    billing, office = App("billing", store="memory:"), App("office", store="memory:")
    filed: list[str] = []

    @billing.handler("orders")
    async def bill(order: Event) -> Draft:
        return Draft("invoices", "invoice.written", order.aggregate_id)

    @office.handler("invoices")
    async def file_away(invoice: Event) -> None:
        filed.append(invoice.aggregate_id)

    broker = "memory://drained"
    async with TestApp(billing, connector=broker) as t, TestApp(office, connector=broker) as u:
        await t.publish(Draft("orders", "order.placed", "o-1"))
        await t.drain()
        await u.drain()
    assert filed == ["o-1"]


async def test_a_test_that_has_failed_ends_at_once() -> None:
    """Also when a handler never would."""
    app = App("billing", store="memory:")

    @app.handler("orders", timeout_s=None)
    async def hang(order: Event) -> None:
        await asyncio.Event().wait()

    async def failing() -> None:
        async with TestApp(app) as t:
            await t.publish(Draft("orders", "order.placed", "o-1"))
            await t.drain(timeout_s=0.1)

    began = time.monotonic()
    with pytest.raises(Timeout, match="billing was not done"):
        await failing()
    assert time.monotonic() - began < 10


async def test_a_crash_shows_who_commits_beside_the_handlers_transaction() -> None:
    """What a handler writes in a transaction of its own is there twice when the process dies before the handler's
    commit; in `ctx.tx` it is there once."""
    found: dict[str, int] = {}
    for where in ("beside", "ctx.tx"):
        app = App("billing", store="memory:")

        @app.handler("orders")
        async def bill(order: Event, ctx: HandlerContext, app: App = app, where: str = where) -> None:
            if where == "beside":
                async with app.node.store.transaction() as tx:
                    await tx.execute("INSERT INTO bills VALUES (?)", (order.aggregate_id,))
            else:
                await ctx.tx.execute("INSERT INTO bills VALUES (?)", (order.aggregate_id,))

        @app.on_startup
        async def make(app: App = app) -> None:
            async with app.node.store.transaction() as tx:
                await tx.execute("CREATE TABLE IF NOT EXISTS bills (id TEXT)")

        async with TestApp(app) as t:
            t.crash_before_commit()
            await t.publish(Draft("orders", "order.placed", "o-1"))
            await t.drain()
            assert t.starts == 2
            async with app.node.store.transaction() as tx:
                ((found[where],),) = await tx.execute("SELECT count(*) FROM bills")
    assert found == {"beside": 2, "ctx.tx": 1}
