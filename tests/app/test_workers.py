"""Workers of one group share its lanes; whatever happens to them, each effect is there once, in order per aggregate."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.testing import NatsServer

SERVICE = Path(__file__).parent / "service.py"
DEADLINE_S = 60.0
LEASE_S = 2.0


async def until(true: Callable[[], Awaitable[Any]], what: str) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await true():  # noqa: ASYNC110 - other processes change it
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(what) from None


class Workers:
    """Processes that run the service on one store."""

    def __init__(self, store: str, connector: str, effects: Path) -> None:
        self._arguments = (store, connector, str(effects))
        self.running: list[asyncio.subprocess.Process] = []
        self.effects = effects

    async def start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, SERVICE, *self._arguments, stdout=asyncio.subprocess.PIPE
        )
        self.running.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        return process

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        self.running.remove(process)
        process.kill()
        await process.wait()

    async def end(self) -> None:
        """In order: every one of them drains."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            assert await process.wait() == 0
        self.running = []

    def ran(self) -> list[tuple[str, int]]:
        """Which order was handled by which process, in the order in which handlers began."""
        lines = self.effects.read_text().splitlines() if self.effects.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]


@asynccontextmanager
async def workers(store: str, connector: str, effects: Path, count: int) -> AsyncIterator[Workers]:
    made = Workers(store, connector, effects)
    try:
        for _ in range(count):
            await made.start()
        yield made
    finally:
        for process in made.running:
            process.kill()
            await process.wait()


async def orders(store: str, *drafts: Draft) -> None:
    """Written by another process of the same node."""
    async with SyncNode("billing", store=store, topics=["orders", "invoices"]) as node:
        await node.append_many(drafts)


def order(id: str, number: int) -> Draft:
    return Draft("orders", "order.placed", id, {"n": number})


async def bills(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [row[0] for row in await connection.fetch("SELECT order_id FROM bills")]
    finally:
        await connection.close()


async def invoices(store: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    async with SyncNode("billing", store=store, topics=["orders", "invoices"]) as node:
        async for stored in node.log("invoices"):
            found[stored.event.aggregate_id].append(stored.event.data["n"])
    return found


async def test_a_worker_that_slept_through_its_lease_commits_nothing(database: str, tmp_path: Path) -> None:
    """One has begun a handler and is stopped; another one gets its lane and does it; the first goes on, and its commit
    is refused: the effect is there once."""
    async with workers(database, "-", tmp_path / "effects", 1) as shared:
        (sleeper,) = shared.running
        await orders(database, order("hang", 1))

        async def begun() -> bool:
            return bool(shared.ran())

        await until(begun, "the handler began")
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            await shared.start()

            async def taken_over() -> bool:
                return len(shared.ran()) == 2

            await until(taken_over, "the other one has the lane")
            Path(f"{shared.effects}.go").touch()

            async def done() -> bool:
                return await bills(database) == ["hang/1"]

            await until(done, "the other one has done it")
        finally:
            os.kill(sleeper.pid, signal.SIGCONT)
        await orders(database, *(order(f"o-{number}", number) for number in range(64)))

        async def all_done() -> bool:
            return len(await bills(database)) == 65

        await until(all_done, "both go on")
        await shared.end()
        assert {process for _, process in shared.ran()} == {pid for _, pid in shared.ran()[:2]}
    found = await bills(database)
    assert sorted(found) == sorted({*found}), "an effect is there twice"
    assert len(found) == 65
    assert (await invoices(database))["hang"] == [1]


async def test_workers_that_come_go_and_die(database: str, tmp_path: Path) -> None:
    """Lanes move when a worker joins, ends and is killed; nothing is lost, doubled or out of order."""
    seed = random.SystemRandom().randrange(2**32)
    dice = random.Random(seed)
    written = 0
    async with workers(database, "-", tmp_path / "effects", 2) as shared:
        for _ in range(12):
            await orders(database, *(order(f"o-{n % 40}", n) for n in range(written, written + 50)))
            written += 50
            await shared.kill(dice.choice(shared.running))
            await shared.start()
        extra = await shared.start()
        await orders(database, *(order(f"o-{n % 40}", n) for n in range(written, written + 50)))
        written += 50

        async def all_done() -> bool:
            return len(await bills(database)) >= written

        try:
            await until(all_done, f"seed {seed}: everything is done")
        except AssertionError as error:
            done = await bills(database)
            raise AssertionError(f"{error}: {len(done)} of {written}, {len(shared.ran())} calls") from None

        async def divided() -> bool:
            await orders(database, *(order(f"p-{n}", n) for n in range(64)))
            return extra.pid in {process for _, process in shared.ran()}

        await until(divided, "the one that came last has its part")
        await shared.end()
    found = [each for each in await bills(database) if each.startswith("o-")]
    assert sorted(found) == sorted(f"o-{n % 40}/{n}" for n in range(written)), f"seed {seed}"
    for id, numbers in (await invoices(database)).items():
        assert numbers == sorted(numbers), id
        if id.startswith("o-"):
            assert numbers == sorted(set(numbers))


@pytest.mark.slow
async def test_workers_and_their_broker_are_killed_under_load(
    database: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Forty kills of workers and of the broker while orders come over it: each order is billed once, in order, and its
    invoice comes back over the broker once."""
    seed = random.SystemRandom().randrange(2**32)
    dice = random.Random(seed)
    till = SyncNode("till", store="memory:", connectors=[nats_server.url], topics=["orders", "invoices"])
    async with till, workers(database, nats_server.url, tmp_path / "effects", 2) as shared:
        await till.start_auto_sync(interval_s=1.0, timeout_s=5.0)
        written = 0
        for kill in range(40):
            await till.append_many([order(f"o-{n % 40}", n) for n in range(written, written + 20)])
            written += 20
            if kill % 5 == 4:
                await asyncio.to_thread(nats_server.kill)
                await asyncio.to_thread(nats_server.start)
            else:
                await shared.kill(dice.choice(shared.running))
                await shared.start()

        async def all_billed() -> bool:
            return len(await bills(database)) >= written

        await until(all_billed, f"seed {seed}: every order is billed")

        async def all_back() -> bool:
            return len([None async for _ in till.log("invoices")]) >= written

        await until(all_back, f"seed {seed}: every invoice is back")
        await shared.end()
        assert sorted(await bills(database)) == sorted(f"o-{n % 40}/{n}" for n in range(written)), f"seed {seed}"
        found: dict[str, list[int]] = defaultdict(list)
        async for stored in till.log("invoices"):
            found[stored.event.aggregate_id].append(stored.event.data["n"])
        assert sum(map(len, found.values())) == written
    for id, numbers in (await invoices(database)).items():
        assert numbers == sorted(set(numbers)), f"seed {seed}: {id}"
