"""A group whose members come and go all the time, while one of them keeps what it reads."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from synckit_streams.runtime.registry import connector_for
from synckit_streams.testing import FaultProxy
from tests.faults.fleet import Fleet

pytestmark = pytest.mark.timeout(900)

GROUP = "billing"
VISIT_S = 1.0


async def test_a_group_that_is_rebalanced_every_second(
    tmp_path: Path, topic: str, proxy: FaultProxy, seed: int, strikes: int
) -> None:
    """Others join, take what they get, and leave with it in their hands: all of it comes to the one that stays."""
    visitor = connector_for(proxy.url)
    await visitor.open()
    async with Fleet(tmp_path, topic, [proxy.url] * 3, seed, group=GROUP) as fleet:
        await fleet.flow()
        for _ in range(2 * strikes):
            async with visitor.join(topic, group=GROUP, start={}, batch_max=20) as member:
                with suppress(TimeoutError):  # the broker may give it nothing, or nothing any more
                    async with asyncio.timeout(VISIT_S):
                        while True:
                            await anext(member)
            await fleet.flow()
        await fleet.settle()
        async with asyncio.timeout(60):
            while (await visitor.progress(topic, group=GROUP)).lag:
                await fleet.nodes[0].sync()
    await visitor.close()
