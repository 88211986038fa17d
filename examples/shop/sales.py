"""Sales: a read model of what was sold, kept up to date from the invoices, in a file that any tool can read.

    synckit run sales:app
    python sales.py

The rows and the place in the log commit together, so each invoice counts once. `synckit projection rebuild sales
--store sqlite:///sales.db` makes it anew from the log, beside the one that is asked meanwhile.
"""

import sqlite3
from collections import Counter

from settings import BROKER, SALES_FILE
from synckit_streams import App, Batch
from synckit_streams.ports.store import Transaction

app = App("sales", store=f"sqlite:///{SALES_FILE}", connectors=[BROKER])
SIGNS = {"invoice.written": 1, "invoice.cancelled": -1}


@app.projection("sales", topics=["invoices"], types=list(SIGNS), batch=1000, tables=["sales"])
async def sales(batch: Batch, tx: Transaction) -> None:
    pieces, cents = Counter[str](), Counter[str]()
    for stored in batch.stored:
        invoice, sign = stored.event.data, SIGNS[stored.event.type]
        pieces[invoice["product"]] += sign
        cents[invoice["product"]] += sign * invoice["cents"]
    await tx.execute_many(
        "INSERT INTO sales VALUES (?, ?, ?) ON CONFLICT (product) "
        "DO UPDATE SET pieces = pieces + excluded.pieces, cents = cents + excluded.cents",
        [(product, pieces[product], cents[product]) for product in pieces],
    )


@sales.on_reset
async def nothing_sold(tx: Transaction) -> None:
    await tx.execute("CREATE TABLE IF NOT EXISTS sales (product TEXT PRIMARY KEY, pieces INTEGER, cents INTEGER)")
    await tx.execute("DELETE FROM sales")


def report() -> None:
    """Beside the service that writes it, with nothing but SQLite."""
    with sqlite3.connect(f"file:{SALES_FILE}?mode=ro", uri=True) as database:
        for product, pieces, cents in database.execute("SELECT * FROM sales ORDER BY product"):
            print(f"{product:<10}{pieces:>8} pieces{cents:>12} cents")


if __name__ == "__main__":
    report()
