"""A worker of a service, as a process: `service.py STORE CONNECTOR EFFECTS`.

Each order becomes a row in the store's own database and an invoice; a line in the file EFFECTS says that the handler
ran, with the process that ran it. The order `hang` waits until the file EFFECTS.go is there.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from synckit_streams import App, Draft, HandlerContext, Retry

store, connector, effects = sys.argv[1:4]
app = App(
    "billing", store=store, connectors=[connector] if connector != "-" else [], topics=["invoices"], worker_lease_s=2.0
)
place = "$1, $2" if store.startswith("postgres") else "?, ?"


@app.on_startup
async def tables() -> None:
    async with app.node.store.transaction() as tx:
        await tx.execute("CREATE TABLE IF NOT EXISTS bills (order_id TEXT, cents INTEGER)")


@app.handler("orders", concurrency=4, retry=Retry(max_attempts=3, base_ms=10))
async def bill(order: dict[str, int], ctx: HandlerContext) -> Draft:
    id = ctx.event.aggregate_id
    with Path(effects).open("a") as file:
        file.write(f"{id} {os.getpid()}\n")
    while id == "hang" and not Path(f"{effects}.go").exists():  # noqa: ASYNC110 - a file has no event
        await asyncio.sleep(0.01)
    await ctx.tx.execute(f"INSERT INTO bills VALUES ({place})", (f"{id}/{order['n']}", order["n"]))
    return Draft("invoices", "invoice.written", id, {"n": order["n"]})


sys.stdout.write("ready\n")
sys.stdout.flush()
app.run()
