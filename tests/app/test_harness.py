"""An app in a test is the app as it is, and what a test is told when it waits is true."""

from __future__ import annotations

from synckit_streams import App, Draft, Event
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
