"""Moving house: everything that one store holds, into another one, of whatever kind.

Theory of operation. First what lies beside the log is read: where the readers stand, what is held, void, refused. Then
the log moves, page by page, each page in one transaction with a mark that says how far it has come; and in the last
transaction, what lies beside it. Whatever a running node writes meanwhile is later than what was read first: a reader
that stands too early reads some messages again, a held event that was let go is in the log. Nothing is in neither.
For the same reason what consumers have noted of aggregates is read after where they stand.

A row keeps its position, so an offset in the old log is the same number in the new one, and a process that was killed
goes on behind the mark. What the two stores say is compared at the end.

What does not move is the identity of the log, and the read models, which lie in the old database: a projection's offset
without its read model would leave out all that it has applied. So it begins anew in the new store, with nothing noted,
unless one says that its read model is elsewhere or has been brought along.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from synckit_streams.errors import ConfigError, StoreBusy, StoreCorrupt, StoreError, StoreMissing
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import Moved, Quarantined, Summary
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.runtime.rebuilding import CONSUMER
from synckit_streams.runtime.registry import store_for
from synckit_streams.sync.standing import checksum

PAGE_EVENTS = 1_000
PAGE_BESIDE = 1_000
MARK = "moved|"
"""The mark is the offset of a consumer of this name and the old log's id, in the old log."""
DONE = b"done"
ROUNDS = 10
"""How often to begin again what somebody has written to meanwhile."""

Maker = Callable[..., EventStore]
"""Makes a store that is not open yet, as its class does: with `read_only=True` one to look at."""
Advance = Callable[[int, int], None]
"""Called with how many positions of the log have moved, and how many there are."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What a move has done.

    Args:
        events: In the log.
        held: Events that wait for a cause.
        quarantined: Arrivals that were set aside.
        voids: Keys that were declared lost for good.
        offsets: Readers and consumers that go on where they stood.
        notes: What consumers have noted of aggregates.
        alarms: What was raised, one of each kind and topic.
        nodes: The node ids under which the log was written.
        digests: Of each topic, 64 hex digits: what both stores hold.
        rebuilt: Projections that begin anew, since their read models stay in the old database.
        consumers: Others that read the store's own log, and go on where they stood. Whatever they keep in the old
            database stays there.
        resumed: At which position an earlier run had stopped; 0 if there was none.
    """

    events: int
    held: int
    quarantined: int
    voids: int
    offsets: int
    notes: int
    alarms: int
    nodes: tuple[str, ...]
    digests: Mapping[str, str]
    rebuilt: tuple[str, ...]
    consumers: tuple[str, ...]
    resumed: int


class Beside(NamedTuple):
    """What lies beside a log; see `EventStore`."""

    offsets: Mapping[str, Offset]
    moved: Moved


async def move(
    source: str | Maker,
    target: str | Maker,
    *,
    carry: Collection[str] = (),
    live: bool = False,
    page_events: int = PAGE_EVENTS,
    advance: Advance = lambda done, total: None,
) -> Move:
    """Move what one store holds into another one, which is empty or has a part of it from an earlier run.

    Args:
        source: Its URL, or what makes it. It is only read.
        target: Likewise. It is made, if it is not there.
        carry: Projections that go on where they stood, because their read model is in no store's database or was
            brought along. Each is named as `synckit status` names it (`projection|…`).
        live: Take the source as it is at one moment, although its node writes on: for a backup. Otherwise a source that
            is written meanwhile is an error, since what comes late would be missing.
        page_events: How many events, or notes, move in one transaction.
        advance: Told of the progress.

    Raises:
        ConfigError: both are the same store, or `carry` names nobody.
        StoreMissing: there is no source.
        StoreInUse: a node has the target.
        StoreError: the target holds something else; or the source was written meanwhile.
        StoreCorrupt: the two differ at the end.
    """
    make_source = partial(store_for, source) if isinstance(source, str) else source
    make_target = partial(store_for, target) if isinstance(target, str) else target
    old = make_source(read_only=True)
    await old.open(opening("mover"))
    try:
        mark = await _mark_in(make_target, old)
        unknown = set(carry) - set(await old.offsets())
        if unknown:
            raise ConfigError(
                f"{old.name} has no consumer {min(unknown)!r}", hint="`synckit status` names those that there are"
            )
        return await _Mover(old, make_target, carry, live, page_events, advance).run(mark)
    finally:
        await old.close()


