"""An event that a projection cannot take is found, tried again, set aside and put back; each other one counts once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import App, Batch, ConfigError, Draft, ProjectionFailed, Retry, Unfit
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.dead_letters import open_letters
from synckit_streams.runtime.driver import World
from synckit_streams.runtime.switch import Want
from synckit_streams.testing import TestApp
from tests.acceptance.kit import eventually
from tests.runtime.shop import Shop, orders


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store of each kind with SQL."""
    if request.param == "postgres":
        found: str = request.getfixturevalue("database")
        return found
    return f"sqlite:///{tmp_path / 'shop.db'}"


async def rows(app: App, sql: str) -> list[tuple[Any, ...]]:
    async with app.node.store.transaction() as tx:
        return await tx.execute(sql)


async def ids(app: App) -> list[int]:
    return sorted(n for (n,) in await rows(app, "SELECT n FROM sales"))


class Sums:
    """An app in a test with one sum, that cannot take some orders."""

    def __init__(self, **how: Any) -> None:
        self.app = App("shop", store="memory:")
        self.refuses: set[int] = set()
        self.error: type[BaseException] = ValueError
        self.calls: list[list[int]] = []
        self.at_ms: list[int] = []
        how.setdefault("dead_letter", "sums.dlq")
        how.setdefault("retry", Retry(max_attempts=3, base_ms=60_000))
        made = self.app.projection("sums", topics=["orders"], batch=100, **how)(self._apply)
        made.on_reset(self._reset)

    async def _apply(self, batch: Batch, tx: Transaction) -> None:
        numbers = [each.event.data["n"] for each in batch.stored]
        self.calls.append(numbers)
        await tx.execute("UPDATE sums SET total = total + ?", (sum(numbers),))
        if self.refuses & set(numbers):
            raise self.error("no")

    async def _reset(self, tx: Transaction) -> None:
        await tx.execute("DROP TABLE IF EXISTS sums")
        await tx.execute("CREATE TABLE sums (total BIGINT)")
        await tx.execute("INSERT INTO sums VALUES (0)")

    async def total(self) -> int:
        ((total,),) = await rows(self.app, "SELECT total FROM sums")
        assert isinstance(total, int)
        return total


async def test_the_one_that_fails_is_found_and_the_others_count() -> None:
    """By halving, and in the order of the log; its letter says what it was and how often it was tried."""
    sums = Sums()
    sums.refuses = {17, 60}
    async with TestApp(sums.app) as t:
        await t.publish(*orders(0, 100))
        await t.drain()
        letters = [each.data for each in t.published("sums.dlq")]
        assert [(each["event"]["data"]["n"], each["attempts"], each["error"]) for each in letters] == [
            (17, 3, "ValueError: no"),
            (60, 3, "ValueError: no"),
        ]
        assert all("in _apply" in each["traceback"] for each in letters)
        assert await sums.total() == sum(range(100)) - 77
        assert [numbers for numbers in sums.calls if numbers == [17]] == [[17]] * 3
        assert not sums.app.node.projections_failing()


async def test_what_is_unfit_is_given_up_at_once() -> None:
    sums = Sums()
    sums.refuses, sums.error = {3}, Unfit
    async with TestApp(sums.app) as t:
        await t.publish(*orders(0, 10))
        await t.drain()
        (letter,) = t.published("sums.dlq")
        assert letter.data["attempts"] == 1


async def test_a_call_that_takes_too_long_has_failed() -> None:
    sums = Sums(timeout_s=0.05, retry=Retry(max_attempts=2, base_ms=1))
    hang = sums._apply

    async def slow(batch: Batch, tx: Transaction) -> None:
        await hang(batch, tx)
        if 5 in sums.calls[-1]:
            await asyncio.sleep(3600)

    sums.app.projections[0]._function = slow
    async with TestApp(sums.app) as t:
        await t.publish(*orders(0, 10))
        await t.drain()
        (letter,) = t.published("sums.dlq")
        assert letter.data["error"] == "TimeoutError: it did not end within 0.05 s"
        assert await sums.total() == sum(range(10)) - 5


async def test_attempts_outlive_a_restart_and_pauses_are_kept(url: str) -> None:
    """Each life of the app makes one attempt here; the fourth is the last, and none is made twice."""
    shop = Shop(url, world=World(dice=lambda: 0.999), dead_letter="sales.dlq", retry=Retry(4, 700, 700))
    shop.refuses = 7
    for attempts in (1, 2, 3):
        async with shop.app as app:
            if attempts == 1:
                await app.node.append_many(orders(0, 20))

            async def tried(attempts: int = attempts) -> bool:
                failing = app.node.projections_failing().get("sales")
                return failing is not None and failing.attempts == attempts

            await eventually(tried, what="one more attempt")
            await app.node.append_many(orders(20 + attempts, 1))
            await app.node.project()  # nothing to tell: it waits
            assert shop.alone == attempts
    async with shop.app as app:

        async def given_up() -> bool:
            return bool(await open_letters(app.node.store))

        await eventually(given_up, what="the letter")
        (letter,) = await open_letters(app.node.store, group="projection|sales")
        assert letter.said.attempts == 4 == shop.alone
        await app.node.project()
        assert await ids(app) == [n for n in range(24) if n not in (7, 20)]


