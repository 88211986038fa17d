"""Scripted scenes: what is too rare to wait for, played on purpose. Each passes on the code as it is shipped.

A scene is a short simulation without chance in it: a few machines that sync when the script says so, a broker that does
what the script says, and the same verdict at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from synckit_streams.errors import SyncKitError
from synckit_streams.model.clock import Key, VersionVector
from synckit_streams.model.event import Draft
from synckit_streams.sync.resolvers import LastWriteWins
from synckit_streams.testing.simulation import checks
from synckit_streams.testing.simulation.book import Fact
from synckit_streams.testing.simulation.disk import Trouble
from synckit_streams.testing.simulation.history import LEASE_S, Outcome, Simulation
from synckit_streams.testing.simulation.machine import Machine
from synckit_streams.testing.simulation.profiles import Plan, Profile

TOPIC = "orders"
COMMITS_MAX = 14
"""More than a meeting of one event has."""
Script = Callable[["Scene"], Awaitable[None]]


class Scene(Simulation):
    """See the module's text.

    Args:
        name: Of the scene.
        script: What happens.
        nodes: How many machines, `n1` and on.
        digests: Whether they hear each other's digests.
        trace: Keep the timeline.
    """

    def __init__(self, name: str, script: Script, *, nodes: int, digests: bool, trace: bool = False) -> None:
        profile = Profile(name, "a scene", nodes=(nodes, nodes), digests=digests, auto_sync=False)
        plan = Plan(
            seed=0,
            profile=profile,
            nodes=nodes,
            partitions=1,
            topics=(TOPIC,),
            aggregates=1,
            resolver=LastWriteWins,
            sqlite=False,
            packing="event",
            held_max=10_000,
            clock_step_ms=1,
            clock_leap_ms_max=7_200_000,
            faults=(),
            write_s=0.0,
        )
        super().__init__(0, plan=plan, trace=trace)
        self._script = script
        self._written = 0

    async def _play(self) -> None:
        self._build()
        for machine in self.machines:
            await machine.start()
        await self._script(self)
        self.note("----", "the script ends")
        for machine in self.machines:
            await machine.start()
        await checks.examine(self, agreed=await self._rotate(), republished=0)

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    async def write(
        self,
        machine: Machine,
        aggregate_id: str = "a",
        *,
        after: tuple[Key, ...] = (),
        context: VersionVector | None = None,
        read: frozenset[Key] | None = None,
        qty: int = 1,
    ) -> Key:
        """Somebody writes; gives the event's key, with seq 0 if the node said no."""
        self._written += 1
        id = f"e{self._written}"
        data = {"qty": qty, "by": id}
        fact = Fact(id, TOPIC, aggregate_id, "changed", msgspec.json.encode(data), qty, after, read)
        fact.writers.add(machine.name)
        self.book.facts[id] = fact
        self.note(machine.name, f"writes {id} to {aggregate_id}")
        draft = Draft(TOPIC, "changed", aggregate_id, data, id=id, after=after, context=context)
        try:
            stored = await machine.run(lambda node: node.append(draft))
        except SyncKitError as error:
            self.note(machine.name, f"is told: {error.message}")
            return Key(TOPIC, "", 0)
        assert stored is not None
        fact.acknowledged = True
        machine.acknowledged.add(id)
        machine.origins.add(stored.event.origin)
        return stored.event.key

    async def sync(self, *names: str) -> None:
        """These sync, one after another."""
        for name in names:
            await self._sync(self[name])
            await asyncio.sleep(0.1)

    def now_s(self) -> float:
        """Virtual time."""
        return asyncio.get_running_loop().time()


# --- the scenes ------------------------------------------------------------------------------------------------------


async def _clone_before_writing(scene: Scene) -> None:
    """A virtual machine is cloned while its node is open and has not written yet; both then write, and are read."""
    original = scene["n1"]
    original.learn()
    clone = scene.add("n1a", "n1", original.disk.copy("n1a"))
    clone.inherited, _ = original.memory
    await clone.start()
    for aggregate_id in "abcdef":
        await scene.write(original, aggregate_id)
        await scene.write(clone, aggregate_id)
    await scene.sync("n1", "n2")
    for aggregate_id in "abcdef":
        await scene.write(scene["n2"], aggregate_id)
    await scene.sync("n2", "n1a", "n1")


async def _rewound_and_regrown(scene: Scene) -> None:
    """The log is put back and written on, past where a reader stood that was away meanwhile."""
    for _ in range(3):
        await scene.write(scene["n1"])
    await scene.sync("n1")
    back_to_s = scene.now_s()
    await asyncio.sleep(1.0)
    await scene.write(scene["n1"])
    await scene.write(scene["n1"])
    await scene.sync("n1", "n2", "n3")
    scene.broker.rewind(back_to_s)
    for _ in range(5):
        await scene.write(scene["n3"], "b")
    await scene.sync("n3", "n1")


