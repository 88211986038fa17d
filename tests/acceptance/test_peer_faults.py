"""Faults that a peer of this library has, and that must never be here: each by its number and name.

Missing is the one whose part is still to come: 13 (NOTIFY on a channel named after the aggregate) comes with the
PostgreSQL store.
"""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from synckit_connectors.memory import MemoryBroker
from synckit_streams import (
    Batch,
    Invalid,
    Offset,
    Order,
    StoreFull,
    SyncNode,
    SyncResult,
    Unavailable,
    VersionVector,
)
from synckit_streams.http.operations import operations
from synckit_streams.http.serving import serve
from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Check
from synckit_streams.ports.store import Transaction
from synckit_streams.ports.telemetry import Received, Synced
from synckit_streams.runtime.driver import World
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.testing.brokers import NatsServer
from tests.acceptance.kit import Make, Recorder, draft, drafts, eventually, ids, same


async def test_fault_01_unrelated_sequences_compared(make: Make, url: str, topic: str) -> None:
    """What to push and to pull is a difference of sets: a long log and a short one lose nothing, either way round."""
    long, short = await make("long", url), await make("short", url)
    await long.append_many(drafts(topic, 300))
    await short.append_many(drafts(topic, 3, start=1_000))
    await short.sync()
    await long.sync()
    await short.append_many(drafts(topic, 3, start=2_000))
    for node in (short, long, short):
        await node.sync()
    assert len(await ids(long, topic)) == len(await ids(short, topic)) == 306
    assert await same(topic, long, short)
    with pytest.raises(Invalid, match="no order"):
        Offset("one log", 7).is_past(Offset("another", 3))


async def test_fault_02_the_first_push_to_an_empty_server(make: Make, nats_server: NatsServer, topic: str) -> None:
    """A server that has never seen the topic takes it; a push that fails says so."""
    node = await make("till-1", nats_server.url)
    await node.append(draft(topic))
    result = await node.push()
    assert (result.events_pushed, result.complete) == (1, True)
    nats_server.kill()
    await node.append(draft(topic))
    for call in (node.push, node.pull, node.sync):
        with pytest.raises(Unavailable):
            await call()


async def test_fault_03_conflicts_are_looked_for_among_the_newest_only(make: Make, memory_url: str, topic: str) -> None:
    """The local change may be long ago, and much may have been written since: the conflict is found all the same."""
    one, other = await make("till-1", memory_url), await make("till-2", memory_url)
    await one.append(draft(topic, "o-1", "mine"))
    await one.append_many([draft(topic, f"later-{number}") for number in range(50)])
    await other.append(draft(topic, "o-1", "theirs"))
    await other.sync()
    result = await one.sync()
    assert result.conflicts_resolved == 1
    assert len((await one.resolve(topic, "o-1")).heads) == 2


async def test_fault_04_a_conflict_throws_the_rest_of_the_batch_away(make: Make, memory_url: str, topic: str) -> None:
    """Everything of the batch is kept: what conflicts, and what does not."""
    one, other = await make("till-1", memory_url), await make("till-2", memory_url, packing="batch")
    await one.append(draft(topic, "o-5", "mine"))
    await other.append_many([draft(topic, f"o-{number}", number) for number in range(10)])
    await other.sync()
    result = await one.sync()
    assert (result.events_pulled, result.conflicts_resolved) == (10, 1)
    assert len(await ids(one, topic)) == 11
    assert [(await one.resolve(topic, f"o-{number}")).data for number in (4, 6)] == [4, 6]


async def test_fault_05_concurrent_clocks_count_as_equal(make: Make, memory_url: str, topic: str) -> None:
    """Two writes in the same millisecond: every replica has the same winner, however often they sync."""
    standing = World(wall_ms=lambda: 1_700_000_000_000)
    nodes = [await make(f"till-{number}", memory_url, world=standing) for number in (1, 2, 3)]
    for node in nodes:
        await node.append(draft(topic, "o-1", node.node_id))
    for _ in range(3):
        for node in nodes:
            await node.sync()
    assert len({(await node.resolve(topic, "o-1")).data for node in nodes}) == 1
    assert VersionVector({"a": 1}).compare(VersionVector({"b": 1})) is Order.CONCURRENT
    assert VersionVector({"a": 1}).compare(VersionVector({"a": 1})) is Order.EQUAL


