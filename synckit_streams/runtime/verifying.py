"""Is a store sound? Everything that it says, computed anew from its events.

A store answers most questions from what it keeps beside the events: sums, numbers, indexes, marks. Here each event is
read and hashed, and what is kept is held against it. Only what was there at the start is looked at, so a node may write
meanwhile. `EventStore.damage` is asked as well: what only the medium itself can know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import msgspec

from synckit_streams.errors import StoreCorrupt, SyncKitError
from synckit_streams.model.clock import Key
from synckit_streams.model.codec import DIGEST_MODULUS, event_hash, refusal
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import Summary
from synckit_streams.model.seen import Seen
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.rebuilding import CONSUMER

PAGE_EVENTS = 1_000
LOOKED_UP = 1_000
"""Of so many aggregates of each topic the events are asked for one by one."""
NAMED = 100
"""So many findings are named; of more it is said how many there are."""

Advance = Callable[[int, int], None]
"""Called with how much is done, and how much there is; an event counts twice, since it is read by two ways."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Args:
        where: "medium", "log", "hash", "numbers", "sums", "twins", "causes", "keys", "aggregates", "offsets" or
            "held".
        what: In words, with the event or the reader that it is about.
    """

    where: str
    what: str


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what is wrong.

    Args:
        events: How many events were read.
        held: How many wait for a cause.
        offsets: How many readers and consumers there are.
        findings: What is wrong, at most `NAMED`.
        wrong: How many things are wrong.
    """

    events: int
    held: int
    offsets: int
    findings: tuple[Finding, ...]
    wrong: int


async def verify(store: EventStore, *, advance: Advance = lambda done, total: None) -> Verdict:
    """Look at everything in an open store.

    Raises:
        StoreError: it cannot be read at all.
    """
    return await _Verifier(store, advance).run()


