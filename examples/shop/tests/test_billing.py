"""What billing promises, in memory, with time that stands still and with crashes. `python -m pytest`"""

from typing import Any

from billing import app
from synckit_streams import Draft, Event
from synckit_streams.testing import TestApp


def placed(order_id: str, cents: Any = 350) -> Draft:
    return Draft("orders", "order.placed", order_id, {"product": "tea", "cents": cents}, id=f"fact-{order_id}")


def cancelled(order_id: str) -> Draft:
    return Draft("orders", "order.cancelled", order_id, {})


def said(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.aggregate_id, event.type) for event in events]


async def rows(t: TestApp) -> list[tuple[Any, ...]]:
    async with t.app.node.store.transaction() as tx:
        return await tx.execute("SELECT order_id, cents, cancelled FROM invoices ORDER BY order_id")


async def test_an_order_is_billed_once_however_often_it_comes() -> None:
    async with TestApp(app) as t:
        await t.publish(placed("o-1"))
        await t.publish(placed("o-1"))
        await t.drain()
        assert await rows(t) == [("o-1", 350, 0)]
        assert said(t.published("invoices")) == [("o-1", "invoice.written")]


async def test_whoever_cancels_gets_the_invoice_taken_back() -> None:
    async with TestApp(app) as t:
        await t.publish(placed("o-1"), cancelled("o-1"), cancelled("o-2"))
        await t.drain()
        assert await rows(t) == [("o-1", 350, 1)]
        assert said(t.published("invoices")) == [("o-1", "invoice.written"), ("o-1", "invoice.cancelled")]


async def test_what_cannot_be_billed_holds_up_nobody() -> None:
    async with TestApp(app) as t:
        await t.publish(placed("o-1", "as usual"), placed("o-2"))
        await t.drain()
        (letter,) = t.published("orders.dlq")
        assert (letter.data["event"]["aggregate_id"], letter.data["attempts"]) == ("o-1", 1)
        assert said(t.published("invoices")) == [("o-2", "invoice.written")]


async def test_no_crash_loses_or_doubles_an_invoice() -> None:
    async with TestApp(app) as t:
        for number, crash in enumerate([t.crash_before_ack, t.crash_before_commit, t.crash_after_commit]):
            crash()
            await t.publish(placed(f"o-{number}"))
            await t.drain()
        assert t.starts == 4
        assert await rows(t) == [(f"o-{number}", 350, 0) for number in range(3)]
        assert len(t.published("invoices")) == 3
