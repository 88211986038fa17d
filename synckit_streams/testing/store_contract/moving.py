"""A store that moves: out of one medium into another of the same kind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest

from synckit_streams.errors import ConfigError, StoreError
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import Moved, PlaceRun
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.moving import DONE, differences, move
from synckit_streams.sync.turn import reissued
from synckit_streams.testing.store_contract.kit import (
    NOW_MS,
    TOPICS,
    Bench,
    Crash,
    Media,
    Writer,
    arrivals,
    audit,
    draft,
    places,
    variant,
)
from synckit_streams.testing.store_contract.looking import fill, looking


def of(media: Media, medium: str) -> Callable[..., EventStore]:
    """Makes the store of a medium."""
    return partial(media.make, medium)


class Killed:
    """The stores of a medium, one after the other, up to the commit at which their process dies.

    Args:
        media: Where.
        medium: Which.
        step: Of the commit: before it, or after it.
        times: At which commit.
    """

    def __init__(self, media: Media, medium: str, step: str, times: int) -> None:
        self._media = media
        self._medium = medium
        self._step = step
        self._left = times
        self._last: EventStore | None = None

    def make(self, *, read_only: bool = False) -> EventStore:
        """See `Media.make`."""
        store = self._media.make(self._medium, probe=None if read_only else self._probe, read_only=read_only)
        if not read_only:
            self._last = store
        return store

    def _probe(self, step: str) -> None:
        self._left -= step == self._step
        if step == self._step and self._left == 0:
            raise Crash

    async def kill(self) -> None:
        """Also one that has come through."""
        if self._last is not None and self._left <= 0:
            await self._media.kill(self._last)


async def furnish(store: EventStore) -> list[Event]:
    """Everything that is hard to move: what `fill` knows, a key with three contents, and a row that was taken away.

    Gives the events of a peer that has still to come.
    """
    peer = Writer("k@1")
    first = peer.write("k-1")
    least, *others = sorted((variant(first, number) for number in range(3)), key=event_hash)
    knows = peer.write("k-1", knows=[first])
    # A peer has issued the greatest one again before the least one comes here: two rows become one.
    again = reissued(others[-1], event_hash(others[-1]))
    await store.append(received=arrivals(others[-1], knows, again), now_ms=NOW_MS)
    await store.append(received=arrivals(least, others[0], reader="variants"), now_ms=NOW_MS)
    await fill(store)
    return [peer.write("k-1"), peer.write("k-2")]


class Moving(Bench):
    """`EventStore.adopt`, and `synckit_streams.runtime.moving.move` on it."""

    async def test_a_store_moves_as_it_stands(self, opened: Any, media: Media) -> None:
        """Log, positions, twins, held, refused, void, places, offsets, alarms; and it goes on as before."""
        async with opened("a", node="old") as store:
            await store.append([draft()], now_ms=NOW_MS)
        async with opened("a", topics=(*TOPICS, "nobody's")) as store:
            later = await furnish(store)
            log, old = await audit(store), store.id
            assert len(log) < log[-1].position, "there is a hole"
        result = await move(of(media, "a"), of(media, "b"))
        assert (result.events, result.held, result.quarantined, result.voids) == (len(log), 3, 2, 3)
        assert (result.nodes, result.rebuilt, result.consumers) == (("old", "a"), (), ("mine",))
        async with looking(media, "a") as source, looking(media, "b") as target:
            assert await differences(source, target) == []
            assert [(each.position, each.event, each.twin) for each in await audit(target)] == [
                (each.position, each.event, each.twin) for each in log
            ]
            assert places(await target.runs("variants")) == places(await source.runs("variants"))
            offsets = await target.offsets()
            assert offsets["link"] == Offset("broker", 7, b"print")
            assert offsets["mine"] == Offset(target.id, 2)
            assert list(target.nodes) == ["old", "a"]
            assert target.id != old
        async with opened("b", node="a", topics=(*TOPICS, "nobody's")) as store:
            assert [len((await store.summary(topic)).held) for topic in TOPICS] == [2, 1]
            written = (await store.append([draft("o-1")], received=arrivals(*later), now_ms=NOW_MS)).appended[0]
            assert written.position > log[-1].position
            assert written.event.origin not in {each.event.origin for each in log}
            missing = Writer("b@1", topic="orders")
            missing.events = [missing.write("o-1")] * 6
            cause = msgspec.structs.replace(missing.write("o-3"), seq=7, prev=0)
            assert (await store.append(received=arrivals(cause), now_ms=NOW_MS)).released == 2

    @pytest.mark.parametrize("step", ["commit", "committed"])
    async def test_a_move_that_was_killed_goes_on(self, opened: Any, media: Media, step: str) -> None:
        """At whatever commit it is killed; a second run goes on behind the mark and ends with the same."""
        async with opened("a") as store:
            await furnish(store)
        for kill_at in range(1, 8):
            target = f"b{kill_at}"
            killed = Killed(media, target, step, kill_at)
            with suppress(Crash):
                await move(of(media, "a"), killed.make, page_events=2)
            await killed.kill()
            await move(of(media, "a"), of(media, target), page_events=2)
            async with looking(media, "a") as source, looking(media, target) as moved:
                assert await differences(source, moved) == []
                await audit(moved)

    async def test_where_a_move_is_refused(self, opened: Any, media: Media) -> None:
        """Into itself, into a store of somebody else's, out of one that is written; and never by halves."""
        async with opened("a") as store:
            await store.append([draft()], now_ms=NOW_MS)
            await store.append([draft()], now_ms=NOW_MS)
        async with opened("b") as store:
            await store.append([draft()], now_ms=NOW_MS)
        with pytest.raises(ConfigError):
            await move(of(media, "a"), of(media, "a"))
        with pytest.raises(StoreError, match="not empty"):
            await move(of(media, "a"), of(media, "b"))
        with pytest.raises(ConfigError, match="no consumer"):
            await move(of(media, "a"), of(media, "c"), carry=["projection|nobody"])
        killed = Killed(media, "half", "committed", 2)
        with suppress(Crash):
            await move(of(media, "a"), killed.make, page_events=1)
        await killed.kill()
        async with opened("half", node="a") as store:
            await store.append([draft()], now_ms=NOW_MS)
        with pytest.raises(StoreError, match="had stopped half-way"):
            await move(of(media, "a"), of(media, "half"))
        await move(of(media, "a"), of(media, "c"))
        assert (await move(of(media, "a"), of(media, "c"))).resumed == 2
        async with opened("a") as store:
            await store.append([draft()], now_ms=NOW_MS)
        with pytest.raises(StoreError, match="was written after it had moved"):
            await move(of(media, "a"), of(media, "c"))
        async with opened("c", node="a") as store:
            await store.append([draft()], now_ms=NOW_MS)
        with pytest.raises(StoreError, match="has moved to"):
            await move(of(media, "a"), of(media, "c"))

    async def test_a_projection_begins_anew_unless_it_is_carried(self, opened: Any, media: Media) -> None:
        """Its read model stays where it was; whoever knows better says so. None is passed over in silence. What it had
        applied of each aggregate stays, or comes with it."""
        async with opened("a") as store:
            await store.append([draft(), draft()], now_ms=NOW_MS)
            async with store.transaction() as tx:
                for name in ("mail", "totals"):
                    await tx.set_offset(f"projection|{name}", Offset(store.id, 2))
                    await tx.note_applied(name, [("orders", "o-1", name.encode())])
        result = await move(of(media, "a"), of(media, "b"), carry=["projection|mail"])
        assert (result.rebuilt, result.consumers, result.notes) == (("totals",), ("projection|mail",), 1)
        async with opened("b", node="a") as store:
            assert await store.offset("projection|totals") is None
            assert await store.offset("projection|mail") == Offset(store.id, 2)
            assert list(await store.noted()) == ["mail"]
            assert list(await store.applied("mail", after=None, limit=9)) == [("orders", "o-1", b"mail")]

    @pytest.mark.parametrize("step", ["commit", "committed"])
    async def test_a_handler_goes_on_where_it_stood_with_what_it_noted(
        self, opened: Any, media: Media, step: str
    ) -> None:
        """Position and parked aggregates, whatever they are called; also when the move is killed at any commit, and
        goes on after its source has let one of them go."""
        parked = [("orders", f"o-{number}", b"%d" % number) for number in range(8)]
        parked.append(("stock", "😀" * 10_000, b"\0\xff"))
        async with opened("a") as store:
            for _ in range(3):
                await store.append([draft()], now_ms=NOW_MS)
            async with store.transaction() as tx:
                await tx.set_offset("handler|bill|7", Offset(store.id, 2))
                await tx.note_applied("handler|bill", parked)
                await tx.note_applied("another", parked[:1])
        for kill_at in range(1, 10):
            killed = Killed(media, f"b{kill_at}", step, kill_at)
            with suppress(Crash):
                await move(of(media, "a"), killed.make, page_events=2)
            await killed.kill()
            gone = parked.pop(0) if kill_at < 5 else ("orders", "nothing", b"")
            async with opened("a") as store, store.transaction() as tx:
                await tx.note_applied("handler|bill", [(*gone[:2], b"")])
            if await self._is_done(media, f"b{kill_at}"):
                continue
            result = await move(of(media, "a"), of(media, f"b{kill_at}"), page_events=2)
            assert (result.notes, result.offsets) == (len(parked) + 1, 1)
            async with opened(f"b{kill_at}", node="a") as store:
                assert await store.offset("handler|bill|7") == Offset(store.id, 2)
                assert sorted(await store.applied("handler|bill", after=None, limit=99)) == parked
                assert list(await store.noted()) == ["another", "handler|bill"]
                async with store.transaction() as tx:  # it goes on with what it had parked
                    await tx.note_applied("handler|bill", [("orders", "o-9", b"9")])
            await move(of(media, "a"), of(media, f"b{kill_at}"))  # once more: there is nothing to do

    async def _is_done(self, media: Media, medium: str) -> bool:
        """Whether a move had come to its end when it was killed."""
        try:
            async with looking(media, medium) as store:
                return any(each.fingerprint == DONE for each in (await store.offsets()).values())
        except StoreError:
            return False

    @pytest.mark.parametrize("seed", range(3))
    async def test_a_copy_of_a_store_that_is_written_lacks_nothing_that_was_read(
        self, opened: Any, media: Media, seed: int
    ) -> None:
        """Its node reads on and lets go of what it held: what lies before the copy's place is stored there, or held."""
        dice = random.Random(seed)
        peer = Writer("p@1")
        events = [peer.write(f"o-{number % 3}") for number in range(60)]
        dice.shuffle(events)
        async with opened("a") as store:

            async def read_on() -> None:
                for at, event in enumerate(events, 1):
                    link = {"link": Offset("log", at)}
                    await store.append(received=arrivals(event, reader="link", first=at), offsets=link, now_ms=NOW_MS)

            reading = asyncio.create_task(read_on())
            async for _ in store.watch():
                if (await store.end()).position >= 5:
                    break
            await move(of(media, "a"), of(media, "b"), live=True, page_events=3)
            await reading
        async with looking(media, "b") as copy:
            here = {each.event.key for each in await audit(copy)} | set((await copy.summary("orders")).held)
            place = (await copy.offsets())["link"].position
            assert here >= {event.key for event in events[:place]}
        async with opened("b", node="a") as store:
            await store.append(received=arrivals(*events[place:], reader="link"), now_ms=NOW_MS)
            assert len((await store.summary("orders")).seen) == 60

    async def test_rows_that_have_no_room_are_refused(self, opened: Any) -> None:
        """A position that is taken, or too low: nothing is written, and the store goes on."""
        peer = Writer("p@1")
        rows = [
            (Stored(event, at, "old", False), event_hash(event)) for event, at in ((peer.write(), 3), (peer.write(), 7))
        ]
        async with opened() as store:
            for wrong in (rows[::-1], [rows[0], rows[0]]):
                with pytest.raises(StoreError):
                    await store.adopt(Moved(rows=wrong))
            await store.adopt(Moved(rows=rows, runs=[PlaceRun("r", "orders", "p@1", 1, range(5, 7))]))
            assert [each.position for each in await audit(store)] == [3, 7]
            with pytest.raises(StoreError, match="not behind 7"):
                await store.adopt(Moved(rows=rows))
            assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].position == 8
        async with opened() as store:
            assert places(await store.runs("r")) == {rows[0][0].event.key: 5, rows[1][0].event.key: 6}
