"""On PostgreSQL: transactions that append, among many processes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from synckit_streams.errors import LeaseLost, StoreBusy, StoreError, StoreUnavailable
from synckit_streams.model.event import Offset
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.testing.store_contract import NOW_MS, audit, draft
from tests.stores.media import run_sql
from tests.stores.processes import child, end, line
from tests.stores.test_postgres_shared import opened, until


async def test_a_slow_block_keeps_nobody_from_appending(database: str) -> None:
    """Another process writes while the block is open, whatever the block has done so far; what it wrote comes first,
    and the block's event knows it."""
    process = child("asyncio.run(hold(sys.argv[1]))", database)
    try:
        assert await asyncio.to_thread(line, process) == "open"
        async with opened(database, "holder") as store:
            async with store.transaction() as tx:
                await tx.execute("CREATE TABLE effects (number int)")
                await tx.execute("INSERT INTO effects VALUES (1)")
                await tx.append([draft(data="block")], now_ms=NOW_MS)
                await tx.note_applied("handler", [("orders", "o-1", b"1")])
                await tx.set_offset("handler", Offset(store.id, 1))
                assert process.stdin is not None
                for _ in range(3):
                    process.stdin.write("more\n")
                    process.stdin.flush()
                    assert await asyncio.to_thread(line, process) == "wrote"
                assert len(await store.log(after=None, limit=9)) == 4
            (mine,) = tx.appended.appended if tx.appended is not None else ()
            assert (mine.position, mine.event.seq, mine.event.prev) == (5, 5, 4)
            assert mine.event.context.covers((await store.log(after=None, limit=9))[3].event.dot)
            await audit(store)
    finally:
        end(process)


async def test_processes_append_in_blocks_and_without(database: str) -> None:
    """Numbers and positions have no gap, each effect is there with its event, and nobody waits in a circle."""
    async with opened(database) as one, opened(database) as two, opened(database) as three:
        async with one.transaction() as tx:
            await tx.execute("CREATE TABLE effects (caller text, number int)")

        async def work(store: PostgresStore, caller: str) -> None:
            for number in range(15):
                async with store.transaction() as tx:
                    before = await tx.offset("all")
                    await tx.execute("INSERT INTO effects VALUES ($1, $2)", (caller, number))
                    await tx.append([draft(f"o-{number % 3}", [caller, number])] * 2, now_ms=NOW_MS)
                    await tx.set_offset("all", Offset(store.id, (before.position if before else 0) + 1))
                assert tx.appended is not None
                assert [each.event.data for each in tx.appended.appended] == [[caller, number]] * 2
                await store.append([draft("o-1", [caller, -1])], now_ms=NOW_MS, offsets={caller: Offset("b", number)})

        await asyncio.gather(work(one, "a"), work(one, "b"), work(two, "c"), work(three, "d"))
        log = await audit(one)
        assert await audit(two) == await audit(three) == log
        assert [each.event.seq for each in log] == list(range(1, 181))
        assert [each.position for each in log] == list(range(1, 181))
        effects = [[row["caller"], row["number"]] for row in await run_sql(database, "SELECT * FROM effects")]
        found = [each.event.data for each in log if each.event.data[1] >= 0]
        assert sorted(found) == sorted(effects * 2)
        assert await one.offset("all") == Offset(one.id, 60)


async def test_whoever_waits_in_line_for_the_head_holds_no_lease(database: str) -> None:
    """So that it can be renewed meanwhile, and a commit is not refused because of the wait itself."""
    async with opened(database) as store, opened(database) as other:
        mine = await store.lease(["lane-1"], "a", ttl_s=60.0)
        async with other.transaction() as tx:
            await tx.execute("SELECT 1 FROM synckit.store FOR UPDATE")

            async def effect() -> None:
                async with store.transaction(mine) as mine_tx:
                    await mine_tx.append([draft()], now_ms=NOW_MS)

            waiting = asyncio.create_task(effect())
            locked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            await until(lambda: run_sql(database, locked), "it waits for the head")
            assert list(await asyncio.wait_for(store.renew(mine, ttl_s=60.0), 5.0)) == mine
        await waiting
        assert len(await audit(store)) == 1


async def test_a_head_that_is_held_for_long_is_busy(database: str) -> None:
    """Retryable; nothing of the block is written, and the mirror is as it was."""
    async with opened(database, busy_timeout_s=0.1) as store, opened(database) as other:
        await store.append([draft()], now_ms=NOW_MS)

        async def effect() -> None:
            async with store.transaction() as tx:
                await tx.set_offset("handler", Offset(store.id, 1))
                await tx.append([draft()], now_ms=NOW_MS)

        async with other.transaction() as tx:
            await tx.execute("SELECT 1 FROM synckit.store FOR UPDATE")
            with pytest.raises(StoreBusy) as raised:
                await effect()
            assert raised.value.retryable
            assert await store.offset("handler") is None
        await effect()
        assert [each.event.seq for each in await audit(store)] == [1, 2]


