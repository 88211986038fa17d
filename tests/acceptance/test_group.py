"""A node that reads as a member of a group: the broker divides, and nothing that it forgets or keeps costs an event."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector
from synckit_streams import ConfigError, FeatureUnsupported, SyncNode
from synckit_streams.ports.connector import Connector, Delivery, Features, Member, Message
from synckit_streams.runtime.registry import connector_for
from synckit_streams.stores.memory import MemoryStore
from synckit_streams.testing.brokers import Server
from tests.acceptance.kit import Make, Recorder, drafts, eventually, ids, same

GROUP = "billing"


async def wrote(make: Make, url: str, topic: str, times: int, *, start: int = 0) -> list[str]:
    """A node that writes and goes; gives the ids."""
    async with SyncNode(f"writer-{start}", store="memory:", connectors=[url], topics=[topic]) as writer:
        stored = await writer.append_many(drafts(topic, times, start=start))
        await writer.sync()
    return [each.event.id for each in stored]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Connector]:
    connector = connector_for(url)
    await connector.open()
    try:
        yield connector
    finally:
        await connector.close()


async def test_a_worker_and_a_replica_converge(make: Make, url: str, topic: str) -> None:
    """What either writes comes to the other; the worker's sync is complete when its group has acknowledged all."""
    replica = await make("replica", url)
    worker = await make("worker", url, group=GROUP)
    await replica.append_many(drafts(topic, 300))
    await replica.sync()
    await worker.append_many(drafts(topic, 40, start=1000))
    result = await worker.sync()
    assert result.complete, result.reasons
    assert result.events_pulled == 300
    assert (await replica.sync()).complete
    assert await same(topic, replica, worker)
    assert len(await ids(worker, topic)) == 340
    async with opened(url) as connector:
        await eventually(lambda: settled(connector, topic))


async def settled(connector: Connector, topic: str) -> bool:
    return (await connector.progress(topic, group=GROUP)).lag == 0


async def test_a_worker_is_live(make: Make, url: str, topic: str) -> None:
    """With auto-sync events flow as they come, both ways."""
    replica = await make("replica", url)
    worker = await make("worker", url, group=GROUP)
    for node in (replica, worker):
        await node.start_auto_sync()
    await replica.append_many(drafts(topic, 30))
    await worker.append_many(drafts(topic, 30, start=100))

    async def equal() -> bool:
        return len(await ids(worker, topic)) == 60 and await same(topic, replica, worker)

    await eventually(equal)


async def test_a_worker_that_is_put_back_gets_what_its_group_had_already(
    make: Make, url: str, topic: str, tmp_path: Path
) -> None:
    """The broker's position survives the store: what lies between the two is read once more, without the group."""
    first = await wrote(make, url, topic, 100)
    store = tmp_path / "worker.db"

    def worker() -> SyncNode:
        return SyncNode("worker", store=f"sqlite:///{store}", connectors=[url], topics=[topic], group=GROUP)

    async with worker() as node:
        assert (await node.sync()).complete
        assert sorted(await ids(node, topic)) == sorted(first)
    shutil.copy(store, tmp_path / "backup.db")
    second = await wrote(make, url, topic, 150, start=100)
    async with worker() as node:
        assert (await node.sync()).complete
    for left in tmp_path.glob("worker.db*"):
        left.unlink()
    shutil.copy(tmp_path / "backup.db", store)
    async with worker() as node:
        assert (await node.sync()).complete
        assert sorted(await ids(node, topic)) == sorted(first + second)
    # And a store that is new altogether gets all of it.
    node = await make("worker-2", url, group=GROUP)
    assert (await node.sync()).complete
    assert sorted(await ids(node, topic)) == sorted(first + second)


async def test_what_another_member_holds_is_waited_for(make: Make, url: str, topic: str) -> None:
    """It is not here; once the other is gone it comes, and only then the node is complete."""
    wanted = await wrote(make, url, topic, 20)
    async with opened(url) as other:
        async with other.join(topic, group=GROUP, start={}, batch_max=5) as member:
            held = await anext(member)
            await member.ack(held[:2])
            worker = await make("worker", url, group=GROUP)
            await worker.start_auto_sync()
            # Those two were acknowledged by somebody who has another store: the worker fetches them by himself.
            await eventually(lambda: has(worker, topic, at_least=2))
        await eventually(lambda: has(worker, topic, at_least=20))
    await worker.stop_auto_sync()
    assert (await worker.sync()).complete
    assert sorted(await ids(worker, topic)) == sorted(wanted)


async def has(node: SyncNode, topic: str, *, at_least: int) -> bool:
    return len(await ids(node, topic)) >= at_least


async def test_poison_is_set_aside_and_acknowledged(make: Make, url: str, topic: str) -> None:
    """Bytes that are nobody's event do not come again for ever, and nothing waits behind them."""
    async with opened(url) as connector:
        await connector.send(topic, [Message("", "k", {}, b"\xff\x00 not an event"), Message("", "k", {}, b"")])
        wanted = await wrote(make, url, topic, 5)
        recorder = Recorder()
        worker = await make("worker", url, group=GROUP, observer=recorder)
        assert (await worker.sync()).complete
        assert sorted(await ids(worker, topic)) == sorted(wanted)
        assert recorder.alarms() == {"quarantined"}
        await eventually(lambda: settled(connector, topic))


