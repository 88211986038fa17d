"""A handler is called once with each event, in order per aggregate; what it does, returns and where it stands commit
together."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from synckit_streams import (
    App,
    Depends,
    Draft,
    Event,
    HandlerContext,
    Retry,
    SyncNode,
)
from synckit_streams.testing import TestApp
from tests.app.orders import OrderPlaced, app_of, placed


async def test_what_a_handler_returns_is_written_after_its_cause() -> None:
    app = app_of()

    @app.handler("orders", "order.placed")
    async def bill(order: OrderPlaced) -> Draft:
        return Draft("invoices", "invoice.written", order.order_id, {"cents": order.total_cents})

    async with TestApp(app) as t:
        (event,) = await t.publish(placed(7))
        await t.drain()
        (invoice,) = t.published("invoices")
        assert (invoice.type, invoice.aggregate_id, invoice.data) == ("invoice.written", "o-7", {"cents": 7})
        assert invoice.after == (event.key,)


async def test_the_same_id_twice_is_one_event() -> None:
    app = app_of()
    seen: list[str] = []

    @app.handler("orders")
    async def note(event: Event) -> None:
        seen.append(event.id)

    async with TestApp(app) as t:
        await t.publish(placed(1, id="a"), placed(2, id="b"))
        await t.publish(placed(1, id="a"))
        await t.drain()
    assert sorted(seen) == ["a", "b"]


async def test_an_aggregate_is_in_order_whatever_works_beside_it() -> None:
    app = app_of()
    seen: dict[str, list[int]] = defaultdict(list)
    working: Counter[str] = Counter()

    @app.handler("orders", concurrency=8)
    async def note(order: dict[str, Any], ctx: HandlerContext) -> None:
        id = ctx.event.aggregate_id
        working[id] += 1
        assert working[id] == 1
        await asyncio.sleep(0)
        seen[id].append(order["n"])
        working[id] -= 1

    async with TestApp(app) as t:
        await t.publish(*(Draft("orders", "changed", f"o-{n % 20}", {"n": n}) for n in range(400)))
        await t.drain()
    assert len(seen) == 20
    assert all(numbers == sorted(numbers) and len(numbers) == 20 for numbers in seen.values())


async def test_a_thread_that_takes_too_long_is_not_joined_by_another() -> None:
    """Nobody can end a thread, so its next attempt waits until it has ended."""
    app = app_of()
    go_on = threading.Event()
    running = most = tries = 0

    @app.handler("orders", timeout_s=0.05, retry=Retry(max_attempts=2, base_ms=1))
    def slow(event: Event) -> None:
        nonlocal running, most, tries
        tries, running = tries + 1, running + 1
        most = max(most, running)
        assert go_on.wait(20)
        running -= 1

    async with TestApp(app) as t:
        await t.publish(placed(1))
        draining = asyncio.create_task(t.drain())
        await asyncio.sleep(0.5)
        assert (tries, running) == (1, 1)
        go_on.set()
        await draining
        assert not t.published("billing.dlq")
    assert (tries, most) == (2, 1)


async def test_a_new_group_may_begin_with_what_comes(tmp_path: Path) -> None:
    """It keeps the place where it began, also if it is killed before it has handled anything."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    seen: list[str] = []

    def made() -> App:
        app = App("mailer", store=url)

        @app.handler("orders", start="latest")
        async def mail(event: Event) -> None:
            seen.append(event.aggregate_id)

        return app

    async with SyncNode("mailer", store=url) as node:
        await node.append(placed(1))
    async with made() as app:
        async with asyncio.timeout(20):
            while not app.groups[0].idle:  # noqa: ASYNC110 - a state, and no event
                await asyncio.sleep(0.01)
    async with SyncNode("mailer", store=url) as node:
        await node.append(placed(2))
    async with made() as app, asyncio.timeout(20):
        while not seen:  # noqa: ASYNC110 - a state, and no event
            await asyncio.sleep(0.01)
        await app.node.append(placed(3))
        while len(seen) < 2:  # noqa: ASYNC110 - a state, and no event
            await asyncio.sleep(0.01)
    assert seen == ["o-2", "o-3"]


async def test_a_batch_is_a_list() -> None:
    app = app_of()
    sizes: list[int] = []

    @app.handler("orders", batch=100)
    async def note(orders: list[OrderPlaced]) -> None:
        sizes.append(len(orders))

    async with TestApp(app) as t:
        await t.publish(*map(placed, range(250)))
        await t.drain()
    assert sum(sizes) == 250
    assert max(sizes) == 100


