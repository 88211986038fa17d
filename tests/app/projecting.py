"""A worker with a read model, as a process: `projecting.py STORE EFFECTS`.

Each order becomes a row that says which process wrote it. The page with the order `hang` waits until the file
EFFECTS.go is there; before it does, the process says so in the file EFFECTS.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from synckit_streams import App, Batch
from synckit_streams.ports.store import Transaction

store, effects = sys.argv[1:3]
app = App("shop", store=store, worker_lease_s=1.0)


@app.projection("sales", topics=["orders"], batch=10, tables=["sales"])
async def sales(batch: Batch, tx: Transaction) -> None:
    rows = [(each.event.aggregate_id, os.getpid()) for each in batch.stored]
    await tx.execute_many("INSERT INTO sales VALUES ($1, $2)", rows)
    if ("hang", os.getpid()) in rows and not Path(f"{effects}.go").exists():
        with Path(effects).open("a") as file:
            file.write(f"{os.getpid()}\n")
        while not Path(f"{effects}.go").exists():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)


@sales.on_reset
async def empty(tx: Transaction) -> None:
    await tx.execute("CREATE TABLE IF NOT EXISTS sales (id TEXT, worker BIGINT)")
    await tx.execute("DELETE FROM sales")


sys.stdout.write("ready\n")
sys.stdout.flush()
app.run()
