"""What the node believes is what is on the disk, also when nobody was there to be told."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from synckit_connectors.memory import memory_broker
from synckit_streams import Draft, StoreError, SyncNode
from synckit_streams.model.exchange import Summary
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.sync.ledger import Ledger


@pytest.fixture
def topic() -> str:
    """A topic, and the name of a broker, that nobody else uses."""
    return f"t{uuid.uuid4().hex[:12]}"


class Disk(SqliteStore):
    """A store whose commits can be held up, or fail when they are durable, and which can be unreadable then.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}", probe=self._committing)
        self.free = threading.Event()
        self.free.set()
        self.failures = 0
        """How many commits will fail, after they are on the disk."""
        self.unreadable = 0
        """How often it cannot be loaded."""

    def _committing(self, step: str) -> None:
        if step != "committed":
            return
        assert self.free.wait(10)
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("disk I/O error")

    def _load(self, ledger: Ledger, node: str) -> None:
        if self.unreadable:
            self.unreadable -= 1
            raise sqlite3.OperationalError("disk I/O error")
        super()._load(ledger, node)


@asynccontextmanager
async def till(path: Path, topic: str, *others: str) -> AsyncIterator[tuple[SyncNode, Disk]]:
    """A node that has synced one event."""
    disk = Disk(path / "till.db")
    async with SyncNode("till-7", store=disk, connectors=[f"memory://{topic}"], topics=[topic, *others]) as node:
        await node.append(order(topic))
        assert (await node.sync()).complete
        yield node, disk


def order(topic: str) -> Draft:
    """Something to write."""
    return Draft(topic=topic, type="order.placed", aggregate_id="o-1")


def published(topic: str) -> int:
    """How many events the broker has."""
    return len(memory_broker(topic).messages(topic))


async def abandon(task: asyncio.Task[object]) -> None:
    """Let it begin, and cancel it."""
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_was_written_while_nobody_waited_is_sent(tmp_path: Path, topic: str) -> None:
    """The caller of an append gives up, and so does the caller of the sync that looked for what he left."""
    async with till(tmp_path, topic) as (node, disk):
        disk.free.clear()
        await abandon(asyncio.create_task(node.append(order(topic))))
        await abandon(asyncio.create_task(node.sync()))
        disk.free.set()
        assert (await node.sync()).complete
        assert published(topic) == len([each async for each in node.log()]) == 2


async def test_a_node_that_cannot_read_its_disk_is_not_complete(tmp_path: Path, topic: str) -> None:
    """A commit failed when it was durable, and for a while the disk does not say so."""
    async with till(tmp_path, topic) as (node, disk):
        disk.failures, disk.unreadable = 1, 2
        with pytest.raises(StoreError):
            await node.append(order(topic))
        await asyncio.sleep(0.05)  # it was looked for at once, in vain
        with pytest.raises(StoreError):
            await node.sync()
        assert (await node.sync()).complete
        assert published(topic) == 2


async def test_a_sync_that_failed_on_the_disk_leaves_nothing_forgotten(tmp_path: Path, topic: str) -> None:
    """The disk fails in the middle of a meeting, and again when the node wants to know what is there."""
    async with till(tmp_path, topic) as (node, disk):
        async with SyncNode("till-8", store="memory:", connectors=[f"memory://{topic}"], topics=[topic]) as other:
            await other.append(order(topic))
            assert (await other.sync()).complete
        await node.append(order(topic))
        disk.failures, disk.unreadable = 1, 2
        with pytest.raises(StoreError):
            await node.sync()
        disk.failures = disk.unreadable = 0
        assert (await node.sync()).complete
        assert published(topic) == 3


async def test_what_is_written_while_the_node_looks_at_its_disk_is_sent(tmp_path: Path, topic: str) -> None:
    """The look at the second topic takes a while: what it found of the first one is old by then."""
    async with till(tmp_path, topic, "other") as (node, disk):
        disk.free.clear()
        await abandon(asyncio.create_task(node.append(order("other"))))
        await asyncio.sleep(0.01)
        written = asyncio.create_task(node.append(order(topic)))
        await asyncio.sleep(0.01)
        disk.free.set()
        await written
        assert (await node.sync()).complete
        assert published(topic) == 2


async def test_a_node_that_could_not_be_opened_keeps_nothing(tmp_path: Path, topic: str) -> None:
    """Neither a thread nor a file, when the disk fails just after the store was opened."""
    disk = Disk(tmp_path / "till.db")
    for failing in (1, 0):
        disk.unreadable = failing
        node = SyncNode("till-7", store=disk, topics=[topic])
        if failing:
            with pytest.raises(StoreError):
                await node.open()
            assert held_open(tmp_path) == []
        else:
            async with node:
                await node.append(order(topic))


async def test_whoever_is_cancelled_while_he_opens_has_nothing_to_close(tmp_path: Path, topic: str) -> None:
    """The store is open already, and the node is being told what is in it."""
    disk = Disk(tmp_path / "till.db")
    looked = asyncio.Event()

    async def look(topic: str) -> Summary:
        looked.set()
        await asyncio.Event().wait()
        raise AssertionError

    disk.summary = look  # type: ignore[method-assign]
    opening = asyncio.create_task(SyncNode("till-7", store=disk, topics=[topic]).open())
    await looked.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert held_open(tmp_path) == []
    async with SyncNode("till-7", store=f"sqlite:///{tmp_path / 'till.db'}"):
        pass


def held_open(folder: Path) -> list[str]:
    """The files in a folder that this process has open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return [each for each in found if each.startswith(str(folder))]
