"""`synckit projection` says how far read models are, and lets them pause, go on, be rebuilt and be made empty; also
beside the service that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import App, Batch, Draft
from synckit_streams.cli import main
from synckit_streams.ports.store import Transaction

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
