"""Auto-sync: by itself, one sync at a time, live while the broker is there and patient while it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector
from synckit_streams import Batch, ConfigError, StoreClosed, Stored, SyncNode, SyncResult, Unauthorised
from synckit_streams.ports.store import Transaction
from synckit_streams.ports.telemetry import Synced
from synckit_streams.testing.brokers import NatsServer
from tests.acceptance.kit import Make, Recorder, draft, eventually, ids, same


async def has(node: SyncNode, topic: str, stored: Stored) -> bool:
    return stored.event.id in await ids(node, topic)


async def test_events_flow_within_a_second_between_meetings(make: Make, url: str, topic: str) -> None:
    """In both directions, with meetings an hour apart."""
    nodes = [await make("till-1", url), await make("till-2", url)]
    for node in nodes:
        await node.start_auto_sync(interval_s=3600)
    await eventually(lambda: same(topic, *nodes))
    took = []
    for number in range(6):
        writer, reader = nodes[number % 2], nodes[1 - number % 2]
        stored = await writer.append(draft(topic, f"o-{number}"))
        took.append(await eventually(partial(has, reader, topic, stored)))
    # Another program on this machine may take the processor for a while, once.
    assert sorted(took)[-2] < 1.0


async def test_only_one_sync_runs_at_a_time(make: Make, memory_url: str, topic: str) -> None:
    """However many are asked for, beside auto-sync; and nobody waits for auto-sync's interval to pass."""
    recorder = Recorder()
    node = await make("till-1", memory_url, observer=recorder)
    await node.start_auto_sync(interval_s=3600)
    async with asyncio.timeout(20):
        await asyncio.gather(*(node.sync() for _ in range(5)), *(node.pull() for _ in range(5)), node.push())
        await node.sync()
    assert recorder.most["sync"] == 1
    stored = await node.append(draft(topic))
    other = await make("till-2", memory_url)
    await other.start_auto_sync(interval_s=3600)
    await eventually(lambda: has(other, topic, stored), what="auto-sync is live again after its guests have left")


async def test_it_meets_anew_at_every_interval(make: Make, memory_url: str, topic: str) -> None:
    """Listeners hear of each."""
    node = await make("till-1", memory_url)
    results: list[SyncResult] = []
    node.subscribe(results.append)
    await node.start_auto_sync(interval_s=0.05)
    await eventually(lambda: len(results) >= 4)


async def test_it_drains_when_it_is_stopped(make: Make, url: str, topic: str) -> None:
    """What was written last goes out before it ends."""
    one, other = await make("till-1", url), await make("till-2", url)
    await one.start_auto_sync(interval_s=3600)
    await one.append_many([draft(topic, f"o-{number}") for number in range(500)])
    await one.stop_auto_sync()
    await other.sync()
    assert await same(topic, one, other)


async def test_stopping_does_not_wait_for_a_server_that_is_gone(
    make: Make, nats_server: NatsServer, topic: str
) -> None:
    """Killed while it was live: a refused connection is known at once."""
    node = await make("till-1", nats_server.url)
    recorder: list[SyncResult] = []
    node.subscribe(recorder.append)
    await node.start_auto_sync(interval_s=3600)
    await eventually(lambda: recorder)
    nats_server.kill()
    await node.append(draft(topic))
    started = time.monotonic()
    await node.stop_auto_sync()
    assert time.monotonic() - started < 3
    assert len(await ids(node, topic)) == 1


async def test_stopping_offline_does_not_wait(make: Make, memory: MemoryBroker, memory_url: str, topic: str) -> None:
    """There is nobody to drain to; what was written stays unsent."""
    node = await make("till-1", memory_url)
    memory.down = True
    await node.start_auto_sync(interval_s=3600)
    await node.append(draft(topic))
    started = time.monotonic()
    await node.stop_auto_sync()
    assert time.monotonic() - started < 2
    memory.down = False
    assert (await node.sync()).events_pushed == 1


