"""`synckit projection` says how far read models are, and lets them pause, go on, be rebuilt and be made empty; also
beside the service that runs."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import App, Batch, Draft, Retry
from synckit_streams.cli import main
from synckit_streams.ports.store import Transaction
from tests.acceptance.kit import eventually

DEADLINE_S = 30.0


def made(store: str, factor: int = 1) -> App:
    """A read model of one row."""
    app = App("shop", store=store)

    @app.projection("totals", topics=["orders"], batch=7)
    async def totals(batch: Batch, tx: Transaction) -> None:
        total = sum(each.event.data["n"] for each in batch.stored) * factor
        await tx.execute("UPDATE totals SET total = total + ?", (total,))

    @totals.on_reset
    async def reset(tx: Transaction) -> None:
        await tx.execute("DROP TABLE IF EXISTS totals")
        await tx.execute("CREATE TABLE totals (total INTEGER)")
        await tx.execute("INSERT INTO totals VALUES (0)")

    return app


def order(n: int) -> Draft:
    return Draft("orders", "order.placed", f"o-{n}", {"n": n})


async def total(app: App) -> int:
    async with app.node.store.transaction() as tx:
        try:
            ((found,),) = await tx.execute("SELECT total FROM totals")
        except Exception:  # noqa: BLE001 - there is no such table yet
            return -1
    assert isinstance(found, int)
    return found


async def comes_to(app: App, wanted: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await total(app) != wanted:  # noqa: ASYNC110 - a row has no event
            await asyncio.sleep(0.01)


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    def call() -> None:
        with pytest.raises(SystemExit) as ended:
            main(["projection", *arguments, "--json"])
        assert ended.value.code == 0

    await asyncio.to_thread(call)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_beside_the_service_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Paused, it stays where it is; resumed, it goes on; rebuilt, it has everything once; made empty, it is empty."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with made(url) as app:
        await app.node.append_many([order(n) for n in range(10)])
        await comes_to(app, 45)
        assert await run(capsys, "list", "--store", url) == [
            {"name": "totals", "position": 10, "lag": 0, "state": "runs"}
        ]

        (said,) = await run(capsys, "pause", "totals", "--store", url)
        assert said == {"action": "pause", "projections": ["totals"]}
        await app.node.append(order(100))
        assert await app.node.project() == 0
        assert await total(app) == 45
        assert await run(capsys, "status", "totals", "--store", url) == [
            {"name": "totals", "position": 10, "lag": 1, "state": "paused"}
        ]

        await run(capsys, "resume", "--all", "--store", url)
        await comes_to(app, 145)

        async with app.node.store.transaction() as tx:
            await tx.execute("UPDATE totals SET total = 7")
        await run(capsys, "rebuild", "totals", "--store", url)
        await comes_to(app, 145)

        await run(capsys, "reset", "totals", "--store", url)
        await comes_to(app, 0)
        assert await run(capsys, "list", "--store", url) == [
            {"name": "totals", "position": 0, "lag": 11, "state": "paused"}
        ]
        await run(capsys, "resume", "totals", "--store", url)
        await comes_to(app, 145)


async def test_what_is_wanted_outlives_who_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said while nobody runs, it is done by whoever comes, with the code that he has."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with made(url) as app:
        await app.node.append_many([order(n) for n in range(10)])
        await comes_to(app, 45)
    await run(capsys, "pause", "totals", "--store", url)
    async with made(url) as app:
        await app.node.append(order(100))
        assert await app.node.project() == 0
        assert await total(app) == 45
    await run(capsys, "rebuild", "totals", "--store", url)
    async with made(url, factor=2) as app:
        await comes_to(app, 290)


async def test_a_rebuild_under_live_traffic_ends_as_the_live_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with made(url) as app:
        for number in range(200):
            await app.node.append(order(number))
            if number == 100:
                await run(capsys, "rebuild", "totals", "--store", url)
        await comes_to(app, sum(range(200)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pause"], "which projections?"),
        (["rebuild", "totals", "--all"], "which projections?"),
        (["status", "nobody"], "no projection 'nobody' has run"),
    ],
)
def test_a_wrong_call_says_what_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"

    async def work() -> None:
        async with made(url) as app:
            await comes_to(app, 0)

    asyncio.run(work())
    with pytest.raises(SystemExit) as ended:
        main(["projection", *arguments, "--store", url])
    assert ended.value.code == 1
    assert said in capsys.readouterr().err


def beside(store: str) -> App:
    """A read model that names its table."""
    app = App("shop", store=store)

    @app.projection(
        "sales", topics=["orders"], batch=7, tables=["sales"], dead_letter="sales.dlq", retry=Retry(2, 1, 1)
    )
    async def sales(batch: Batch, tx: Transaction) -> None:
        rows = [(each.event.aggregate_id, each.event.data["n"]) for each in batch.stored]
        if any(n < 0 for _, n in rows):
            raise ValueError("below nothing")
        await tx.execute_many("INSERT INTO sales VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET n = excluded.n", rows)

    @sales.on_reset
    async def reset(tx: Transaction) -> None:
        await tx.execute("CREATE TABLE IF NOT EXISTS sales (id TEXT PRIMARY KEY, n INTEGER)")
        await tx.execute("DELETE FROM sales")

    return app


async def test_a_rebuild_is_watched_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When the command ends, everything that was in the log when it began is in the new model."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with beside(url) as app:
        await app.node.append_many([order(n) for n in range(100)])
        await app.node.project()
        async with app.node.store.transaction() as tx:
            await tx.execute("UPDATE sales SET n = 0")
        (said,) = await run(capsys, "rebuild", "sales", "--watch", "--store", url)
        assert said == {"action": "rebuild", "projections": ["sales"]}
        async with app.node.store.transaction() as tx:
            assert await tx.execute("SELECT sum(n) FROM sales") == [(sum(range(100)),)]


async def test_reading_again_from_a_position_or_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that stand are kept; what was written before is not looked at."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with beside(url) as app:
        await app.node.append_many([order(n) for n in range(10)])
        await asyncio.sleep(0.002)  # a later millisecond
        (first, *_) = await app.node.append_many([order(n) for n in range(10, 20)])
        await app.node.project()
        since = datetime.fromtimestamp(first.event.at.wall_ms / 1000, UTC).isoformat()
        for begin in ("11", since):
            async with app.node.store.transaction() as tx:
                await tx.execute("UPDATE sales SET n = -1")
            await run(capsys, "rebuild", "sales", "--from", begin, "--watch", "--store", url)
            async with app.node.store.transaction() as tx:
                (found,) = await tx.execute("SELECT count(*), sum(n) FROM sales")
            assert found == (20, sum(range(10, 20)) - 10)


async def test_status_says_what_keeps_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was set aside, and `dlq` lists and puts it back."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with beside(url) as app:
        await app.node.append_many([order(1), order(-1), order(2)])

        async def set_aside() -> bool:
            found = await run(capsys, "status", "--store", url)
            return [(each.get("aside"), each["lag"]) for each in found] == [(1, 0)]

        await eventually(set_aside, what="the event is set aside")
        for said in (["dlq", "list"], ["dlq", "redrive", "--all"]):
            with pytest.raises(SystemExit) as ended:
                await asyncio.to_thread(main, [*said, "--group", "projection|sales", "--store", url, "--json"])
            assert ended.value.code == 0
        assert '"handler":"sales"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pause", "--all", "--watch"], "takes no --from"),
        (["rebuild", "--all", "--from", "1", "--in-place"], "keeps the rows"),
        (["rebuild", "--all", "--from", "yesterday"], "neither a position nor a time"),
        (["rebuild", "--all", "--from", "2100-01-01"], "nothing in this log was written since"),
    ],
)
def test_a_wrong_rebuild_says_what_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    test_a_wrong_call_says_what_is_right(tmp_path, capsys, arguments, said)


def test_what_is_rebuilt_in_place_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what is to be declared instead; of one that has, nothing."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"

    async def work(app: App) -> None:
        async with app:
            await app.node.append(order(1))
            await app.node.project()

    asyncio.run(work(made(url)))
    asyncio.run(work(beside(url)))
    for name, told in (("totals", True), ("sales", False)):
        with pytest.raises(SystemExit):
            main(["projection", "rebuild", name, "--store", url])
        assert ("rebuilt in place" in capsys.readouterr().err) == told
