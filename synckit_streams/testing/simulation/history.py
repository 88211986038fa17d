"""One simulation from its seed to its verdict: machines start, users write, things break, the faults stop, all settles.

What happens is decided by the seed alone. `Simulation.run` gives an `Outcome`; with `trace=True` it also gives the
timeline.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from synckit_streams.errors import SyncKitError
from synckit_streams.testing.simulation import checks
from synckit_streams.testing.simulation.book import Book
from synckit_streams.testing.simulation.breakage import Breakage
from synckit_streams.testing.simulation.broker import URL, SimBroker
from synckit_streams.testing.simulation.clients import Client, Wanted
from synckit_streams.testing.simulation.disk import Disk, InMemory, OnFile
from synckit_streams.testing.simulation.loop import Deadlock, VirtualLoop, run_virtually
from synckit_streams.testing.simulation.machine import Clock, Machine, Setup
from synckit_streams.testing.simulation.profiles import Plan, Profile, plan_of, profile_of

SETTLE_S = 300.0
"""Nobody needs that long after the last fault; whoever does is stuck."""
LOOK_S = 2.0
HEARD_S = 2.5
"""How long after all agree everybody has heard it, and has published what was decided before."""
CALM_S = 25.0
"""How long is watched, after all have agreed, for messages that nobody needs."""
LEASE_S = 15.0
INTERVAL_S = 10.0
TRACEBACK_MAX = 4
ROUNDS_MAX = 3
"""How often each node syncs, one after another, before all must agree."""


@dataclass
class Outcome:
    """What came of a seed."""

    seed: int
    profile: str
    events: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Per kind of violation (`checks.KINDS`)."""
    reasons: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """How often each fault struck."""
    published: int = 0
    settled_s: float = 0.0
    timeline: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.reasons)