async def test_its_own_rows_and_its_events_are_there_together_or_not_at_all() -> None:
    app = app_of()
    fail = True

    @app.on_startup
    async def tables() -> None:
        async with app.node.store.transaction() as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS bills (id TEXT PRIMARY KEY, cents INTEGER)")

    @app.handler("orders", retry=Retry(max_attempts=3))
    async def bill(order: OrderPlaced, ctx: HandlerContext) -> Draft:
        nonlocal fail
        await ctx.tx.execute("INSERT INTO bills VALUES (?, ?)", (order.order_id, order.total_cents))
        if fail:
            fail = False
            raise ValueError("after the row")
        return Draft("invoices", "invoice.written", order.order_id)

    async with TestApp(app) as t:
        await t.publish(placed(1), placed(2))
        await t.drain()
        async with t.app.node.store.transaction() as tx:
            assert await tx.execute("SELECT * FROM bills ORDER BY id") == [("o-1", 1), ("o-2", 2)]
        assert {each.aggregate_id for each in t.published("invoices")} == {"o-1", "o-2"}


async def test_what_it_depends_on_is_there_for_each_call() -> None:
    app = app_of()
    said: list[str] = []

    async def database() -> Any:
        said.append("open")
        yield "db"
        said.append("close")

    def greeting(ctx: HandlerContext, db: str = Depends(database)) -> str:
        return f"{db} {ctx.event.aggregate_id}"

    @app.handler("orders")
    async def note(
        order: OrderPlaced, ctx: HandlerContext, greeting: str = Depends(greeting), db: str = Depends(database)
    ) -> None:
        said.append(f"{greeting} {db}")

    async with TestApp(app) as t:
        await t.publish(placed(1))
        await t.drain()
    assert said == ["open", "db o-1 db", "close"]


async def test_statements_that_are_gathered_are_one_transaction() -> None:
    app = app_of()

    @app.handler("refunds", retry=Retry(max_attempts=1), timeout_s=5)
    async def refund(event: Event, ctx: HandlerContext) -> Draft:
        rows = await asyncio.gather(*(ctx.tx.execute("SELECT ?", (n,)) for n in range(5)))
        return Draft("invoices", "invoice.refunded", "r-1", [n for ((n,),) in rows])

    async with TestApp(app) as t:
        await t.publish(Draft("refunds", "refund.asked", "r-1"))
        await t.drain(timeout_s=10)
        assert [each.data for each in t.published("invoices")] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("crash", ["crash_after_commit", "crash_before_commit", "crash_before_ack"])
async def test_a_crash_doubles_and_loses_nothing(crash: str) -> None:
    app = app_of()

    @app.handler("orders")
    async def bill(order: OrderPlaced) -> Draft:
        return Draft("invoices", "invoice.written", order.order_id, {"n": order.total_cents})

    async with TestApp(app) as t:
        for number in range(5):
            getattr(t, crash)()
            await t.publish(placed(number))
            await t.drain()
            assert t.starts == number + 2
        assert [each.data["n"] for each in t.published("invoices")] == list(range(5))


class Later(msgspec.Struct):
    total: int
    currency: str

    schema_version = 3


async def test_earlier_versions_are_made_into_the_present_one() -> None:
    app = app_of()
    seen: list[Later] = []

    @app.upcast("order.placed", from_version=1)
    def in_cents(data: Any) -> Any:
        return {"total": data["total"] * 100}

    @app.upcast("order.placed", from_version=2)
    def in_euros(data: Any) -> Any:
        return {**data, "currency": "EUR"}

    @app.handler("orders")
    async def note(order: Later) -> None:
        seen.append(order)

    async with TestApp(app) as t:
        for version, data in ((1, {"total": 1}), (2, {"total": 2}), (3, {"total": 3, "currency": "USD"}), (4, {})):
            await t.publish(Draft("orders", "order.placed", f"o-{version}", data, schema_version=version))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert "of version 4" in letter.data["error"]
    assert sorted((each.total, each.currency) for each in seen) == [(2, "EUR"), (3, "USD"), (100, "EUR")]


async def test_what_it_returns_of_another_topic_is_sent_and_not_taken() -> None:
    """Nobody has named the topic: others get what is written, and of what they write there nothing comes here."""
    app = app_of()

    @app.handler("orders")
    async def bill(order: OrderPlaced) -> Draft:
        return Draft("invoices", "invoice.written", order.order_id)

    broker = "memory://outlet"
    async with (
        TestApp(app, connector=broker) as t,
        SyncNode("office", store="memory:", connectors=[broker], topics=["invoices"]) as office,
    ):
        await office.append(Draft("invoices", "invoice.paid", "o-0"))
        await office.sync()
        await t.publish(placed(1))
        await t.drain()
        assert (await app.node.sync()).complete
        await office.sync()
        assert [each.event.aggregate_id async for each in office.log("invoices")] == ["o-0", "o-1"]
        assert [each.aggregate_id for each in t.published("invoices")] == ["o-1"]
        assert [each.event.aggregate_id async for each in app.node.log("invoices")] == ["o-1"]
        t.crash_after_commit()
        await t.publish(placed(2))
        await t.drain()
        await app.node.sync()
        await office.sync()
        assert [each.event.aggregate_id async for each in office.log("invoices")] == ["o-0", "o-1", "o-2"]