async def test_two_processes_under_one_lease(database: str) -> None:
    """Whoever lost it gets `LeaseLost` and has written nothing: no effect, no event, no offset."""
    async with opened(database) as slow, opened(database) as quick:
        async with slow.transaction() as tx:
            await tx.execute("CREATE TABLE effects (holder text)")

        begun, go_on = asyncio.Event(), asyncio.Event()

        async def effect() -> None:
            leases = await slow.lease(["lane-1", "lane-2", "lane-3"], "slow", ttl_s=0.05)
            async with slow.transaction(leases) as tx:
                await tx.execute("INSERT INTO effects VALUES ('slow')")
                await tx.append([draft(data="slow")], now_ms=NOW_MS)
                await tx.set_offset("lane-2", Offset(slow.id, 1))
                begun.set()
                await go_on.wait()

        late = asyncio.create_task(effect())
        await begun.wait()

        async def take() -> Any:
            return await quick.lease(["lane-2"], "quick", ttl_s=60.0)

        await until(take, "the lease runs out")
        # The offset's row is the slow one's until its end, so the quick one does without it.
        async with quick.transaction(await take()) as tx:
            await tx.execute("INSERT INTO effects VALUES ('quick')")
            await tx.append([draft(data="quick")], now_ms=NOW_MS)
        go_on.set()
        with pytest.raises(LeaseLost, match="lane-2"):
            await late
        assert [each.event.data for each in await audit(slow)] == ["quick"]
        assert [row["holder"] for row in await run_sql(database, "SELECT * FROM effects")] == ["quick"]
        assert await slow.offset("lane-2") is None


async def test_a_failed_statement_takes_the_events_with_it(database: str) -> None:
    """Also where its author swallowed the error."""
    async with opened(database) as store:

        async def swallow() -> None:
            async with store.transaction() as tx:
                await tx.append([draft()], now_ms=NOW_MS)
                with pytest.raises(StoreError):
                    await tx.execute("SELECT 1/0")

        with pytest.raises(StoreError):
            await swallow()
        assert await audit(store) == []
        assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.seq == 1


async def test_a_transaction_of_ones_own_goes_with_its_connection(database: str) -> None:
    """All or nothing, and the error says that it can be tried again."""
    async with opened(database) as store:

        async def effect() -> None:
            async with store.transaction() as tx:
                await tx.set_offset("x", Offset(store.id, 1))
                await tx.append([draft()], now_ms=NOW_MS)
                await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        async def swallow() -> None:
            async with store.transaction() as tx:
                await tx.append([draft()], now_ms=NOW_MS)
                with pytest.raises(StoreUnavailable):
                    await tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
                await store.summary("orders")  # over a new connection, on which no transaction is open

        for call in (effect, swallow):
            with pytest.raises(StoreUnavailable):
                await call()
        assert await store.offset("x") is None
        assert await audit(store) == []
        async with store.transaction() as tx:
            await tx.set_offset("x", Offset(store.id, 2))
        assert await store.offset("x") == Offset(store.id, 2)


async def test_a_connection_that_is_lost_between_two_statements_is_unavailable(database: str) -> None:
    """So that whoever handles it tries again; what ended the transaction himself need not."""
    async with opened(database) as store:

        async def lose() -> None:
            async with store.transaction() as tx:
                await tx.append([draft()], now_ms=NOW_MS)
                ((process,),) = await tx.execute("SELECT pg_backend_pid()")
                await run_sql(database, "SELECT pg_terminate_backend($1)", process)
                async with asyncio.timeout(20):
                    while store.line.in_transaction:  # its driver hears of it when it looks
                        with suppress(StoreUnavailable):
                            await tx.set_offset("handler", Offset(store.id, 1))
                await tx.set_offset("handler", Offset(store.id, 2))

        async def end_it() -> None:
            async with store.transaction() as tx:
                await tx.append([draft()], now_ms=NOW_MS)
                with pytest.raises(StoreError):
                    await tx.execute("ROLLBACK")
                await tx.set_offset("handler", Offset(store.id, 2))

        with pytest.raises(StoreUnavailable) as raised:
            await lose()
        assert raised.value.retryable
        with pytest.raises(StoreError, match="'ROLLBACK' has ended") as ended:
            await end_it()
        assert not ended.value.retryable
        assert await audit(store) == []
        assert await store.offsets() == {}


async def test_a_page_of_notes_is_found_by_an_index(database: str) -> None:
    """However many notes there are, of this name or others."""
    async with opened(database) as store:
        async with store.transaction() as tx:
            await tx.note_applied("totals", [("orders", f"o-{number}", b"1") for number in range(2_000)])
            await tx.note_applied("others", [("orders", f"o-{number}", b"1") for number in range(2_000)])
        await run_sql(database, "ANALYZE synckit.applied")
        page = store._statements.applied_page.replace("$1", "'totals'").replace("$2", r"'\x55'").replace("$3", "5")
        async with store.transaction() as tx:
            plan = [row[0] for row in await tx.execute(f"EXPLAIN {page}")]
        assert any("applied_projection" in step for step in plan), plan
        assert not any("Sort" in step for step in plan), plan
