"""`synckit migrate` between stores of every kind, on a store that has everything in it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.errors import StoreError
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.moving import MARK, differences, opening
from synckit_streams.runtime.registry import store_for
from synckit_streams.testing.store_contract import NOW_MS, audit
from synckit_streams.testing.store_contract.kit import read
from synckit_streams.testing.store_contract.moving import furnish
from tests.cli.conftest import KINDS, Command, NodeStarter, Process


async def _furnished(url: str, *, events: int = 0) -> None:
    store = store_for(url)
    await store.open(opening("old"))
    await furnish(store)
    for first in range(0, events, 5_000):
        drafts = [Draft("orders", "made", f"x-{number % 50}", {"n": number}) for number in range(first, first + 5_000)]
        await store.append(drafts, now_ms=NOW_MS)
    stands = {f"projection|{name}": Offset(store.id, 2) for name in ("totals", "mail")}
    await store.append(offsets=stands, now_ms=NOW_MS)
    await store.close()


async def _look(url: str) -> EventStore:
    store = store_for(url, read_only=True)
    await store.open(opening("x"))
    return store


async def _same(source: str, target: str) -> None:
    one, other = await _look(source), await _look(target)
    assert await differences(one, other) == []
    log, there = await read(one, page=1_000), await audit(other, rows=1_000)
    assert [(each.position, each.event, each.twin) for each in log] == [
        (each.position, each.event, each.twin) for each in there
    ]
    await one.close()
    await other.close()


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_from_any_store_to_any_other(
    synckit: Command, url_of: Callable[[str, str], str], source: str, target: str
) -> None:
    """Twins, variants, held, refused, void, places, alarms, and who wrote; the projections are named."""
    old, new = url_of(source, "old"), url_of(target, "new")
    asyncio.run(_furnished(old))
    done = synckit("migrate", old, new, "--carry", "projection|mail", "--json")
    assert done.status == 0, done.err
    assert done.json["rebuilt"] == ["totals"]
    assert done.json["consumers"] == ["mine", "projection|mail"]
    assert (done.json["held"], done.json["quarantined"], done.json["voids"], done.json["alarms"]) == (3, 2, 3, 1)
    asyncio.run(_same(old, new))
    people = synckit("migrate", old, new, "--carry", "projection|mail").out  # once more: there is nothing to do
    assert "the projection totals is built anew" in people
    assert "in an earlier run" in people
    assert "swordfish" not in people
    status = synckit("status", "--store", new, "--json").json
    assert (status["node"], status["origin"]) == ("old", "")
    assert {topic: each["digest"] for topic, each in status["topics"].items()} == done.json["digests"]


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_move_that_was_interrupted_goes_on(
    synckit: Command,
    process: Callable[..., Process],
    url_of: Callable[[str, str], str],
    target: str,
    sign: signal.Signals,
) -> None:
    """By Ctrl-C or by force, in the middle; the second run says from where, and ends with the same."""
    old, new = url_of("sqlite", "old"), url_of(target, "new")
    asyncio.run(_furnished(old, events=30_000))
    moving = process("migrate", old, new, "--json")

    async def wait_until_it_moves() -> None:
        while moving.popen.poll() is None:
            try:
                store = await _look(new)
            except StoreError:
                continue
            position = (await store.end()).position
            await store.close()
            if position:
                return

    asyncio.run(wait_until_it_moves())
    done = moving.end(sign)
    assert done.status in {130, -signal.SIGKILL}, done.err
    done = synckit("migrate", old, new, "--json")
    assert done.status == 0, done.err
    assert 0 < done.json["resumed"] < done.json["events"]
    asyncio.run(_same(old, new))


def test_what_was_not_sent_is_sent_from_the_new_store(
    synckit: Command, tmp_path: Path, url_of: Callable[[str, str], str]
) -> None:
    """Under another node id as well; what was read back is not sent again, and nothing is read twice."""
    broker = f"memory://move-{os.getpid()}"
    old, new = url_of("sqlite", "old"), url_of("sqlite", "new")

    async def before() -> None:
        async with SyncNode("old", store=old, topics=["orders"], connectors=[broker]) as node:
            await node.append_many([Draft("orders", "made", f"o-{number}") for number in range(5)])
            assert (await node.sync()).complete
        async with SyncNode("old", store=old, topics=["orders"]) as node:
            await node.append(Draft("orders", "made", "late"))

    async def after() -> None:
        async with SyncNode("new", store=new, topics=["orders"], connectors=[broker]) as node:
            result = await node.sync()
            assert (result.complete, result.events_pushed, result.events_pulled) == (True, 1, 0)
            await node.append(Draft("orders", "made", "more"))
            assert (await node.sync()).complete
        async with SyncNode("peer", store="memory:", topics=["orders"], connectors=[broker]) as peer:
            assert (await peer.sync()).events_pulled == 7

    async def story() -> None:
        from synckit_connectors.memory import MemoryConnector

        keeper = MemoryConnector(broker)
        await keeper.open()
        await before()
        done = await asyncio.to_thread(synckit, "migrate", old, new, "--json")
        assert done.status == 0, done.err
        await after()
        await keeper.close()

    asyncio.run(story())


def test_a_store_that_is_open_is_not_moved(
    synckit: Command, url_of: Callable[[str, str], str], running: NodeStarter
) -> None:
    """Neither out of a running node, nor into one, nor into a store with events of its own."""
    old, new = url_of("sqlite", "old"), url_of("sqlite", "new")
    asyncio.run(_furnished(old))
    with running("old", store=old, topics=["orders"]):
        done = synckit("migrate", old, new, "--json")
        assert (done.status, done.error["code"]) == (1, "SK305")
        assert "close" in done.error["hint"]
    with running("somebody", store=new, topics=["orders"]):
        done = synckit("migrate", old, new, "--json")
        assert (done.status, done.error["code"]) == (1, "SK305")
    asyncio.run(_furnished(new))
    done = synckit("migrate", old, new, "--json")
    assert (done.status, done.error["code"]) == (1, "SK300")
    assert "not empty" in done.error["message"]
    done = synckit("migrate", "sqlite:///nowhere.db", new, "--json")
    assert (done.status, done.error["code"]) == (1, "SK312")
    assert not Path("nowhere.db").exists()
    assert MARK not in synckit("status", "--store", new).out