def opening(node: str) -> Opening:
    """For somebody who lets go of nothing that is held: he does not know which topics the node replicates."""
    return Opening(node=node, topics=None, held_max=2**62, dice=os.urandom)


async def _mark_in(make_target: Maker, source: EventStore) -> Offset | None:
    """How far an earlier run has come; None if the target is empty.

    Raises:
        ConfigError: it is the source.
        StoreError: it holds something else.
    """
    target = make_target(read_only=True)
    try:
        await target.open(opening("mover"))
    except StoreMissing:
        return None
    try:
        if target.id == source.id:
            raise ConfigError(
                f"{source.name} and {target.name} hold the same log", hint="name another place; nothing has to move"
            )
        offsets = await target.offsets()
        mark = offsets.get(MARK + source.id)
        end = (await target.end()).position
        theirs = {name for name in offsets if not name.startswith(MARK)}
        if mark is not None and mark.fingerprint == DONE and end > mark.position:
            raise StoreError(
                f"{source.name} has moved to {target.name} already, and a node has written there since",
                hint="nothing is left to do; close the node of the old store for good",
            )
        if mark is None and (end or offsets):
            raise StoreError(
                f"{target.name} is not empty: it holds what did not come out of {source.name}",
                hint="move into a new store; nodes that are to hold the same events meet over a broker",
            )
        if mark is not None and mark.fingerprint != DONE and (end > mark.position or theirs):
            raise StoreError(
                f"a node has begun to write to {target.name}, where a move had stopped half-way",
                hint="move into a new store; what the node has written there, it can still send to the others",
            )
        return mark
    finally:
        await target.close()


