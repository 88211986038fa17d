"""The PostgreSQL store among many processes, and when the server or the way to it fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from synckit_streams.errors import StoreBusy
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Draft, Offset
from synckit_streams.ports.projection import Batch
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.node import SyncNode
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.testing.store_contract import NOW_MS, Writer, arrivals, audit, draft, opening
from synckit_streams.testing.store_contract.kit import variant
from synckit_streams.testing.store_model import StoreModel
from tests.stores.media import run_sql
from tests.stores.processes import child, end, line

DEADLINE_S = 30.0


@asynccontextmanager
async def opened(url: str, node: str = "writer", **options: Any) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, **options)
    await store.open(opening(node))
    try:
        yield store
    finally:
        await store.close()


async def until(true: Callable[[], Awaitable[Any]], what: str) -> None:
    """Wait for a condition."""
    limit = time.monotonic() + DEADLINE_S
    while not await true():
        assert time.monotonic() < limit, what
        await asyncio.sleep(0.01)


# --- the order of positions is the order of commits -------------------------------------------------------------------


async def test_a_serial_position_is_passed_over_by_a_reader(database: str) -> None:
    """What this store does not do: with a serial, the second writer's row is seen first, and a reader that has passed
    it never sees the first one's."""
    first, second = [await asyncpg.connect(database) for _ in range(2)]
    try:
        await first.execute("CREATE TABLE naive (position bigserial PRIMARY KEY, name text)")
        slow = first.transaction()
        await slow.start()
        await first.execute("INSERT INTO naive (name) VALUES ('slow')")
        await second.execute("INSERT INTO naive (name) VALUES ('quick')")
        page = await second.fetch("SELECT position, name FROM naive WHERE position > 0 ORDER BY position")
        await slow.commit()
        rest = await second.fetch("SELECT name FROM naive WHERE position > $1", page[-1]["position"])
        assert [row["name"] for row in (*page, *rest)] == ["quick"], "so the naive way skips one"
    finally:
        await first.close()
        await second.close()


async def test_a_writer_in_the_middle_of_its_commit_is_not_overtaken(database: str) -> None:
    """The same race: the second writer waits for the first one, and no reader sees it before."""
    loop = asyncio.get_running_loop()
    reached, go_on = asyncio.Event(), threading.Event()
    hold = False

    def probe(step: str) -> None:
        if hold and step == "commit":
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(DEADLINE_S)

    async with opened(database, probe=probe) as slow, opened(database) as quick:
        await slow.append([draft(data="before")], now_ms=NOW_MS)
        hold = True
        first = asyncio.create_task(slow.append([draft(data="slow")], now_ms=NOW_MS))
        await asyncio.wait_for(reached.wait(), DEADLINE_S)
        second = asyncio.create_task(quick.append([draft(data="quick")], now_ms=NOW_MS))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await until(lambda: run_sql(database, waiting), "the second writer waits")
        assert [each.event.data for each in await quick.log(after=None, limit=9)] == ["before"]
        hold = False
        go_on.set()
        await asyncio.gather(first, second)
        log = await quick.log(after=None, limit=9)
        assert [(each.position, each.event.data) for each in log] == [(1, "before"), (2, "slow"), (3, "quick")]


