"""What the parts of the contract share: who writes, who reads, and the audit at the end of each test."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
import pytest

from synckit_streams.errors import StoreError
from synckit_streams.model.clock import COUNTER_MAX, HybridTime, Key, VersionVector, keys_bytes
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.model.exchange import Arrival, Place
from synckit_streams.model.seen import Seen
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.testing.store_model import StoreModel, sums

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
CLOSE_S = 20.0
TOPICS = ("orders", "stock")

Probe = Callable[[str], None]


class Media(Protocol):
    """Where stores of one kind keep what they write. A medium is named; the same name is the same medium."""

    def make(self, medium: str, *, probe: Probe | None = None, read_only: bool = False) -> EventStore:
        """A store on a medium, not yet open."""

    def copy(self, source: str, target: str) -> None:
        """What a backup tool does, at any time: the target is then what the source is. It may exist before."""

    async def kill(self, store: EventStore) -> None:
        """The store's process dies: nothing is closed, and another process may open the medium."""


class Crash(BaseException):
    """Raised from a probe."""


def draft(aggregate_id: str = "o-1", data: Any = None, *, topic: str = "orders", **more: Any) -> Draft:
    """A draft."""
    return Draft(topic, "order.changed", aggregate_id, {} if data is None else data, **more)


class Writer:
    """A peer that writes events as a store of its own would, and can be told to know less, or to lie."""

    def __init__(self, origin: str, *, topic: str = "orders", wall_ms: int = NOW_MS) -> None:
        self.origin = origin
        self.topic = topic
        self.wall_ms = wall_ms
        self.events: list[Event] = []

    def write(
        self,
        aggregate_id: str = "o-1",
        *,
        knows: Iterable[Event] = (),
        after: Iterable[Key] = (),
        wall_ms: int | None = None,
        **fields: Any,
    ) -> Event:
        """Its next event; `knows` are the events in its context."""
        prev = max((each.seq for each in self.events if each.aggregate_id == aggregate_id), default=0)
        context: dict[str, int] = {self.origin: prev}
        for each in knows:
            context[each.origin] = max(context.get(each.origin, 0), each.seq)
        seq = len(self.events) + 1
        event = Event(
            f"{self.origin}/{self.topic}/{seq}", self.topic, "order.changed", aggregate_id, b'{"by":"peer"}', b"",
            self.origin, seq, prev, VersionVector(context).to_bytes(), keys_bytes(after),
            HybridTime(wall_ms if wall_ms is not None else self.wall_ms + seq, 0).packed,
        )  # fmt: skip
        event = msgspec.structs.replace(event, **fields)
        self.events.append(event)
        return event


def variant(event: Event, number: int) -> Event:
    """Another event under the same key."""
    return msgspec.structs.replace(event, id=f"{event.id}#{number}", payload=b'{"variant":%d}' % number)


def arrivals(*events: Event, reader: str | None = None, first: int = 1) -> list[Arrival]:
    """Events as they arrive, read by `reader` from `first` on."""
    return [
        Arrival(event, event_hash(event), None if reader is None else Place(reader, first + at))
        for at, event in enumerate(events)
    ]


async def read(store: EventStore, topic: str | None = None, *, page: int = 7) -> list[Stored]:
    """The whole log, by pages."""
    found: list[Stored] = []
    after: Offset | None = None
    while batch := await store.log(topic, after=after, limit=page):
        assert len(batch) <= page
        found.extend(batch)
        after = batch[-1].offset
    return found


async def audit(store: EventStore, *, rows: int = 7) -> list[Stored]:
    """That everything the store says follows from its log; gives the log."""
    log = await read(store, page=rows)
    positions = [each.position for each in log]
    assert positions == sorted(set(positions)), "positions ascend"
    assert await store.end() == Offset(store.id, positions[-1] if positions else 0)
    keys = [each.event.key for each in log]
    assert len(keys) == len(set(keys)), "no key stands twice"
    first: set[str] = set()
    for each in log:
        assert each.log == store.id
        assert each.twin == (each.event.id in first), f"the twin mark of {each}"
        first.add(each.event.id)
    assert await store.topics() == sorted({each.event.topic for each in log})
    for topic in {*TOPICS, *(key.topic for key in keys)}:
        of_topic = [each for each in log if each.event.topic == topic]
        assert await read(store, topic, page=rows) == of_topic
        summary = await store.summary(topic)
        assert summary.seen == Seen.of(each.event.dot for each in of_topic), "Seen is what is in the log"
        assert dict(summary.sums) == sums(each.event for each in of_topic), "sums are those of the log"
        assert not [key for key in summary.held if key.topic != topic]
        for origin, intervals in summary.seen.ranges.items():
            listed = await store.events(topic, origin, (1, COUNTER_MAX), limit=1_000_000)
            assert [event.seq for event, _ in listed] == [dot.seq for dot in Seen({origin: intervals})]
            assert all(event_hash(event) == hash for event, hash in listed)
            assert sorted(event.canonical_order for event, _ in listed) == sorted(
                each.event.canonical_order for each in of_topic if each.event.origin == origin
            )
        by_aggregate: dict[str, list[Event]] = {}
        for each in of_topic:
            by_aggregate.setdefault(each.event.aggregate_id, []).append(each.event)
        ids: list[str] = []
        while page := await store.aggregates(topic, after=ids[-1] if ids else "", limit=3):
            ids.extend(page)
        assert sorted(ids) == sorted(by_aggregate)
        for aggregate_id, events in by_aggregate.items():
            assert list(await store.aggregate(topic, aggregate_id)) == events
        together = await store.aggregate_many([*((topic, each) for each in [*ids, "nobody's", *ids[:1]])])
        assert list(map(list, together)) == [by_aggregate.get(each, []) for each in [*ids, "nobody's", *ids[:1]]]
    return log