class Simulation:
    """See the module's text.

    Args:
        seed: Decides everything.
        profile: Another one than the seed's own.
        plan: Another one than what the seed draws.
        trace: Keep the timeline.
    """

    def __init__(
        self, seed: int, profile: Profile | None = None, *, plan: Plan | None = None, trace: bool = False
    ) -> None:
        self.plan = plan or plan_of(seed, profile or profile_of(seed))
        self.outcome = Outcome(seed, self.plan.profile.name)
        self.book = Book()
        self.machines: list[Machine] = []
        self.clients: list[Client] = []
        self._in_doubt: list[Wanted] = []
        self.brokers: list[SimBroker] = []
        self.setup: Setup
        self.until_s = 0.0
        """When the users stop writing."""
        self.settled: Callable[[], None] = lambda: None
        """Called when all is over, before it is counted."""
        self.keys_unique = True
        """Whether each key was given to one event. Only a machine cloned while it runs breaks that; what was read
        under such a key is then not what others find there, so that neither heads nor causes can be judged."""
        self._trace = trace
        self._loop: VirtualLoop
        self._dice = Random(f"{seed} {self.plan.profile.name}")
        self._folder: Path | None = None

    @property
    def broker(self) -> SimBroker:
        """The first one, and nearly always the only one."""
        return self.brokers[0]

    @property
    def published(self) -> int:
        """Messages that have reached the brokers."""
        return sum(sum(broker.published.values()) for broker in self.brokers)

    @property
    def _late(self) -> bool:
        return any(broker.late for broker in self.brokers)

    def run(self) -> Outcome:
        """Play it."""
        self._loop = VirtualLoop()
        with _quietly():
            try:
                run_virtually(self._play(), self._loop)
            except Deadlock as error:
                self.outcome.counts["stuck"] += 1
                self.outcome.reasons.append(f"stuck: {error}")
            except Exception as error:  # noqa: BLE001 - it fails this seed, and the others are played all the same
                self.outcome.reasons.append(_told(error))
            finally:
                if self._folder is not None:
                    shutil.rmtree(self._folder, ignore_errors=True)
        for complaint in self._loop.complaints:
            self.outcome.reasons.append(f"left behind: {complaint}")
        return self.outcome

    def note(self, who: str, what: str) -> None:
        """Write into the timeline."""
        if self._trace:
            self.outcome.timeline.append(f"{self._loop.time():9.3f}  {who:<8} {what}")

    # --- the course of it --------------------------------------------------------------------------------------------

    async def _play(self) -> None:
        self._build()
        plan, profile = self.plan, self.plan.profile
        self.note("plan", f"{plan.nodes} nodes, {plan.partitions} partitions, topics {', '.join(plan.topics)}, "
                  f"{'SQLite' if plan.sqlite else 'memory'}, faults: {', '.join(plan.faults) or 'none'}")  # fmt: skip
        breakage = Breakage(self, Random(self._dice.getrandbits(64)))
        await self._live(breakage)
        self.note("----", "the faults stop")
        await breakage.stop()
        self.outcome.faults = breakage.struck
        for broker in self.brokers:
            self.outcome.faults.update(broker.struck)
        agreed = await (self._settle() if profile.auto_sync else self._rotate())
        if agreed and profile.auto_sync:
            # Whoever caught up last says so within a second; till then somebody may still repair what he lacked.
            await asyncio.sleep(HEARD_S)
        before = self.published
        if agreed:
            self.note("----", "all agree")
            await self._stay_calm()
        after = self.published
        self.settled()
        await checks.examine(self, agreed=agreed, republished=after - before)

    def _build(self) -> None:
        plan, dice = self.plan, self._dice
        for number in range(2 if plan.bridges else 1):
            url = f"{URL}-{number}" if number else URL
            broker = SimBroker(Random(dice.getrandbits(64)), plan.partitions, self.note, url)
            broker.weather.digests = plan.profile.digests
            self.brokers.append(broker)
        self.setup = Setup(
            topics=plan.topics,
            resolver=plan.resolver,
            brokers=self.brokers,
            book=self.book,
            note=self.note,
            auto_sync=plan.profile.auto_sync,
            interval_s=INTERVAL_S,
            lease_s=LEASE_S,
            held_max=plan.held_max,
            clock_leap_ms_max=plan.clock_leap_ms_max,
            packing=plan.packing,
        )
        for number in range(1, plan.nodes + 1):
            at = (0, 1) if number <= plan.bridges else (number % len(self.brokers),)
            self.add(f"n{number}", f"n{number}", self._disk(f"n{number}"), at)

    def _disk(self, name: str) -> Disk:
        if not self.plan.sqlite:
            return InMemory(name)
        if self._folder is None:
            ram = Path("/dev/shm")
            self._folder = Path(tempfile.mkdtemp(prefix="synckit-", dir=ram if ram.is_dir() else None))
        return OnFile(name, self._folder)

    def add(self, name: str, node_id: str, disk: Disk, brokers: Sequence[int] = (0,)) -> Machine:
        """One more machine, and its users."""
        plan, dice = self.plan, self._dice
        machine = Machine(
            name, node_id, disk, self.setup, Random(dice.getrandbits(64)), Clock(plan.clock_step_ms), brokers
        )
        for net in machine.nets:
            net.rate = plan.profile.rate
        self.machines.append(machine)
        nonsense = 0.1 if "poison" in plan.faults else 0.0
        users = Random(dice.getrandbits(64))
        self.clients.append(Client(machine, self.book, users, plan.aggregates, nonsense, self._in_doubt))
        return machine

    async def _live(self, breakage: Breakage) -> None:
        """Users write while things break."""
        profile = self.plan.profile
        loop = asyncio.get_running_loop()
        for machine in self.machines:
            await machine.start()
        until_s = self.until_s = loop.time() + self.plan.write_s
        if not profile.auto_sync:
            await self._take_turns(breakage, until_s)
            return
        tasks = [loop.create_task(client.go_on(profile.pause_s, until_s)) for client in self.clients]
        tasks.append(loop.create_task(breakage.go_on(until_s)))
        await asyncio.gather(*tasks)

    # --- never online together ---------------------------------------------------------------------------------------

    async def _take_turns(self, breakage: Breakage, until_s: float) -> None:
        """One node after another is online; the others write on, and one of them dies for good."""
        dice = self._dice
        loop = asyncio.get_running_loop()
        doomed = dice.choice(self.machines)
        dies_s = loop.time() + dice.uniform(0.2, 0.8) * self.plan.write_s
        while loop.time() < until_s:
            await breakage.strike()
            for client, machine in zip(self.clients, self.machines, strict=True):
                if machine.up:
                    for _ in range(dice.randrange(4)):
                        if machine.up:
                            await client.act()
            machine = dice.choice(self.machines)
            await self._sync(machine)
            if not doomed.dead and loop.time() >= dies_s:
                doomed.kill()
                await doomed.bury()
                doomed.dead = True
                self.note(doomed.name, "is dead for good")
            await asyncio.sleep(dice.uniform(0.1, 3.0))

    async def _sync(self, machine: Machine) -> bool:
        """One meeting; False if it did not come to its end."""
        if not machine.up and not await machine.start():
            return False
        try:
            result = await machine.run(lambda node: node.sync(timeout_s=10.0))
        except SyncKitError as error:
            self.note(machine.name, f"cannot sync: {error.message}")
            return False
        return result is not None

    async def _rotate(self) -> bool:
        """Each node syncs alone, a few times; then all must agree."""
        # A node that may hold only two events lets the others go, and needs them a few more times.
        for _ in range(ROUNDS_MAX if self.plan.held_max > 100 else 5 * ROUNDS_MAX):
            for machine in self.machines:
                await self._sync(machine)
                await asyncio.sleep(self._dice.uniform(0.1, 5.0))
        await self.broker_still()
        return await checks.agree(self)

    async def _stay_calm(self) -> None:
        if self.plan.profile.auto_sync:
            await asyncio.sleep(CALM_S)
            return
        for machine in self.machines:
            await self._sync(machine)

    # --- settling ----------------------------------------------------------------------------------------------------

    async def broker_still(self) -> None:
        """Wait until no broker holds anything back any more."""
        while self._late:  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.5)

    async def _settle(self) -> bool:
        """Wait until all agree; False if they never do."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while loop.time() - started_s < SETTLE_S:
            for machine in self.machines:
                await machine.start()
            await asyncio.sleep(LOOK_S)
            if not self._late and await checks.agree(self):
                self.outcome.settled_s = loop.time() - started_s
                return True
        return False


def _told(error: Exception) -> str:
    """What nobody expected, be it of the shipped code or of the simulation, and where it came from."""
    last = traceback.extract_tb(error.__traceback__)[-TRACEBACK_MAX:]
    places = " < ".join(f"{each.name} ({Path(each.filename).name}:{each.lineno})" for each in reversed(last))
    return f"raised: {error!r} in {places}"


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing is logged, and the garbage collector does not come in between."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        logging.disable(level)
        if collects:
            gc.enable()
            gc.collect()


def play(seed: int, profile: Profile | None = None, *, memory: bool = False, trace: bool = False) -> Outcome:
    """Play one seed.

    Args:
        seed: Decides everything.
        profile: Another one than the seed's own.
        memory: Only on memory stores.
        trace: Keep the timeline.
    """
    plan = plan_of(seed, profile or profile_of(seed))
    return Simulation(seed, plan=replace(plan, sqlite=False) if memory else plan, trace=trace).run()
