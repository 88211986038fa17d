"""A store that is only looked at, while its node has it open or nobody has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from synckit_streams.errors import StoreError, StoreMissing
from synckit_streams.model.clock import Key, VersionVector
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import Arrival, Place, PlaceRun, Raised
from synckit_streams.ports.store import EventStore
from synckit_streams.testing.store_contract.kit import (
    CLOSE_S,
    NOW_MS,
    TOPICS,
    Bench,
    Media,
    Writer,
    arrivals,
    audit,
    draft,
    opening,
    pages,
    read,
)


@asynccontextmanager
async def looking(media: Media, medium: str = "a") -> AsyncIterator[EventStore]:
    """A look at a medium, by somebody who replicates nothing."""
    store = media.make(medium, read_only=True)
    await store.open(opening("somebody", topics=()))
    try:
        yield store
    finally:
        await asyncio.wait_for(store.close(), CLOSE_S)


async def answers(store: EventStore) -> dict[str, Any]:
    """Everything that a store says."""
    return {
        "id": store.id,
        "nodes": list(store.nodes),
        "origin": store.origin,
        "log": await audit(store),
        "summaries": {topic: await store.summary(topic) for topic in TOPICS},
        "held": await pages(store.held, b"", lambda each: each[1]),
        "voids": await pages(store.voids, None, lambda each: each),
        "runs": sorted((run.reader, run.origin, run.first, *run.positions) for run in await store.runs(None)),
        "offsets": dict(await store.offsets()),
        "quarantine": await pages(store.quarantine, 0, lambda each: each.position),
        "alarms": list(await store.alarms()),
        "damage": list(await store.damage()),
    }


async def fill(store: EventStore) -> dict[str, Any]:
    """One of everything; gives what must be found of it."""
    peer, other = Writer("b@1"), Writer("c@1", topic="stock")
    lost, early, gone = peer.write("o-1"), peer.write("o-2"), other.write("s-1")
    waits = other.write("s-2", after=[Key("nobody's", "d@1", 1)])
    contexts = {number: VersionVector({"b@1": number - 1}).to_bytes() for number in (8, 9)}
    follows = [
        msgspec.structs.replace(peer.write("o-3"), seq=number, prev=number - 1, context_bytes=contexts[number])
        for number in (8, 9)
    ]
    refused = msgspec.structs.replace(Writer("e@1").write("o-1"), aggregate_id="")
    await store.append([draft("o-1", id="one"), draft("o-2")], now_ms=NOW_MS)
    twin = Writer("f@1").write("o-1", id="one")
    await store.append(received=arrivals(early, gone, twin, reader="link"), now_ms=NOW_MS)
    await store.append(
        received=[*arrivals(*follows, waits, refused), Arrival(None, b"", Place("link", 7), b"?!", "torn")],
        offsets={"link": Offset("broker", 7, b"print"), "mine": Offset(store.id, 2)},
        echoes=[PlaceRun("echo", "orders", store.origin, 1, range(5, 7))],
        voids=[lost.key, Key("stock", "z@1", 4), Key("orders", "z@1", 3)],
        alarms=[Raised("rewound", "orders", "seen", 2)],
        now_ms=NOW_MS,
    )
    return {
        "held": {event_hash(each): each for each in (*follows, waits)},
        "voids": [Key("orders", "b@1", 1), Key("orders", "z@1", 3), Key("stock", "z@1", 4)],
        "refused": refused.key,
    }


class Looking(Bench):
    """`read_only=True`."""

    async def test_a_look_answers_what_the_node_answers(self, opened: Any, media: Media) -> None:
        """Beside it, and when it is gone; also what it has written since the look began."""
        async with opened(topics=(*TOPICS, "nobody's")) as store:
            found = await fill(store)
            here = await answers(store)
            assert {hash: event for event, hash in here["held"]} == found["held"]
            assert here["voids"] == found["voids"]
            assert {run[0] for run in here["runs"]} == {"echo", "link"}
            assert [(each.raw, each.key) for each in here["quarantine"]][1:] == [(b"?!", None)]
            assert here["quarantine"][0].key == found["refused"]
            async with looking(media) as look:
                assert await answers(look) == here
                await fill(store)
                assert (await answers(look))["log"] == await read(store)
                assert (await look.summary("orders")) == (await store.summary("orders"))
            here = await answers(store)
        async with looking(media) as look:
            assert await answers(look) == here

    async def test_what_is_held_for_another_topic_is_not_let_go_by_a_look(self, opened: Any, media: Media) -> None:
        """Whoever only looks does not know which topics the node replicates, and releases nothing."""
        waits = Writer("b@1").write("o-1", after=[Key("stock", "c@1", 1)])
        async with opened() as store:
            await store.append(received=arrivals(waits), now_ms=NOW_MS)
        for _ in range(2):
            async with looking(media) as look:
                assert (await look.summary("orders")).held == (waits.key,)
                assert await read(look) == []
        async with opened() as store:
            assert (await store.summary("orders")).held == (waits.key,)

    async def test_a_look_changes_nothing(self, opened: Any, media: Media) -> None:
        """It cannot write, and the node goes on as if nobody had been there."""
        async with opened() as store:
            first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        async with looking(media) as look, looking(media) as again:
            assert list(look.nodes) == ["a"]
            assert look.origin == again.origin == first.origin
            with pytest.raises(StoreError, match="reading only"):
                await look.append([draft()], now_ms=NOW_MS)
            with pytest.raises(StoreError, match="reading only"):
                async with look.transaction():
                    pass
            if look.features.leases:
                with pytest.raises(StoreError, match="reading only"):
                    await look.lease("work", "somebody", ttl_s=1)
            async with opened() as store:
                second = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
                assert list(store.nodes) == ["a"]
        assert (second.origin, second.seq) == (first.origin, 2)

    async def test_there_is_nothing_to_look_at(self, opened: Any, media: Media) -> None:
        """It is said so, and nothing is made: a node may still be the first."""
        with pytest.raises(StoreMissing):
            await media.make("a", read_only=True).open(opening("somebody"))
        async with opened("a") as store:
            assert list(store.nodes) == ["a"]

    async def test_a_store_without_a_write_has_a_node_and_no_origin(self, opened: Any, media: Media) -> None:
        """What is not there is "", and not guessed."""
        async with opened(), looking(media) as look:
            assert (list(look.nodes), look.origin, await read(look)) == (["a"], "", [])
