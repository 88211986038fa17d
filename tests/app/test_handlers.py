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
from pydantic import BaseModel

from synckit_streams import (
    App,
    Batch,
    Breaker,
    Depends,
    Draft,
    Event,
    FeatureUnsupported,
    HandlerContext,
    Retry,
    SyncNode,
)
from synckit_streams.ports.store import Transaction
from synckit_streams.testing import TestApp


class OrderPlaced(BaseModel):
    order_id: str
    total_cents: int


def placed(number: int, **more: Any) -> Draft:
    return Draft("orders", "order.placed", f"o-{number}", {"order_id": f"o-{number}", "total_cents": number}, **more)


def app_of(**more: Any) -> App:
    return App("billing", store="memory:", **more)


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


async def test_what_one_call_did_is_undone_and_what_others_did_in_the_same_commit_stays(database: str) -> None:
    """Events one by one share commits: of those that fail nothing is there, of the others everything once."""
    for store in ("memory:", database):
        app = App("billing", store=store)
        place = "$1, $2" if store == database else "?, ?"

        @app.on_startup
        async def tables(app: App = app) -> None:
            async with app.node.store.transaction() as tx:
                await tx.execute("CREATE TABLE bills (id TEXT, part INTEGER)")

        @app.handler("orders", retry=Retry(max_attempts=2, base_ms=1))
        async def bill(order: dict[str, int], ctx: HandlerContext, place: str = place) -> Draft | None:
            n, sql = order["n"], f"INSERT INTO bills VALUES ({place})"
            if n % 7 == 1:
                raise ValueError("before anything")
            await ctx.tx.execute(sql, (f"o-{n}", 1))
            if n % 7 == 2:
                raise ValueError("in the middle")
            await ctx.tx.execute(sql, (f"o-{n}", 2))
            if n % 7 == 3:
                await ctx.tx.execute("INSERT INTO nowhere VALUES (1)")
            if n % 7 == 4:
                await ctx.tx.execute(" commit")
            return Draft("invoices", "invoice.written", ctx.event.aggregate_id) if n % 7 else None

        async with app:
            await app.node.append_many([Draft("orders", "placed", f"o-{n}", {"n": n}) for n in range(140)])
            (group,) = app.groups
            async with asyncio.timeout(60):
                while group.tally.handled + group.tally.dead < 140 or not group.idle:  # noqa: ASYNC110 - a state
                    await asyncio.sleep(0.01)
            async with app.node.store.transaction() as tx:
                rows = await tx.execute("SELECT id, part FROM bills")
            good = [n for n in range(140) if n % 7 in (0, 5, 6)]
            assert sorted(rows) == sorted((f"o-{n}", part) for n in good for part in (1, 2))
            assert len([1 async for _ in app.node.log("billing.dlq")]) == 140 - len(good)
            invoices = [each.event.aggregate_id async for each in app.node.log("invoices")]
            assert sorted(invoices) == sorted(f"o-{n}" for n in good if n % 7)


async def test_who_fails_waits_and_others_go_on() -> None:
    """Three attempts count the first one; what comes of the same aggregate waits behind; then the dead letter."""
    app = app_of()
    seen: list[tuple[str, int]] = []

    @app.handler("orders", retry=Retry(max_attempts=3, base_ms=60_000), dead_letter="orders.dlq")
    async def note(order: dict[str, Any], ctx: HandlerContext) -> None:
        seen.append((ctx.event.aggregate_id, order["n"]))
        if order["n"] == 0:
            raise ValueError("no")

    async with TestApp(app) as t:
        await t.publish(
            *(
                Draft("orders", "changed", id, {"n": n})
                for n in range(3)
                for id in ("bad", "good")
                if (id, n) != ("good", 0)
            )
        )
        await t.drain()
        (letter,) = t.published("orders.dlq")
        assert letter.data["attempts"] == 3
        assert letter.data["error"] == "ValueError: no"
        assert letter.data["event"]["data"] == {"n": 0}
        assert "raise ValueError" in letter.data["traceback"]
    assert [n for id, n in seen if id == "bad"] == [0, 0, 0, 1, 2]
    assert [n for id, n in seen if id == "good"] == [1, 2]
    assert seen.index(("good", 2)) < seen.index(("bad", 1))


async def test_one_bad_event_of_a_batch_is_found() -> None:
    app = app_of()
    done: list[int] = []

    @app.handler("orders", batch=100, retry=Retry(max_attempts=2))
    async def note(orders: list[OrderPlaced]) -> None:
        if any(order.total_cents == 66 for order in orders):
            raise ValueError("66")
        done.extend(order.total_cents for order in orders)

    async with TestApp(app) as t:
        await t.publish(*map(placed, range(200)))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert letter.data["event"]["aggregate_id"] == "o-66"
    assert sorted(done) == sorted(set(range(200)) - {66})


async def test_what_does_not_fit_the_model_is_not_tried_again() -> None:
    app = app_of()
    calls = 0

    @app.handler("orders")
    async def bill(order: OrderPlaced) -> None:
        nonlocal calls
        calls += 1

    async with TestApp(app) as t:
        await t.publish(Draft("orders", "order.placed", "o-1", {"order_id": "o-1"}), placed(2))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert letter.data["attempts"] == 1
        assert "total_cents" in letter.data["error"]
        assert "Field required" in letter.data["error"]
    assert calls == 1


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


