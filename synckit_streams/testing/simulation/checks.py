"""The verdict: counted from each store's own log, against what the book knows.

Six things must be zero. *Lost*: acknowledged, still on a surviving disk, and not everywhere. *Duplicated*: a fact that
had its effect another number of times than once. *Diverged*: nodes that hold, resolve, project or show as heads
something else. *Causal violations*: an event that stands before something its writer had read. *Phantom*: an event that
nobody wrote. *Stuck*: a node that is not complete long after the last fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from synckit_streams.errors import SyncKitError
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event, Stored
from synckit_streams.runtime.node import SyncNode
from synckit_streams.testing.simulation.book import same_content
from synckit_streams.testing.simulation.machine import Machine
from synckit_streams.testing.simulation.models import quantity

if TYPE_CHECKING:
    from synckit_streams.testing.simulation.history import Simulation

KINDS = ("lost", "duplicated", "diverged", "causal_violations", "phantom", "stuck")
REASONS_MAX = 40
NO_CONNECTOR = "no connector has been reached"
"""What `Replica.standing` says of a node that is not connected."""


async def agree(simulation: Simulation) -> bool:
    """Whether all nodes that live say that they are complete, and hold the same."""
    machines = [machine for machine in simulation.machines if not machine.dead]
    if not all(machine.up for machine in machines):
        return False
    digests = []
    for machine in machines:
        standing = await machine.run(partial(_standing, live=simulation.plan.profile.auto_sync))
        if standing is None:
            return False
        digests.append(standing)
    return all(each == digests[0] for each in digests)


async def _standing(node: SyncNode, *, live: bool) -> tuple[str, ...] | None:
    replica = node._driver.replica
    if live and not all(replica.standing(topic).complete for topic in node.topics):
        return None
    for topic in node.topics:
        if (await node.store.summary(topic)).held:
            return None
    return tuple([await node.digest(topic) for topic in node.topics])


class Found:
    """What one node holds, as its store says."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.log: list[Stored] = []
        self.voids: set[Key] = set()
        self.held = 0
        self.digests: dict[str, str] = {}
        self.reasons: tuple[str, ...] = ()
        self.effects: dict[str, int] = {}
        self.totals: dict[str, int] = {}

    async def look(self, node: SyncNode) -> None:
        """Ask the store."""
        await node.project()
        self.log = [stored async for stored in node.log(twins=True)]
        for topic in node.topics:
            summary = await node.store.summary(topic)
            self.voids |= summary.voids
            self.held += len(summary.held)
            self.digests[topic] = await node.digest(topic)
            self.reasons += node._driver.replica.standing(topic).reasons
        if not self.machine.setup.auto_sync:
            # Who syncs now and then is not connected in between; that is not what he is stuck at.
            self.reasons = tuple(reason for reason in self.reasons if reason != NO_CONNECTOR)
        async with node.store.transaction() as tx:
            self.effects = {str(id): int(times) for id, times in await tx.execute("SELECT id, times FROM effects")}
            self.totals = {
                str(topic): int(total) for topic, total in await tx.execute("SELECT topic, total FROM totals")
            }


async def examine(simulation: Simulation, *, agreed: bool, republished: int) -> None:
    """Fill the outcome."""
    outcome = simulation.outcome

    def wrong(kind: str, what: str, times: int = 1) -> None:
        outcome.counts[kind] += times
        if len(outcome.reasons) < REASONS_MAX:
            outcome.reasons.append(f"{kind}: {what}")

    for machine in simulation.machines:
        machine.learn()
    for torn in simulation.book.torn if simulation.keys_unique else ():
        wrong("phantom", f"a part of what is written together: {torn}")
    outcome.events = simulation.book.writes
    outcome.published = simulation.published
    found: list[Found] = []
    for machine in simulation.machines:
        if machine.dead:
            continue
        if not machine.up and not await machine.start():
            wrong("stuck", f"{machine.name} does not come up")
            continue
        each = Found(machine)
        try:
            await machine.run(each.look)
        except SyncKitError as error:
            wrong("stuck", f"{machine.name} cannot be read: {error}")
            continue
        found.append(each)
    _examine_presence(simulation, found, wrong)
    for each in found:
        _examine_log(simulation, each, wrong)
    await _examine_agreement(simulation, found, wrong)
    for each in () if agreed else found:
        if each.held or each.reasons:
            wrong("stuck", f"{each.machine.name}: {'; '.join(each.reasons) or f'{each.held} held'}")
    if not agreed and not outcome.reasons:
        wrong("stuck", "they agree, and do not know it")
    profile = simulation.plan.profile
    # What one clone wrote, the other one takes for its own; if its reader was not given that message, it finds out when
    # it joins the next time, and publishes it once more.
    clones = any(machine.name != machine.node_id for machine in simulation.machines)
    excused = sum(broker.skipped for broker in simulation.brokers) if clones else 0
    if republished > excused and agreed:
        outcome.reasons.append(f"traffic: {republished} messages were published after all had agreed")
    spared = 20 if simulation.plan.faults else 0
    brokers = len(simulation.brokers)
    if outcome.events and outcome.published > brokers * (profile.publishes_max * outcome.events + spared):
        per_write = outcome.published / outcome.events / brokers
        outcome.reasons.append(f"traffic: {per_write:.1f} publishes per write, {profile.publishes_max} are allowed")


