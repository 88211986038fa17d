"""What a store answers, and a transaction of one's own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from synckit_streams.errors import FeatureUnsupported, Invalid, StoreError
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Offset, Stored
from synckit_streams.model.exchange import Arrival, Place, PlaceRun, Raised
from synckit_streams.ports.store import EventStore
from synckit_streams.testing.store_contract.kit import (
    NOW_MS,
    TOPICS,
    Bench,
    Media,
    Writer,
    arrivals,
    audit,
    draft,
    opening,
    places,
    read,
)


class Reading(Bench):
    """Offsets, places and quarantine; the log; transactions."""

    # --- offsets, places and quarantine ------------------------------------------------------------------------------

    async def test_offsets_and_places_move_with_the_events(self, opened: Any) -> None:
        """Where a reader stands, and where it read which event; a reader that was put back forgets its places."""
        peer = Writer("b@1")
        events = [peer.write(f"o-{n}") for n in range(4)]
        async with opened() as store:
            assert await store.offset("link") is None
            await store.append(
                received=arrivals(*events[:3], reader="link", first=10),
                offsets={"link": Offset("log", 12, b"\0print")},
                now_ms=NOW_MS,
            )
            await store.append(received=arrivals(*events[1:], reader="other"), now_ms=NOW_MS)
        async with opened() as store:
            assert await store.offset("link") == Offset("log", 12, b"\0print")
            assert await store.offsets() == {"link": Offset("log", 12, b"\0print")}
            assert places(await store.runs("link")) == {events[n].key: 10 + n for n in range(3)}
            assert places(await store.runs("other")) == {events[n].key: n for n in range(1, 4)}
            await asyncio.gather(
                store.append(received=arrivals(events[0], reader="link", first=5), now_ms=NOW_MS),
                store.append(
                    received=arrivals(events[3], reader="link", first=99),
                    offsets={"link": Offset("another log", 99)},
                    forget=["link"],
                    now_ms=NOW_MS,
                ),
            )
            assert places(await store.runs("link")) == {events[3].key: 99}
            assert places(await store.runs("other")) != {}
            assert (await store.offsets())["link"].log == "another log"

    @pytest.mark.parametrize(
        "positions", [[5], [1, 2, 3, 4, 5], [7, 7, 7, 7], [1, 5, 9, 13], [1, 2, 9, 1], [2**53] * 2]
    )
    async def test_places_are_kept_exactly(self, opened: Any, positions: list[int]) -> None:
        """Even runs are packed, uneven ones are not; of a number that was read twice the later place counts."""
        peer = Writer("b@1")
        events = [peer.write(f"o-{n}") for n in range(len(positions))]
        received = [Arrival(each, event_hash(each), Place("r", at)) for each, at in zip(events, positions, strict=True)]
        async with opened() as store:
            result = await store.append(received=[*received, received[0]], now_ms=NOW_MS)
            expected = {each.key: at for each, at in zip(events, positions, strict=True)}
            assert places(result.runs) == places(await store.runs("r")) == expected

    async def test_an_echo_is_a_duplicate_that_nobody_looks_at(self, opened: Any) -> None:
        """Where own events were read is kept like any other place; nothing else changes."""
        async with opened() as store:
            own = (await store.append([draft("o-1"), draft("o-2"), draft("o-3")], now_ms=NOW_MS)).appended
            origin = own[0].event.origin
            before = await store.summary("orders")
            runs = [
                PlaceRun("r", "orders", origin, 1, [7, 7]),
                PlaceRun("r", "orders", origin, 3, range(8, 9)),
            ]
            result = await store.append(echoes=runs, offsets={"r": Offset("log", 8)}, now_ms=NOW_MS)
            assert (result.duplicates, result.stored) == (3, ())
            assert result.summaries == {"orders": before}
            expected = {own[0].event.key: 7, own[1].event.key: 7, own[2].event.key: 8}
            assert places(result.runs) == places(await store.runs("r")) == expected
            # Read once more: the later place counts, whichever way it came.
            again = [Arrival(own[0].event, event_hash(own[0].event), Place("r", 9))]
            await store.append(received=again, echoes=[PlaceRun("r", "orders", origin, 1, [8])], now_ms=NOW_MS)
            assert places(await store.runs("r")) == {**expected, own[0].event.key: 9}
        async with opened() as store:
            assert places(await store.runs("r")) == {**expected, own[0].event.key: 9}
            assert await store.offset("r") == Offset("log", 8)

    @pytest.mark.parametrize("step", ["commit", "committed"])
    async def test_a_failed_commit_leaves_nothing_half(self, opened: Any, step: str) -> None:
        """Events, offsets, held ones, quarantine: all or nothing; and what comes next is numbered as the disk says."""
        fail = False

        def probe(at: str) -> None:
            if fail and at == step:
                raise OSError("the disk says no")

        peer = Writer("b@1")
        first, second, third = peer.write(), peer.write(), peer.write()
        async with opened(probe=probe) as store:
            before = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            fail = True
            with pytest.raises((OSError, StoreError)):
                await store.append(
                    [draft(), draft(id="x")],
                    [*arrivals(third, first, reader="link"), Arrival(None, b"", None, b"raw", "bad")],
                    offsets={"link": Offset("log", 2)},
                    voids=[Key("orders", "gone@1", 1)],
                    now_ms=NOW_MS,
                )
            fail = False
            whole = step == "committed"
            log = await audit(store)
            assert len(log) == (4 if whole else 1)
            assert (await store.offset("link") is not None) == whole
            assert (len(await store.quarantine(after=0, limit=9)), len(await store.runs("link"))) == (
                (1, 2) if whole else (0, 0)
            )
            summary = await store.summary("orders")
            assert (bool(summary.held), bool(summary.voids)) == (whole, whole)
            result = await store.append([draft(id="x"), draft()], arrivals(first, second, third), now_ms=NOW_MS)
            assert result.appended[-1].event.origin == before.origin
            assert len(await read(store)) == 6 + whole
        async with opened() as store:
            after = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            # A server of many processes outlives the one that fails, and says itself what it holds.
            assert after.origin != before.origin or store.features.shared

    async def test_a_commit_that_fails_before_the_first_write_draws_again(self, opened: Any) -> None:
        """An origin that was drawn for a transaction that failed is on no disk, so nothing is numbered under it."""
        fail = True

        def probe(at: str) -> None:
            if fail and at == "commit":
                raise OSError("the disk says no")

        store_context = opened(probe=probe)
        fail = False
        async with store_context as store:
            fail = True
            with pytest.raises((OSError, StoreError)):
                await store.append([draft()], now_ms=NOW_MS)
            fail = False
            await asyncio.gather(*(store.append([draft()], now_ms=NOW_MS) for _ in range(5)))
            assert {each.event.origin for each in await read(store)} == {store.origin}

    # --- the log -----------------------------------------------------------------------------------------------------

    async def test_pages_of_the_log_are_in_commit_order(self, opened: Any) -> None:
        """By topic and in all, from anywhere; an offset of another log is refused."""
        async with opened() as store:
            for number in range(30):
                await store.append(
                    [draft(f"o-{number % 4}", number, topic=TOPICS[number % 3 == 0])], now_ms=NOW_MS + number
                )
            log = await read(store, page=4)
            assert [each.event.data for each in log] == list(range(30))
            assert [each.event.data for each in await read(store, "stock", page=4)] == list(range(0, 30, 3))
            assert await store.log("nothing", after=None, limit=5) == []
            assert [each.event.data for each in await store.log(after=log[9].offset, limit=2)] == [10, 11]
            with pytest.raises(Invalid):
                await store.log(after=Offset("another", 1), limit=5)
            listed = await store.events("stock", store.origin, (3, 8), limit=4)
            assert [event.seq for event, _ in listed] == [3, 4, 5, 6]
            assert await store.events("stock", "nobody", (1, 9), limit=4) == []
            assert await store.aggregate("orders", "nothing") == []

    async def test_a_reader_beside_writers_misses_nothing(self, opened: Any) -> None:
        """Whatever it has passed was all that there ever will be before its place."""
        async with opened() as store:

            async def write(number: int) -> None:
                for _ in range(20):
                    await store.append([draft(f"o-{number}"), draft("o-0", topic="stock")], now_ms=NOW_MS)

            seen: list[Stored] = []
            writers = asyncio.gather(*(write(number) for number in range(8)))
            finished = False
            while True:
                page = await store.log(after=seen[-1].offset if seen else None, limit=10)
                seen.extend(page)
                if finished and not page:
                    break
                finished = writers.done()
                if not page:
                    await asyncio.sleep(0)
            await writers
            assert [each.position for each in seen] == list(range(1, 321))
            assert seen == await read(store)

    async def test_a_watcher_is_woken(self, opened: Any) -> None:
        """Once for what came since it looked, and its loop ends when the store closes."""
        async with opened() as store:
            wakes = 0
            grown = asyncio.Event()

            async def watch() -> None:
                nonlocal wakes
                async for _ in store.watch():
                    wakes += 1
                    grown.set()

            watching = asyncio.create_task(watch())
            while not wakes:  # it listens from its first step on
                await store.append([draft()], now_ms=NOW_MS)
                with suppress(TimeoutError):
                    await asyncio.wait_for(grown.wait(), 0.05)
            await store.close()
            await asyncio.wait_for(watching, 10)
            await store.open(opening("a"))

    # --- a transaction of one's own ----------------------------------------------------------------------------------

    async def test_an_effect_and_its_offset_commit_together(self, opened: Any, media: Media) -> None:
        """Both, when the block ends; neither, when it raises."""
        async with opened() as store:
            if not store.features.sql:
                await self._refuses_sql(store)
                return
            async with store.transaction() as tx:
                await tx.execute("CREATE TABLE totals (name TEXT PRIMARY KEY, total INTEGER)")
                await tx.execute_many(f"INSERT INTO totals VALUES ({self.placeholders})", [("a", 1), ("b", 2)])
                await tx.set_offset("totals", Offset(store.id, 5))
                assert await tx.offset("totals") == Offset(store.id, 5)

            async def fail() -> None:
                async with store.transaction() as tx:
                    await tx.execute("UPDATE totals SET total = 99")
                    await tx.set_offset("totals", Offset(store.id, 6))
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fail()
            assert await store.offset("totals") == Offset(store.id, 5)
            async with store.transaction() as tx:
                assert await tx.execute("SELECT * FROM totals ORDER BY name") == [("a", 1), ("b", 2)]
                assert await tx.offset("totals") == Offset(store.id, 5)
                assert await tx.offset("nobody") is None
            with pytest.raises(StoreError):
                await tx.execute("SELECT 1")

            async def end_it() -> None:
                async with store.transaction() as tx:
                    await tx.execute("ROLLBACK")
                    await tx.execute("UPDATE totals SET total = 99")

            with pytest.raises(StoreError):
                await end_it()
            async with store.transaction() as tx:
                assert await tx.execute("SELECT sum(total) FROM totals") == [(3,)]

    async def _refuses_sql(self, store: EventStore) -> None:
        """Of a store that declares that it has none: it says so, and its offsets commit, or do not, all the same."""
        async with store.transaction() as tx:
            with pytest.raises(FeatureUnsupported):
                await tx.execute("SELECT 1")
            with pytest.raises(FeatureUnsupported):
                await tx.execute_many(f"INSERT INTO totals VALUES ({self.placeholders})", [])
            await tx.set_offset("totals", Offset(store.id, 5))
            assert await tx.offset("totals") == Offset(store.id, 5)

        async def fail() -> None:
            async with store.transaction() as tx:
                await tx.set_offset("totals", Offset(store.id, 6))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await store.offset("totals") == Offset(store.id, 5)
        async with store.transaction() as tx:
            assert await tx.offset("totals") == Offset(store.id, 5)
            assert await tx.offset("nobody") is None
        with pytest.raises(StoreError):
            await tx.set_offset("totals", Offset(store.id, 7))

    async def test_what_a_projection_applied_commits_with_its_effect(self, opened: Any) -> None:
        """The last state of each aggregate, by any name that an aggregate may have; nothing of a block that raised."""
        long = "😀" * 10_000
        async with opened() as store:
            async with store.transaction() as tx:
                assert await tx.applied("totals", [("orders", "o-1")]) == [None]
                await tx.note_applied("totals", [("orders", "o-1", b"1"), ("orders", long, b"[2]")])
                await tx.note_applied("totals", [])
                assert await tx.applied("totals", [("orders", long)]) == [b"[2]"]

            async def fail() -> None:
                async with store.transaction() as tx:
                    await tx.note_applied("totals", [("orders", "o-1", b"9"), ("stock", "o-1", b"9")])
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fail()
            async with store.transaction() as tx:
                await tx.note_applied("totals", [("orders", long, b"3")])
                asked = [("stock", "o-1"), ("orders", "o-1"), ("orders", long), ("orders", "o-1")]
                assert list(await tx.applied("totals", asked)) == [None, b"1", b"3", b"1"]
                assert await tx.applied("others", [("orders", "o-1")]) == [None]
                assert await tx.applied("others", []) == []

    async def test_alarms_are_kept(self, opened: Any) -> None:
        """One of each kind and topic: what was seen last, how often, and when first; also over a reopening."""
        async with opened() as store:
            assert list(await store.alarms()) == []
            await store.append(now_ms=NOW_MS, alarms=[Raised("rewound", "t", "stood at 5"), Raised("void", "t", "a:1")])
            await store.append([draft()], now_ms=NOW_MS + 7, alarms=[Raised("rewound", "t", "stood at 9", times=3)])
            await store.append(now_ms=NOW_MS + 9, alarms=[Raised("rewound", "u", "stood at 1")])
            kept = [
                Raised("rewound", "u", "stood at 1", 1, NOW_MS + 9, NOW_MS + 9),
                Raised("rewound", "t", "stood at 9", 4, NOW_MS, NOW_MS + 7),
                Raised("void", "t", "a:1", 1, NOW_MS, NOW_MS),
            ]
            assert list(await store.alarms()) == kept
            assert len(await read(store)) == 1
        async with opened() as store:
            assert list(await store.alarms()) == kept

    async def test_a_transaction_keeps_appends_out(self, opened: Any) -> None:
        """They wait until it ends, and nobody sees it half done."""
        async with opened() as store:
            async with store.transaction() as tx:
                await tx.set_offset("one", Offset(store.id, 1))
                waiting = [asyncio.create_task(store.append([draft()], now_ms=NOW_MS)) for _ in range(3)]
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not any(each.done() for each in waiting)
                assert await store.offset("one") is None
                await tx.set_offset("two", Offset(store.id, 2))
            await asyncio.gather(*waiting)
            assert set(await store.offsets()) == {"one", "two"}

    async def test_transactions_one_after_another_and_appends_between(self, opened: Any) -> None:
        """Whoever asks gets his turn."""
        async with opened() as store:

            async def count(name: str) -> None:
                for number in range(1, 6):
                    async with store.transaction() as tx:
                        before = await tx.offset("shared")
                        await asyncio.sleep(0)
                        await tx.set_offset("shared", Offset(store.id, (before.position if before else 0) + 1))
                        await tx.set_offset(name, Offset(store.id, number))

            async def write() -> None:
                for _ in range(10):
                    await store.append([draft()], now_ms=NOW_MS)

            await asyncio.gather(*(count(f"c{n}") for n in range(4)), write(), write())
            assert (await store.offset("shared")).position == 20
            assert len(await read(store)) == 20
