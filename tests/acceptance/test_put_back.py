"""A broker's directory that is put back to an earlier copy: noticed, told, and healed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.ports.telemetry import Alarmed, Detail
from synckit_streams.testing.brokers import Server

NODES = ("north", "south")
pytestmark = pytest.mark.faults


class Ear:
    """Notes the alarms."""

    def __init__(self) -> None:
        self.kinds: set[str] = set()

    def operation(self, name: str, *, node: str) -> Ear:
        """See `Observer`."""
        return self

    def __enter__(self) -> str:
        return ""

    def __exit__(self, *why: object) -> None:
        return None

    def observe(self, detail: Detail) -> None:
        """See `Observer`."""
        if isinstance(detail, Alarmed):
            self.kinds.add(detail.kind)


def node(name: str, folder: Path, server: Server, ear: Ear) -> SyncNode:
    return SyncNode(
        name, store=f"sqlite:///{folder}/{name}.db", connectors=[server.url], topics=["orders"], observer=ear
    )


async def write(which: SyncNode, first: int, count: int) -> None:
    drafts = [
        Draft("orders", "order.placed", f"{which.node_id}-{at}", {"at": at}, id=f"{which.node_id}-{at}")
        for at in range(first, first + count)
    ]
    await which.append_many(drafts)


async def ids(which: SyncNode) -> list[str]:
    return sorted([stored.event.id async for stored in which.log("orders")])


@pytest.mark.parametrize("written_past", [False, True], ids=["put-back", "put-back-and-written-past"])
async def test_a_store_directory_put_back_to_half_is_noticed_and_healed(
    tmp_path: Path, server: Server, written_past: bool
) -> None:
    """100 of 200 acknowledged messages are gone from the server; in the end every node holds all that was written."""
    ear = Ear()
    wanted = sorted(f"{name}-{at}" for name in NODES for at in range(100))
    async with node("north", tmp_path, server, ear) as north, node("south", tmp_path, server, ear) as south:
        for each in (north, south):
            await write(each, 0, 50)
            await each.sync()
        server.stop()
        shutil.copytree(server.store_dir, tmp_path / "earlier")
        server.start()
        for each in (north, south):
            await write(each, 50, 50)
        for each in (north, south, north):
            assert (await each.sync()).complete
        server.stop()
        shutil.rmtree(server.store_dir)
        shutil.copytree(tmp_path / "earlier", server.store_dir)
        server.start()
        if written_past:  # somebody new writes beyond the place up to which the others had read
            async with node("third", tmp_path, server, ear) as third:
                await write(third, 0, 150)
                await third.sync()
                wanted = sorted([*wanted, *(f"third-{at}" for at in range(150))])
        for _ in range(2):
            for each in (north, south):
                await each.sync()
        for each in (north, south):
            assert (await each.sync()).reasons == ()
        assert await ids(north) == wanted
        assert await ids(south) == wanted
        assert await north.digest("orders") == await south.digest("orders")
        assert "rewound" in ear.kinds
        assert "rewound" in {alarm.kind for each in (north, south) for alarm in await each.store.alarms()}
        # And whoever comes new gets everything from the log as it is now.
        async with node("newcomer", tmp_path, server, ear) as newcomer:
            assert (await newcomer.sync()).complete
            assert await ids(newcomer) == wanted
