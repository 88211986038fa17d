"""An app in a test: everything in memory and in one process, with a time of its own, and real offsets all the same."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import ClassVar

from synckit_streams.app.app import App
from synckit_streams.errors import ConfigError, Timeout
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Draft, Event, Stored
from synckit_streams.ports.connector import Connector
from synckit_streams.runtime.driver import World
from synckit_streams.runtime.lanes import HANDLER
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.rebuilding import CONSUMER as PROJECTION
from synckit_streams.stores.memory import MemoryDisk, MemoryStore

NOW_MS = 1_700_000_000_000
"""When a test begins, if it does not say otherwise."""
DRAIN_S = 30.0
POLL_S = 0.001
_numbers = itertools.count(1)


class TestApp:
    """Runs an app for a test: `async with TestApp(app) as t`.

    The app gets a store in memory and, unless a broker is named, one in memory too. Time stands still: `drain` moves it
    on to whatever is due. What a test publishes comes from a node of its own, over the connector.

    Args:
        app: As it is declared. It must not run otherwise meanwhile.
        connector: A broker to use instead, as in the fixture `nats_url`.
        now_ms: The time at the beginning, in milliseconds since 1970.
    """

    __test__: ClassVar[bool] = False

    def __init__(self, app: App, *, connector: str | Connector | None = None, now_ms: int = NOW_MS) -> None:
        self.now_ms = now_ms
        self.app = app
        self.starts = 0
        """How often the app was started: once, and once after each crash."""
        self._connector = connector if connector is not None else f"memory://test-app-{next(_numbers)}"
        self._disk = MemoryDisk()
        self._crash = ""
        self._crashed = False
        self._syncing = False
        self._rows = 0
        self._surroundings = ExitStack()
        self._store: MemoryStore
        self._peer: SyncNode
        self._log: list[Stored] = []

    async def __aenter__(self) -> TestApp:
        if not self.app.topics:
            raise ConfigError(f"the app {self.app.name!r} follows no topic", hint="declare a handler or a projection")
        await self._start()
        self._peer = SyncNode(
            f"test-of-{self.app.name}"[:64],
            store=MemoryStore(),
            connectors=[self._connector],
            topics=self.app.topics,
            world=World(wall_ms=self._wall_ms),
        )
        await self._peer.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._peer.close()
        # A test that has failed is not kept waiting for the handler for which it has failed.
        await self.app.stop(drain_s=DRAIN_S if error is None else 0)
        self._surroundings.close()

    def _wall_ms(self) -> int:
        return self.now_ms

    async def _start(self) -> None:
        self._store = MemoryStore(disk=self._disk, probe=self._probe)
        self._surroundings.enter_context(
            self.app.surrounded(
                store=self._store, connectors=[self._connector], live=False, world=World(wall_ms=self._wall_ms)
            )
        )
        self.starts += 1
        await self.app.start()

    # --- what a test does --------------------------------------------------------------------------------------------

    async def publish(self, *drafts: Draft) -> list[Event]:
        """Events that arrive over the connector; the same id twice is one event.

        Raises:
            IdReused: an id was published before with other content.
            Invalid, TooLarge: a draft cannot be written.
        """
        stored = await self._peer.append_many(drafts)
        await self._peer.sync()
        return [each.event for each in stored]

    async def drain(self, *, timeout_s: float = DRAIN_S) -> None:
        """Return when no handler has work, nothing waits, not for another attempt and not for a cause, and what was
        written is at the broker.

        Time is moved on to each attempt that is due, so nothing waits in fact.

        Raises:
            Timeout: it does not come to that; the message says what is left.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._drained():  # noqa: ASYNC110 - what is waited for is the state of several parts
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Timeout(
                f"{self.app.name} was not done after {timeout_s:g} s: {await self._left()}",
                hint="a handler that waits for something else, or an event whose cause never comes",
            ) from None

    def published(self, topic: str) -> list[Event]:
        """What the app has written of a topic, in commit order, as it was at the last `drain`."""
        name = self.app.name
        return [
            each.event for each in self._log if each.event.topic == topic and node_of(each.event.origin) == name
        ]  # fmt: skip

    def crash_after_commit(self) -> None:
        """The process dies just after the next commit of a handler or a projection: nobody is told, and the app starts
        again."""
        self._crash = "handler"

    def crash_before_ack(self) -> None:
        """The process dies when the next arrival is in the store, before the broker knows, and the app starts again."""
        self._crash = "arrival"

    def crash_before_commit(self) -> None:
        """The process dies just before the next commit of a handler or a projection: all that it did is undone."""
        self._crash = "handler undone"

    # --- how ---------------------------------------------------------------------------------------------------------

    def _probe(self, step: str) -> None:
        due = {"arrival": "committed", "handler": "committed", "handler undone": "commit"}.get(self._crash)
        if step != due:
            return
        if self._crash == "arrival":
            now = self._syncing and len(self._disk.rows) > self._rows
        else:
            # Not what a handler commits by itself, beside `ctx.tx`: that is there twice then, and the test sees it.
            now = any(name.startswith((HANDLER, PROJECTION)) for name in self._store.gathered.offsets)
        if now:
            self._crash = ""
            self._crashed = True
            raise Crash("as the test wanted")

    async def _drained(self) -> bool:
        if self._crashed:
            await self._restart()
        begin = (await self._store.end()).position
        self._syncing, self._rows = True, len(self._disk.rows)
        try:
            await self.app.node.sync()
        except BaseException:
            if not self._crashed:
                raise
            return False
        finally:
            self._syncing = False
        end = (await self._store.end()).position
        await self.app.node.project()
        while not self._crashed and not all(group.read >= end and group.idle for group in self.app.groups):
            await asyncio.sleep(POLL_S)
            for group in self.app.groups:
                self._pass_time(group.paused_until_ms)
        # What handlers wrote while a sync was under way is sent by the next one.
        if self._crashed or (await self._store.end()).position > begin:
            return False
        due = [group.due_ms for group in self.app.groups if group.due_ms is not None]
        due += [each.due_ms for each in self.app.node.projections_failing().values()]
        self._pass_time(min(due, default=None))
        self._log = list(await self._store.log(after=None, limit=max(end, 1)))
        return not due and not await self._store.held(after=b"", limit=1)

    def _pass_time(self, due_ms: int | None) -> None:
        if due_ms is not None:
            self.now_ms = max(self.now_ms, due_ms)
            for group in self.app.groups:
                group.poke()

    async def _restart(self) -> None:
        self._crashed = False
        await self.app.stop(drain_s=0)
        self._surroundings.close()
        await self._start()

    async def _left(self) -> str:
        groups: Sequence[str] = [
            f"group {group.name}: {group.parked} waiting" for group in self.app.groups if group.parked or not group.idle
        ]
        held = len(await self._store.held(after=b"", limit=1_000))
        wrong = [f"{each.name}: {each.detail}" for each in await self.app.checks() if not each.ok]
        return ", ".join([*wrong, *groups, *([f"{held} events wait for a cause"] if held else [])]) or "the connector"


class Crash(BaseException):
    """The end of a process, as a test wants it."""