class _Mover:
    def __init__(
        self,
        source: EventStore,
        make_target: Maker,
        carry: Collection[str],
        live: bool,
        page_events: int,
        advance: Advance,
    ) -> None:
        self._source = source
        self._make_target = make_target
        self._carry = carry
        self._live = live
        self._page_events = page_events
        self._advance = advance
        self._target: EventStore

    async def run(self, mark: Offset | None) -> Move:
        """Whatever is left to do."""
        position = mark.position if mark is not None else 0
        done = mark is not None and mark.fingerprint == DONE
        await self._open(done=done)
        try:
            beside = await read_beside(self._source) if done else await self._copy(position)
            if not self._live:
                await self._compare(notes=not done)
            return await self._report(beside, position)
        finally:
            await self._target.close()

    async def _open(self, *, done: bool) -> None:
        """As each of the nodes that the source has been: what they wrote and did not send is then still to be sent.

        What has moved already belongs to whoever opened it since, and is only looked at.
        """
        if done:
            self._target = self._make_target(read_only=True)
            await self._target.open(opening("mover"))
            return
        for node in self._source.nodes[:-1]:
            passing = self._make_target()
            await passing.open(opening(node))
            await passing.close()
        self._target = self._make_target()
        await self._target.open(opening(self._source.nodes[-1]))

    async def _copy(self, end: int) -> Beside:
        source, target = self._source, self._target
        for _ in range(ROUNDS):
            beside = await read_beside(source)
            end = await self._copy_log(end)
            await self._copy_notes(beside.offsets)
            if self._live or _alike(await read_beside(source), beside):
                break
            # Somebody writes: what came meanwhile is moved too.
        else:
            raise StoreBusy(f"{source.name} is being written", hint="close its node; the move goes on where it was")
        offsets = {
            name: self._translated(offset, end)
            for name, offset in beside.offsets.items()
            if not name.startswith(MARK) and not self._begins_anew(name)
        }
        offsets[MARK + source.id] = Offset(source.id, end, DONE)
        await target.adopt(msgspec.structs.replace(beside.moved, offsets=offsets))
        return beside

    async def _copy_log(self, position: int) -> int:
        """Gives up to where the log has moved."""
        source, target = self._source, self._target
        total = (await source.end()).position
        while page := await source.log(after=Offset(source.id, position), limit=self._page_events):
            rows = [(stored, event_hash(stored.event)) for stored in page]
            position = page[-1].position
            mark = {MARK + source.id: Offset(source.id, position)}
            await target.adopt(Moved(rows=rows, offsets=mark))
            self._advance(position, max(total, position))
            if self._live and position >= total:
                break
        return position

    def _begins_anew(self, consumer: str) -> bool:
        """Whether it is a projection whose read model stays."""
        return consumer.startswith(CONSUMER) and consumer not in self._carry

    async def _copy_notes(self, consumers: Collection[str]) -> None:
        """By pages, each in one transaction; whatever an earlier run has left goes first."""
        source, target = self._source, self._target
        left = {consumer.removeprefix(CONSUMER) for consumer in consumers if self._begins_anew(consumer)}
        for name in await target.noted():
            async with target.transaction() as tx:
                await tx.forget_applied(name)
        for name in await source.noted():
            if name not in left:
                async for page in pages_of_notes(source, name, limit=self._page_events):
                    async with target.transaction() as tx:
                        await tx.note_applied(name, page)

    def _translated(self, offset: Offset, end: int) -> Offset:
        """A consumer of the old log stands at the same position of the new one; anybody else's place is his own."""
        if offset.log != self._source.id:
            return offset
        return Offset(self._target.id, min(offset.position, end))

    async def _compare(self, *, notes: bool) -> None:
        """That both say the same.

        Args:
            notes: Also what is noted; who has opened the target since may have changed that.

        Raises:
            StoreError: the source has changed.
            StoreCorrupt: they differ.
        """
        source, target = self._source, self._target
        mark = (await target.offsets())[MARK + source.id]
        if (await source.end()).position > mark.position:
            raise StoreError(
                f"{source.name} was written after it had moved, up to position {mark.position}",
                hint="its node must be closed: close it, and move into a new store",
            )
        wrong = await differences(source, target, notes=notes)
        if wrong:
            raise StoreCorrupt(
                f"{source.name} and {target.name} differ: {'; '.join(wrong[:5])}",
                hint="look at the source with `synckit verify`; its node must be closed while it moves",
            )

    async def _report(self, beside: Beside, resumed: int) -> Move:
        target = self._target
        topics = await target.topics()
        moved = beside.moved
        offsets = await target.offsets()
        summaries = {topic: await target.summary(topic) for topic in topics}
        return Move(
            events=sum(len(summary.seen) for summary in summaries.values()),
            held=len(moved.held),
            quarantined=len(moved.quarantine),
            voids=len(moved.voids),
            offsets=sum(not name.startswith(MARK) for name in offsets),
            notes=sum([len(page) for name in await target.noted() async for page in pages_of_notes(target, name)]),
            alarms=len(moved.alarms),
            nodes=tuple(self._source.nodes),
            digests={topic: f"{checksum(summary):064x}" for topic, summary in summaries.items()},
            rebuilt=tuple(
                name.removeprefix(CONSUMER) for name in sorted(beside.offsets) if self._begins_anew(name)
            ),
            consumers=tuple(
                name for name, offset in sorted(beside.offsets.items())
                if offset.log == self._source.id and name in offsets
            ),
            resumed=resumed,
        )  # fmt: skip