async def test_processes_that_append_at_once_give_out_no_number_twice(database: str) -> None:
    """One node, three processes: one origin, numbers and positions without gaps, each mirror as the log says; and a
    reader beside them, which passes each position as it comes, has seen all of them in the end."""
    times = 40
    processes = [
        child("asyncio.run(write_some(sys.argv[1], sys.argv[2], int(sys.argv[3])))", database, name, times)
        for name in "abc"
    ]
    seen: list[int] = []
    try:
        assert [line(each) for each in processes] == ["open"] * 3
        async with opened(database) as store:

            async def read() -> None:
                after: Offset | None = None
                while len(seen) < 3 * 2 * times:
                    for each in await store.log(after=after, limit=7):
                        seen.append(each.position)
                        after = each.offset

            reading = asyncio.create_task(asyncio.wait_for(read(), DEADLINE_S))
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()

            def hear(process: Any) -> list[list[Any]]:
                return [each for _ in range(2 * times) for each in json.loads(line(process))]

            said = await asyncio.gather(*(asyncio.to_thread(hear, process) for process in processes))
            await reading
            assert seen == list(range(1, 3 * 2 * times + 1))
            log = await audit(store)
            given = sorted(tuple(each) for of in said for each in of)
            assert given == [(each.position, each.event.origin, each.event.seq) for each in log]
            assert [each.event.seq for each in log] == list(range(1, len(log) + 1))
            assert len({each.event.origin for each in log}) == 1
            model = StoreModel(("orders", "stock"), 0)
            for each in log:
                assert each.event.context == model.context("orders", each.event.aggregate_id), "what it could know"
                model.events[each.event.key] = each.event
            sums = {origin: str(total) for origin, total in (await store.summary("orders")).sums.items()}
            ends = [await asyncio.to_thread(line, process) for process in processes]
            # Whoever looked before the others had finished says less; the last one says all.
            assert sums in [json.loads(said) for said in ends]
    finally:
        for process in processes:
            end(process)


async def test_what_one_process_holds_another_one_releases(database: str) -> None:
    """Held events, voids, refused and reused keys are seen by every mirror, whoever wrote them."""
    peer = Writer("b@1")
    first, second, third = (peer.write() for _ in range(3))
    async with opened(database) as one, opened(database) as two:
        await two.append([draft()], now_ms=NOW_MS)
        held = await one.append(received=arrivals(third, second), now_ms=NOW_MS)
        assert set(held.held) == {second.key, third.key}
        assert set((await two.summary("orders")).held) == {second.key, third.key}
        assert (await two.append(received=arrivals(first), now_ms=NOW_MS)).released == 2
        assert not (await one.summary("orders")).held
        assert (await one.append(received=arrivals(first, second), now_ms=NOW_MS)).duplicates == 2
        other = variant(first, 1)
        reused = await one.append(received=arrivals(other), now_ms=NOW_MS)
        assert reused.reused
        low = min(first, other, key=event_hash)
        again = await two.append(received=arrivals(low), now_ms=NOW_MS)
        assert again.duplicates == 1
        lost = Writer("c@1")
        gone, late = lost.write(), lost.write()
        await one.append(received=arrivals(late), now_ms=NOW_MS)
        assert (await two.append(voids=[gone.key], now_ms=NOW_MS)).released == 1
        assert gone.key in (await one.summary("orders")).voids
        mine = (await one.append([draft("o-1", id="x")], now_ms=NOW_MS)).appended
        assert (await two.append([draft("o-1", id="x")], now_ms=NOW_MS)).appended == mine
        assert await audit(one) == await audit(two)


async def test_whoever_writes_under_our_origin_ends_it_for_every_process(database: str) -> None:
    """An event under our origin that we never wrote: a copy of this store runs somewhere."""
    async with opened(database) as one, opened(database) as two:
        event = (await one.append([draft()], now_ms=NOW_MS)).appended[0].event
        copied = Writer(event.origin)
        copied.events.append(event)
        guess = copied.write("o-7")
        await two.append(received=arrivals(guess), now_ms=NOW_MS)
        fresh = [(await each.append([draft()], now_ms=NOW_MS)).appended[0].event for each in (one, two)]
        assert fresh[0].origin == fresh[1].origin != event.origin


async def test_a_read_model_is_written_by_one_process_at_a_time(database: str) -> None:
    """Whoever reads where a consumer stands holds it, from its first time on: no effect is applied twice."""
    async with opened(database) as one, opened(database) as two:
        async with one.transaction() as tx:
            await tx.execute("CREATE TABLE applied (position bigint)")

        async def apply(store: PostgresStore) -> None:
            for _ in range(10):
                async with store.transaction() as tx:
                    before = await tx.offset("totals")
                    position = (before.position if before else 0) + 1
                    await tx.execute("INSERT INTO applied VALUES ($1)", (position,))
                    await tx.set_offset("totals", Offset(store.id, position))

        await asyncio.gather(apply(one), apply(two))
        rows = await run_sql(database, "SELECT position FROM applied ORDER BY position")
        assert [row["position"] for row in rows] == list(range(1, 21))


