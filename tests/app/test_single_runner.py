"""Of several processes on one store one runs a projection; when it ends, dies or sleeps another one does, and each
event counts once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from synckit_streams import Draft, SyncNode
from synckit_streams.cli.standing import places
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.runtime.registry import store_for
from tests.acceptance.kit import eventually
from tests.stores.media import run_sql

SERVICE = Path(__file__).parent / "projecting.py"
Process = asyncio.subprocess.Process


@asynccontextmanager
async def processes(store: str, effects: Path, count: int) -> AsyncIterator[list[Process]]:
    made: list[Process] = []
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable, SERVICE, store, str(effects), stdout=asyncio.subprocess.PIPE
            )
            made.append(process)
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        yield made
    finally:
        for process in made:
            if process.returncode is None:
                process.kill()
                await process.wait()


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[EventStore]:
    store = store_for(url, read_only=True)
    await store.open(Opening(node="reader", topics=None, dice=os.urandom))
    try:
        yield store
    finally:
        await store.close()


async def runner(url: str) -> int:
    """The process that `status` names; 0 if it names none."""
    async with looking(url) as store:
        (place,) = await places(store)
    return int(place.runner.split(":")[1]) if place.runner else 0


async def write(url: str, *ids: str) -> None:
    async with SyncNode("shop", store=url) as node:
        await node.append_many([Draft("orders", "order.placed", id, {}) for id in ids])


async def rows(url: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await run_sql(url, "SELECT id, worker FROM sales ORDER BY id")]


def has(url: str, *ids: str) -> Callable[[], Awaitable[bool]]:
    async def found() -> bool:
        return [id for id, _ in await rows(url)] == sorted(ids)

    return found


async def test_one_runs_it_and_another_takes_over(database: str, tmp_path: Path) -> None:
    """At once when it ends in order, and when its lease has run out when it was killed."""
    await write(database, "a")
    async with processes(database, tmp_path / "effects", 3) as running:
        done = ["a"]
        for how in (signal.SIGTERM, signal.SIGKILL):
            await eventually(has(database, *done), what="the read model")
            first = await runner(database)
            (process,) = [each for each in running if each.pid == first]
            for id in (f"{how.name}-{n}" for n in range(3)):
                await write(database, id)
                done.append(id)
                await eventually(has(database, *done), what="the read model")
            assert {worker for id, worker in await rows(database) if id.startswith(how.name)} == {first}
            process.send_signal(how)
            await process.wait()
            await write(database, f"after-{how.name}")
            done.append(f"after-{how.name}")
            await eventually(has(database, *done), what="somebody else took over")
            assert await runner(database) in {each.pid for each in running} - {first}


async def test_one_that_was_stopped_past_its_lease_commits_nothing(database: str, tmp_path: Path) -> None:
    """In the middle of a page: whoever has the projection then applies that page, and the sleeper's is refused."""
    effects = tmp_path / "effects"
    await write(database, "a")
    async with processes(database, effects, 2) as running:
        await eventually(has(database, "a"), what="the read model")
        await write(database, "hang")
        await eventually(lambda: effects.exists() and effects.read_text().endswith("\n"), what="the page has begun")
        sleeper = int(effects.read_text())
        os.kill(sleeper, signal.SIGSTOP)

        async def taken() -> bool:
            return await runner(database) not in (0, sleeper)

        await eventually(taken, what="another one has it")
        Path(f"{effects}.go").touch()
        os.kill(sleeper, signal.SIGCONT)
        await eventually(has(database, "a", "hang"), what="the page")
        other = await runner(database)
        assert other in {each.pid for each in running} - {sleeper}
        assert dict(await rows(database))["hang"] == other
        await write(database, "z")
        await eventually(has(database, "a", "hang", "z"), what="it goes on")
        assert dict(await rows(database))["z"] == other
        assert all(each.returncode is None for each in running)