class _Wrong(Protocol):
    """For the type checker: how a violation is reported."""

    def __call__(self, kind: str, what: str, times: int = 1) -> None: ...


def _examine_presence(simulation: Simulation, found: Sequence[Found], wrong: _Wrong) -> None:
    """What was acknowledged, and is on a disk that survived, is everywhere."""
    facts = simulation.book.facts
    kept: set[str] = set()
    for each in found:
        kept |= each.machine.acknowledged
        kept |= {stored.event.id for stored in each.log if (fact := facts.get(stored.event.id)) and fact.acknowledged}
    for each in found:
        here = {stored.event.id for stored in each.log}
        missing = sorted(kept - here)
        for id in missing:
            wrong("lost", f"{id} is not on {each.machine.name}")


def _examine_log(simulation: Simulation, found: Found, wrong: _Wrong) -> None:
    book, name = simulation.book, found.machine.name
    position: dict[Key, int] = {}
    times: Counter[str] = Counter()
    for at, stored in enumerate(found.log):
        event = stored.event
        fact = book.facts.get(event.id)
        if fact is None or not same_content(fact, event):
            wrong("phantom", f"{event.id} on {name} was never written like that")
        # A key that stands twice counts also where its event is a twin.
        times[event.id] += not stored.twin or event.key in position
        position[event.key] = at
    for id, shown in sorted(times.items()):
        # A fact that is twice in the log has its effect twice for that: it is one and the same duplicate.
        if shown > 1:
            wrong("duplicated", f"{id} stands {shown} times in the log of {name}", shown - 1)
        elif (effects := found.effects.get(id, 0)) != 1:
            wrong("duplicated", f"{id} had its effect {effects} times on {name}", abs(effects - 1))
    for id in sorted(found.effects.keys() - times.keys()):
        wrong("phantom", f"{id} had an effect on {name} and is not in its log")
    if simulation.keys_unique:
        _examine_order(simulation, found, position, wrong)


def _examine_order(simulation: Simulation, found: Found, position: dict[Key, int], wrong: _Wrong) -> None:
    """Nothing stands before its cause, and no clock shows less than its cause's."""
    book, name = simulation.book, found.machine.name
    times = {stored.event.key: stored.event.at_packed for stored in found.log}
    for key, at in position.items():
        before = book.before.get(key, frozenset())
        late = [cause for cause in before if position.get(cause, at + 1) > at and cause not in found.voids]
        if late:
            # What a void event had before it, nobody can know any more.
            excused = set[Key]().union(*(book.before.get(cause, ()) for cause in before & found.voids))
            for cause in sorted(set(late) - excused):
                wrong("causal_violations", f"{key} stands before its cause {cause} on {name}")
        read = book.reads.get(key, frozenset())
        for cause in sorted(cause for cause in read if times.get(cause, 0) >= times[key]):
            wrong("causal_violations", f"{key} is dated before {cause}, which its writer had read, on {name}")


async def _examine_agreement(simulation: Simulation, found: Sequence[Found], wrong: _Wrong) -> None:
    if not found:
        return
    first = found[0]
    for each in found[1:]:
        for topic, digest in each.digests.items():
            if digest != first.digests[topic]:
                mine, theirs = ({stored.event.key for stored in one.log} for one in (each, first))
                wrong("diverged", f"{topic!r} of {each.machine.name} ({len(mine - theirs)} more, {len(theirs - mine)} "
                      f"less) and {first.machine.name}")  # fmt: skip
        if each.totals != first.totals:
            wrong("diverged", f"the totals of {each.machine.name} {each.totals}, {first.machine.name} {first.totals}")
    resolved: dict[tuple[str, str], object] = {}
    for each in found:
        per_topic: dict[str, int] = {}
        aggregates: dict[tuple[str, str], list[Event]] = {}
        for stored in each.log:
            aggregates.setdefault((stored.event.topic, stored.event.aggregate_id), []).append(stored.event)
        for (topic, aggregate_id), events in aggregates.items():
            resolution = await each.machine.node.resolve(topic, aggregate_id)
            per_topic[topic] = per_topic.get(topic, 0) + quantity(resolution.data)
            answer = (resolution.winner.id if resolution.winner else None, repr(resolution.data))
            if resolved.setdefault((topic, aggregate_id), answer) != answer:
                wrong("diverged", f"{each.machine.name} resolves {aggregate_id} of {topic!r} to {answer}")
            if not simulation.keys_unique:
                continue
            ids = simulation.book.heads(events)
            if {head.id for head in resolution.heads} != ids:
                heads = sorted(head.id for head in resolution.heads)
                wrong("diverged", f"{each.machine.name} shows the heads {heads} of {aggregate_id}, not {sorted(ids)}")
        for topic, total in per_topic.items():
            if each.totals.get(topic, 0) != total:
                wrong("diverged", f"the read model of {each.machine.name} shows {each.totals.get(topic)}, not {total}")
