"""`synckit dlq` shows what handlers gave up, puts it back, and lets it go; also beside the service that runs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import App, Draft, HandlerContext, Retry
from synckit_streams.cli import main

DEADLINE_S = 30.0


def made(store: str, broken: set[str], seen: list[str]) -> App:
    app = App("billing", store=store)

    @app.handler("orders", retry=Retry(max_attempts=2, base_ms=1), dead_letter="orders.dlq")
    async def bill(order: dict[str, int], ctx: HandlerContext) -> None:
        id = f"{ctx.event.aggregate_id}/{order['n']}"
        if ctx.event.aggregate_id in broken:
            raise ValueError(f"no {id}\x1b[31m")
        seen.append(id)

    return app


async def settled(app: App) -> None:
    """Everything is handled, or given up."""
    (group,) = app.groups
    async with asyncio.timeout(DEADLINE_S):
        while not (group.idle and not group.parked and group.read >= (await app.node.store.end()).position):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    def call() -> None:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0

    await asyncio.to_thread(call)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_a_letter_is_shown_put_back_and_let_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Put back beside the service that runs: the handler gets it again, by itself, and once."""
    url = f"sqlite:///{tmp_path / 'billing.db'}"
    broken, seen = {"a", "b", "c"}, list[str]()
    async with made(url, broken, seen) as app:
        await app.node.append_many(
            [Draft("orders", "placed", id, {"n": n}) for n in (1, 2) for id in ("a", "b", "c", "d")]
        )
        await settled(app)
        listed = await run(capsys, "dlq", "list", "--store", url, "--json")
        assert [(each["event"]["aggregate_id"], each["attempts"]) for each in listed] == [
            (each["event"]["aggregate_id"], 2) for each in listed
        ]
        assert len(listed) == 6
        (one,) = await run(capsys, "dlq", "show", listed[0]["id"][:23], "--store", url, "--json")
        assert one == listed[0]
        assert "raise ValueError" in one["traceback"]

        broken.clear()
        (done,) = await run(capsys, "dlq", "redrive", listed[0]["id"], "--store", url, "--json")
        assert done["letters"] == [listed[0]["id"]]
        await settled(app)
        first = f"{listed[0]['event']['aggregate_id']}/{listed[0]['event']['data']['n']}"
        assert seen.count(first) == 1

        await run(capsys, "dlq", "purge", listed[1]["id"], "--yes", "--store", url, "--json")
        (rest,) = await run(capsys, "dlq", "redrive", "--all", "--group", "billing", "--store", url, "--json")
        assert len(rest["letters"]) == 4
        await settled(app)
        assert await run(capsys, "dlq", "list", "--store", url, "--json") == []
        (none,) = await run(capsys, "dlq", "redrive", "--all", "--store", url, "--json")
        assert none["letters"] == []
    assert len(seen) == len(set(seen)) == 7


async def test_a_letter_that_is_given_up_again_is_another_letter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'billing.db'}"
    async with made(url, {"a"}, []) as app:
        await app.node.append(Draft("orders", "placed", "a", {"n": 1}))
        await settled(app)
    (letter,) = await run(capsys, "dlq", "list", "--store", url, "--json")
    await run(capsys, "dlq", "redrive", "--all", "--store", url, "--json")  # while nobody runs
    async with made(url, {"a"}, []) as app:
        await settled(app)
    (again,) = await run(capsys, "dlq", "list", "--store", url, "--json")
    assert again["id"] != letter["id"]
    assert again["event"] == letter["event"]
    assert again["attempts"] == 2


def test_for_people_it_is_a_table_and_nothing_in_it_moves_the_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path / 'billing.db'}"

    async def work() -> None:
        async with made(url, {"a"}, []) as app:
            await app.node.append(Draft("orders", "placed", "a", {"n": 1}))
            await settled(app)

    asyncio.run(work())
    with pytest.raises(SystemExit) as ended:
        main(["dlq", "list", "--store", url])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "billing/bill" in said
    assert "placed of orders/a" in said
    with pytest.raises(SystemExit):
        main(["dlq", "show", "--store", url])
    said += capsys.readouterr().out
    assert "raise ValueError" in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["redrive"], "which letters?"),
        (["purge", "x", "--all"], "which letters?"),
        (["show", "nope"], "begin with 'nope'"),
    ],
)
def test_a_wrong_call_says_what_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    url = f"sqlite:///{tmp_path / 'billing.db'}"

    async def work() -> None:
        async with made(url, set(), []):
            pass

    asyncio.run(work())
    with pytest.raises(SystemExit) as ended:
        main(["dlq", *arguments, "--store", url])
    assert ended.value.code == 1
    assert said in capsys.readouterr().err