async def test_a_consumer_that_another_process_holds_for_long_is_busy(database: str) -> None:
    """Retryable, and nothing is written; the appends of this process go on."""
    async with opened(database) as one, opened(database, busy_timeout_s=0.1) as two:
        async with one.transaction() as tx:
            await tx.offset("totals")

            async def ask() -> None:
                async with two.transaction() as mine:
                    await mine.offset("totals")

            with pytest.raises(StoreBusy) as raised:
                await ask()
            assert raised.value.retryable
            assert (await two.append([draft()], now_ms=NOW_MS)).fresh == 1
        await ask()


class Totals:
    """Adds up quantities: of every event, or of what each aggregate resolves to."""

    topics = ("orders",)
    types: tuple[str, ...] = ()

    def __init__(self, *, resolved: bool) -> None:
        self.resolved = resolved
        self.name = f"totals_{resolved}".lower()

    async def reset(self, tx: Transaction) -> None:
        await tx.execute(f"DROP TABLE IF EXISTS {self.name}")
        await tx.execute(f"CREATE TABLE {self.name} (id text PRIMARY KEY, qty bigint NOT NULL)")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        rows = [(each.event.aggregate_id, each.event.data["qty"]) for each in batch.stored]
        if self.resolved:
            rows = [
                (each.aggregate_id, each.current["qty"] - (each.previous["qty"] if each.previous else 0))
                for each in batch.changes
            ]
        await tx.execute_many(
            f"INSERT INTO {self.name} AS t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET qty = t.qty + excluded.qty",
            rows,
        )


async def test_two_processes_of_a_node_meet_and_project(database: str) -> None:
    """Each sends what the other one wrote, calls nothing complete that the other one still has to send, and counts
    nothing twice."""

    def node(name: str, store: str) -> SyncNode:
        projections = [] if store == "memory:" else [Totals(resolved=False), Totals(resolved=True)]
        return SyncNode(name, store=store, connectors=["memory://shared"], topics=["orders"], projections=projections)

    def draft_of(qty: int) -> Draft:
        return Draft("orders", "order.changed", "o-1", {"qty": qty})

    async with node("hub", database) as one, node("hub", database) as two, node("till", "memory:") as till:
        await one.append(draft_of(1))
        assert (await one.sync()).complete
        await two.append(draft_of(10))
        result = await one.sync()
        assert (result.complete, result.events_pushed) == (True, 1)
        await till.append(draft_of(100))
        assert (await till.sync()).complete
        for each in (one, two, one, till):
            assert (await each.sync()).complete
        assert len({await each.digest("orders") for each in (one, two, till)}) == 1
        await asyncio.gather(one.project(), two.project())
        assert [tuple(row) for row in await run_sql(database, "SELECT * FROM totals_false")] == [("o-1", 111)]
        last = (await one.resolve("orders", "o-1")).data["qty"]
        assert [tuple(row) for row in await run_sql(database, "SELECT * FROM totals_true")] == [("o-1", last)]


# --- waking up --------------------------------------------------------------------------------------------------------


