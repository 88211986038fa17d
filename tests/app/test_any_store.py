"""The same app on every store: whatever cuts it off, each event is answered once, and in order per aggregate."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path

import pytest

from synckit_streams import App, Draft, HandlerContext, Retry
from synckit_streams.model.codec import node_of
from synckit_streams.stores.memory import MemoryDisk, MemoryStore

EVENTS = 300
DEADLINE_S = 60.0


@pytest.mark.parametrize("store", ["memory", "sqlite", "rocksdb", "postgres", "redis"])
async def test_an_app_that_is_cut_off_again_and_again(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Stopped without a moment to finish, at whatever it does, thirty times; and one event in ten fails twice."""
    seed = random.SystemRandom().randrange(2**32)
    dice = random.Random(seed)
    disk = MemoryDisk()
    urls = {"sqlite": f"sqlite:///{tmp_path / 'shop.db'}", "rocksdb": f"rocksdb:///{tmp_path / 'shop'}"}
    if store == "postgres":
        urls[store] = request.getfixturevalue("database")
    if store == "redis":
        urls[store] = f"{request.getfixturevalue('redis_url')}/0?name=shop-{seed}"
    failed: dict[str, int] = defaultdict(int)

    def made() -> App:
        app = App("shop", store=urls.get(store) or MemoryStore(disk=disk), worker_lease_s=1.0)

        @app.handler("orders", concurrency=3, retry=Retry(max_attempts=50, base_ms=1, delay_ms_max=5))
        async def bill(order: dict[str, int], ctx: HandlerContext) -> Draft:
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() / 200)
            if order["n"] % 10 == 0 and failed[ctx.event.id] < 2:
                failed[ctx.event.id] += 1
                raise ValueError("twice")
            # Another content each time: what is answered twice is refused under the same id, and never ends.
            return Draft("invoices", "invoice.written", ctx.event.aggregate_id, {"n": order["n"], "at": dice.random()})

        return app

    async with made() as app:
        await app.node.append_many([Draft("orders", "placed", f"o-{n % 20}", {"n": n}) for n in range(EVENTS)])
    for _ in range(30):
        app = made()
        await app.start()
        await asyncio.sleep(dice.random() * 0.05)
        await app.stop(drain_s=0)
    async with made() as app:
        answered: dict[str, list[int]] = {}
        async with asyncio.timeout(DEADLINE_S):
            while sum(map(len, answered.values())) < EVENTS:
                await asyncio.sleep(0.02)
                answered = defaultdict(list)
                async for stored in app.node.log("invoices", twins=True):
                    assert node_of(stored.event.origin) == "shop"
                    answered[stored.event.aggregate_id].append(stored.event.data["n"])
        assert not [each async for each in app.node.log("shop.dlq")], f"seed {seed}"
    for id, numbers in answered.items():
        assert numbers == [n for n in range(EVENTS) if f"o-{n % 20}" == id], f"seed {seed}: {id}"
