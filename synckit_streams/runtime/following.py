"""Keeps a node's projections at the end of its log, for as long as it runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from synckit_streams.errors import StoreClosed, StoreError
from synckit_streams.runtime.driver import Driver, logger
from synckit_streams.runtime.projector import Projector
from synckit_streams.sync.pace import next_delay_ms

PAUSE_S = 0.1
"""Least time between two looks at the log."""
LOOK_S = 5.0
"""Longest time between two: what is wanted of a projection may have been said to another process."""
AGAIN_MS, AGAIN_MS_MAX = 100, 10_000
"""How long it waits after the store failed."""


class Follower:
    """See the module's text.

    Args:
        driver: Of the node.
        projector: Of the node.
    """

    def __init__(self, driver: Driver, projector: Projector) -> None:
        self._driver = driver
        self._projector = projector
        self._due = asyncio.Event()
        projector.tenure.gained = self.poke

    def poke(self) -> None:
        """Look at once."""
        self._due.set()

    async def run(self) -> None:
        """For ever; cancel it. A projection that fails is logged, and tried again with the next look.

        Raises:
            StoreClosed: the store was closed.
        """
        failures = 0
        while True:
            try:
                listening = asyncio.create_task(self._listen())
                try:
                    async with self._projector.tenure.held():
                        while not listening.done():
                            await self._look()
                            failures = 0
                finally:
                    listening.cancel()
                    await asyncio.wait([listening])
                listening.result()
            except StoreClosed:
                raise
            except StoreError as error:
                failures += 1
                dice = self._driver.world.dice()
                delay_ms = next_delay_ms(failures, base_ms=AGAIN_MS, delay_ms_max=AGAIN_MS_MAX, dice=dice)
                node = self._driver.settings.node
                logger.warning("%s: projections: %s; they go on in %.1f s", node, error, delay_ms / 1000)
                await asyncio.sleep(delay_ms / 1000)

    async def _listen(self) -> None:
        async for _ in self._driver.store.watch():
            self._due.set()

    async def _look(self) -> None:
        self._due.clear()
        _, failed = await self._projector.catch_up(patient=True)
        for failure in failed:
            logger.error("%s: %s", self._driver.settings.node, failure, exc_info=failure)
        await asyncio.sleep(PAUSE_S)
        now_ms = self._driver.world.wall_ms()
        due_s = [(each.due_ms - now_ms) / 1000 for each in self._projector.failing.values()]
        with suppress(TimeoutError):
            async with asyncio.timeout(max(min([LOOK_S, *due_s]), 0)):
                await self._due.wait()
