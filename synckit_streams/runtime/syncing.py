"""What a node does to sync: one meeting at a time, over the first broker that can be reached or over all of them; what
each came to, and who is told.

Auto-sync is a row of meetings, each of which stays connected until the next. Whoever asks for one of his own meanwhile
is let in between.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from synckit_streams.errors import ConfigError, ConnectorError, SyncKitError
from synckit_streams.ports.telemetry import Synced
from synckit_streams.runtime.autosync import AutoSync
from synckit_streams.runtime.cancel import is_cancelled
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.link import Link
from synckit_streams.runtime.meeting import Meeting
from synckit_streams.runtime.projector import Projector
from synckit_streams.runtime.result import SyncResult, gather, nobody_reached
from synckit_streams.runtime.settings import CONNECTOR_EXAMPLE, check_seconds
from synckit_streams.runtime.turns import Turns

logger = logging.getLogger("synckit_streams")

OnResult = Callable[[SyncResult], Any]
DRAIN_S = 5.0
"""Longest time without progress for what auto-sync sends when it is stopped."""


class Syncing:
    """See the module's text.

    Args:
        driver: Of the node.
        links: Its brokers.
        projector: Brought to the end of the log by every meeting.
    """

    def __init__(self, driver: Driver, links: Sequence[Link], projector: Projector) -> None:
        self._driver = driver
        self._links = links
        self._projector = projector
        self._listeners: list[OnResult] = []
        self._turns = Turns()
        self._auto: AutoSync | None = None
        self._wider = asyncio.Event()
        """Set when there are more topics than the present meeting has joined."""
        driver.wrote = self._wrote
        driver.widened = self._wider.set

    def _wrote(self) -> None:
        if self._auto is not None:
            self._auto.wake()

    # --- one meeting -------------------------------------------------------------------------------------------------

    async def meet(
        self, *, timeout_s: float, publish: bool, live: asyncio.Event | None = None, interval_s: float = 0.0
    ) -> SyncResult:
        """One meeting; see `SyncNode.sync`.

        Args:
            timeout_s: Longest time without any progress of a connector.
            publish: False only reads.
            live: Stay connected after it until this is set, and send what is left then.
            interval_s: Longest time to stay connected.
        """
        self.check(timeout_s)
        failures: list[ConnectorError] = []
        self._wider.clear()
        async with self._turns.turn(guest=live is None):
            with self._driver.operation("sync"):
                for links in [self._links] if self._driver.settings.bridge else [[link] for link in self._links]:
                    started = time.perf_counter()
                    try:
                        async with Meeting(links, publish=publish, timeout_s=timeout_s) as meeting:
                            await meeting.meet()
                            result = await self._finish(meeting, started, failures)
                            if live is not None:
                                if self._auto is not None:
                                    self._auto.met()
                                await self._live(meeting, live, interval_s)
                            reached = meeting.reached
                        if live is not None and live.is_set() and reached:
                            # Drain: what was written last goes out. A meeting of its own, so that a connection which
                            # was lost meanwhile is not waited for.
                            async with Meeting(reached, timeout_s=min(timeout_s, DRAIN_S)) as meeting:
                                await meeting.meet()
                                await self._finish(meeting, time.perf_counter(), failures)
                        return result
                    except SyncKitError as error:
                        self._observe_sync(None, time.perf_counter() - started, error.code)
                        if not isinstance(error, ConnectorError):
                            raise
                        failures.append(error)  # the next one, in the order in which they were named
                raise nobody_reached(failures)

    def check(self, timeout_s: float) -> None:
        """That there can be one; see `SyncNode.sync`."""
        if not self._links:
            raise ConfigError("this node has no connector", hint=CONNECTOR_EXAMPLE)
        check_seconds("timeout_s", timeout_s)

    async def _live(self, meeting: Meeting, stop: asyncio.Event, interval_s: float) -> None:
        """Stay connected until the interval is over, auto-sync stops, or somebody wants a meeting of his own."""
        ended = asyncio.Event()

        async def either() -> None:
            waits = [asyncio.create_task(each.wait()) for each in (stop, self._turns.guest_came, self._wider)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            ended.set()

        watcher = asyncio.create_task(either())
        try:
            await meeting.live(ended, interval_s)
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _finish(self, meeting: Meeting, started: float, unreached: Sequence[ConnectorError]) -> SyncResult:
        _, failures = await self._projector.catch_up()
        for failure in failures:
            logger.error("%s: %s", self._driver.settings.node, failure, exc_info=failure)
        await self._driver.on_track()
        counts = [link.take_counts() for link in meeting.links]
        replica = self._driver.replica
        result = gather(
            {topic: replica.standing(topic) for topic in self._driver.settings.topics},
            pushed=sum(each.pushed for each in counts),
            pulled=sum(each.pulled for each in counts),
            conflicts=len(set[tuple[str, str]]().union(*(each.conflicts for each in counts))),
            duration_s=time.perf_counter() - started,
            errors=(*unreached, *meeting.errors, *failures),
        )
        self._observe_sync(result, result.duration_s, next((each.code for each in (*meeting.errors, *failures)), ""))
        for listener in list(self._listeners):
            try:
                answer = listener(result)
                if inspect.isawaitable(answer):
                    await answer
            except (asyncio.CancelledError, Exception) as error:
                if is_cancelled(error):
                    raise
                logger.exception("a listener of %s raised", self._driver.settings.node)
        return result

    def _observe_sync(self, result: SyncResult | None, duration_s: float, error: str) -> None:
        self._driver.observe(
            Synced(
                node=self._driver.settings.node,
                pushed=result.events_pushed if result else 0,
                pulled=result.events_pulled if result else 0,
                conflicts=result.conflicts_resolved if result else 0,
                complete=bool(result and result.complete),
                error=error,
                duration_s=duration_s,
            )
        )

    # --- by itself ---------------------------------------------------------------------------------------------------

    def start(self, *, interval_s: float, timeout_s: float) -> None:
        """See `SyncNode.start_auto_sync`."""
        self.check(timeout_s)
        check_seconds("interval_s", interval_s)
        if self._auto is not None:
            raise ConfigError("auto-sync runs already", hint="await node.stop_auto_sync() first")

        def meet(stop: asyncio.Event) -> Awaitable[SyncResult]:
            return self.meet(timeout_s=timeout_s, publish=True, live=stop, interval_s=interval_s)

        self._auto = AutoSync(meet, self._driver.world.dice)
        self._auto.start()

    async def stop(self) -> None:
        """See `SyncNode.stop_auto_sync`."""
        auto, self._auto = self._auto, None
        if auto is not None:
            await auto.stop()

    # --- who is told -------------------------------------------------------------------------------------------------

    def subscribe(self, on_result: OnResult) -> Callable[[], None]:
        """See `SyncNode.subscribe`."""
        if not callable(on_result):
            raise ConfigError(f"{on_result!r:.80} cannot be called", hint="give a function of one SyncResult")
        self._listeners.append(on_result)

        def unsubscribe() -> None:
            if on_result in self._listeners:
                self._listeners.remove(on_result)

        return unsubscribe