async def test_fault_06_cursors_are_compared_as_text(make: Make, memory_url: str, topic: str) -> None:
    """Ten comes after nine: in vectors, in numbers and in places, over every change of length."""
    assert VersionVector({"a": 10}).compare(VersionVector({"a": 9})) is Order.AFTER
    one, other = await make("till-1", memory_url), await make("till-2", memory_url)
    for number in range(1, 13):
        await one.append(draft(topic, "o-1", number))
        await one.sync()
        assert (await other.sync()).events_pulled == 1
        assert (await other.resolve(topic, "o-1")).data == number
    await one.append_many(drafts(topic, 95))
    await one.sync()
    assert (await other.sync()).events_pulled == 95
    assert len((await other.resolve(topic, "o-1")).heads) == 1


async def test_fault_07_the_vector_clock_lives_in_memory_only(
    tmp_path: Path, make: Make, memory_url: str, topic: str
) -> None:
    """What a node had seen when it was closed is what its next event covers."""
    other = await make("till-2", memory_url)
    known = await other.append(draft(topic, "o-1", 1))
    await other.sync()
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'x.db'}", "topics": [topic]}
    async with SyncNode("till-1", connectors=[memory_url], **settings) as node:
        await node.sync()
        own = await node.append(draft(topic, "o-1", 2))
    async with SyncNode("till-1", **settings) as node:
        next_one = await node.append(draft(topic, "o-1", 3))
        assert next_one.event.context.covers(known.event.dot)
        assert next_one.event.context.covers(own.event.dot)
        assert len((await node.resolve(topic, "o-1")).heads) == 1


async def test_fault_08_what_could_not_be_stored_is_acknowledged(
    tmp_path: Path, make: Make, memory_url: str, topic: str
) -> None:
    """The disk is full: sync() says so at once, the reader does not move, and everything comes when there is room."""
    other = await make("till-2", memory_url)
    await other.append_many(drafts(topic, 20))
    await other.sync()
    full = False

    def probe(step: str) -> None:
        if full and step == "commit":
            raise StoreFull("no room left")

    store = SqliteStore(f"sqlite:///{tmp_path / 'x.db'}", probe=probe)
    node = await make("till-1", memory_url, store=store)
    await node.sync()
    await other.append_many(drafts(topic, 20, start=100))
    await other.sync()
    before = await store.offsets()
    full = True
    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(StoreFull):
                await node.sync()
    assert await store.offsets() == before
    full = False
    result = await node.sync()
    assert (result.events_pulled, result.complete) == (20, True)
    assert await same(topic, node, other)