async def test_a_letter_that_is_put_back_counts_once(url: str) -> None:
    """Behind what was applied by then, and for this projection only."""
    shop = Shop(url, dead_letter="sales.dlq", retry=Retry(max_attempts=1))
    shop.refuses = 7
    async with shop.app as app:
        await app.node.append_many(orders(0, 20))

        async def given_up() -> bool:
            return bool(await open_letters(app.node.store))

        await eventually(given_up, what="the letter")
        await app.node.project()
        (letter,) = await open_letters(app.node.store)
        shop.refuses = -1
        again = letter.redriven()
        await app.node.append_many([again])
        await app.node.append_many([_renamed(again)])  # somebody who puts it back by hand
        await app.node.append_many(orders(20, 2))
        await app.node.project()
        assert await ids(app) == list(range(22))
        assert await rows(app, "SELECT orders FROM totals") == [(22,)]
        assert not await open_letters(app.node.store)


def _renamed(draft: Draft) -> Draft:
    return Draft(draft.topic, draft.type, draft.aggregate_id, draft.data, id="by-hand")


async def test_one_that_fails_again_is_given_up_again(url: str) -> None:
    """And can be put back again."""
    shop = Shop(url, dead_letter="sales.dlq", retry=Retry(max_attempts=1))
    shop.refuses = 7
    async with shop.app as app:
        await app.node.append_many(orders(0, 20))
        for times in (1, 2):

            async def given_up(times: int = times) -> bool:
                types = [each.event.type async for each in app.node.log("sales.dlq")]
                return types.count("synckit.dead_letter") == times

            await eventually(given_up, what="the letter")
            (letter,) = await open_letters(app.node.store)
            if times == 2:
                shop.refuses = -1
            await app.node.append_many([letter.redriven()])

        async def taken() -> bool:
            return await ids(app) == list(range(20))

        await eventually(taken, what="it is there")


async def test_a_rebuild_settles_what_was_set_aside(url: str) -> None:
    """With the corrected code the event is in its place, and to put its letter back afterwards counts nothing twice;
    one that the new code cannot take has a letter when the new model is there."""
    shop = Shop(url, dead_letter="sales.dlq", retry=Retry(max_attempts=1))
    shop.refuses = 7
    async with shop.app as app:
        await app.node.append_many(orders(0, 20))

        async def letters(*wanted: int) -> bool:
            found = await open_letters(app.node.store)
            return [each.said.event["data"]["n"] for each in found] == list(wanted)

        await eventually(lambda: letters(7), what="the first letter")
        await app.node.project()
        (letter,) = await open_letters(app.node.store)
        shop.refuses = 9
        await app.node.switch(["sales"], Want.REBUILD)
        await eventually(lambda: letters(7, 9), what="the letter of the build")
        await app.node.project()
        assert await ids(app) == [n for n in range(20) if n != 9]
        shop.refuses = -1
        await app.node.append_many([letter.redriven()])
        await app.node.append_many([each.redriven() for each in await open_letters(app.node.store)])
        await app.node.project()
        assert await ids(app) == list(range(20))
        assert await rows(app, "SELECT orders FROM totals") == [(20,)]


async def test_without_a_dead_letter_it_stands_there_and_says_so(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Before the very event, with everything before it applied; loudly, and not at each event that comes."""
    shop = Shop(url, world=World(dice=lambda: 0.999), retry=Retry(base_ms=60_000))
    shop.refuses = 7
    caplog.set_level(logging.ERROR, "synckit_streams")
    async with shop.app as app:
        await app.node.append_many(orders(0, 20))
        await eventually(lambda: bool(app.node.projections_failing()), what="it stands")
        with pytest.raises(ProjectionFailed, match=r"order\.placed of orders/o-7 at position 8"):
            await app.node.project()
        assert await ids(app) == list(range(7))
        (check,) = [each for each in await app.checks() if each.name == "projection sales"]
        assert (check.ok, check.detail) == (False, "stands before position 8: ValueError: no")
        for n in range(20, 30):
            await app.node.append_many(orders(n, 1))
        before = shop.alone
        await asyncio.sleep(0.5)  # nothing is to happen
        assert shop.alone == before
        assert len([each for each in caplog.records if "stands before" in each.getMessage()]) <= before
        shop.refuses = -1
        await app.node.project()
        assert await ids(app) == list(range(30))
        assert not app.node.projections_failing()


@pytest.mark.parametrize(
    "how",
    [
        {"tables": "sales"},
        {"tables": ["public.sales"]},
        {"tables": [""]},
        {"dead_letter": "orders"},
        {"dead_letter": "a\0b"},
        {"retry": 3},
        {"retry": Retry(max_attempts=0)},
        {"timeout_s": 0},
        {"breaker": 1},
    ],
)
def test_what_cannot_be_is_refused_when_it_is_declared(how: dict[str, Any]) -> None:
    app = App("shop", store="memory:")
    with pytest.raises(ConfigError):
        app.projection("sales", topics=["orders"], **how)(_nothing)


def test_dead_letters_of_every_topic_would_be_followed() -> None:
    with pytest.raises(ConfigError, match="its own dead letters"):
        App("shop", store="memory:").projection("sales", dead_letter="x.dlq")(_nothing)


async def _nothing(batch: Batch, tx: Transaction) -> None:
    return None
