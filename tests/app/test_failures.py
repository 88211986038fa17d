"""A handler that fails: what it did is undone, its event waits and others go on; then the dead letter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import (
    App,
    Batch,
    Breaker,
    Draft,
    Event,
    FeatureUnsupported,
    HandlerContext,
    Retry,
    Timeout,
)
from synckit_streams.ports.store import Transaction
from synckit_streams.testing import TestApp
from tests.app.orders import OrderPlaced, app_of, placed


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


async def until(reached: Callable[[], bool]) -> None:
    """Wait for a state, and no longer than 20 s."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - a state, and no event
            await asyncio.sleep(0.01)


async def test_while_one_dependency_is_down_the_other_handlers_of_the_group_go_on(tmp_path: Path) -> None:
    """Also when the process ends meanwhile; what comes behind of the same aggregate waits for its turn."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    down = True
    paid: list[tuple[str, int]] = []
    shipped: list[str] = []

    def made() -> App:
        app = App("shop", store=url)

        @app.handler(
            "orders", "order.placed", retry=Retry(1), breaker=Breaker(failures=1, pause_ms=20, pause_ms_max=50)
        )
        async def pay(event: Event, ctx: HandlerContext) -> None:
            if down:
                raise ConnectionError("the bank is away")
            paid.append((event.aggregate_id, ctx.attempt))

        @app.handler("orders", "order.packed", batch=10)
        async def ship(events: list[Event]) -> None:
            shipped.extend(event.aggregate_id for event in events)

        return app

    async with made() as app:
        for n in range(50):
            await app.node.append_many(
                [
                    placed(n),
                    Draft("orders", "order.packed", f"p-{n}", {}),
                    Draft("orders", "order.packed", f"o-{n}", {}),
                ]
            )
        await until(lambda: len(shipped) == 50)
        assert app.groups[0].open_circuits == ["pay"]
    assert sorted(shipped) == sorted(f"p-{n}" for n in range(50))
    async with made() as app:
        await app.node.append(Draft("orders", "order.packed", "p-50", {}))
        await until(lambda: len(shipped) == 51)
        assert not paid
        down = False
        await until(lambda: len(paid) == 50 and len(shipped) == 101)
        assert not [each async for each in app.node.log("shop.dlq")]
    assert sorted(paid) == sorted((f"o-{n}", 1) for n in range(50))
    assert sorted(shipped[51:]) == sorted(f"o-{n}" for n in range(50))


async def test_a_handler_that_is_alone_waits_where_it_stands() -> None:
    """Nothing is written of what waits for a dependency if nobody else could go on by it."""
    app = app_of()

    @app.handler("orders", breaker=Breaker(failures=1, pause_ms=60_000))
    async def pay(event: Event) -> None:
        raise ConnectionError("the bank is away")

    async with TestApp(app) as t:
        await t.publish(*map(placed, range(10)))
        (group,) = app.groups
        with pytest.raises(Timeout):
            await t.drain(timeout_s=0.5)
        assert (group.read, group.open_circuits, group.parked) == (10, ["pay"], 0)


async def test_what_waits_behind_is_not_forgotten_when_the_one_beside_it_fails_at_the_commit(tmp_path: Path) -> None:
    """One commit had an answer that the store refuses, and an event that has to wait behind another one."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    seen: list[tuple[str, str]] = []
    fails = True

    def made() -> App:
        app = App("shop", store=url, topics=["invoices"])

        @app.handler("orders", retry=Retry(max_attempts=9, base_ms=200, delay_ms_max=500))
        async def note(event: Event) -> Draft | None:
            if event.aggregate_id == "o-1" and fails:
                raise ValueError("not yet")
            seen.append((event.aggregate_id, event.type))
            return Draft("invoices", "invoice.written", event.id, id="taken") if event.type == "order.billed" else None

        return app

    async with made() as app:
        await app.node.append(Draft("invoices", "invoice.written", "other", id="taken"))
        await app.node.append(placed(1))
        await until(lambda: app.groups[0].parked == 1)
        await app.node.append_many(
            [Draft("orders", "order.billed", "o-2", {}), Draft("orders", "order.changed", "o-1", {})]
        )
        await until(lambda: app.groups[0].parked == 2 and app.groups[0].idle)
    fails = False
    async with made() as app:
        await until(lambda: ("o-1", "order.changed") in seen)
    assert seen.index(("o-1", "order.placed")) < seen.index(("o-1", "order.changed"))


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


@pytest.mark.parametrize("gathered", [False, True], ids=["", "in a task group"])
async def test_what_no_event_could_do_here_ends_the_group(tmp_path: Path, gathered: bool) -> None:
    """A statement in a store that has no SQL is the program's mistake: nothing is counted, and no event given up."""
    url = f"rocksdb:///{tmp_path / 'store'}"
    attempts: list[int] = []

    def made(*, mended: bool) -> App:
        app = App("billing", store=url)

        @app.handler("orders", retry=Retry(max_attempts=1))
        async def bill(event: Event, ctx: HandlerContext) -> None:
            attempts.append(ctx.attempt)
            if gathered and not mended:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(ctx.tx.execute("INSERT INTO bills VALUES (1)"))
            elif not mended:
                await ctx.tx.execute("INSERT INTO bills VALUES (1)")

        return app

    async with made(mended=False) as app:
        await app.node.append(placed(1))
        with pytest.raises(
            FeatureUnsupported, match="'bill' of the group 'billing' cannot work: this store has no SQL"
        ):
            await asyncio.wait_for(app.failed(), 10)
        (check,) = [each for each in await app.checks() if not each.ok]
        assert (check.name, check.needed) == ("synckit-group-billing", True)
    async with made(mended=True) as app:
        await until(lambda: app.groups[0].tally.handled == 1)
        assert not [each async for each in app.node.log("billing.dlq")]
    assert attempts == [1, 1]


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