async def _recreated_and_trimmed(scene: Scene) -> None:
    """The log is deleted and made again, and its beginning, where a reader stood in the old one, is gone already."""
    await scene.write(scene["n1"])
    await scene.sync("n1")
    scene.broker.reset()
    for _ in range(3):
        scene.broker.junk(TOPIC)
    scene.broker.trim(1)
    await scene.sync("n1", "n2")


async def _same_event_same_place(scene: Scene) -> None:
    """The log is put back; an event comes to lie just where it lay, and others where something else lay."""
    await scene.write(scene["n1"])
    await scene.sync("n1")
    back_to_s = scene.now_s()
    await asyncio.sleep(1.0)
    lost = await scene.write(scene["n1"], "b")
    await scene.sync("n1")
    await scene.write(scene["n2"], "c")
    await scene.sync("n2", "n3")
    assert lost.seq
    scene.broker.rewind(back_to_s)
    # In place of n1's second event there is now one of n4; n2's own comes third again.
    await scene.write(scene["n4"], "d")
    await scene.sync("n4", "n2", "n1")


async def _after_is_not_read(scene: Scene) -> None:
    """A node has the second event of another one, and not the first; it writes to the first one's aggregate."""
    await scene.write(scene["n1"], "a")
    cause = await scene.write(scene["n1"], "b")
    scene.broker.lose = 1
    scene.broker.taken = lambda who: scene["n1"].kill()
    await scene.sync("n1")
    scene.broker.taken = lambda who: None
    await scene.sync("n2")
    await scene.write(scene["n2"], "a", after=(cause,))
    await scene.sync("n2", "n1")


async def _stale_read_overtakes(scene: Scene) -> None:
    """A user writes from what he read long ago, and that event arrives before what the same node wrote meanwhile."""
    first = await scene.write(scene["n1"])
    shown, read = VersionVector({first.origin: first.seq}), frozenset({first})
    await scene.sync("n1", "n2")
    second = await scene.write(scene["n1"])
    third = await scene.write(scene["n1"], context=shown, read=read)
    assert second.seq < third.seq
    scene.broker.lose = 1
    await scene.sync("n1", "n2")


async def _cause_lost_with_its_disk(scene: Scene) -> None:
    """An event's only copy was on a disk that is put back; what follows from it has been published."""
    doomed = scene["n1"]
    await scene.write(doomed)
    await scene.write(doomed)
    scene.broker.lose = 1
    scene.broker.taken = lambda who: doomed.kill()
    await scene.sync("n1")
    scene.broker.taken = lambda who: None
    await doomed.bury()
    doomed.dead = True
    await scene.sync("n2", "n3")
    for _ in range(3):
        await asyncio.sleep(2 * LEASE_S)
        await scene.sync("n2", "n3")


async def _killed_at_each_commit(scene: Scene) -> None:
    """A process is killed at the first commit after a write, at the second one, and so on; and it starts again."""
    machine = scene["n1"]
    # Whoever has come somewhere has something to lose: a projection that was nowhere would begin anew.
    await scene.write(machine)
    await scene.sync("n1")
    for number in range(COMMITS_MAX):
        for trouble in (Trouble.CRASH_BEFORE, Trouble.CRASH_AFTER):
            await scene.write(machine)
            machine.disk.ripe = _after(number)
            machine.disk.trouble = trouble
            await scene.sync("n1")
            machine.disk.trouble = None
            await machine.bury()
            await machine.start()
    machine.disk.ripe = lambda: True
    await scene.sync("n1", "n2")


def _after(commits: int) -> Callable[[], bool]:
    """Whether so many commits have passed."""
    left = iter(range(commits))
    return lambda: next(left, None) is None


async def _failed_and_written(scene: Scene) -> None:
    """The disk reports an error, and what was written is there all the same."""
    await scene.write(scene["n1"])
    await scene.sync("n1", "n2")
    scene["n1"].disk.trouble = Trouble.FSYNC_DOUBT
    await scene.write(scene["n1"], "b")
    await scene.sync("n1", "n2")


class _Entry:
    def __init__(self, script: Script, *, nodes: int = 3, digests: bool = False) -> None:
        self.script = script
        self.nodes = nodes
        self.digests = digests


SCENES = {
    "clone-before-writing": _Entry(_clone_before_writing),
    "rewound-and-regrown": _Entry(_rewound_and_regrown),
    "recreated-and-trimmed": _Entry(_recreated_and_trimmed),
    "same-event-same-place": _Entry(_same_event_same_place, nodes=4),
    "after-is-not-read": _Entry(_after_is_not_read),
    "stale-read-overtakes": _Entry(_stale_read_overtakes),
    "cause-lost-with-its-disk": _Entry(_cause_lost_with_its_disk),
    "killed-at-each-commit": _Entry(_killed_at_each_commit),
    "failed-and-written": _Entry(_failed_and_written),
}


def play_scene(name: str, *, trace: bool = False) -> Outcome:
    """Play a scene by its name."""
    entry = SCENES[name]
    return Scene(name, entry.script, nodes=entry.nodes, digests=entry.digests, trace=trace).run()
