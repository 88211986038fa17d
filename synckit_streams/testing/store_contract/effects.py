"""The contract, part six: an effect, the events that it gives rise to, and how far it has come, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest

from synckit_streams.errors import CauseUnknown, IdReused, Invalid, LeaseLost, StoreError, TooLarge
from synckit_streams.model.clock import Key, VersionVector
from synckit_streams.model.event import Draft, Event, Offset
from synckit_streams.model.exchange import AppendResult
from synckit_streams.ports.store import EventStore, Lease
from synckit_streams.testing.store_contract.kit import (
    NOW_MS,
    Bench,
    Crash,
    Media,
    Writer,
    arrivals,
    audit,
    draft,
    opening,
    read,
)

STATE = ("orders", "o-1", b"1")


async def transact(
    store: EventStore,
    drafts: Sequence[Draft],
    *,
    position: int,
    leases: Sequence[Lease] = (),
    meanwhile: Callable[[], Awaitable[Any]] | None = None,
) -> AppendResult | None:
    """What a handler does: an effect, events and an offset."""
    async with store.transaction(leases) as tx:
        await tx.append(drafts, now_ms=NOW_MS)
        await tx.note_applied("handler", [("orders", "o-1", b"%d" % position)])
        await tx.set_offset("handler", Offset(store.id, position))
        assert tx.appended is None
        if meanwhile is not None:
            await meanwhile()
    return tx.appended


async def state(store: EventStore) -> tuple[int, int, bytes]:
    """How many events there are, where the handler stands, and what it noted."""
    offset = await store.offset("handler")
    noted = await store.applied("handler", after=None, limit=9)
    return len(await read(store)), offset.position if offset else 0, noted[0][2] if noted else b""


def impersonal(event: Event, store: EventStore) -> Event:
    """An event of a store's own, without what its store drew: origin and id."""

    def name(origin: str) -> str:
        return "me" if origin == store.origin else origin

    return msgspec.structs.replace(
        event,
        id="",
        origin=name(event.origin),
        context_bytes=VersionVector({name(origin): seq for origin, seq in event.context.items()}).to_bytes(),
    )


