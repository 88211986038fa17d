"""Builds a read model anew beside the live one, and lets it take its place in one commit.

Theory of operation. The live model goes on being fed and read. Its shadow, tables of the same names in a place of their
own, is fed by the same function with the same pages from the beginning of the log, and keeps its own offset beside its
rows; so a crash costs one page. When it stands at least where the live model stands, one transaction of the store takes
over its rows, its offset and what it has noted, under the locks of both: whoever reads sees the old model or the new
one, and never an older one than before. What was being built is noted in the store, so whoever comes next goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable
from typing import Protocol

from synckit_streams.errors import ConfigError, ProjectionFailed, StoreError, SyncKitError
from synckit_streams.model.event import Offset
from synckit_streams.ports.projection import AnyProjection
from synckit_streams.ports.shadow import Shadow, Shadowing
from synckit_streams.ports.store import Transaction
from synckit_streams.ports.telemetry import Projected
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.span import Span
from synckit_streams.runtime.switch import Rebuild, Want, note_rebuild, note_tables, read_switch, turn_switch
from synckit_streams.runtime.tenure import Tenure
from synckit_streams.runtime.trial import Trial, post_letters, terms_of, trouble_name
from synckit_streams.sync.pace import next_delay_ms

logger = logging.getLogger("synckit_streams")

CONSUMER = "projection|"
"""Before a projection's name: the consumer under which the store keeps its offset."""
STEP_S = 0.2
"""One transaction of a build takes no further page after so long: the live model is fed in between."""
AGAIN_MS, AGAIN_MS_MAX = 1_000, 60_000
"""How long a build waits that failed."""
GIVEN_UP = Rebuild("", 0)
"""What is built of it is to be removed at the next step."""
NOTED_S = 1.0
"""How far a build has come is noted so often, for whoever asks from outside."""


class Applier(Protocol):
    """Whoever applies pages: the projector."""

    tenure: Tenure

    async def apply(self, projection: AnyProjection, tx: Transaction, span: Span, trial: Trial) -> None: ...

    async def run(self, projection: AnyProjection, work: Awaitable[None], timeout_s: float | None = None) -> None: ...


class Build:
    """What is being built of one projection, in this life.

    Args:
        rebuild: As it is noted.
        shadow: Where.
        trial: Of its events.
    """

    def __init__(self, rebuild: Rebuild, shadow: Shadow, trial: Trial) -> None:
        self.rebuild = rebuild
        self.shadow = shadow
        self.trial = trial
        self.noted_s = 0.0
        """When it was noted how far it is, by the monotonic clock."""
        self.failures = 0
        self.due_s = 0.0
        """Who is patient tries again then, by the monotonic clock, after it failed."""
        self.stands = False
        """Whether the shadow is known to be this build's."""