async def read_beside(store: EventStore) -> Beside:
    """What lies beside a log. Offsets first: whoever reads on from there meets again what changes meanwhile."""
    offsets = await store.offsets()
    alarms = await store.alarms()
    runs = await store.runs(None)
    quarantine: list[Quarantined] = []
    while some := await store.quarantine(after=quarantine[-1].position if quarantine else 0, limit=PAGE_BESIDE):
        quarantine += some
    held = list(await store.held(after=b"", limit=PAGE_BESIDE))
    while held and (more := await store.held(after=held[-1][1], limit=PAGE_BESIDE)):
        held += more
    voids: list[Key] = list(await store.voids(after=None, limit=PAGE_BESIDE))
    while voids and (some_voids := await store.voids(after=voids[-1], limit=PAGE_BESIDE)):
        voids += some_voids
    moved = Moved(held=held, voids=voids, quarantine=quarantine, runs=runs, alarms=sorted(alarms))
    return Beside(offsets, moved)


async def pages_of_notes(
    store: EventStore, name: str, *, limit: int = PAGE_BESIDE
) -> AsyncIterator[Sequence[tuple[str, str, bytes]]]:
    """What was noted under a name."""
    after: tuple[str, str] | None = None
    while page := await store.applied(name, after=after, limit=limit):
        yield page
        after = page[-1][:2]


async def _notes(store: EventStore, name: str) -> int:
    """A sum over what was noted under a name, in whatever order the store gives it."""
    total = 0
    async for page in pages_of_notes(store, name):
        total += sum(int.from_bytes(sha256(msgspec.msgpack.encode(each)).digest(), "big") for each in page)
    return total


async def differences(source: EventStore, target: EventStore, *, notes: bool = True) -> list[str]:
    """In what two stores differ that should hold the same, in words; the read models and who writes them aside."""
    ours, theirs = await read_beside(source), await read_beside(target)
    topics = {*await source.topics(), *await target.topics()}
    for found in (ours, theirs):
        topics |= {event.topic for event, _ in found.moved.held} | {key.topic for key in found.moved.voids}
    wrong: list[str] = []
    for topic in sorted(topics):
        one, other = await source.summary(topic), await target.summary(topic)
        wrong += [f"{what} of {topic}" for what in Summary._fields if getattr(one, what) != getattr(other, what)]
    if (await source.end()).position != (await target.end()).position:
        wrong.append("the end of the log")
    wrong += [what for what, ask in _KINDS.items() if ask(ours.moved) != ask(theirs.moved)]
    for name, offset in ours.offsets.items():
        there = theirs.offsets.get(name)
        if there is None and (name.startswith((CONSUMER, MARK))):
            continue
        if there is None or (offset.log != source.id and offset != there):
            wrong.append(f"the offset of {name}")
    for name in await source.noted() if notes else ():
        anew = CONSUMER + name in ours.offsets and CONSUMER + name not in theirs.offsets
        if not anew and await _notes(source, name) != await _notes(target, name):
            wrong.append(f"what {name} has noted")
    if set(source.nodes) - set(target.nodes):
        wrong.append("nodes")
    return wrong


def _alike(one: Beside, other: Beside) -> bool:
    return one.offsets == other.offsets and all(ask(one.moved) == ask(other.moved) for ask in _KINDS.values())


def _set_aside(moved: Moved) -> list[tuple[str, bytes, Key | None]]:
    return [(each.reader, each.raw, each.key) for each in moved.quarantine]


def _places(moved: Moved) -> dict[tuple[str, str, str], bytes]:
    """Of each origin a hash of where its events were read, however the runs are joined."""
    found: dict[tuple[str, str, str], tuple[Any, Any]] = {}
    for reader, topic, origin, first, positions in moved.runs:
        numbers, places = found.setdefault((reader, topic, origin), (sha256(), sha256()))
        numbers.update(array("q", range(first, first + len(positions))).tobytes())
        places.update(array("q", positions).tobytes())
    return {key: numbers.digest() + places.digest() for key, (numbers, places) in found.items()}


_KINDS: Mapping[str, Callable[[Moved], Any]] = {
    "held": lambda moved: moved.held,
    "voids": lambda moved: moved.voids,
    "quarantine": _set_aside,
    "places": _places,
    "alarms": lambda moved: [alarm._replace(evidence="") for alarm in moved.alarms],
}
"""What lies beside a log, apart from the offsets, as it can be compared; texts for people may be kept otherwise."""