class Effects(Bench):
    """All there or none; numbered as by `append`; and what becomes of notes."""

    # --- all or nothing ----------------------------------------------------------------------------------------------

    async def test_effect_events_and_offset_commit_together(self, opened: Any) -> None:
        """None of them is seen before, and all of them are after the block; also over a reopening."""
        async with opened() as store:
            await store.append([draft()], now_ms=NOW_MS)

            async def nothing_yet() -> None:
                assert await state(store) == (1, 0, b"")

            result = await transact(store, [draft(data=1), draft("o-2")], position=1, meanwhile=nothing_yet)
            assert result is not None
            assert await state(store) == (3, 1, b"1")
            assert list(result.appended) == (await read(store))[1:]
        async with opened() as store:
            assert await state(store) == (3, 1, b"1")

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (draft(data=2, id="x"), IdReused),
            (draft(after=(Key("orders", "nobody@1", 1),)), CauseUnknown),
            (draft(context=VersionVector({"nobody@1": 1})), CauseUnknown),
        ],
        ids=["id", "after", "context"],
    )
    async def test_what_the_store_says_of_a_draft_undoes_the_block(
        self, opened: Any, wrong: Draft, error: type[StoreError]
    ) -> None:
        """At its end, whatever else it appended; and the numbers go on without a gap."""
        async with opened() as store:
            await store.append([draft(data=1, id="x")], now_ms=NOW_MS)
            await transact(store, [draft()], position=1)
            with pytest.raises(error):
                await transact(store, [draft("o-2"), wrong, draft("o-3")], position=2)
            assert await state(store) == (2, 1, b"1")
            result = await transact(store, [draft()], position=3)
            assert result is not None
            assert result.appended[0].event.seq == 3
            assert await state(store) == (3, 3, b"3")

    async def test_a_block_that_raises_writes_nothing(self, opened: Any) -> None:
        """Nor one that is cancelled; what was given to it is of no use afterwards."""
        async with opened() as store:

            async def fail() -> None:
                raise ZeroDivisionError

            async def wait_for_ever() -> None:
                waiting.set()
                await asyncio.Event().wait()

            with pytest.raises(ZeroDivisionError):
                await transact(store, [draft()], position=1, meanwhile=fail)
            waiting = asyncio.Event()
            cancelled = asyncio.create_task(transact(store, [draft()], position=1, meanwhile=wait_for_ever))
            await waiting.wait()
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert await state(store) == (0, 0, b"")
            async with store.transaction() as tx:
                await tx.set_offset("other", Offset(store.id, 1))
            assert tx.appended is None
            with pytest.raises(StoreError):
                await tx.append([draft()], now_ms=NOW_MS)
            with pytest.raises(StoreError):
                await tx.forget_applied("handler")

    @pytest.mark.parametrize("step", ["commit", "committed"])
    @pytest.mark.parametrize("error", [OSError, Crash])
    async def test_a_block_whose_commit_fails_is_there_whole_or_not_at_all(
        self, opened: Any, step: str, error: type[BaseException]
    ) -> None:
        """And what comes next is numbered as the disk says."""
        fail = False

        def probe(at: str) -> None:
            if fail and at == step:
                raise error("the disk says no")

        async with opened(probe=probe) as store:
            await transact(store, [draft()], position=1)
            fail = True
            block = store.transaction()
            tx = await block.__aenter__()
            await tx.append([draft(), draft("o-2")], now_ms=NOW_MS)
            await tx.note_applied("handler", [("orders", "o-1", b"2")])
            await tx.set_offset("handler", Offset(store.id, 2))
            with pytest.raises((StoreError, error)):
                await block.__aexit__(None, None, None)
            assert tx.appended is None
            fail = False
            before = (3, 2, b"2") if step == "committed" else (1, 1, b"1")
            assert await state(store) == before
            await audit(store)
            result = await store.append([draft()], now_ms=NOW_MS)
            assert result.appended[0].event.seq == before[0] + 1
            await transact(store, [draft()], position=3)
            assert await state(store) == (before[0] + 2, 3, b"3")

    async def test_a_block_that_lost_a_lease_writes_nothing(self, opened: Any) -> None:
        """Neither its effect nor its events, which nobody has seen; and it costs the others no number."""
        async with opened() as store:
            if not store.features.leases:
                pytest.skip("this store declares that it has no leases")
            mine = await store.lease(["lane-1", "lane-2"], "a", ttl_s=600)
            await transact(store, [draft()], position=1, leases=mine)

            async def lose() -> None:
                await store.release(mine[1:])
                assert len(await store.lease(["lane-2"], "b", ttl_s=600)) == 1

            with pytest.raises(LeaseLost):
                await transact(store, [draft()], position=2, leases=mine, meanwhile=lose)
            assert await state(store) == (1, 1, b"1")
            result = await transact(store, [draft()], position=3, leases=mine[:1])
            assert result is not None
            assert result.appended[0].event.seq == 2

    async def test_a_statement_that_ends_the_transaction_takes_the_events_with_it(self, opened: Any) -> None:
        """Whoever goes on after its error commits nothing either."""
        async with opened() as store:
            if not store.features.sql:
                return

            async def end_it() -> None:
                async with store.transaction() as tx:
                    await tx.append([draft()], now_ms=NOW_MS)
                    with pytest.raises(StoreError):
                        await tx.execute("ROLLBACK")

            with pytest.raises(StoreError):
                await end_it()
            assert await state(store) == (0, 0, b"")
            await transact(store, [draft()], position=1)
            assert await state(store) == (1, 1, b"1")

    # --- as by append ------------------------------------------------------------------------------------------------

    async def test_events_are_numbered_as_by_append(self, opened: Any) -> None:
        """Sequence, `prev`, context, clock and what the answer says are the same, also with a peer's events between."""

        async def by_append(store: EventStore, drafts: Sequence[Draft], now_ms: int) -> AppendResult:
            return await store.append(drafts, now_ms=now_ms, traceparent="00-a")

        async def by_block(store: EventStore, drafts: Sequence[Draft], now_ms: int) -> AppendResult:
            async with store.transaction() as tx:
                await tx.append(drafts[:1], now_ms=now_ms - 5, traceparent="00-a")
                await tx.append(drafts[1:], now_ms=now_ms, traceparent="00-a")
            assert tx.appended is not None
            return tx.appended

        async def history(store: EventStore, write: Any) -> tuple[list[Any], list[Any]]:
            peer = Writer("b@1")
            answers = []
            for step in range(12):
                last = (await read(store))[-1:]
                drafts = [
                    draft(f"o-{step % 2}", step),
                    draft("o-0", topic="stock", id=f"step {step // 2}"),
                    draft(f"o-{step % 3}", step, after=tuple(each.event.key for each in last)),
                    draft("o-0", context=VersionVector()),
                ]
                result = await write(store, drafts[: 1 + step % 4], NOW_MS + step)
                answers.append(
                    (
                        [impersonal(each.event, store) for each in result.appended],
                        result.fresh,
                        result.stored,
                        sorted(result.summaries),
                    )
                )
                for topic, summary in result.summaries.items():
                    assert summary == await store.summary(topic)
                await store.append(
                    received=arrivals(peer.write(f"o-{step % 2}", knows=[each.event for each in last])), now_ms=NOW_MS
                )
            log = [
                (each.position, each.twin, msgspec.structs.replace(impersonal(each.event, store), after_bytes=b""))
                for each in await read(store)
            ]
            answers = [
                ([msgspec.structs.replace(event, after_bytes=b"") for event in events], *rest)
                for events, *rest in answers
            ]
            return log, answers

        async with opened("one") as one, opened("two") as two:
            assert await history(one, by_append) == await history(two, by_block)

    async def test_all_that_is_appended_in_a_block_is_one_request(self, opened: Any) -> None:
        """An id that comes twice is one event; each call's drafts keep its trace; the clock is the latest one's."""
        async with opened() as store:
            async with store.transaction() as tx:
                await tx.append([draft(data=1, id="x"), draft(data=2)], now_ms=NOW_MS + 9, traceparent="00-a")
                await tx.append([], now_ms=NOW_MS)
                drafts = [draft(data=1, id="x"), draft(data=3)]
                await tx.append(drafts, now_ms=NOW_MS, traceparent="00-b")
                drafts.clear()
            result = tx.appended
            assert result is not None
            assert [each.event.data for each in result.appended] == [1, 2, 1, 3]
            assert (result.appended[0], result.fresh) == (result.appended[2], 3)
            log = [each.event for each in await read(store)]
            assert [(event.data, event.traceparent) for event in log] == [(1, "00-a"), (2, "00-a"), (3, "00-b")]
            assert min(event.at.wall_ms for event in log) == NOW_MS + 9
            async with store.transaction() as tx:
                await tx.append([draft(data=1, id="x")], now_ms=NOW_MS)
            assert tx.appended is not None
            assert (tx.appended.appended[0], tx.appended.fresh) == (result.appended[0], 0)

            async def twice() -> None:
                async with store.transaction() as tx:
                    await tx.append([draft(data=1, id="y")], now_ms=NOW_MS)
                    await tx.append([draft(data=2, id="y")], now_ms=NOW_MS)

            with pytest.raises(IdReused):
                await twice()
            assert len(await read(store)) == 3

    async def test_a_wrong_draft_is_told_at_once(self, opened: Any) -> None:
        """Where its caller can still do something else; the others of its call are not appended."""
        async with opened() as store:
            async with store.transaction() as tx:
                await tx.append([draft(data=1)], now_ms=NOW_MS)
                for wrong, error in (
                    (draft(""), Invalid),
                    ("not a draft", Invalid),
                    (draft(data="x" * 1_000_001), TooLarge),
                ):
                    with pytest.raises(error):
                        await tx.append([draft(data=2), wrong], now_ms=NOW_MS)
                with pytest.raises(Invalid):
                    await tx.append([draft(data=2)], now_ms=NOW_MS, traceparent="\n")
                await tx.append([draft(data=3)], now_ms=NOW_MS)
            assert [each.event.data for each in await read(store)] == [1, 3]

    async def test_blocks_and_appends_at_once_lose_nothing(self, opened: Any) -> None:
        """Each is answered with its own events, on the disk in the order of their positions, and a watcher wakes."""
        async with opened() as store:
            woken = asyncio.create_task(anext(store.watch()))
            await asyncio.sleep(0)

            async def append(caller: int, at: int) -> Any:
                return await store.append([draft(f"o-{caller % 3}", [caller, at])], now_ms=NOW_MS)

            async def block(caller: int, at: int) -> Any:
                async with store.transaction() as tx:
                    before = await tx.offset("blocks")
                    await tx.append([draft(f"o-{caller % 3}", [caller, at])], now_ms=NOW_MS)
                    await asyncio.sleep(0)
                    await tx.set_offset("blocks", Offset(store.id, 1 + (before.position if before else 0)))
                return tx.appended

            async def write(caller: int) -> None:
                for at in range(8):
                    result = await (block if (caller + at) % 2 else append)(caller, at)
                    assert [each.event.data for each in result.appended] == [[caller, at]]

            await asyncio.gather(*(write(caller) for caller in range(10)))
            await asyncio.wait_for(woken, 20)
            log = await audit(store)
            assert [each.event.seq for each in log] == list(range(1, 81))
            assert sorted(each.event.data for each in log) == [[caller, at] for caller in range(10) for at in range(8)]
            assert (await store.offset("blocks")).position == 40

    # --- notes -------------------------------------------------------------------------------------------------------

    async def test_notes_are_read_by_pages(self, opened: Any, media: Media) -> None:
        """All of a name and no others', whatever the aggregates are called; also by somebody who only looks."""
        long, page = "😀" * 10_000, 7
        notes = [("orders", f"o-{number}", b"%d" % number) for number in range(20)]
        notes += [("o", "rders", b"x"), ("orders", long, b"\0"), ("stock", "o-1", b"{}"), ("t" * 100, "'; --", b"y")]
        async with opened() as store:
            async with store.transaction() as tx:
                await tx.note_applied("handler", notes[::-1])
                await tx.note_applied("handler|", [STATE])
                await tx.note_applied("handle", [STATE])
            found = list(await store.applied("handler", after=None, limit=page))
            while more := await store.applied("handler", after=found[-1][:2], limit=page):
                assert len(more) <= page
                found += more
            assert sorted(found) == sorted(notes)
            assert list(await store.applied("handler", after=None, limit=100)) == found, "the order never changes"
            assert list(await store.applied("handle", after=None, limit=9)) == [STATE]
            assert list(await store.applied("nobody", after=None, limit=9)) == []
            assert list(await store.noted()) == ["handle", "handler", "handler|"]
            look = media.make("a", read_only=True)
            await look.open(opening("onlooker"))
            assert list(await look.applied("handler", after=found[0][:2], limit=3)) == found[1:4]
            assert len(await look.noted()) == 3
            await look.close()
        async with opened() as store:
            assert list(await store.applied("handler", after=None, limit=100)) == found

    async def test_a_note_is_removed_and_a_name_forgotten(self, opened: Any) -> None:
        """An empty state is no note; what is forgotten in a block that raises is still there."""
        async with opened() as store:

            async def noted(name: str) -> list[tuple[str, str, bytes]]:
                return list(await store.applied(name, after=None, limit=100))

            async with store.transaction() as tx:
                await tx.note_applied("one", [("orders", "o-1", b"1"), ("orders", "o-2", b"2"), ("orders", "o-3", b"")])
                await tx.note_applied("two", [STATE])
            async with store.transaction() as tx:
                await tx.note_applied("one", [("orders", "o-1", b""), ("orders", "o-4", b"4")])
                asked = [("orders", "o-1"), ("orders", "o-2"), ("orders", "o-3"), ("orders", "o-4")]
                assert list(await tx.applied("one", asked)) == [None, b"2", None, b"4"]
            assert sorted(await noted("one")) == [("orders", "o-2", b"2"), ("orders", "o-4", b"4")]

            async def forget(*, fail: bool) -> None:
                async with store.transaction() as tx:
                    await tx.note_applied("one", [("orders", "o-5", b"5")])
                    await tx.forget_applied("one")
                    assert list(await tx.applied("one", asked)) == [None] * 4
                    await tx.note_applied("one", [("orders", "o-6", b"6")])
                    if fail:
                        raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await forget(fail=True)
            assert len(await noted("one")) == 2
            await forget(fail=False)
            assert await noted("one") == [("orders", "o-6", b"6")]
            assert await noted("two") == [STATE]
            async with store.transaction() as tx:
                await tx.forget_applied("nobody")
                await tx.forget_applied("two")
            assert list(await store.noted()) == ["one"]
