"""What breaks, and when: draws one fault after another, lets it strike, and puts everything right at the end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from synckit_streams.testing.simulation.broker import SimBroker
from synckit_streams.testing.simulation.disk import Disk, Trouble
from synckit_streams.testing.simulation.machine import Machine
from synckit_streams.testing.simulation.weather import Net

if TYPE_CHECKING:
    from synckit_streams.testing.simulation.history import Simulation

CLONES_MAX = 2
BACKUPS_MAX = 3
HOUR_MS = 3_600_000


class Breakage:
    """See the module's text.

    Args:
        simulation: What is to be broken.
        dice: Its own.
    """

    def __init__(self, simulation: Simulation, dice: Random) -> None:
        self._simulation = simulation
        self._dice = dice
        self.struck: Counter[str] = Counter()
        self._backups: dict[str, list[tuple[Disk, set[str]]]] = {}
        self._clones = 0
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._faults: dict[str, Callable[[], Awaitable[None]]] = {
            "drop": self._weather("drop", 0.4),
            "duplicate": self._weather("duplicate", 0.5),
            "reorder": self._weather("reorder", 0.5),
            "delay": self._delay,
            "partition": self._partition,
            "one-way partition": self._one_way,
            "crash before commit": self._trouble(Trouble.CRASH_BEFORE),
            "crash after commit before acknowledge": self._trouble(Trouble.CRASH_AFTER),
            "disk full": self._disk_full,
            "fsync error": self._fsync,
            "broker rewind": self._rewind,
            "broker reset": self._reset,
            "clone": self._clone,
            "restore from backup": self._restore,
            "clock ±1h": self._clock,
            "poison": self._poison,
        }

    async def go_on(self, until_s: float) -> None:
        """Let something break now and then, until a time."""
        loop = asyncio.get_running_loop()
        if not self._simulation.plan.faults:
            return
        while True:
            await asyncio.sleep(self._dice.uniform(0.2, 2.5))
            if loop.time() >= until_s:
                return
            await self.strike()

    async def strike(self) -> None:
        """One more thing breaks."""
        faults = self._simulation.plan.faults
        if not faults:
            return
        if self._dice.random() < 0.3:
            await self._ordinary()
        await self._faults[self._dice.choice(faults)]()

    async def stop(self) -> None:
        """Put right what can be put right; what is lost is lost."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        simulation = self._simulation
        for broker in simulation.brokers:
            weather = broker.weather
            weather.drop = weather.duplicate = weather.reorder = weather.poison = weather.skip = 0.0
            weather.latency_s = 0.004
        for machine in simulation.machines:
            machine.disk.trouble = None
            machine.disk.full = False
            _set(machine.nets, out=True, back=True)
        for machine in simulation.machines:
            if not machine.up and not machine.dead:
                await machine.bury()
                await machine.start()

    # --- parts -------------------------------------------------------------------------------------------------------

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def _note(self, what: str) -> None:
        self._simulation.note("fault", what)

    def _hit(self, fault: str, what: str) -> None:
        self.struck[fault] += 1
        self._note(f"{fault}: {what}")

    def _some(self) -> Machine:
        return self._dice.choice([machine for machine in self._simulation.machines if not machine.dead])

    def _broker(self) -> SimBroker:
        brokers = self._simulation.brokers
        return brokers[0] if len(brokers) == 1 else self._dice.choice(brokers)

    async def _ordinary(self) -> None:
        """What happens on any day: programs end, are killed, and backups are made."""
        draw = self._dice.random()
        machine = self._some()
        if draw < 0.4:
            self._back_up(machine)
        elif draw < 0.7 and machine.up:
            self._note(f"{machine.name} is stopped")
            self._soon(self._stop_and_start(machine))
        elif machine.up and {"crash before commit", "crash after commit before acknowledge"} & set(
            self._simulation.plan.faults
        ):
            self._note(f"{machine.name} is killed")
            machine.kill()
            self._soon(self._restart(machine))

    async def _stop_and_start(self, machine: Machine) -> None:
        await machine.stop()
        await self._restart(machine)

    async def _restart(self, machine: Machine) -> None:
        await machine.bury()
        await asyncio.sleep(self._dice.uniform(0.1, 6.0))
        await machine.start()

    def _back_up(self, machine: Machine) -> None:
        backups = self._backups.setdefault(machine.name, [])
        machine.learn()
        name = f"{machine.name}-backup-{len(backups)}-{self._stamp()}"
        backups.append((machine.disk.copy(name), set(machine.acknowledged)))
        del backups[:-BACKUPS_MAX]
        self._note(f"{machine.name} is backed up")

    def _stamp(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    # --- the sixteen -------------------------------------------------------------------------------------------------

    def _weather(self, kind: str, most: float) -> Callable[[], Awaitable[None]]:
        async def strike() -> None:
            weather, chance = self._broker().weather, self._dice.uniform(0.05, most)
            skip = kind == "drop" and weather.digests and self._dice.random() < 0.3
            name = "skip" if skip else kind
            setattr(weather, name, chance)
            self._note(f"{name}: {chance:.0%} of the messages")

            async def end() -> None:
                await asyncio.sleep(self._dice.uniform(0.5, 5.0))
                setattr(weather, name, 0.0)

            self._soon(end())

        return strike

    async def _delay(self) -> None:
        weather = self._broker().weather
        weather.latency_s = self._dice.uniform(0.1, 1.5)
        self._hit("delay", f"{weather.latency_s:.1f} s")

        async def end() -> None:
            await asyncio.sleep(self._dice.uniform(0.5, 5.0))
            weather.latency_s = 0.004

        self._soon(end())

    async def _partition(self) -> None:
        await self._cut("partition", out=False, back=False)

    async def _one_way(self) -> None:
        out = self._dice.random() < 0.5
        await self._cut("one-way partition", out=out, back=not out)

    async def _cut(self, fault: str, *, out: bool, back: bool) -> None:
        machine = self._some()
        # Of a bridge one way or the other, of all others the one that there is.
        nets = machine.nets if len(machine.nets) == 1 else [self._dice.choice(machine.nets)]
        _set(nets, out=out, back=back)
        self._hit(fault, f"{machine.name}{'' if out == back else ' hears nothing' if out else ' cannot send'}")
        self._soon(self._heal(machine, self._dice.uniform(0.3, 12.0)))

    def _trouble(self, trouble: Trouble) -> Callable[[], Awaitable[None]]:
        async def strike() -> None:
            machine = self._some()
            if machine.up and machine.disk.trouble is None:
                self._soon(self._die_and_restart(machine, trouble))

        return strike

    async def _die_and_restart(self, machine: Machine, trouble: Trouble) -> None:
        """Wait for the commit at which it dies, and start it again some time later."""
        disk = machine.disk
        disk.trouble = trouble
        # Half of the crashes wait for a moment at which much is at stake.
        disk.ripe = (lambda: machine.holds) if self._dice.random() < 0.5 else (lambda: True)
        for _ in range(100):
            await asyncio.sleep(0.1)
            if disk.trouble is None:
                break
        disk.ripe = lambda: True
        if disk.trouble is not None:
            disk.trouble = None
            return
        name = "crash before commit" if trouble is Trouble.CRASH_BEFORE else "crash after commit before acknowledge"
        self._hit(name, machine.name)
        await self._restart(machine)

    async def _disk_full(self) -> None:
        machine = self._some()
        disk = machine.disk
        disk.full = True
        self._hit("disk full", machine.name)

        async def end() -> None:
            await asyncio.sleep(self._dice.uniform(0.3, 6.0))
            disk.full = False
            await machine.start()

        self._soon(end())

    async def _fsync(self) -> None:
        machine = self._some()
        if machine.disk.trouble is None:
            machine.disk.trouble = self._dice.choice((Trouble.FSYNC, Trouble.FSYNC_DOUBT))
            self._hit("fsync error", machine.name)

    async def _rewind(self) -> None:
        back_s = self._dice.uniform(0.3, 12.0)
        self._broker().rewind(asyncio.get_running_loop().time() - back_s)
        self._hit("broker rewind", f"by {back_s:.1f} s")

    async def _reset(self) -> None:
        if self._dice.random() < 0.5:
            return
        self._broker().reset()
        self._hit("broker reset", "all logs are new")

    async def _clone(self) -> None:
        simulation = self._simulation
        if self._clones == CLONES_MAX:
            return
        original = self._some()
        if original.name != original.node_id:
            return
        self._clones += 1
        original.learn()
        name = f"{original.name}{chr(96 + self._clones)}"
        clone = simulation.add(name, original.node_id, original.disk.copy(name), original.brokers)
        clone.acknowledged = set(original.acknowledged)
        if self._dice.random() < 0.5:
            # A virtual machine, copied while it runs: what it had in its memory, the copy has too.
            clone.inherited, used = original.memory
            simulation.keys_unique = simulation.keys_unique and not used
        self._hit("clone", f"{original.name} runs as {name} too")
        self._perhaps_alone(clone)
        await clone.start()
        client = simulation.clients[-1]
        self._soon(client.go_on(simulation.plan.profile.pause_s, simulation.until_s))

    async def _restore(self) -> None:
        machine = self._some()
        backups = self._backups.get(machine.name)
        if not backups:
            self._back_up(machine)
            return
        disk, acknowledged = backups.pop(self._dice.randrange(len(backups)))
        self._hit("restore from backup", machine.name)
        await machine.replace_disk(disk, acknowledged)
        self._perhaps_alone(machine)
        self._soon(self._restart(machine))

    def _perhaps_alone(self, machine: Machine) -> None:
        """Often a machine writes before it meets anybody from whom it could learn what has become of it."""
        if self._dice.random() < 0.6:
            _set(machine.nets, out=False, back=False)
            self._soon(self._heal(machine, self._dice.uniform(3.0, 12.0)))

    async def _heal(self, machine: Machine, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        _set(machine.nets, out=True, back=True)

    async def _clock(self) -> None:
        machine = self._some()
        machine.clock.skew_ms = self._dice.choice((-HOUR_MS, 0, HOUR_MS))
        self._hit("clock ±1h", f"{machine.name} by {machine.clock.skew_ms / HOUR_MS:+.0f} h")

    async def _poison(self) -> None:
        broker = self._broker()
        broker.weather.poison = self._dice.uniform(0.1, 0.5)
        for _ in range(self._dice.randrange(3)):
            broker.junk(self._dice.choice(self._simulation.plan.topics))
        self._note(f"poison: {broker.weather.poison:.0%} of the messages")

        async def end() -> None:
            await asyncio.sleep(self._dice.uniform(0.5, 5.0))
            broker.weather.poison = 0.0

        self._soon(end())


def _set(nets: Sequence[Net], *, out: bool, back: bool) -> None:
    for net in nets:
        net.set(out=out, back=back)
