"""A node may send of more topics than it replicates, from any moment on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from synckit_streams import Draft, SyncNode


@pytest.mark.parametrize("steps", [*range(0, 40, 2), 60, 100, 200])
async def test_a_topic_that_comes_in_the_middle_of_a_meeting_holds_up_nobody(steps: int) -> None:
    """However far the meeting is: it ends, and the next one sends what is written of the new topic."""
    url = f"memory://outlets-{steps}"
    async with (
        SyncNode("shop", store="memory:", connectors=[url], topics=["orders"]) as shop,
        SyncNode("office", store="memory:", connectors=[url], topics=["orders", "invoices"]) as office,
    ):
        await shop.append_many([Draft("orders", "order.placed", f"o-{n}") for n in range(10)])
        meeting = asyncio.create_task(shop.sync(timeout_s=5))
        for _ in range(steps):
            await asyncio.sleep(0)
        await shop.send_also(["invoices"])
        await shop.append(Draft("invoices", "invoice.written", "i-1"))
        async with asyncio.timeout(4):
            await meeting
        assert (await shop.sync()).complete
        await office.append(Draft("invoices", "invoice.paid", "i-2"))
        await office.sync()
        assert {each.event.aggregate_id async for each in office.log("invoices")} == {"i-1", "i-2"}
        await shop.sync()
        assert {each.event.aggregate_id async for each in shop.log("invoices")} == {"i-1"}


@pytest.mark.parametrize("steps", range(4))
async def test_what_was_committed_is_sent_also_if_its_writer_was_cancelled_just_then(
    steps: int, tmp_path: Path
) -> None:
    """It is on the disk, and nobody is left to say so: it is sent all the same, and `complete` does not lie."""
    url = f"memory://outlets-cancelled-{steps}"
    store = f"sqlite:///{tmp_path / 'shop.db'}"
    async with (
        SyncNode("shop", store=store, connectors=[url], topics=["orders"]) as shop,
        SyncNode("office", store="memory:", connectors=[url], topics=["invoices"]) as office,
    ):
        driver = shop._driver  # what a handler group is given

        async def write() -> None:
            async with driver.transaction() as tx:
                await driver.write_in(tx, [Draft("invoices", "invoice.written", "i-1")])

        writing = asyncio.create_task(write())
        while "invoices" not in shop.topics:  # noqa: ASYNC110 - it is committed then, and nobody is told yet
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        assert (await shop.sync()).complete
        await office.sync()
        assert [each.event async for each in office.log()] == [each.event async for each in shop.log()]


async def test_a_live_node_sends_what_it_is_told_to_send_also() -> None:
    """Nobody has to ask for a meeting."""
    url = "memory://outlets-live"
    async with (
        SyncNode("shop", store="memory:", connectors=[url], topics=["orders"]) as shop,
        SyncNode("office", store="memory:", connectors=[url], topics=["invoices"]) as office,
    ):
        await shop.start_auto_sync()
        await shop.send_also(["invoices"])
        await shop.append(Draft("invoices", "invoice.written", "i-1"))
        async with asyncio.timeout(20):
            while not (await office.sync()).events_pulled:  # noqa: ASYNC110 - the other node changes it
                await asyncio.sleep(0.01)
