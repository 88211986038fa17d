"""A process that dies of one of its events: `deadly.py STORE BATCH`. It ends by itself when all has been seen to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from synckit_streams import App, Event, HandlerContext, Retry

store, batch = sys.argv[1], int(sys.argv[2])
app = App("shop", store=store)
place = "$1, $2" if store.startswith("postgres") else "?, ?"


@app.on_startup
async def tables() -> None:
    async with app.node.store.transaction() as tx:
        await tx.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT, n INTEGER)")


async def see(event: Event, ctx: HandlerContext) -> None:
    await ctx.tx.execute(f"INSERT INTO seen VALUES ({place})", (event.aggregate_id, event.data["n"]))
    await asyncio.sleep(0)
    if event.data["n"] == 50:
        os.kill(os.getpid(), signal.SIGKILL)


if batch:

    @app.handler("orders", batch=batch, concurrency=3, retry=Retry(max_attempts=4, base_ms=5))
    async def many(events: list[Event], ctx: HandlerContext) -> None:
        for event in events:
            await see(event, ctx)

else:

    @app.handler("orders", concurrency=3, retry=Retry(max_attempts=1, base_ms=5))
    async def one(event: Event, ctx: HandlerContext) -> None:
        await see(event, ctx)


async def main() -> None:
    async with app:
        (group,) = app.groups
        while not (group.idle and not group.parked):  # noqa: ASYNC110 - a state, and no event
            await asyncio.sleep(0.01)


asyncio.run(main())