async def test_a_watcher_hears_of_what_another_process_wrote(database: str) -> None:
    """Also when its listening connection was lost meanwhile; and not of what is written in another schema."""
    async with opened(database) as store, opened(database) as other, opened(f"{database}?schema=else") as strange:
        rung = asyncio.Queue[None]()

        async def watch() -> None:
            async for _ in store.watch():
                rung.put_nowait(None)

        watching = asyncio.create_task(watch())
        listening = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"

        async def listeners() -> bool:
            return len(await run_sql(database, listening)) >= 3

        async def heard() -> None:
            await asyncio.wait_for(rung.get(), DEADLINE_S)

        await until(listeners, "all three listen")
        while not rung.empty():
            rung.get_nowait()
        await strange.append([draft()], now_ms=NOW_MS)
        await other.append([draft()], now_ms=NOW_MS)
        await heard()
        await run_sql(database, listening.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
        await other.append([draft()], now_ms=NOW_MS)
        await heard()  # by the new connection, or because it is a new one
        assert len(await store.log(after=None, limit=9)) == 2
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


# --- leases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [True, False])
async def test_a_process_that_was_stopped_past_its_lease(database: str, taken: bool) -> None:
    """If another one has it meanwhile, its commit is refused; if nobody has, there is no harm in it."""
    process = child("asyncio.run(commit_late(sys.argv[1], 'late', 30.0))", database)
    try:
        assert await asyncio.to_thread(line, process) == "in the middle"
        os.kill(process.pid, signal.SIGSTOP)
        async with opened(database) as store:
            expired = "SELECT 1 FROM synckit.leases WHERE until <= clock_timestamp()"
            await until(lambda: run_sql(database, expired), "the lease runs out")
            if taken:
                leases = await store.lease(["lane-1"], "prompt", ttl_s=60.0)
                assert leases
                async with store.transaction(leases) as tx:
                    await tx.set_offset("prompt", Offset(store.id, 1))
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            assert await asyncio.to_thread(line, process) == ("LeaseLost" if taken else "committed")
            assert set(await store.offsets()) == ({"prompt"} if taken else {"late"})
            assert len(await audit(store)) == (0 if taken else 1)
    finally:
        end(process)


async def test_a_process_that_was_stopped_in_its_transaction_keeps_nobody_out_for_long(database: str) -> None:
    """Whoever takes its lease over needs its consumer too, which it holds until the server ends its transaction."""
    process = child("asyncio.run(commit_late(sys.argv[1], 'lane-1', 0.5))", database)
    try:
        assert await asyncio.to_thread(line, process) == "in the middle"
        os.kill(process.pid, signal.SIGSTOP)
        async with opened(database) as store:

            async def take() -> Any:
                return await store.lease(["lane-1"], "prompt", ttl_s=60.0)

            await until(take, "the lease runs out")
            leases = await take()
            async with store.transaction(leases) as tx:
                assert await tx.offset("lane-1") is None
                await tx.set_offset("lane-1", Offset(store.id, 2))
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            assert await asyncio.to_thread(line, process) == "StoreUnavailable"
            assert await store.offset("lane-1") == Offset(store.id, 2)
            assert await audit(store) == []
    finally:
        end(process)


async def test_a_lease_is_not_taken_in_the_middle_of_a_commit(database: str) -> None:
    """Whoever asks for one that has run out waits for the commit under it."""
    loop = asyncio.get_running_loop()
    reached, go_on = asyncio.Event(), threading.Event()
    hold = False

    def probe(step: str) -> None:
        if hold and step == "commit":
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(DEADLINE_S)

    async with opened(database, probe=probe) as slow, opened(database) as quick:
        leases = await slow.lease(["lane-1"], "slow", ttl_s=0.01)

        async def commit() -> None:
            async with slow.transaction(leases) as tx:
                await tx.set_offset("lane-1", Offset(slow.id, 1))

        hold = True
        first = asyncio.create_task(commit())
        await asyncio.wait_for(reached.wait(), DEADLINE_S)
        expired = "SELECT 1 FROM synckit.leases WHERE until <= clock_timestamp()"
        await until(lambda: run_sql(database, expired), "the lease runs out")
        second = asyncio.create_task(quick.lease(["lane-1"], "quick", ttl_s=60.0))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await until(lambda: run_sql(database, waiting), "the second one waits")
        hold = False
        go_on.set()
        await first
        assert await second
        assert await quick.offset("lane-1") == Offset(slow.id, 1)
