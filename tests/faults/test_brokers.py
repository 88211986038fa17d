"""What becomes of brokers under load: killed mid-batch, and started without their last second."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from synckit_streams.ports.telemetry import Alarmed
from synckit_streams.testing import FaultProxy, RedisServer
from synckit_streams.testing.server import Server
from tests.faults.fleet import Fleet

pytestmark = pytest.mark.timeout(900)


async def test_a_broker_that_is_killed_mid_batch(
    tmp_path: Path, topic: str, server: Server, proxy: FaultProxy, seed: int, strikes: int
) -> None:
    """With SIGKILL while batches are on their way, and started again on what it has on disk."""
    async with Fleet(tmp_path, topic, [proxy.url] * 3, seed) as fleet:
        for _ in range(strikes // 2):
            await fleet.flow()
            await asyncio.to_thread(server.kill)
            await fleet.write_on()
            await asyncio.to_thread(server.start)
        await fleet.settle()


async def test_a_redis_that_lost_its_last_second(
    tmp_path: Path, topic: str, redis_server: RedisServer, seed: int, strikes: int
) -> None:
    """appendfsync everysec: what it acknowledged since the last fsync is gone when the machine loses power.

    A copy of the append-only file is what was on disk at that moment, perhaps torn in the middle of a command. Whoever
    had read past it notices, unless the log becomes what it was: a batch whose answer was lost is sent again as it is.
    """
    async with FaultProxy(redis_server) as proxy, Fleet(tmp_path, topic, [proxy.url] * 3, seed) as fleet:
        for strike in range(strikes):
            await fleet.flow()
            earlier = tmp_path / f"earlier-{strike}"
            await asyncio.to_thread(shutil.copytree, redis_server.store_dir, earlier)
            past = Past(fleet, redis_server, topic, await length(redis_server, topic))
            await fleet.until(past.found, what="somebody reads past what is kept")
            await asyncio.to_thread(redis_server.kill)
            shutil.rmtree(redis_server.store_dir)
            shutil.move(earlier, redis_server.store_dir)
            await asyncio.to_thread(redis_server.start)
            await fleet.until(past.noticed, what="somebody notices")
        await fleet.settle()


async def length(server: RedisServer, topic: str) -> int:
    """How long the topic's log is."""
    client = redis.asyncio.Redis.from_url(server.url)
    found: int = await client.xlen(f"sk:{{{topic}}}")
    await client.aclose()
    return found


class Past:
    """What a node has committed of a log behind its position `end`."""

    def __init__(self, fleet: Fleet, server: RedisServer, topic: str, end: int) -> None:
        self.fleet, self.server, self.stream, self.end = fleet, server, f"sk:{{{topic}}}", end
        self.position = 0
        self.entry: Any = None
        self.alarms = 0

    async def found(self) -> bool:
        """Whether there is something."""
        places = [place for node in self.fleet.nodes for place in (await node.store.offsets()).values()]
        self.position = max((place.position for place in places if place.log.startswith(self.stream)), default=0)
        self.entry, self.alarms = await self._entry(), self._rewinds()
        return self.position > self.end

    async def noticed(self) -> bool:
        """Whether somebody told of it, or the same is there again."""
        return self._rewinds() > self.alarms or await self._entry() == self.entry

    async def _entry(self) -> Any:
        client = redis.asyncio.Redis.from_url(self.server.url)
        try:
            return await client.xrange(self.stream, f"0-{self.position}", f"0-{self.position}")
        finally:
            await client.aclose()

    def _rewinds(self) -> int:
        return len([alarm for alarm in self.fleet.recorder.of(Alarmed) if alarm.kind == "rewound"])