async def test_a_server_that_is_put_back_under_a_group(make: Make, topic: str, tmp_path: Path, server: Server) -> None:
    """Log and group go back together, and more is written than there was: all is healed in the end."""
    worker = await make("worker", server.url, group=GROUP, observer=(recorder := Recorder()))
    replica = await make("replica", server.url)
    await worker.append_many(drafts(topic, 50))
    for node in (worker, replica):
        assert (await node.sync()).complete
    server.stop()
    shutil.copytree(server.store_dir, tmp_path / "earlier")
    server.start()
    await worker.append_many(drafts(topic, 50, start=50))
    for node in (worker, replica):
        assert (await node.sync()).complete
    server.stop()
    shutil.rmtree(server.store_dir)
    shutil.copytree(tmp_path / "earlier", server.store_dir)
    server.start()
    third = await make("third", server.url)
    await third.append_many(drafts(topic, 120, start=1000))
    await third.sync()
    for _ in range(2):
        for node in (worker, replica, third):
            await node.sync()
    for node in (worker, replica, third):
        assert (await node.sync()).reasons == ()
        assert len(await ids(node, topic)) == 220
    assert await same(topic, worker, replica, third)
    assert "rewound" in recorder.alarms()


# ----------------------------------------------------------------------------------------------- with the one in memory


class Noting(MemoryConnector):
    """Notes, at each acknowledgement, whether the events are in the store."""

    store: MemoryStore
    topic: str
    early: int = 0
    acknowledged: int = 0

    @asynccontextmanager
    async def join(self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int) -> AsyncIterator[Member]:
        async with super().join(topic, group=group, start=start, batch_max=batch_max) as member:
            ack = member.ack

            async def noted(deliveries: Sequence[Delivery]) -> None:
                there = {stored.event.id for stored in await self.store.log(topic, after=None, limit=10_000)}
                self.early += sum(each.message.headers["ce-id"] not in there for each in deliveries)
                self.acknowledged += len(deliveries)
                await ack(deliveries)

            member.ack = noted  # type: ignore[method-assign]
            yield member


async def test_what_is_acknowledged_is_committed(make: Make, memory_url: str, topic: str) -> None:
    """In the store, before the broker hears of it."""
    await wrote(make, memory_url, topic, 2500)
    connector = Noting(memory_url)
    connector.store = MemoryStore("memory:")
    worker = await make("worker", None, connectors=[connector], store=connector.store, group=GROUP)
    assert (await worker.sync()).complete
    assert connector.acknowledged == 2500
    assert connector.early == 0


async def test_a_commit_that_fails_acknowledges_nothing(make: Make, memory: MemoryBroker, topic: str) -> None:
    """The message comes again, and again, until the disk takes it."""
    url = f"memory://{memory.name}"
    fail = False

    def probe(step: str) -> None:
        if fail and step == "commit":
            raise OSError("the disk is full")

    store = MemoryStore("memory:", probe=probe)
    worker = await make("worker", url, store=store, group=GROUP)
    assert (await worker.sync()).complete
    wanted = await wrote(make, url, topic, 10)
    fail = True
    for _ in range(3):
        with pytest.raises(Exception, match="disk"):
            await worker.sync()
    async with opened(url) as connector:
        assert (await connector.progress(topic, group=GROUP)).lag == 10
    fail = False
    assert (await worker.sync()).complete
    assert sorted(await ids(worker, topic)) == sorted(wanted)


async def test_a_group_of_a_connector_without_groups_is_refused_at_once() -> None:
    """Where the node is made, and not at the first message."""

    class Groupless(MemoryConnector):
        @property
        def features(self) -> Features:
            return Features()

    with pytest.raises(FeatureUnsupported):
        SyncNode("worker", store="memory:", connectors=[Groupless("memory://x")], topics=["t"], group=GROUP)
    wrong: Any = 7
    with pytest.raises(ConfigError):
        SyncNode("worker", store="memory:", connectors=["memory://x"], topics=["t"], group=wrong)


async def test_a_log_that_was_put_back_to_beyond_the_place_of_its_worker(
    make: Make, memory: MemoryBroker, topic: str
) -> None:
    """What it had read beyond its place is not in the log any more, and goes out again."""
    url = f"memory://{memory.name}"
    worker = await make("worker", f"{url}?client=worker", group=GROUP, observer=(recorder := Recorder()))
    await worker.start_auto_sync()
    await eventually(lambda: settled_by(worker, topic))
    lost = memory.drop(reader="worker", times=1)  # on the way: its group stays before it for as long as it waits
    await wrote(make, url, topic, 1)
    await eventually(lambda: lost.hits)
    await worker.append_many(drafts(topic, 40, start=100))
    await eventually(lambda: placed(worker, topic, 40))
    memory.down = True
    await worker.close()
    memory.heal()
    memory.rewind(topic, 20)
    worker = await make("worker", url, group=GROUP, observer=recorder)
    newcomer = await make("newcomer", url)
    assert (await worker.sync()).complete
    assert (await newcomer.sync()).complete
    assert len(await ids(newcomer, topic)) == 41
    assert "rewound" in recorder.alarms()


async def settled_by(node: SyncNode, topic: str) -> bool:
    """Whether it has looked at the log."""
    return bool(await node.store.offsets())


async def placed(node: SyncNode, topic: str, count: int) -> bool:
    """Whether it has read back so much of what it wrote."""
    return (
        sum([len(run.positions) for name in await node.store.offsets() for run in await node.store.runs(name)]) >= count
    )


async def test_a_place_that_was_trimmed_does_not_keep_a_worker_waiting(
    make: Make, memory: MemoryBroker, topic: str
) -> None:
    """What the group acknowledged and retention took since cannot be read again: peers have it, or nobody."""
    url = f"memory://{memory.name}"
    await wrote(make, url, topic, 30)
    worker = await make("worker", url, group=GROUP)
    assert (await worker.sync()).complete
    memory.trim(topic, 31)
    other = await make("other", url, group=GROUP)
    async with asyncio.timeout(20):
        await other.sync()
    assert await ids(other, topic) == []
