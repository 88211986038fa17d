"""An outbox table of somebody's: every row that is committed comes, whatever its number, and none twice."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.connect.kit import (
    assert_each_once,
    declare,
    events_of,
    letters,
    move_once,
    moving,
    numbers,
    until,
)
from tests.connect.tables import INSERT, OUTBOX, connected, from_outbox, put


@pytest.fixture
async def outbox(database: str) -> str:
    """The URL of a database with an outbox table."""
    async with connected(database) as connection:
        await connection.execute(OUTBOX)
    return database


async def test_rows_become_events_and_are_deleted(tmp_path: Path, outbox: str) -> None:
    """The id is the row's, the topic its aggregatetype."""
    async with connected(outbox) as connection:
        await put(connection, *range(5))
        ids = [str(row["id"]) for row in await connection.fetch("SELECT id FROM outbox ORDER BY n")]
        (standing,) = await move_once(declare(tmp_path, from_outbox(outbox)))
        assert (standing.moved, standing.error) == (5, "")
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
    events = await events_of(f"sqlite:///{tmp_path}/shop.db")
    assert [event.id for event in events] == ids
    assert [(e.topic, e.type, e.aggregate_id) for e in events][:2] == [
        ("orders", "order.placed", "o-0"),
        ("orders", "order.placed", "o-1"),
    ]
    assert numbers(events) == [0, 1, 2, 3, 4]


async def test_a_row_that_commits_after_later_ones_is_not_passed_over(tmp_path: Path, outbox: str) -> None:
    """Row 1 is written first and committed last: a reader that went by numbers would never see it."""
    store = f"sqlite:///{tmp_path}/shop.db"
    async with connected(outbox) as slow, connected(outbox) as fast:
        transaction = slow.transaction()
        await transaction.start()
        await put(slow, 1)
        await put(fast, 2, 3)
        async with moving(declare(tmp_path, from_outbox(outbox))) as runner:
            await until(lambda: runner.standings()[0].moved == 2)
            await transaction.commit()
            await until(lambda: runner.standings()[0].moved == 3)
    assert numbers(await events_of(store)) == [2, 3, 1]


async def test_many_writers_that_commit_in_any_order_lose_nothing(tmp_path: Path, outbox: str) -> None:
    """400 transactions of 8 writers, a third of them rolled back, while the pipeline runs."""
    committed: list[int] = []

    async def write(writer: int) -> None:
        async with connected(outbox) as connection:
            for step in range(50):
                number = step * 8 + writer
                transaction = connection.transaction()
                await transaction.start()
                await put(connection, number)
                await asyncio.sleep(((number * 7919) % 5) / 1000)
                if number % 3 == 0:
                    await transaction.rollback()
                else:
                    await transaction.commit()
                    committed.append(number)

    async with moving(declare(tmp_path, from_outbox(outbox, batch={"records": 7}))) as runner:
        await asyncio.gather(*map(write, range(8)))
        await until(lambda: runner.standings()[0].moved >= len(committed))
    assert_each_once(numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")), committed)


async def test_rows_may_be_marked_and_kept(tmp_path: Path, outbox: str) -> None:
    """A second run finds none that is open."""
    pipeline = from_outbox(outbox)
    pipeline["source"]["after"] = "mark"
    file = declare(tmp_path, pipeline)
    async with connected(outbox) as connection:
        await put(connection, 1, 2)
        assert [each.moved for each in await move_once(file)] == [2]
        await put(connection, 3)
        assert [each.moved for each in await move_once(file)] == [1]
        assert await connection.fetchval("SELECT count(*) FROM outbox WHERE published_at IS NOT NULL") == 3
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [1, 2, 3]


async def test_a_notification_wakes_it(tmp_path: Path, outbox: str) -> None:
    """With an hour between two looks, a row comes at once."""
    pipeline = from_outbox(outbox)
    pipeline["source"] |= {"channel": "outbox", "poll_seconds": 3600.0}
    async with connected(outbox) as connection, moving(declare(tmp_path, pipeline)) as runner:
        listening = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT count(*)%outbox%' AND state = 'idle'"
        )
        await until(lambda: _is(connection, listening, 1))
        started = time.monotonic()
        async with connection.transaction():
            await put(connection, 1)
            await connection.execute("NOTIFY outbox")
        await until(lambda: runner.standings()[0].moved == 1)
        assert time.monotonic() - started < 30


async def _is(connection: object, sql: str, wanted: int) -> bool:
    return bool(await connection.fetchval(sql) >= wanted)  # type: ignore[attr-defined]


async def test_a_row_that_is_no_event_goes_to_the_dead_letter(tmp_path: Path, outbox: str) -> None:
    """And a tombstone, which has no payload, is an event whose data is null."""
    async with connected(outbox) as connection:
        await put(connection, 1)
        await connection.execute(INSERT, "orders", "o-2", None, '{"n": 2}')
        await connection.execute(INSERT, "orders", "o-3", "order.gone", None)
        (standing,) = await move_once(declare(tmp_path, from_outbox(outbox)))
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
    assert (standing.moved, standing.dead) == (2, 1)
    assert [event.data for event in await events_of(f"sqlite:///{tmp_path}/shop.db")] == [{"n": 1}, None]
    (dead,) = letters(tmp_path / "pipelines.state" / "relay.dead.jsonl")
    assert dead["error"]["message"] == "the row has no type"


async def test_a_second_process_waits_for_the_first(tmp_path: Path, outbox: str) -> None:
    """Two would deliver each other's rows again, and out of order; when the first one ends, the second goes on."""
    (tmp_path / "other").mkdir()
    async with moving(declare(tmp_path, from_outbox(outbox))) as first:
        await until(lambda: first.standings()[0].lag == 0)
        async with moving(declare(tmp_path / "other", from_outbox(outbox))) as second:
            await until(lambda: "another process" in second.standings()[0].error)
            assert second.standings()[0].state == "failed"
            await first.stop()
            async with connected(outbox) as connection:
                await put(connection, 1)
            await until(lambda: second.standings()[0].moved == 1)


async def test_a_table_that_is_none_says_so_and_is_looked_for_again(tmp_path: Path, database: str) -> None:
    """Whoever makes the table need not start anything."""
    async with connected(database) as connection, moving(declare(tmp_path, from_outbox(database))) as runner:
        await until(lambda: "SK100" in runner.standings()[0].error)
        assert "aggregateid" in runner.standings()[0].error
        await connection.execute(OUTBOX)
        await put(connection, 1)
        await until(lambda: runner.standings()[0].moved == 1)
        assert runner.standings()[0].state == "running"


@pytest.mark.parametrize("after", ["delete", "mark"])
async def test_what_is_read_while_the_sink_writes_is_not_read_again(tmp_path: Path, outbox: str, after: str) -> None:
    """A sink that knows no ids gets each row once, and in order."""
    relay = from_outbox(outbox, batch={"records": 3}, sink={"kind": "file", "path": "out.jsonl"})
    relay["source"]["after"] = after
    async with connected(outbox) as connection:
        await put(connection, *range(20))
        (standing,) = await move_once(declare(tmp_path, relay))
        assert (standing.moved, standing.lag, standing.error) == (20, 0, "")
        left = "SELECT count(*) FROM outbox" + (" WHERE published_at IS NULL" if after == "mark" else "")
        assert await connection.fetchval(left) == 0
    assert [each["n"] for each in letters(tmp_path / "out.jsonl")] == list(range(20))
