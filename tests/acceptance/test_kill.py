"""kill -9 of a node at random points, with its real store and a real server: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from synckit_streams import SyncNode
from synckit_streams.testing.brokers import Server

WRITER = Path(__file__).with_name("writer.py")
TOPIC = "orders"
pytestmark = pytest.mark.faults


async def write_until_killed(name: str, store: str, url: str, first: int, after_s: float) -> list[str]:
    """Run a writer, kill it so long after its first event, and give what it had acknowledged."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(WRITER), name, store, url, str(first), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"open\n"
    # The one wait that is no condition: the point at which it dies is meant to be anywhere.
    await asyncio.sleep(after_s)
    process.kill()
    said = (await process.stdout.read()).decode().splitlines()
    await process.wait()
    return [line for line in said if not line.startswith("#")]


async def survive(folder: Path, server: Server, seed: int, kills: int) -> None:
    """Kill writers `kills` times, then let them meet and look at what is there."""
    dice = random.Random(seed)
    print(f"seed {seed}")  # noqa: T201 - what to play again
    names = ("till-1", "till-2", "till-3")
    stores = {name: f"sqlite:///{folder}/{name}.db" for name in names}
    acknowledged: set[str] = set()
    written = dict.fromkeys(names, 0)
    for _ in range(kills):
        name = dice.choice(names)
        said = await write_until_killed(name, stores[name], server.url, written[name], dice.random() * 0.4)
        acknowledged.update(said)
        # The last one may have been committed without having been acknowledged: its number is not used again.
        written[name] += len(said) + 1
    nodes = [SyncNode(name, store=stores[name], connectors=[server.url], topics=[TOPIC]) for name in names]
    for meeting in range(3):
        for node in nodes:
            async with node:
                result = await node.sync()
                # At first somebody may still have to send what another one has the effect of.
                assert result.complete or not meeting, result.reasons
    digests = set()
    for node in nodes:
        async with node:
            found = Counter([stored.event.id async for stored in node.log(TOPIC, twins=True)])
            assert acknowledged <= found.keys(), f"lost: {sorted(acknowledged - found.keys())}"
            assert set(found.values()) <= {1}, f"doubled: {[id for id, times in found.items() if times > 1]}"
            digests.add(await node.digest(TOPIC))
    assert len(digests) == 1
    assert acknowledged


@pytest.mark.timeout(240)
async def test_a_killed_node_loses_and_doubles_nothing(tmp_path: Path, server: Server) -> None:
    """Six kills, for every run of the tests."""
    await survive(tmp_path, server, seed=random.randrange(2**32), kills=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_forty_kills_lose_and_double_nothing(tmp_path: Path, server: Server) -> None:
    """Forty kills of three nodes, at points that a seed draws."""
    await survive(tmp_path, server, seed=random.randrange(2**32), kills=40)
