"""What the read model says."""

from sales import app
from synckit_streams import Draft
from synckit_streams.testing import TestApp


def invoice(kind: str, order_id: str, product: str, cents: int) -> Draft:
    return Draft("invoices", f"invoice.{kind}", order_id, {"product": product, "cents": cents})


async def test_what_was_taken_back_was_not_sold() -> None:
    async with TestApp(app) as t:
        await t.publish(
            invoice("written", "o-1", "tea", 350),
            invoice("written", "o-2", "tea", 300),
            invoice("written", "o-3", "cake", 510),
            invoice("cancelled", "o-1", "tea", 350),
        )
        await t.drain()
        async with t.app.node.store.transaction() as tx:
            assert await tx.execute("SELECT * FROM sales ORDER BY product") == [("cake", 1, 510), ("tea", 1, 300)]
