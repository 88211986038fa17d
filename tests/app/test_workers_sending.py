"""Workers that share a store send each event once between them."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from synckit_streams import SyncNode
from synckit_streams.runtime.envelope import arrivals
from synckit_streams.runtime.registry import connector_for
from tests.app.test_workers import bills, invoices, order, orders, until, workers

ORDERS = 600


async def on_broker(url: str, topic: str) -> Counter[str]:
    """How often each event lies in a topic's log."""
    found: Counter[str] = Counter()
    connector = connector_for(url)
    await connector.open()
    try:
        left = {number: bounds.end - bounds.first for number, bounds in (await connector.bounds(topic)).items()}
        async with connector.receive(topic, start={}, batch_max=1_000) as batches:
            while any(left.values()):
                for delivery in await anext(batches):
                    left[delivery.partition] -= 1
                    come = [each.event for each in arrivals(delivery.message, topic, None)]
                    found.update(each.aggregate_id + each.id for each in come if each is not None)
    finally:
        await connector.close()
    return found


@pytest.mark.parametrize("broker", ["own_nats_url"])
async def test_each_event_of_two_workers_is_on_the_broker_once(
    broker: str, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also what one has written and the other has read back, and after a third one has come.
    What somebody has left unsent goes out all the same."""
    url = request.getfixturevalue(broker)
    await orders(database, *(order(f"left-{n}", n) for n in range(20)))
    till = SyncNode("till", store="memory:", connectors=[url], topics=["orders", "invoices"])
    async with till, workers(database, url, tmp_path / "effects", 2) as shared:
        await till.start_auto_sync(interval_s=1.0)
        for begin in range(0, ORDERS, 20):
            await till.append_many([order(f"o-{n % 40}", n) for n in range(begin, begin + 20)])
            await asyncio.sleep(0.1)  # a flow, and not one batch
            if begin == ORDERS // 2:
                await shared.start()

        async def all_back() -> bool:
            return len([None async for _ in till.log("invoices")]) == ORDERS + 20

        await until(all_back, "every invoice is back")
        await shared.end()
        assert (await till.sync()).complete
    assert len(await bills(database)) == ORDERS + 20
    assert sum(map(len, (await invoices(database)).values())) == ORDERS + 20
    for topic, wanted in (("invoices", ORDERS + 20), ("orders", ORDERS + 20)):
        found = await on_broker(url, topic)
        assert len(found) == wanted
        # Whoever left them is gone, and several may take over.
        found = Counter({name: times for name, times in found.items() if not name.startswith("left-")})
        more = found.total() - len(found)
        assert not more, f"{more} of {found.total()} messages of {topic} say again what was said"