async def test_a_write_wakes_it_while_it_waits_to_try_again(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """Offline for long, it would try again in a minute; somebody writes, and it looks within a second or so."""
    recorder = Recorder()
    node = await make("till-1", memory_url, observer=recorder)
    memory.down = True
    await node.start_auto_sync(interval_s=3600)

    def tries() -> int:
        return len(recorder.of(Synced))

    # Each failure doubles the wait; a write is what keeps it trying meanwhile.
    async def write_until(times: int) -> None:
        while tries() < times:
            await node.append(draft(topic))
            await asyncio.sleep(0.1)

    async with asyncio.timeout(15):
        await write_until(6)
    memory.down = False
    await node.append(draft(topic))
    await eventually(lambda: any(not synced.error for synced in recorder.of(Synced)), seconds=5)


async def test_it_survives_the_restart_of_the_server(nats_server: NatsServer, make: Make, topic: str) -> None:
    """Killed while both are live; what both write meanwhile arrives when it is back, by itself."""
    nodes = [await make("till-1", nats_server.url), await make("till-2", nats_server.url)]
    for node in nodes:
        await node.start_auto_sync(interval_s=3600)
    await nodes[0].append(draft(topic, "o-1"))
    await eventually(lambda: same(topic, *nodes))
    nats_server.kill()
    for node in nodes:
        await node.append(draft(topic, "o-2", node.node_id))
    await asyncio.to_thread(nats_server.start)
    await eventually(lambda: same(topic, *nodes), seconds=30)
    assert len(await ids(nodes[0], topic)) == 3


async def test_it_goes_on_after_a_sync_was_cancelled(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """At whatever moment; also the sync that comes next finds everything in order."""
    nodes = [await make("till-1", memory_url), await make("till-2", memory_url)]
    one, other = nodes
    await one.start_auto_sync(interval_s=3600)
    memory.delay_s = 0.002
    for number in range(25):
        await other.append(draft(topic, f"o-{number}"))
        await one.append(draft(topic, f"o-{number}"))
        for node in nodes:
            task = asyncio.create_task(node.sync())
            await asyncio.sleep(0.001 * number)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    memory.delay_s = 0.0
    # Twice: the second time it has heard what the first one brought to the peer.
    await other.sync()
    await eventually(lambda: _settled(other), what="the node knows all that its own disk holds")
    await eventually(lambda: same(topic, *nodes))
    assert len(set(await ids(one, topic))) == len(await ids(one, topic)) == 50


async def _settled(node: SyncNode) -> bool:
    return (await node.sync()).complete


async def test_it_can_be_started_once_and_stopped_twice(make: Make, memory_url: str) -> None:
    """A second start is an error, a second stop is nothing, and a start after a stop is a start."""
    node = await make("till-1", memory_url)
    await node.start_auto_sync()
    with pytest.raises(ConfigError, match="already"):
        await node.start_auto_sync()
    await node.stop_auto_sync()
    await node.stop_auto_sync()
    await node.start_auto_sync()
    await node.close()


class Totals:
    """A read model: the sum per aggregate. Fails on demand."""

    name = "totals"
    types: Sequence[str] = ()
    resolved = True

    def __init__(self, topic: str) -> None:
        self.topics = (topic,)
        self.poison = False

    async def reset(self, tx: Transaction) -> None:
        await tx.execute("CREATE TABLE IF NOT EXISTS totals (id TEXT PRIMARY KEY, qty)")
        await tx.execute("DELETE FROM totals")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        if self.poison:
            raise ValueError("this event is poison")
        for change in batch.changes:
            await tx.execute("REPLACE INTO totals VALUES (?, ?)", (change.aggregate_id, change.current["qty"]))


async def totals(node: SyncNode) -> dict[Any, Any]:
    async with node.store.transaction() as tx:
        return {row[0]: row[1] for row in await tx.execute("SELECT id, qty FROM totals")}


async def test_read_models_follow_live(make: Make, memory_url: str, topic: str) -> None:
    """Between two meetings as well; what is written here, and what comes from elsewhere."""
    one = await make("till-1", memory_url, projections=[Totals(topic)])
    other = await make("till-2", memory_url)
    for node in (one, other):
        await node.start_auto_sync(interval_s=3600)
    await eventually(lambda: same(topic, one, other))
    await one.project()
    await one.append(draft(topic, "here", {"qty": 1}))
    await other.append(draft(topic, "there", {"qty": 2}))

    async def shown() -> bool:
        return await totals(one) == {"here": 1, "there": 2}

    await eventually(shown)


async def test_a_defect_does_not_end_it(
    make: Make, memory_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A projection that fails is told in the result; the events flow on, and it catches up when it is mended."""
    model = Totals(topic)
    node, other = await make("till-1", memory_url, projections=[model]), await make("till-2", memory_url)
    results: list[SyncResult] = []
    node.subscribe(results.append)
    model.poison = True
    await other.append(draft(topic, "o-1", {"qty": 1}))
    await other.sync()
    await node.start_auto_sync(interval_s=0.05)
    await eventually(lambda: len(results) >= 3 and results[-1].errors)
    assert all(result.complete for result in results)
    assert "poison" in str(results[-1].errors[0])
    model.poison = False
    await eventually(lambda: not results[-1].errors)
    assert await totals(node) == {"o-1": 1}
    assert "poison" in caplog.text


async def test_a_listener_may_stop_it(
    make: Make, memory_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Until complete, and no longer: the listener is called by the very task that it ends."""
    node = await make("till-1", memory_url)
    await node.append(draft(topic))
    stopped: list[bool] = []

    async def stop(result: SyncResult) -> None:
        await node.stop_auto_sync()
        stopped.append(result.complete)

    unsubscribe = node.subscribe(stop)
    await node.start_auto_sync(interval_s=3600)
    await eventually(lambda: stopped)
    unsubscribe()
    assert not caplog.records
    await node.start_auto_sync(interval_s=3600)
    other = await make("till-2", memory_url)
    await other.start_auto_sync(interval_s=3600)
    stored = await node.append(draft(topic))
    await eventually(lambda: has(other, topic, stored), what="it may be started again")


async def test_a_listener_that_asks_for_a_sync_is_told_not_to(
    make: Make, memory_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It would wait for the sync that waits for it."""
    node = await make("till-1", memory_url)

    async def again(result: SyncResult) -> None:
        await node.sync()

    node.subscribe(again)
    async with asyncio.timeout(5):
        assert (await node.sync()).complete
    assert "asyncio.create_task(node.sync())" in caplog.text


async def test_a_listener_whose_own_task_was_cancelled_ends_nothing_else(
    make: Make, memory_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A CancelledError that nobody meant for auto-sync is the listener's failure."""
    node = await make("till-1", memory_url)
    results: list[SyncResult] = []

    async def listen(result: SyncResult) -> None:
        results.append(result)
        other = asyncio.create_task(asyncio.sleep(3600))
        other.cancel()
        await other

    node.subscribe(listen)
    await node.start_auto_sync(interval_s=0.02)
    await eventually(lambda: len(results) > 2)
    assert "a listener of till-1 raised" in caplog.text


async def test_a_node_can_be_closed_after_every_task_was_cancelled(memory_url: str, topic: str) -> None:
    """As programs do that are told to end; and closed cleanly, so that it goes on under the same incarnation."""
    node = await SyncNode("till-1", store="memory:", connectors=[memory_url], topics=[topic]).open()
    await node.start_auto_sync(interval_s=3600)
    await asyncio.sleep(0.05)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.05)
    await node.close()
    with pytest.raises(StoreClosed):
        await node.append(draft(topic))
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("synckit")]


async def test_what_somebody_has_to_do_something_about_is_a_warning(
    memory: MemoryBroker, memory_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong credentials, a full disk: otherwise a node that never syncs again says no more than one that is offline."""

    class Locked(MemoryConnector):
        async def open(self) -> None:
            raise Unauthorised("the broker does not know us")

    memory.down = True
    for connector in (MemoryConnector(memory_url), Locked(memory_url)):
        async with SyncNode("till-1", store="memory:", connectors=[connector], topics=[topic]) as node:
            await node.start_auto_sync()
            await asyncio.sleep(0.05)
            if isinstance(connector, Locked):
                await eventually(lambda: caplog.records)
    record = caplog.records[0]
    assert record.levelname == "WARNING"
    assert "the broker does not know us" in record.getMessage()