class Reader:
    """A projection: reads on from where it stands, and counts each fact that is not a twin."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._after: Offset | None = None
        self.counted: Counter[str] = Counter()

    async def read(self) -> None:
        """Whatever is new."""
        while page := await self._store.log(after=self._after, limit=2):
            self.counted.update(each.event.id for each in page if not each.twin)
            self._after = page[-1].offset


class StoreModelOf:
    """What a log says about contexts."""

    def __init__(self, log: Sequence[Stored]) -> None:
        self._log = log

    def context_before(self, event: Event) -> VersionVector:
        """The context that the last event of the log should have got."""
        model = StoreModel(TOPICS, 0)
        model.events = {each.event.key: each.event for each in self._log if each.event.key != event.key}
        return model.context(event.topic, event.aggregate_id)


async def pages(page: Callable[..., Awaitable[Sequence[Any]]], start: Any, after: Callable[[Any], Any]) -> list[Any]:
    """Everything that is given by pages, two at a time."""
    found: list[Any] = []
    while more := await page(after=after(found[-1]) if found else start, limit=2):
        assert len(more) <= 2
        found.extend(more)
    return found


def opening(node: str, *, topics: tuple[str, ...] = TOPICS, held_max: int = 10_000) -> Opening:
    """An opening with its own dice."""
    return Opening(node=node, topics=topics, held_max=held_max, dice=random.SystemRandom().randbytes)


def places(runs: Iterable[Any]) -> dict[Key, int]:
    """Runs as one place per event, the later ones over the earlier ones."""
    return {
        Key(run.topic, run.origin, run.first + at): position
        for run in runs
        for at, position in enumerate(run.positions)
    }


def uses(store: EventStore) -> list[Callable[[], Awaitable[Any]]]:
    """Every way to use a store."""

    async def transact() -> None:
        async with store.transaction():
            pass

    async def watch() -> None:
        async for _ in store.watch():
            pass

    async def origin() -> str:
        return store.origin

    return [
        lambda: store.append([draft()], now_ms=NOW_MS),
        lambda: store.log(after=None, limit=1),
        store.end,
        store.topics,
        lambda: store.aggregate("orders", "o-1"),
        lambda: store.aggregate_many([("orders", "o-1")]),
        lambda: store.aggregates("orders", after="", limit=1),
        lambda: store.summary("orders"),
        lambda: store.events("orders", "a", (1, 2), limit=1),
        lambda: store.runs("x"),
        lambda: store.runs(None),
        lambda: store.held(after=b"", limit=1),
        lambda: store.voids(after=None, limit=1),
        store.size_bytes,
        store.damage,
        lambda: store.offset("x"),
        store.offsets,
        lambda: store.applied("x", after=None, limit=1),
        lambda: store.leases(""),
        store.noted,
        lambda: store.quarantine(after=0, limit=1),
        transact,
        watch,
        origin,
    ]


async def retry(call: Callable[[], Awaitable[Any]], *, deadline_s: float = 20.0) -> Any:
    """Until it works; what it raised last when the time is up."""
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline_s
    while True:
        try:
            return await call()
        except StoreError:
            if loop.time() > until:
                raise
            await asyncio.sleep(0.005)


class Bench:
    """The fixtures of every part of the contract.

    Args:
        placeholders: Two of them, as the store's SQL writes them.
    """

    placeholders = "?, ?"

    @pytest.fixture
    def media(self, tmp_path: Any) -> Media:
        """To be overridden."""
        raise NotImplementedError("override the fixture `media`")

    @pytest.fixture
    def opened(self, media: Media) -> Callable[..., Any]:
        """`async with opened("medium") as store:` audits and closes it at the end."""

        @asynccontextmanager
        async def open_one(
            medium: str = "a",
            *,
            node: str = "",
            topics: tuple[str, ...] = TOPICS,
            held_max: int = 10_000,
            probe: Probe | None = None,
        ) -> AsyncIterator[EventStore]:
            store = media.make(medium, probe=probe)
            await store.open(opening(node or medium, topics=topics, held_max=held_max))
            try:
                yield store
                await audit(store)
            finally:
                await asyncio.wait_for(store.close(), CLOSE_S)  # one that is stuck fails, and does not hang

        return open_one