class Rebuilder:
    """See the module's text.

    Args:
        driver: Of the node.
        applier: Of the node.
    """

    def __init__(self, driver: Driver, applier: Applier) -> None:
        self._driver = driver
        self._applier = applier
        self._builds: dict[str, Build] = {}
        self._wants: dict[str, Want] = {}
        self._posted: set[str] = set()
        self._tidied: set[str] = set()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    # --- what is wanted ----------------------------------------------------------------------------------------------

    async def obey(self, tx: Transaction, projection: AnyProjection) -> Want:
        """What is wanted of the live model. A rebuild beside it begins here: it is noted then, and `REBUILD` says that
        nothing else is to be done in this transaction, which the live model might undo.

        Args:
            tx: Of its next page.
            projection: Which.
        """
        name = projection.name
        tables = terms_of(projection).tables if isinstance(self._driver.store, Shadowing) else ()
        switch = await read_switch(tx, name)
        if switch.tables != tables:
            await note_tables(tx, name, tables)
        want, rebuild = switch.want, switch.rebuild
        if want is Want.REBUILD:
            if tables:
                build = self._driver.world.entropy(8).hex()
                await note_rebuild(tx, name, Rebuild(build, self._driver.world.wall_ms()))
                await turn_switch(tx, [name], Want.RUN)
                logger.info("projection %s: is built anew, beside the live one", name)
                return want
            want = Want.REBUILD_IN_PLACE
        if want in (Want.REBUILD_IN_PLACE, Want.RESET, Want.REPLAY) and rebuild is not None:
            rebuild = None
            await note_rebuild(tx, name, None)
        self._wants[name] = want
        self._take(projection, rebuild)
        return want

    def _take(self, projection: AnyProjection, rebuild: Rebuild | None) -> None:
        """What is noted of a build is what this process goes by."""
        build = self._builds.get(projection.name)
        if not isinstance(self._driver.store, Shadowing) or not terms_of(projection).tables:
            return
        if rebuild is None:
            if build is not None:
                build.rebuild = GIVEN_UP
            elif projection.name not in self._tidied:  # of a build that was killed before it had removed it
                self._builds[projection.name] = self._build(projection, GIVEN_UP, self._shadow(projection))
        elif build is None or build.rebuild.build != rebuild.build:
            shadow = build.shadow if build is not None else self._shadow(projection)
            self._builds[projection.name] = self._build(projection, rebuild, shadow)
        self._tidied.add(projection.name)

    def _build(self, projection: AnyProjection, rebuild: Rebuild, shadow: Shadow) -> Build:
        trial = Trial(self._driver, projection, f"{CONSUMER}{projection.name}", posts=False)
        return Build(rebuild, shadow, trial)

    def _shadow(self, projection: AnyProjection) -> Shadow:
        store = self._driver.store
        assert isinstance(store, Shadowing)
        return store.shadow(projection.name, terms_of(projection).tables)

    async def replayed(self, tx: Transaction, projection: AnyProjection) -> Offset:
        """Where a model stands that is to read the log again from a position on."""
        switch = await read_switch(tx, projection.name)
        await turn_switch(tx, [projection.name], Want.RUN)
        await tx.forget_applied(trouble_name(projection.name))  # what was set aside is tried again
        logger.info("projection %s: reads again from position %d on", projection.name, switch.position)
        return Offset(self._driver.store.id, max(switch.position - 1, 0))

    # --- building ----------------------------------------------------------------------------------------------------

    async def advance(self, projection: AnyProjection, *, patient: bool = False) -> bool:
        """One step of what is being built, if something is; whether there is another one to do.

        Args:
            projection: Of which.
            patient: Whether an event that has just failed waits until it is due.

        Raises:
            ProjectionFailed: it cannot go on; the live model is not concerned.
            LeaseLost: another process runs the projection.
            StoreError: the store failed.
        """
        name = projection.name
        async with self._turns[name]:
            build = self._builds.get(name)
            if build is None:
                if name not in self._posted:  # of a build that was killed just after it took the live one's place
                    await post_letters(self._driver, name)
                    self._posted.add(name)
                return False
            if build.rebuild is GIVEN_UP:
                await self._forget(name)
                return True
            if self._wants.get(name) is Want.PAUSE:
                return False
            if patient and time.monotonic() < build.due_s:
                return False
            try:
                more = await self._step(projection, build, patient=patient)
                build.failures, build.due_s = 0, 0.0
                return more
            except ProjectionFailed as error:
                await self._failed(projection, build, error)
                raise
            except (ConfigError, StoreError) as error:
                # What is wrong with the shadow is no reason to stop feeding the live model.
                if type(error) not in (ConfigError, StoreError):
                    raise
                await self._failed(projection, build, error)
                raise ProjectionFailed(
                    f"the projection {name!r} cannot be built anew: {error.message}", hint=error.hint
                ) from error

    async def _step(self, projection: AnyProjection, build: Build, *, patient: bool) -> bool:
        leases = self._applier.tenure.leases(f"{CONSUMER}{projection.name}")
        shadow = build.shadow
        if not build.stands and not await shadow.stands(build.rebuild.build):
            async with shadow.making(build.rebuild.build, leases) as tx:
                await self._applier.run(projection, projection.reset(tx))
                await tx.set_offset(f"{CONSUMER}{projection.name}", Offset(self._driver.store.id, 0))
        build.stands = True
        try:
            position, more = await self._page(projection, build, patient=patient)
        except ProjectionFailed as error:
            return await build.trial.failed(error, lambda: shadow.transaction(leases))
        if more is None:
            return False  # until its next attempt is due
        if more:
            await self._note(projection, build, position=position)
            return True
        return not await self._swap(projection, build)

    async def _page(self, projection: AnyProjection, build: Build, *, patient: bool) -> tuple[int, bool | None]:
        """One page of the build; where it stands, and whether the log goes on behind it; None if it has to wait."""
        store, consumer, trial = self._driver.store, f"{CONSUMER}{projection.name}", build.trial
        leases = self._applier.tenure.leases(consumer)
        started = time.perf_counter()
        async with build.shadow.transaction(leases) as tx:
            offset = await tx.offset(consumer)
            if await trial.look(tx, patient=patient):
                return build.rebuild.position, None
            span = Span(offset or Offset(store.id, 0), (await store.end()).position, lasts_s=STEP_S)
            await self._applier.apply(projection, tx, span, trial)
            if span.read:
                await tx.set_offset(consumer, span.offset)
        if span.read:
            self._driver.observe(
                Projected(
                    node=self._driver.settings.node,
                    projection=projection.name,
                    events=span.wanted,
                    traceparents=span.traceparents,
                    traces=span.traces,
                    duration_s=time.perf_counter() - started,
                )
            )
        return span.offset.position, span.more

    async def _failed(self, projection: AnyProjection, build: Build, error: SyncKitError) -> None:
        build.failures += 1
        dice = self._driver.world.dice()
        delay_ms = next_delay_ms(build.failures, base_ms=AGAIN_MS, delay_ms_max=AGAIN_MS_MAX, dice=dice)
        build.due_s = time.monotonic() + delay_ms / 1000
        await self._note(projection, build, reason=error.message)

    async def _note(
        self, projection: AnyProjection, build: Build, *, position: int | None = None, reason: str = ""
    ) -> None:
        """How far it is, and why not further; now and then."""
        if time.monotonic() - build.noted_s < NOTED_S and reason == build.rebuild.reason:
            return
        name, rebuild = projection.name, build.rebuild
        noted = Rebuild(rebuild.build, rebuild.since_ms, rebuild.position if position is None else position, reason)
        async with self._driver.transaction(self._applier.tenure.leases(f"{CONSUMER}{name}")) as tx:
            switch = await read_switch(tx, name)
            if switch.rebuild is not None and switch.rebuild.build == rebuild.build:
                await note_rebuild(tx, name, noted)
        build.rebuild, build.noted_s = noted, time.monotonic()
        self._wants[name] = switch.want

    async def _swap(self, projection: AnyProjection, build: Build) -> bool:
        """Let it take the live one's place, if it is not behind it."""
        name, consumer, shadow = projection.name, f"{CONSUMER}{projection.name}", build.shadow
        leases = self._applier.tenure.leases(consumer)
        async with shadow.joined(), self._driver.transaction(leases) as tx:
            live = await tx.offset(consumer)
            switch = await read_switch(tx, name)
            if switch.rebuild is None or switch.rebuild.build != build.rebuild.build or switch.want is not Want.RUN:
                return True  # something else is wanted by now: the next page of the live one sees to it
            stands = await shadow.offset(tx, consumer)
            if stands is None or (live is not None and stands.position < live.position):
                return False
            await shadow.swap(tx, [name, trouble_name(name)])
            await tx.set_offset(consumer, stands)
            await note_rebuild(tx, name, None)
        logger.info("projection %s: was built anew, up to position %d", name, stands.position)
        self._posted.discard(name)
        await self._forget(name)
        return True

    async def _forget(self, name: str) -> None:
        build = self._builds.pop(name, None)
        if build is None:
            return
        try:
            await build.shadow.drop()
        except StoreError as error:  # it takes room, and does no harm
            logger.warning("projection %s: what was built beside it could not be removed: %s", name, error)
        finally:
            await build.shadow.close()

    async def close(self) -> None:
        """Let go of what is being built; it stands there for whoever comes."""
        builds, self._builds = self._builds, {}
        for build in builds.values():
            await build.shadow.close()