async def test_fault_09_retry_is_configured_and_never_called(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """What is worth another try says so, and auto-sync tries again by itself until it succeeds."""
    recorder = Recorder()
    node = await make("till-1", memory_url, observer=recorder, world=World(dice=lambda: 0.01))
    memory.down = True
    with pytest.raises(Unavailable) as raised:
        await node.sync()
    assert raised.value.retryable
    await node.append(draft(topic))
    await node.start_auto_sync()
    await eventually(lambda: len([each for each in recorder.of(Synced) if each.error == "SK401"]) >= 4)
    memory.down = False
    await eventually(lambda: any(synced.complete for synced in recorder.of(Synced)))
    assert len(memory.messages(topic)) == 1


async def test_fault_10_each_reconnect_replays_from_the_start(make: Make, nats_server: NatsServer, topic: str) -> None:
    """A reader goes on where its store stands, over restarts of the server, and nobody has to give it a cursor."""
    recorder = Recorder()
    node = await make("till-1", nats_server.url, observer=recorder)
    other = await make("till-2", nats_server.url)
    await other.append_many(drafts(topic, 50))
    for number in range(3):
        await other.append(draft(topic, f"o-{number}"))
        await other.sync()
        await node.sync()
        nats_server.kill()
        await asyncio.to_thread(nats_server.start)
    assert sum(received.messages for received in recorder.of(Received)) == 53
    assert sum(received.duplicates for received in recorder.of(Received)) == 0


async def test_fault_11_the_whole_log_is_loaded_to_page_through_it(make: Make, topic: str) -> None:
    """Reading a log of 40 MB takes a few pages of memory, also when only its end is wanted."""
    node = await make("till-1", None)
    for _ in range(10):
        await node.append_many([draft(topic, data="x" * 10_000) for _ in range(400)])
    position = 0
    tracemalloc.start()
    try:
        async for stored in node.log(topic):
            position = stored.position
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert position == 4_000
    assert peak < 10_000_000


async def test_fault_12_auto_sync_dies_with_its_caller_and_syncs_overlap(
    make: Make, memory_url: str, topic: str
) -> None:
    """The task that started it is cancelled, and so is a sync: auto-sync goes on, one sync at a time."""
    recorder = Recorder()
    node, other = await make("till-1", memory_url, observer=recorder), await make("till-2", memory_url)
    started = asyncio.Event()

    async def parent() -> None:
        await node.start_auto_sync(interval_s=0.05)
        started.set()
        await node.sync()
        await asyncio.sleep(3600)

    task = asyncio.create_task(parent())
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    results: list[SyncResult] = []
    node.subscribe(results.append)
    stored = await other.append(draft(topic))
    await other.sync()

    async def arrived() -> bool:
        return stored.event.id in await ids(node, topic)

    await eventually(arrived)
    await eventually(lambda: len(results) >= 3)
    assert recorder.most["sync"] == 1


class Ledgered:
    """A read model that adds up, and can be made to fail behind its effect."""

    def __init__(self, name: str, topic: str) -> None:
        self.name = name
        self.topics: Sequence[str] = (topic,)
        self.types: Sequence[str] = ()
        self.resolved = False
        self.poison: object = None

    async def reset(self, tx: Transaction) -> None:
        await tx.execute(f"CREATE TABLE IF NOT EXISTS {self.name} (total)")
        await tx.execute(f"DELETE FROM {self.name}")
        await tx.execute(f"INSERT INTO {self.name} VALUES (0)")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        for stored in batch.stored:
            await tx.execute(f"UPDATE {self.name} SET total = total + ?", (stored.event.data["n"],))
            if stored.event.data["n"] == self.poison:
                raise ValueError("poison")


async def _total(node: SyncNode, name: str) -> object:
    async with node.store.transaction() as tx:
        return (await tx.execute(f"SELECT total FROM {name}"))[0][0]


@pytest.mark.parametrize("panic", [RuntimeError("no route to host"), SystemExit(0), asyncio.CancelledError()], ids=type)
async def test_fault_14_a_health_check_that_panics_counts_as_healthy(panic: BaseException) -> None:
    """It is down, the probe hears so, and the other parts are looked at all the same."""

    async def fine() -> Sequence[Check]:
        return [Check("queue", True)]

    async def panics() -> Sequence[Check]:
        raise panic

    health = Health(lambda: {"shop": fine, "store": panics})
    health.phase = "running"
    async with serve(operations(health)) as url, aiohttp.ClientSession() as probe:
        for path in ("/health", "/health/ready"):
            async with probe.get(url + path) as response:
                body = await response.json()
                assert (response.status, body["status"]) == (503, "down")
                assert body["results"]["store"]["status"] == "down"
                assert body["results"]["shop/queue"]["status"] == "up"
        async with probe.get(f"{url}/health/live") as response:
            assert response.status == 200


async def test_fault_15_a_projection_moves_on_in_a_second_step(
    tmp_path: Path, make: Make, memory_url: str, topic: str
) -> None:
    """Effect and offset are one commit: whenever it fails, each event counts once. Poison blocks nobody else."""
    commits = 0

    def probe(step: str) -> None:
        nonlocal commits
        commits += step == "commit"
        if step == "commit" and commits in (6, 9, 12):
            raise StoreFull("no room left")

    good, bad = Ledgered("good", topic), Ledgered("bad", topic)
    bad.poison = 7
    store = SqliteStore(f"sqlite:///{tmp_path / 'x.db'}", probe=probe)
    node = await make("till-1", memory_url, store=store, projections=[bad, good])
    for start in (0, 5, 10):
        for _ in range(4):
            try:
                await node.append_many([draft(topic, f"o-{n}", {"n": n}, id=f"e-{n}") for n in range(start, start + 5)])
                result = await node.sync()
                break
            except StoreFull:
                continue
    result = await node.sync()
    assert commits > 12
    assert result.complete
    assert [error.code for error in result.errors if hasattr(error, "code")] == ["SK501"]
    assert len(await ids(node, topic)) == 15
    assert await _total(node, "good") == sum(range(15))
    assert await _total(node, "bad") == sum(range(7))  # it stands just before the poison, and has all that precedes it
    bad.poison = None
    assert (await node.sync()).errors == ()
    assert await _total(node, "bad") == sum(range(15))
