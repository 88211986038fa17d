"""A handler that spoils its transaction has failed, and holds nobody up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from synckit_streams import App, Draft, HandlerContext, Retry, StoreError

DEADLINE_S = 30.0


async def test_a_statement_whose_failure_is_swallowed_is_the_handlers_failure(database: str) -> None:
    """PostgreSQL refuses everything after it, the commit too. The event is tried again and given up; others go on, also
    those that were handled in the same commit."""
    app = App("billing", store=database)

    @app.handler("orders", retry=Retry(max_attempts=2, base_ms=1))
    async def bill(order: dict[str, Any], ctx: HandlerContext) -> Draft:
        if order["n"] % 5 == 3:
            with suppress(StoreError):  # as a careless handler would
                await ctx.tx.execute("SELECT 1 / 0")
        return Draft("invoices", "invoice.written", ctx.event.aggregate_id)

    async with app:
        await app.node.append_many([Draft("orders", "order.placed", f"o-{n}", {"n": n}) for n in range(20)])
        async with asyncio.timeout(DEADLINE_S):
            while True:
                invoices = [each.event.aggregate_id async for each in app.node.log("invoices")]
                letters = [each.event.data async for each in app.node.log("billing.dlq")]
                if len(invoices) + len(letters) == 20:
                    break
                await asyncio.sleep(0.02)
    assert sorted(each["event"]["aggregate_id"] for each in letters) == ["o-13", "o-18", "o-3", "o-8"]
    assert {each["attempts"] for each in letters} == {2}
    assert len(set(invoices)) == 16