class _Verifier:
    def __init__(self, store: EventStore, advance: Advance) -> None:
        self._store = store
        self._advance = advance
        self._findings: list[Finding] = []
        self._wrong = 0
        self._summaries: dict[str, Summary] = {}
        self._end = 0
        self._numbers: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], int] = {}
        self._aggregates: dict[str, set[str]] = {}
        self._ids: set[bytes] = set()

    def _say(self, where: str, what: str) -> None:
        self._wrong += 1
        if len(self._findings) < NAMED:
            self._findings.append(Finding(where, what))

    async def run(self) -> Verdict:
        """Everything, one after the other; the cheap things first."""
        store = self._store
        # Before the end of the log: whoever reads on meanwhile is then not beyond it.
        offsets = await store.offsets()
        await self._begin()
        self._check_offsets(offsets)
        for damage in await store.damage():
            self._say("medium", damage)
        held = events = 0
        try:
            held = await self._check_held()
            events = await self._read_log()
            self._check_counters()
            await self._check_keys(events)
            await self._check_aggregates()
        except StoreCorrupt as error:  # it cannot be read on
            self._say("medium", error.message)
        return Verdict(
            events=events, held=held, offsets=len(offsets), findings=tuple(self._findings), wrong=self._wrong
        )

    async def _begin(self) -> None:
        """What the store says of itself at one moment."""
        store = self._store
        while True:
            end = await store.end()
            self._summaries = {topic: await store.summary(topic) for topic in await store.topics()}
            if await store.end() == end:  # nobody wrote in between
                break
        self._end = end.position

    def _check_offsets(self, offsets: Mapping[str, Offset]) -> None:
        for name, offset in offsets.items():
            if offset.log == self._store.id:
                if offset.position > self._end:
                    self._say("offsets", f"{name} stands at {offset.position}, and the log ends at {self._end}")
            elif name.startswith(CONSUMER):
                self._say("offsets", f"{name} stands in the log {offset.log!r}, and this one is {self._store.id!r}")

    # --- beside the log ----------------------------------------------------------------------------------------------

    async def _check_held(self) -> int:
        total, after = 0, b""
        while page := await self._store.held(after=after, limit=PAGE_EVENTS):
            for event, hash in page:
                if event_hash(event) != hash:
                    self._say("held", f"{_named(event.key)} is not what came")
                elif await self._is_ready(event):
                    self._say("held", f"{_named(event.key)} is held, and everything that it waits for is here")
            after = page[-1][1]
            total += len(page)
        return total

    async def _is_ready(self, event: Event) -> bool:
        causes = [*_causes(event), *event.after]
        for topic in {cause.topic for cause in causes} - self._summaries.keys():
            self._summaries[topic] = await self._store.summary(topic)
        return all(self._is_here(cause) for cause in causes)

    def _is_here(self, key: Key) -> bool:
        summary = self._summaries[key.topic]
        return (key.origin, key.seq) in summary.seen or key in summary.voids

    # --- the log -----------------------------------------------------------------------------------------------------

    async def _read_log(self) -> int:
        events = position = 0
        while page := await self._store.log(after=Offset(self._store.id, position), limit=PAGE_EVENTS):
            for stored in page:
                if stored.position > self._end:
                    return events
                if stored.position <= position:
                    self._say("log", f"position {stored.position} comes after {position}")
                position = stored.position
                self._read(stored)
                events += 1
            self._advance(position, 2 * self._end)
        return events

    def _read(self, stored: Stored) -> None:
        event = stored.event
        stream = (event.topic, event.origin)
        self._numbers.setdefault(stream, []).append(event.seq)
        self._sums[stream] = (self._sums.get(stream, 0) + int.from_bytes(event_hash(event), "big")) % DIGEST_MODULUS
        self._aggregates.setdefault(event.topic, set()).add(event.aggregate_id)
        short = blake2b(event.id.encode(), digest_size=8).digest()
        if stored.twin != (short in self._ids):
            said = "is marked as a twin, and is the first" if stored.twin else "is not the first, and is not marked so"
            self._say("twins", f"position {stored.position}: {event.id!r} {said}")
        self._ids.add(short)
        try:
            error = refusal(event)
            causes = _causes(event) if event.topic in self._summaries else []
            missing = [cause for cause in causes if not self._is_here(cause)]
        except SyncKitError as failure:
            error, missing = failure, []
        if error is not None:
            self._say("log", f"position {stored.position}: {error.message}")
        for cause in missing:
            self._say(
                "causes", f"position {stored.position}: {_named(event.key)} follows {_named(cause)}, which is not here"
            )

    def _check_counters(self) -> None:
        """Numbers and sums, per topic and origin."""
        streams = {(topic, origin) for topic, summary in self._summaries.items() for origin in summary.seen.ranges}
        for topic, origin in sorted(streams | self._numbers.keys()):
            numbers = self._numbers.get((topic, origin), [])
            if len(set(numbers)) < len(numbers):
                self._say("numbers", f"{topic}: a number of {origin} stands in the log twice")
            summary = self._summaries.get(topic)
            said = Seen({origin: summary.seen.ranges.get(origin, ())}) if summary is not None else Seen({})
            found = Seen.of((origin, number) for number in numbers)
            lost, strange = said.minus(found), found.minus(said)
            for what, which in (("should be here and is not", lost), ("is here and not counted", strange)):
                if which:
                    first, last = which.ranges[origin][0]
                    several = f" to {last}" if last > first else ""
                    self._say("numbers", f"{topic}: {origin}:{first}{several} {what} ({len(which)} in all)")
            kept = summary.sums.get(origin, 0) if summary is not None else 0
            if not lost and not strange and kept != self._sums.get((topic, origin), 0):
                self._say("sums", f"{topic}: the events of {origin} are not those that were written")

    async def _check_keys(self, events: int) -> None:
        """Each event again, by its key, with the hash that is kept of it."""
        done = 0
        for topic, summary in self._summaries.items():
            for origin, intervals in summary.seen.ranges.items():
                for first, last in intervals:
                    while first <= last:
                        page = await self._store.events(topic, origin, (first, last), limit=PAGE_EVENTS)
                        self._check_page(Key(topic, origin, first), page[-1][0].seq if page else last, _by_number(page))
                        first = page[-1][0].seq + 1 if page else last + 1
                        done += len(page)
                        self._advance(self._end + min(done, events) * self._end // max(events, 1), 2 * self._end)

    def _check_page(self, start: Key, last: int, found: Mapping[int, tuple[Event, bytes]]) -> None:
        topic, origin, first = start
        for seq in range(first, last + 1):
            key = Key(topic, origin, seq)
            here = found.get(seq)
            if here is None:
                self._say("keys", f"{_named(key)} is not found by its key")
            elif here[0].key != key:
                self._say("keys", f"{_named(key)} is the key of another event, {_named(here[0].key)}")
            elif event_hash(here[0]) != here[1]:
                self._say("hash", f"{_named(key)} is not what was written")

    async def _check_aggregates(self) -> None:
        for topic, ids in self._aggregates.items():
            listed: set[str] = set()
            after = ""
            while page := await self._store.aggregates(topic, after=after, limit=PAGE_EVENTS):
                if listed.issuperset(page):  # a page that begins anew
                    self._say("aggregates", f"{topic}: the list of aggregates does not end")
                    break
                listed.update(page)
                after = page[-1]
            for aggregate_id in sorted(ids - listed):
                self._say("aggregates", f"{topic}: {aggregate_id!r} is not among the aggregates")
            if (await self._store.end()).position == self._end:
                for aggregate_id in sorted(listed - ids):
                    self._say("aggregates", f"{topic}: no event is about {aggregate_id!r}, which is listed")
            step = max(1, len(ids) // LOOKED_UP)
            for aggregate_id in sorted(ids & listed)[::step]:
                if not await self._store.aggregate(topic, aggregate_id):
                    self._say("aggregates", f"{topic}: the events of {aggregate_id!r} are not found")


def _by_number(page: Sequence[tuple[Event, bytes]]) -> dict[int, tuple[Event, bytes]]:
    return {event.seq: (event, hash) for event, hash in page}


def _causes(event: Event) -> list[Key]:
    """Of its own topic: what must stand in the log before it."""
    found = [Key(event.topic, origin, seq) for origin, seq in event.context.items()] if event.context_bytes else []
    if event.prev:
        found.append(Key(event.topic, event.origin, event.prev))
    return found


def _named(key: Key) -> str:
    return f"{key.topic} {key.origin}:{key.seq}"
