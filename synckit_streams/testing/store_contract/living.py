"""A store among many callers, and from its opening to its end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest

from synckit_streams.errors import StoreClosed, StoreError
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Offset, Stored
from synckit_streams.testing.store_contract.kit import (
    NOW_MS,
    Bench,
    Media,
    StoreModelOf,
    audit,
    draft,
    opening,
    read,
    retry,
    uses,
)


class Living(Bench):
    """Cancellation, many callers, opening and closing."""

    # --- cancellation ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(5))
    async def test_a_cancelled_caller_leaves_the_writer_free(self, opened: Any, seed: int) -> None:
        """Appends and transactions that are cancelled at any await: whole or not at all, and the others go on."""
        dice = random.Random(seed)
        async with opened() as store:

            async def effect(number: int) -> None:
                async with store.transaction() as tx:
                    await tx.set_offset(f"left {number}", Offset(store.id, 1))
                    await tx.append([draft(data=f"effect {number}"), draft("o-2", f"effect {number}")], now_ms=NOW_MS)
                    await tx.set_offset(f"right {number}", Offset(store.id, 1))

            async def write(number: int) -> None:
                await store.append(
                    [draft(data=number), draft("o-2", number)], offsets={f"w {number}": Offset("l", 1)}, now_ms=NOW_MS
                )

            for number in range(60):
                tasks = [
                    asyncio.create_task(dice.choice((effect, write))(number * 10 + at))
                    for at in range(dice.randint(1, 4))
                ]
                for _ in range(dice.randint(0, 12)):
                    await asyncio.sleep(0)
                if dice.random() < 0.3:
                    await store.end()
                for task in dice.sample(tasks, dice.randint(1, len(tasks))):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait_for(store.append([draft()], now_ms=NOW_MS), 20)
            offsets = await store.offsets()
            names = {name.partition(" ")[2] for name in offsets if name.startswith(("left", "right"))}
            assert all({f"left {name}", f"right {name}"} <= set(offsets) for name in names)
            written = Counter(f"{each.event.data}" for each in (await read(store))[:-1])
            assert set(written.values()) <= {2}
            effects = {call for call in written if call.startswith("effect")}
            assert effects == {f"effect {name}" for name in names}, "an effect without its events"
            assert {f"w {call}" for call in written.keys() - effects} == {
                name for name in offsets if name.startswith("w ")
            }

    async def test_a_transaction_that_was_given_up_before_its_turn_is_not_begun(self, opened: Any) -> None:
        """The writer goes to the next one."""
        async with opened() as store:
            async with store.transaction():
                waiting = asyncio.create_task(store.transaction().__aenter__())
                late = asyncio.create_task(store.append([draft()], now_ms=NOW_MS))
                await asyncio.sleep(0)
                waiting.cancel()
            await asyncio.wait_for(late, 20)
            with pytest.raises(asyncio.CancelledError):
                await waiting

    async def test_an_open_that_is_cancelled_gives_the_medium_back(self, media: Media) -> None:
        """Somebody else can take it."""
        store = media.make("a")
        task = asyncio.create_task(store.open(opening("a")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await retry(lambda: store.open(opening("a")))
        await store.append([draft()], now_ms=NOW_MS)
        await audit(store)
        await store.close()

    # --- many callers ------------------------------------------------------------------------------------------------

    async def test_many_callers_get_numbers_without_gaps(self, opened: Any) -> None:
        """Fifty at once; each is acknowledged with its own events, on the disk in the order of their positions."""
        async with opened() as store:

            async def write(caller: int) -> list[Stored]:
                mine: list[Stored] = []
                for at in range(10):
                    result = await store.append([draft(f"o-{caller % 7}", [caller, at])], now_ms=NOW_MS)
                    mine.extend(result.appended)
                return mine

            results = await asyncio.gather(*(write(caller) for caller in range(50)))
            for caller, mine in enumerate(results):
                assert [each.event.data for each in mine] == [[caller, at] for at in range(10)]
                assert [each.position for each in mine] == sorted(each.position for each in mine)
            log = await audit(store)
            assert sorted((each for mine in results for each in mine), key=lambda each: each.position) == log
            assert [each.event.seq for each in log] == list(range(1, 501))

    async def test_two_event_loops(self, opened: Any) -> None:
        """Callers on another thread's loop write, read, project and are woken beside those of the first."""
        async with opened() as store:

            async def use(name: str) -> None:
                await asyncio.wait_for(work(name), 60)

            async def work(name: str) -> None:
                woken = asyncio.create_task(anext(store.watch()))
                for at in range(20):
                    result = await store.append([draft(name, at)], now_ms=NOW_MS)
                    async with store.transaction() as tx:
                        await tx.set_offset(name, Offset(store.id, at + 1))
                    assert [each.event.data for each in result.appended] == [at]
                    assert (await store.offset(name)) == Offset(store.id, at + 1)
                    assert [event.data for event in await store.aggregate("orders", name)] == list(range(at + 1))
                await woken

            await asyncio.gather(use("here"), asyncio.to_thread(asyncio.run, use("there")))
            assert len(await read(store)) == 40

    async def test_callers_of_one_commit_keep_their_own_trace(self, opened: Any) -> None:
        """Neighbours that are written together say each what its caller said: its trace, several events, or none."""
        traces = ["", "00-a", "00-a", "00-b", "", "00-b"]
        async with opened() as store:
            results = await asyncio.gather(
                *(
                    store.append([draft(data=at)] * (at % 3), now_ms=NOW_MS, traceparent=trace)
                    for at, trace in enumerate(traces * 3)
                )
            )
            for at, (trace, result) in enumerate(zip(traces * 3, results, strict=True)):
                events = [each.event for each in result.appended]
                assert [(each.data, each.traceparent) for each in events] == [(at, trace)] * (at % 3)
                assert result.fresh == at % 3

    async def test_a_list_may_be_filled_anew_while_it_is_written(self, opened: Any) -> None:
        """A buffer that its owner empties as soon as he has asked is written as it was, and nobody else's answer
        changes."""
        async with opened() as store:
            before = asyncio.create_task(store.append([draft(data=0)], now_ms=NOW_MS))
            buffer = [draft(data=1), draft(data=2)]
            buffered = asyncio.create_task(store.append(buffer, now_ms=NOW_MS))
            other = asyncio.create_task(store.append([draft(data=3)], now_ms=NOW_MS))
            await asyncio.sleep(0)
            buffer.clear()
            answers = [
                [each.event.data for each in result.appended]
                for result in await asyncio.gather(before, buffered, other)
            ]
            assert answers == [[0], [1, 2], [3]]
            assert [each.event.data for each in await store.log(after=None, limit=10)] == [0, 1, 2, 3]

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def test_a_clean_close_keeps_the_incarnation_and_everything_else(self, opened: Any) -> None:
        """Also over an opening that writes nothing."""
        async with opened() as store:
            origin = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin
            identity = store.id
        async with opened() as store:
            assert store.id == identity
        async with opened() as store:
            result = await store.append([draft()], now_ms=NOW_MS)
            assert (result.appended[0].event.origin, result.appended[0].event.seq) == (origin, 2)
            assert store.id == identity

    async def test_what_was_not_closed_cleanly_draws_a_new_incarnation(self, opened: Any, media: Media) -> None:
        """Killed, copied, put back over the old one, or taken by another node: nobody hands out a key again."""
        origins: list[str] = []

        async def write(medium: str, node: str = "a") -> None:
            async with opened(medium, node=node) as store:
                before = await audit(store)
                result = await store.append([draft(data=len(origins))], now_ms=NOW_MS)
                event = result.appended[0].event
                assert event.key not in {each.event.key for each in before}
                assert event.origin == store.origin
                assert event.context == StoreModelOf(await read(store)).context_before(event)
                origins.append(event.origin)

        await write("live")
        media.copy("live", "backup")
        await write("live")
        assert origins[0] == origins[1]
        await write("backup")
        media.copy("backup", "live")
        await write("live")
        media.copy("live", "live 2")
        await write("live 2")
        await write("live", node="another")
        await write("live")
        store = media.make("live")
        await store.open(opening("a"))
        origins.append((await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin)
        assert origins[-1] == origins[-2], "so far nothing happened to it"
        await media.kill(store)
        await write("live")
        assert len(set(origins[1:-2])) == len(origins[1:-2])
        # A server of many processes outlives one that is killed, and says itself what it holds.
        assert origins[-1] not in origins[:-1] or store.features.shared
        assert [node_of(origin) for origin in origins[-4:]] == ["another", "a", "a", "a"]

    async def test_a_store_knows_which_nodes_it_has_been(self, opened: Any) -> None:
        """What an earlier one wrote is the present one's to send, so it must not be forgotten."""
        for node, nodes in (("a", ["a"]), ("b", ["a", "b"]), ("c", ["a", "b", "c"]), ("b", ["a", "c", "b"])):
            async with opened(node=node) as store:
                assert list(store.nodes) == nodes

    async def test_a_copy_taken_while_it_is_written_is_whole(self, opened: Any, media: Media) -> None:
        """It opens, everything acknowledged before is there, and it writes as somebody else."""
        async with opened("live") as store:
            await store.append([draft(), draft("o-2")], now_ms=NOW_MS)
            media.copy("live", "copy")
            await store.append([draft()], now_ms=NOW_MS)
            async with opened("copy", node="live") as copy:
                assert len(await read(copy)) == 2
                result = await copy.append([draft()], now_ms=NOW_MS)
                assert result.appended[0].event.origin != store.origin

    async def test_nothing_works_on_a_store_that_is_not_open(self, media: Media) -> None:
        """Before `open` and after `close`, which may be called twice; then it may be opened again."""
        store = media.make("a")
        for _ in range(2):
            for call in uses(store):
                with pytest.raises(StoreClosed):
                    await call()
            await store.open(opening("a"))
            with pytest.raises(StoreError):
                await store.open(opening("a"))
            await store.append([draft()], now_ms=NOW_MS)
            await asyncio.gather(store.close(), store.close())
            await store.close()
        for call in uses(store):
            with pytest.raises(StoreClosed):
                await call()

    async def test_a_close_lets_those_who_wait_finish(self, opened: Any, media: Media) -> None:
        """Appends that were asked for, and a transaction that is open: they commit; whoever comes later is told."""
        store = media.make("a")
        await store.open(opening("a"))
        async with store.transaction() as tx:
            appends = [asyncio.create_task(store.append([draft(data=n)], now_ms=NOW_MS)) for n in range(5)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
            with pytest.raises(StoreClosed):
                await store.append([draft(data="late")], now_ms=NOW_MS)
            await tx.set_offset("x", Offset(store.id, 1))
        await asyncio.wait_for(closing, 20)
        assert [each.fresh for each in await asyncio.gather(*appends)] == [1] * 5
        async with opened() as store:
            assert [each.event.data for each in await read(store)] == list(range(5))
            assert await store.offset("x") is not None