async def test_a_dependency_that_is_down_burns_no_attempts() -> None:
    """The circuit opens, one call at a time looks whether it is closed, and everything is handled in the end."""
    app = app_of()
    down = 30
    done: list[int] = []

    @app.handler("orders", retry=Retry(max_attempts=2, base_ms=1), breaker=Breaker((ConnectionError,), failures=1))
    async def note(order: OrderPlaced) -> None:
        nonlocal down
        if down:
            down -= 1
            raise ConnectionError("refused")
        done.append(order.total_cents)

    async with TestApp(app) as t:
        await t.publish(*map(placed, range(10)))
        await t.drain()
        assert not t.published("billing.dlq")
    assert sorted(done) == list(range(10))


async def test_a_dependency_is_down_also_in_a_task_group() -> None:
    """What a TaskGroup raises is a group; in the letter its first error stands."""
    app = app_of()

    async def refused() -> None:
        raise ConnectionError("refused")

    down = 3

    @app.handler("orders", "order.placed", retry=Retry(max_attempts=2, base_ms=1), breaker=Breaker(failures=1))
    async def note(event: Event) -> None:
        nonlocal down
        down -= 1
        if down >= 0:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(refused())

    @app.handler("orders", "order.paid", retry=Retry(max_attempts=1))
    async def fail(event: Event) -> None:
        raise BaseExceptionGroup("two", [ValueError("one"), ValueError("other")])

    async with TestApp(app) as t:
        await t.publish(placed(1), Draft("orders", "order.paid", "o-2", {}))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert letter.data["error"] == "ValueError: one"
    assert down == -1


@pytest.mark.parametrize(
    "raised", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit(), RuntimeError()]
)
async def test_whatever_it_raises_is_a_failure(raised: BaseException) -> None:
    app = app_of()
    tries = 0

    @app.handler("orders")
    async def note(event: Event) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise raised

    async with TestApp(app) as t:
        await t.publish(placed(1))
        await t.drain()
    assert tries == 3


class Speechless(Exception):
    """Whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (Speechless(), "Speechless: its text cannot be had (RuntimeError)"),
        (OSError("no file \udcff"), "OSError: no file ?"),
        (ValueError("\0"), "ValueError: \0"),
    ],
    ids=["speechless", "surrogate", "nul"],
)
async def test_no_error_is_so_strange_that_it_stops_the_group(raised: Exception, said: str) -> None:
    app = app_of()

    @app.handler("orders", retry=Retry(max_attempts=2))
    async def note(order: OrderPlaced) -> Draft:
        if order.total_cents == 1:
            raise raised
        return Draft("invoices", "invoice.written", order.order_id)

    async with TestApp(app) as t:
        await t.publish(placed(1), placed(2))
        await t.drain(timeout_s=10)
        (letter,) = t.published("billing.dlq")
        assert letter.data["error"] == said
        assert len(t.published("invoices")) == 1


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


async def test_a_middleware_that_forgets_what_was_returned_is_told() -> None:
    async def forgetful(call_next: Any, context: HandlerContext) -> Any:
        await call_next(context)

    app = app_of(middleware=[forgetful])

    @app.handler("orders", retry=Retry(max_attempts=1))
    async def bill(order: OrderPlaced) -> Draft:
        return Draft("invoices", "invoice.written", order.order_id)

    async with TestApp(app) as t:
        await t.publish(placed(1))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert "the middleware 'forgetful' returned None" in letter.data["error"]


async def test_what_does_not_end_is_a_failure_that_says_so() -> None:
    app = app_of()

    @app.handler("orders", retry=Retry(max_attempts=1), timeout_s=0.05)
    async def note(event: Event) -> None:
        await asyncio.Event().wait()

    async with TestApp(app) as t:
        await t.publish(placed(1))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert letter.data["error"] == "TimeoutError: the handler did not end within 0.05 s"


@pytest.mark.parametrize(
    "answer",
    [
        "text",
        b"bytes",
        {"a": 1},
        7,
        [Draft("a", "b", "c"), None],
        Draft("", "b", "c"),
        Draft("a", "b", "c", float("nan")),
    ],
)
async def test_garbage_that_it_returns_is_a_failure(answer: Any) -> None:
    app = app_of()

    @app.handler("orders", retry=Retry(max_attempts=2))
    async def note(event: Event) -> Any:
        return answer

    async with TestApp(app) as t:
        await t.publish(placed(1))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert letter.data["attempts"] == 2


async def test_an_id_that_is_taken_is_the_failure_of_who_returned_it() -> None:
    """The store says so at the commit, of one of many: the others are written all the same."""
    app = app_of()

    @app.handler("orders", retry=Retry(max_attempts=2))
    async def bill(order: OrderPlaced) -> Draft:
        id = "taken" if order.total_cents in (5, 9) else None
        return Draft("invoices", "invoice.written", order.order_id, {"n": order.total_cents}, id=id)

    async with TestApp(app) as t:
        await t.publish(*map(placed, range(20)))
        await t.drain()
        (letter,) = t.published("billing.dlq")
        assert letter.data["event"]["aggregate_id"] == "o-9"
        assert len(t.published("invoices")) == 19


async def test_a_part_that_has_ended_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A read model in SQL on a store that has none cannot go on: the checks say so, and the log, once."""
    app = App("billing", store=f"rocksdb:///{tmp_path / 'store'}")

    @app.projection("seen", topics=["orders"])
    async def seen(batch: Batch, tx: Transaction) -> None:
        await tx.execute("INSERT INTO seen VALUES (1)")

    async with app:
        await app.node.append(placed(1))
        with pytest.raises(FeatureUnsupported):
            await asyncio.wait_for(app.failed(), 10)
        (check,) = [each for each in await app.checks() if not each.ok]
        assert (check.name, check.needed) == ("synckit-projections", True)
        assert "no SQL" in check.detail
    (line,) = [each for each in caplog.messages if "has ended" in each]
    assert "no SQL" in line


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
