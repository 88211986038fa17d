"""What every store must do, as tests. A new store passes when a subclass of `StoreContract` passes.

```python
class TestMyStore(StoreContract):
    @pytest.fixture
    def media(self, tmp_path):
        return MyMedia(tmp_path)
```

`Media` says how to make a store, how to copy what it has written, and how to lose it as a crash does. A store takes a
`probe`, called with "commit" just before each commit and with "committed" just after it: the contract raises from it.

Each test ends with an audit that reads the whole log and computes from it, with loops and sets, everything that the
store answers from its indexes.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from synckit_streams.errors import (
    CauseUnknown,
    IdReused,
    Invalid,
    StoreClosed,
    StoreError,
    SyncKitError,
    TooLarge,
)
from synckit_streams.model.clock import COUNTER_MAX, HybridTime, Key, VersionVector, keys_bytes
from synckit_streams.model.codec import event_hash, node_of
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.model.exchange import Arrival, Place, PlaceRun
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

    def make(self, medium: str, *, probe: Probe | None = None) -> EventStore:
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


async def audit(store: EventStore) -> list[Stored]:
    """That everything the store says follows from its log; gives the log."""
    log = await read(store)
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
        assert await read(store, topic) == of_topic
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


class StoreContract:
    """See the module's text. The tests are coroutines: run them with pytest-asyncio's `asyncio_mode = "auto"`, or mark
    the subclass with `pytest.mark.asyncio`.

    Args:
        histories: How many random histories are compared with the model.
        steps: How long each of them is.
    """

    histories = 60
    steps = 40

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

    # --- numbers, contexts and clocks --------------------------------------------------------------------------------

    async def test_numbers_have_no_gaps_per_origin_and_topic(self, opened: Any) -> None:
        """Each topic counts from 1, whatever the calls and the aggregates."""
        async with opened() as store:
            one = await store.append([draft("o-1"), draft("o-2"), draft("s-1", topic="stock")], now_ms=NOW_MS)
            two = await store.append([draft("o-1"), draft("s-1", topic="stock")], now_ms=NOW_MS)
            events = [each.event for each in (*one.appended, *two.appended)]
            assert [(event.topic, event.seq, event.prev) for event in events] == [
                ("orders", 1, 0), ("orders", 2, 0), ("stock", 1, 0), ("orders", 3, 1), ("stock", 2, 1),
            ]  # fmt: skip
            assert {event.origin for event in events} == {store.origin}
            assert node_of(store.origin) == "a"
            assert (one.fresh, two.fresh) == (3, 2)

    async def test_the_context_is_what_the_store_holds_of_the_aggregate(self, opened: Any) -> None:
        """Its own events, and a peer's; nothing of other aggregates."""
        async with opened() as store:
            peer = Writer("b@1")
            other = peer.write("o-2")
            theirs = peer.write("o-1")
            await store.append([draft()], now_ms=NOW_MS)
            await store.append(received=arrivals(other, theirs), now_ms=NOW_MS)
            result = await store.append([draft()], now_ms=NOW_MS)
            assert result.appended[0].event.context == VersionVector({store.origin: 1, "b@1": 2})
            assert result.appended[0].event.prev == 1

    async def test_a_callers_stale_context_is_kept(self, opened: Any) -> None:
        """A read-modify-write that missed a change is concurrent with it, and its `prev` is there all the same."""
        async with opened() as store:
            mine = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            read_then = VersionVector({mine.origin: 1})
            theirs = Writer("b@1", wall_ms=NOW_MS + HOUR_MS).write(knows=[mine])
            await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            edit, blind = (
                each.event
                for each in (
                    await store.append([draft(context=read_then), draft(context=VersionVector())], now_ms=NOW_MS + 1)
                ).appended
            )
            assert edit.context == read_then
            assert not edit.context.covers(theirs.dot)
            assert (edit.prev, blind.prev) == (1, edit.seq)
            assert edit.at == HybridTime(NOW_MS + 1, 1), "an event that is not in the context does not move the clock"
            assert blind.context == VersionVector()

    async def test_hybrid_time_is_the_greatest_of_wall_own_and_causes_plus_one(self, opened: Any) -> None:
        """max(wall, own last, greatest in context and after) + 1, each term once the greatest."""
        async with opened() as store:

            async def write(aggregate_id: str, now_ms: int, **more: Any) -> HybridTime:
                at = (await store.append([draft(aggregate_id, **more)], now_ms=now_ms)).appended[0].event.at
                assert isinstance(at, HybridTime)
                return at

            assert await write("o-1", NOW_MS) == HybridTime(NOW_MS, 1)
            assert await write("o-2", NOW_MS - 5) == HybridTime(NOW_MS, 2)
            ahead, cause = Writer("b@1", wall_ms=NOW_MS + HOUR_MS), Writer("c@1", topic="stock", wall_ms=NOW_MS + 500)
            await store.append(received=arrivals(ahead.write("o-3"), cause.write("s-1")), now_ms=NOW_MS)
            assert await write("o-1", NOW_MS) == HybridTime(NOW_MS, 3), "a received clock moves nothing else"
            assert await write("o-1", NOW_MS, after=(cause.events[0].key,)) == HybridTime(NOW_MS + 501, 1)
            assert await write("o-3", NOW_MS) == HybridTime(NOW_MS + HOUR_MS + 1, 1)
            assert await write("o-9", NOW_MS) == HybridTime(NOW_MS + HOUR_MS + 1, 2)
            (stored,) = (each for each in await read(store) if each.event == ahead.events[0])
            assert stored.event.at.wall_ms == NOW_MS + HOUR_MS + 1

    async def test_own_time_ascends_over_a_restart_with_the_clock_put_back(self, opened: Any) -> None:
        """The own last time is on the disk."""
        async with opened() as store:
            before = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        async with opened() as store:
            after = (await store.append([draft("o-2")], now_ms=NOW_MS - HOUR_MS)).appended[0].event
            assert after.at == HybridTime(before.at.wall_ms, before.at.counter + 1)

    async def test_a_clock_at_its_very_end_stops_nobody(self, opened: Any) -> None:
        """An event from the end of time is stored, and its aggregate and all others go on being written."""
        async with opened() as store:
            last = Writer("b@1").write(at_packed=COUNTER_MAX)
            await store.append(received=arrivals(last), now_ms=NOW_MS)
            result = await store.append([draft(), draft(), draft("o-2")], now_ms=NOW_MS)
            assert [each.event.at_packed for each in result.appended] == [COUNTER_MAX] * 3

    # --- ids ---------------------------------------------------------------------------------------------------------

    async def test_an_id_makes_an_append_idempotent(self, opened: Any) -> None:
        """In one call, in a later one, after a restart: one event, and the caller gets it each time."""
        async with opened() as store:
            one = await store.append([draft(id="x"), draft("o-2"), draft(id="x")], now_ms=NOW_MS)
            assert one.appended[0] == one.appended[2]
            assert (len(one.appended), one.fresh) == (3, 2)
            two = await store.append([draft(id="x")], now_ms=NOW_MS + 1)
            assert (two.appended[0], two.fresh) == (one.appended[0], 0)
        async with opened() as store:
            three = await store.append([draft(id="x"), draft(id="y")], now_ms=NOW_MS)
            assert (three.appended[0], three.fresh) == (one.appended[0], 1)
            assert len(await read(store)) == 3

    async def test_drawn_ids_are_different_and_ascend(self, opened: Any) -> None:
        """UUIDv7, also for thousands within one millisecond."""
        async with opened() as store:
            result = await store.append([draft() for _ in range(5_000)], now_ms=NOW_MS)
            ids = [each.event.id for each in result.appended]
            assert ids == sorted(set(ids))
            assert all(id[14] == "7" and id[19] in "89ab" and len(id) == 36 for id in ids)

    async def test_an_id_with_other_content_is_an_error_of_its_caller_alone(self, opened: Any) -> None:
        """Three callers of one group commit: the one in the middle raises, and nothing of it is written."""
        async with opened() as store:
            await store.append([draft(data=1, id="x")], now_ms=NOW_MS)
            results = await asyncio.gather(
                store.append([draft(data=2)], now_ms=NOW_MS),
                store.append([draft(data=3), draft(data=4, id="x")], now_ms=NOW_MS),
                store.append([draft(data=5)], now_ms=NOW_MS),
                store.append([draft(data=6, id="z"), draft(data=7, id="z")], now_ms=NOW_MS),
                return_exceptions=True,
            )
            assert [type(each).__name__ for each in results] == [
                "AppendResult", "IdReused", "AppendResult", "IdReused",
            ]  # fmt: skip
            assert [each.event.data for each in await read(store)] == [1, 2, 5]

    @pytest.mark.parametrize(
        ("wrong", "error"),
        [
            (draft(""), Invalid),
            (draft("a\0b"), Invalid),
            (draft("\ud800"), Invalid),
            (draft("x" * 10_001), TooLarge),
            (draft(topic=""), Invalid),
            (draft(topic="t" * 101), TooLarge),
            (draft(topic="\udfff"), Invalid),
            (draft(id="\ud800"), Invalid),
            (draft(id=""), Invalid),
            (draft(data=float("nan")), Invalid),
            (draft(data={"x": "\ud800"}), Invalid),
            (draft(data="x" * 1_000_001), TooLarge),
            (draft(data=object()), Invalid),
            (draft(metadata={"x": "y" * 20_000}), TooLarge),
            (draft(schema_version=-1), Invalid),
            (draft(schema_version=True), Invalid),
            (draft(after=(Key("orders", "nobody@1", 1),)), CauseUnknown),
            (draft(context=VersionVector({"nobody@1": 1})), CauseUnknown),
            (draft(context=VersionVector({f"{n:0100}@1": 1 for n in range(200)})), TooLarge),
            (draft(context={"b@1": 1}), Invalid),
            (draft(after=("x",)), Invalid),
            (draft(topic=["orders"]), SyncKitError),  # type: ignore[arg-type]
            ("not a draft", Invalid),
        ],
        ids=range(23),
    )
    async def test_a_wrong_draft_is_an_error_of_its_caller_alone(
        self, opened: Any, wrong: Any, error: type[SyncKitError]
    ) -> None:
        """A clear error, nothing written, and callers of the same group commit do not notice."""
        async with opened() as store:
            results: Any = await asyncio.gather(
                store.append([draft(data=1)], now_ms=NOW_MS),
                store.append([draft(data=2), wrong], now_ms=NOW_MS),
                store.append([draft(data=3)], now_ms=NOW_MS),
                return_exceptions=True,
            )
            before, failed, after = results
            assert isinstance(failed, error)
            assert (before.fresh, after.fresh) == (1, 1)
            assert [each.event.data for each in await read(store)] == [1, 3]

    async def test_a_model_that_raises_is_an_error_of_its_caller_alone(self, opened: Any) -> None:
        """Whatever the user's own code throws while its data is written down."""

        class Model:
            def model_dump(self, **how: Any) -> Any:
                raise ZeroDivisionError("in the user's code")

        async with opened() as store:
            results: Any = await asyncio.gather(
                store.append([draft()], now_ms=NOW_MS),
                store.append([draft(data=Model())], now_ms=NOW_MS),
                return_exceptions=True,
            )
            good, bad = results
            assert good.fresh == 1
            assert isinstance(bad, ZeroDivisionError | Invalid)

    @pytest.mark.parametrize(
        "aggregate_id", ["é", "x" * 10_000, "😀" * 10_000, "a b\tc\n", "%23?#", "\u202e", "\ufffe", "'; --"]
    )
    async def test_any_text_is_an_aggregate_id(self, opened: Any, aggregate_id: str) -> None:
        """All of Unicode but NUL and lone surrogates, up to 10,000 characters; and none is taken for another."""
        async with opened() as store:
            await store.append([draft(aggregate_id, 1), draft(aggregate_id[:-1] + "_", 2)], now_ms=NOW_MS)
            assert [event.data for event in await store.aggregate("orders", aggregate_id)] == [1]
        async with opened() as store:
            result = await store.append([draft(aggregate_id)], now_ms=NOW_MS)
            assert result.appended[0].event.prev == 1

    @pytest.mark.parametrize("payload", [b"", b"\0\xff", b"{", b"1e3", b"\xed\xa0\x80", b"x" * 1_000_000], ids=range(6))
    async def test_any_bytes_are_a_payload(self, opened: Any, payload: bytes) -> None:
        """Kept byte for byte, whether or not they are JSON; also as a peer sent them."""
        async with opened() as store:
            await store.append([draft(data=payload)], now_ms=NOW_MS)
            await store.append(received=arrivals(Writer("b@1").write(payload=payload)), now_ms=NOW_MS)
            assert [each.event.payload for each in await read(store)] == [payload, payload]

    async def test_an_enumerations_member_is_its_text(self, opened: Any) -> None:
        """A `str` of another class is stored and hashed as a `str`."""

        class Kind(str):
            __slots__ = ()

        async with opened() as store:
            result = await store.append([Draft(Kind("orders"), Kind("x"), Kind("o-1"), id=Kind("i"))], now_ms=NOW_MS)
            event = result.appended[0].event
            assert {type(text) for text in (event.topic, event.type, event.aggregate_id, event.id)} == {str}

    # --- twins -------------------------------------------------------------------------------------------------------

    async def test_twins_are_both_kept_and_the_later_one_is_marked(self, opened: Any) -> None:
        """One fact, written on two nodes while offline: no gap anywhere, counted once, and no alarm."""
        async with opened() as store:
            mine = (await store.append([draft(data=b'{"by":"peer"}', id="x")], now_ms=NOW_MS)).appended[0]
            theirs = Writer("b@1").write(id="x")
            result = await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            assert (result.stored[0].twin, result.twins) == (True, ())
            again = await store.append([draft(data=b'{"by":"peer"}', id="x")], now_ms=NOW_MS)
            assert again.appended[0] == mine
            reader = Reader(store)
            await reader.read()
            assert reader.counted == {"x": 1}

    async def test_twins_in_one_batch_and_with_other_content_raise_an_alarm(self, opened: Any) -> None:
        """The first in the log is the fact; whoever said something else under its id is named."""
        async with opened() as store:
            one, two = Writer("b@1").write(id="x"), Writer("c@1").write(id="x", payload=b"2")
            result = await store.append(received=arrivals(one, two), now_ms=NOW_MS)
            assert [each.twin for each in result.stored] == [False, True]
            assert result.twins == ((two.key, "x"),)
            with pytest.raises(IdReused):
                await store.append([draft(data=2, id="x")], now_ms=NOW_MS)

    # --- received ----------------------------------------------------------------------------------------------------

    async def test_what_is_here_already_is_a_duplicate(self, opened: Any) -> None:
        """In one batch, in a later one, after a restart; also the echo of one's own."""
        async with opened() as store:
            events = [(peer := Writer("b@1")).write(), peer.write()]
            mine = (await store.append([draft("o-9")], now_ms=NOW_MS)).appended[0].event
            one = await store.append(received=arrivals(events[0], *events, mine), now_ms=NOW_MS)
            assert (len(one.stored), one.duplicates) == (2, 2)
            assert one.reused == ()
            two = await store.append(received=arrivals(*events), now_ms=NOW_MS)
            assert (len(two.stored), two.duplicates) == (0, 2)
        async with opened() as store:
            three = await store.append(received=arrivals(*events, mine), now_ms=NOW_MS)
            assert (len(three.stored), three.duplicates) == (0, 3)
            assert len(await read(store)) == 3

    async def test_unreadable_arrivals_are_set_aside(self, opened: Any) -> None:
        """Their neighbours are stored, the reader moves on, the bytes are kept, and the key is not refused."""
        async with opened() as store:
            peer = Writer("b@1")
            first, second = peer.write("o-1"), peer.write("o-2")
            bad = Arrival(None, b"", Place("link", 7), b"\xff\0raw", "cut off")
            torn = Arrival(second, event_hash(second), Place("link", 8), b"raw2", "does not match its hash")
            result = await store.append(
                received=[bad, *arrivals(first), torn], offsets={"link": Offset("log", 8)}, now_ms=NOW_MS
            )
            assert result.quarantined == ("cut off", "does not match its hash")
            assert [each.event for each in result.stored] == [first]
            assert await store.offset("link") == Offset("log", 8)
            one = await store.quarantine(after=0, limit=1)
            two = await store.quarantine(after=one[-1].position, limit=10)
            assert [(each.reason, each.reader, each.place, each.raw) for each in (*one, *two)] == [
                ("cut off", "link", 7, b"\xff\0raw"), ("does not match its hash", "link", 8, b"raw2"),
            ]  # fmt: skip
            summary = await store.summary("orders")
            assert (len(summary.seen), summary.refused) == (1, {})
            healed = await store.append(received=arrivals(second), now_ms=NOW_MS)
            assert [each.event for each in healed.stored] == [second]

    @pytest.mark.parametrize(
        "fields",
        [
            {"aggregate_id": ""},
            {"aggregate_id": "x" * 10_001},
            {"aggregate_id": "a\0b"},
            {"type": ""},
            {"payload": b"x" * 1_000_001},
            {"metadata_json": b"{" + b" " * 20_000 + b"}"},
            {"metadata_json": b"[1"},
            {"context_bytes": b"\xff"},
            {"context_bytes": VersionVector({"b@1": 1}).to_bytes()},
            {"context_bytes": VersionVector({"b@1": 1, "c@1": 1}).to_bytes()},
            {"after_bytes": b"\xff"},
            {"schema_version": 2**31},
            {"prev": 1},
            {"traceparent": "x" * 1000},
        ],
        ids=range(14),
    )
    async def test_what_must_not_be_stored_is_refused_for_good(self, opened: Any, fields: dict[str, Any]) -> None:
        """Intact, but beyond a limit: never an error, its neighbours are stored, and its key is told to the peers."""
        bad = msgspec.structs.replace(Writer("b@1").write("o-1"), **fields)
        good = Writer("c@1").write("o-2")
        async with opened() as store:
            result = await store.append(received=arrivals(bad, good, bad), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [good]
            assert len(result.quarantined) == 2
            assert set(result.summaries["orders"].refused) == {bad.key}
            assert len(await store.quarantine(after=0, limit=10)) == 1
        async with opened() as store:
            await store.append(received=arrivals(bad), now_ms=NOW_MS)
            assert set((await store.summary("orders")).refused) == {bad.key}
            assert len(await store.quarantine(after=0, limit=10)) == 1
            # The key comes with a content that may be stored: it is no longer refused.
            await store.append(received=arrivals(Writer("b@1").write("o-1")), now_ms=NOW_MS)
            assert (await store.summary("orders")).refused == {}
        async with opened() as store:
            assert (await store.summary("orders")).refused == {}

    # --- held --------------------------------------------------------------------------------------------------------

    async def test_an_event_waits_for_its_prev_and_for_every_event_in_its_context(self, opened: Any) -> None:
        """It is not in the log, not in `Seen` and not in the sums, until the last cause is; then all come in order."""
        a, b = Writer("b@1"), Writer("c@1")
        first = a.write()
        second = b.write(knows=[first])
        third = a.write(knows=[second])
        async with opened() as store:
            early = await store.append(received=arrivals(third, second), now_ms=NOW_MS)
            assert (early.stored, set(early.held)) == ((), {second.key, third.key})
            summary = early.summaries["orders"]
            assert (set(summary.held), set(summary.wanted)) == ({second.key, third.key}, {first.key})
            assert not summary.seen
            result = await store.append(received=arrivals(first), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [first, second, third]
            assert result.released == 2
            assert result.summaries["orders"].held == result.summaries["orders"].wanted == ()

    async def test_prev_alone_is_waited_for(self, opened: Any) -> None:
        """A writer whose caller gave an empty context still has a `prev`."""
        peer = Writer("b@1")
        first = peer.write(context_bytes=b"")
        second = peer.write(context_bytes=b"")
        async with opened() as store:
            assert (await store.append(received=arrivals(second), now_ms=NOW_MS)).held == (second.key,)
            assert (await store.append(received=arrivals(first), now_ms=NOW_MS)).released == 1

    async def test_other_aggregates_do_not_wait(self, opened: Any) -> None:
        """A gap in an origin's numbers holds back only what it caused."""
        peer = Writer("b@1")
        first, second, third = peer.write("o-1"), peer.write("o-2"), peer.write("o-1")
        async with opened() as store:
            result = await store.append(received=arrivals(second, third), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [second]
            assert result.held == (third.key,)
            assert (await store.append(received=arrivals(first), now_ms=NOW_MS)).released == 1

    async def test_after_is_waited_for_in_replicated_topics_only(self, opened: Any) -> None:
        """What this node will never receive delays nothing; and it never enters the context."""
        cause = Writer("c@1", topic="stock").write("s-1")
        event = Writer("b@1").write(after=[cause.key])
        async with opened("a", topics=("orders", "stock")) as store:
            assert (await store.append(received=arrivals(event), now_ms=NOW_MS)).held == (event.key,)
            result = await store.append(received=arrivals(cause), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [cause, event]
            mine = await store.append([draft("o-1")], now_ms=NOW_MS)
            assert "c@1" not in mine.appended[0].event.context
        async with opened("b", topics=("orders",)) as store:
            assert [each.event for each in (await store.append(received=arrivals(event), now_ms=NOW_MS)).stored] == [
                event
            ]

    async def test_held_events_survive_and_a_topic_given_up_releases_them(self, opened: Any) -> None:
        """They are on the disk with the offset that acknowledged them; nothing waits for what nobody asks for."""
        cause = Writer("c@1", topic="stock").write("s-1")
        first = (peer := Writer("b@1")).write("o-1")
        waits_for_first, waits_for_cause = peer.write("o-1"), peer.write("o-2", after=[cause.key])
        async with opened() as store:
            await store.append(
                received=arrivals(waits_for_first, waits_for_cause), offsets={"link": Offset("log", 2)}, now_ms=NOW_MS
            )
        async with opened() as store:
            assert set((await store.summary("orders")).held) == {waits_for_first.key, waits_for_cause.key}
            again = await store.append(received=arrivals(waits_for_first), now_ms=NOW_MS)
            assert again.duplicates == 1
            result = await store.append(received=arrivals(first), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [first, waits_for_first]
        async with opened(topics=("orders",)) as store:
            assert [each.event for each in await read(store)] == [first, waits_for_first, waits_for_cause]
            assert (await store.summary("orders")).held == ()

    async def test_too_many_held_events_drop_the_newest(self, opened: Any) -> None:
        """`Seen` lacks the dropped one, so it comes back, and then all of them are here."""
        peer = Writer("b@1")
        events = [peer.write() for _ in range(5)]
        async with opened(held_max=3) as store:
            early = await store.append(received=arrivals(*events[1:]), now_ms=NOW_MS)
            assert (early.held, early.dropped) == (tuple(each.key for each in events[1:4]), (events[4].key,))
            result = await store.append(received=arrivals(events[0]), now_ms=NOW_MS)
            assert [each.event for each in result.stored] == events[:4]
            assert (await store.append(received=arrivals(events[4]), now_ms=NOW_MS)).stored[0].event == events[4]

    async def test_a_void_releases_and_a_late_original_is_still_taken(self, opened: Any) -> None:
        """A key that nobody holds does not hold its successors for ever; it does not enter `Seen` either."""
        peer = Writer("b@1")
        lost, second, third = peer.write(), peer.write(), peer.write()
        async with opened() as store:
            await store.append(received=arrivals(third, second), now_ms=NOW_MS)
            result = await store.append(voids=[lost.key], now_ms=NOW_MS)
            assert [each.event for each in result.stored] == [second, third]
            assert result.summaries["orders"].voids == {lost.key}
            mine = await store.append([draft(context=VersionVector({"b@1": 3}))], now_ms=NOW_MS)
            assert mine.fresh == 1
        async with opened() as store:
            summary = await store.summary("orders")
            assert (lost.dot in summary.seen, summary.voids) == (False, {lost.key})
            # A caller may have the void one in the context that it read.
            await store.append([draft(context=VersionVector({"b@1": 1}))], now_ms=NOW_MS)
            assert (await store.append(received=arrivals(lost), now_ms=NOW_MS)).stored[0].event == lost

    async def test_a_local_event_releases_what_waits_for_it(self, opened: Any) -> None:
        """Every append releases what it satisfies, in the same transaction: also one that only moves an offset."""
        async with opened() as store:
            mine = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            guess = msgspec.structs.replace(mine, seq=2, prev=1)
            reply = Writer("b@1").write("o-2", after=[guess.key])
            held = await store.append(received=arrivals(reply), now_ms=NOW_MS)
            assert held.held == (reply.key,)
            # It names an event of ours that we never wrote, so there is a copy of this store: we number anew.
            fresh = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            assert fresh.origin != mine.origin
            assert (await store.append(received=arrivals(guess), now_ms=NOW_MS)).released == 1

    # --- one key, two events -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
    @pytest.mark.parametrize("batches", ["one by one", "one batch", "one group"])
    async def test_replicas_agree_on_a_reused_key_in_whatever_order_it_came(
        self, opened: Any, order: Sequence[int], batches: str
    ) -> None:
        """The least hash keeps the key, each other one is issued again, and a reader counts each fact just once."""
        first = Writer("x@1").write()
        variants = [variant(first, number) for number in range(3)]
        rest = sorted(variants, key=event_hash)[1:]
        expected = {
            min(variants, key=event_hash),
            *(
                msgspec.structs.replace(each, origin=f"x@1~{event_hash(each).hex()[:8]}", seq=1, prev=0)
                for each in rest
            ),
        }
        async with opened() as store:
            reader = Reader(store)
            events = [variants[at] for at in order]
            if batches == "one batch":
                result = await store.append(received=arrivals(*events), now_ms=NOW_MS)
                assert {each.event for each in result.stored} == expected
                assert {each.reissued.key for each in result.reused} == {
                    key for each in expected if "~" in (key := each.key).origin
                }
            elif batches == "one group":
                await asyncio.gather(*(store.append(received=arrivals(each), now_ms=NOW_MS) for each in events))
            else:
                for event in events:
                    result = await store.append(received=arrivals(event), now_ms=NOW_MS)
                    assert len(result.reused) == (event is not events[0])
                    await reader.read()
            again = await store.append(received=arrivals(*variants, *expected), now_ms=NOW_MS)
            assert (again.stored, again.reused, again.duplicates) == ((), (), 6)
            assert {each.event for each in await audit(store)} == expected
            await reader.read()
            assert reader.counted == {each.id: 1 for each in variants}

    @pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
    async def test_an_event_that_was_issued_again_elsewhere_is_the_same_one(
        self, opened: Any, order: Sequence[int]
    ) -> None:
        """Variants and the others' re-issues, in every order: one set of events, each fact counted just once."""
        one, two = sorted((variant(Writer("x@1").write(), number) for number in range(2)), key=event_hash)
        again = msgspec.structs.replace(two, origin=f"x@1~{event_hash(two).hex()[:8]}", seq=1, prev=0)
        reply = Writer("y@1").write("o-2", after=[again.key])
        events = [(one, two, again, reply)[at] for at in order]
        async with opened() as store:
            reader = Reader(store)
            for event in events:
                await store.append(received=arrivals(event), now_ms=NOW_MS)
                await reader.read()
            assert {each.event for each in await audit(store)} == {one, again, reply}
            assert reader.counted == {one.id: 1, two.id: 1, reply.id: 1}

    async def test_two_events_that_would_be_issued_again_under_one_key_are_both_kept(self, opened: Any) -> None:
        """Eight digits of a hash can be equal; then the rule is applied once more."""
        first = Writer("x@1").write()
        found: dict[str, Event] = {}
        pair: list[Event] = []
        for number in itertools.count():
            event = variant(first, number)
            digits = event_hash(event).hex()[:8]
            if digits in found:
                pair = [found[digits], event]
                break
            found[digits] = event
        least = min(found.values(), key=event_hash)
        sets = []
        for medium, events in enumerate(itertools.permutations([least, *pair])):
            async with opened(str(medium)) as store:
                for each in events:
                    await store.append(received=arrivals(each), now_ms=NOW_MS)
                sets.append({each.event for each in await audit(store)})
                assert {each.id for each in sets[-1]} == {each.id for each in events}
        assert all(each == sets[0] for each in sets)

    async def test_a_variant_waits_for_its_causes_and_two_variants_are_held(self, opened: Any) -> None:
        """A key that was used twice is no reason to deliver an event before its cause, or to lose one that waits."""
        cause = Writer("c@1").write()
        base = Writer("x@1").write(knows=[cause])
        early, late = variant(base, 1), variant(base, 2)
        free = msgspec.structs.replace(base, id="free", context_bytes=b"")
        async with opened() as store:
            assert len((await store.append(received=arrivals(early, late), now_ms=NOW_MS)).held) == 2
            assert [each.event for each in (await store.append(received=arrivals(free), now_ms=NOW_MS)).stored] == [
                free
            ]
            assert (await store.append(received=arrivals(early, late), now_ms=NOW_MS)).duplicates == 2
        async with opened() as store:
            result = await store.append(received=arrivals(cause), now_ms=NOW_MS)
            assert (result.released, len(result.reused)) == (2, 2)
            assert {each.event.id for each in await read(store)} == {cause.id, early.id, late.id, "free"}

    @pytest.mark.parametrize("wins", [True, False])
    async def test_the_echo_of_ones_own_with_other_content_ends_the_incarnation(self, opened: Any, wins: bool) -> None:
        """Somebody writes under our origin: both events are kept, and from now on we write under a new one."""
        async with opened() as store:
            mine = (await store.append([draft(data=1), draft(data=2)], now_ms=NOW_MS)).appended[0].event
            theirs = next(
                each
                for number in itertools.count()
                if (event_hash(each := variant(mine, number)) < event_hash(mine)) == wins
            )
            result = await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            assert len(result.reused) == 1
            fresh = (await store.append([draft(data=3)], now_ms=NOW_MS)).appended[0].event
            assert fresh.origin not in (mine.origin, "")
            assert fresh.seq == 1
            assert node_of(fresh.origin) == "a"
            assert fresh.context == StoreModelOf(await read(store)).context_before(fresh)
            assert len(await read(store)) == 4

    async def test_an_unknown_event_under_our_origin_ends_the_incarnation(self, opened: Any) -> None:
        """A copy of this store has written on: our next number would be its key."""
        async with opened() as store:
            mine = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            theirs = msgspec.structs.replace(mine, id="theirs", seq=2, prev=1)
            await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            fresh = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            assert (fresh.origin != mine.origin, fresh.seq) == (True, 1)

    async def test_drafts_of_the_same_group_as_a_reuse_are_numbered_right(self, opened: Any) -> None:
        """Before it, after it, on the same aggregate: `prev` and context are those of the log."""
        async with opened() as store:
            theirs = Writer("x@1").write()
            await store.append(received=arrivals(theirs), now_ms=NOW_MS)
            await asyncio.gather(
                *(store.append([draft(), draft("o-2")], now_ms=NOW_MS) for _ in range(3)),
                store.append(received=arrivals(variant(theirs, 1), variant(theirs, 2)), now_ms=NOW_MS),
                *(store.append([draft(), draft("o-2")], now_ms=NOW_MS) for _ in range(3)),
            )
            log = [each.event for each in await audit(store)]
            for aggregate_id in ("o-1", "o-2"):
                mine = [each for each in log if each.origin == store.origin and each.aggregate_id == aggregate_id]
                assert [each.prev for each in mine] == [0, *(each.seq for each in mine[:-1])]
                assert all(each.context.get(store.origin, 0) == each.prev for each in mine)

    # --- offsets, places and quarantine ------------------------------------------------------------------------------

    async def test_offsets_and_places_move_with_the_events(self, opened: Any) -> None:
        """Where a reader stands, and where it read which event; a reader that was put back forgets its places."""
        peer = Writer("b@1")
        events = [peer.write(f"o-{n}") for n in range(4)]
        async with opened() as store:
            assert await store.offset("link") is None
            await store.append(
                received=arrivals(*events[:3], reader="link", first=10),
                offsets={"link": Offset("log", 12, b"\0print")},
                now_ms=NOW_MS,
            )
            await store.append(received=arrivals(*events[1:], reader="other"), now_ms=NOW_MS)
        async with opened() as store:
            assert await store.offset("link") == Offset("log", 12, b"\0print")
            assert await store.offsets() == {"link": Offset("log", 12, b"\0print")}
            assert places(await store.runs("link")) == {events[n].key: 10 + n for n in range(3)}
            assert places(await store.runs("other")) == {events[n].key: n for n in range(1, 4)}
            await asyncio.gather(
                store.append(received=arrivals(events[0], reader="link", first=5), now_ms=NOW_MS),
                store.append(
                    received=arrivals(events[3], reader="link", first=99),
                    offsets={"link": Offset("another log", 99)},
                    forget=["link"],
                    now_ms=NOW_MS,
                ),
            )
            assert places(await store.runs("link")) == {events[3].key: 99}
            assert places(await store.runs("other")) != {}
            assert (await store.offsets())["link"].log == "another log"

    @pytest.mark.parametrize(
        "positions", [[5], [1, 2, 3, 4, 5], [7, 7, 7, 7], [1, 5, 9, 13], [1, 2, 9, 1], [2**53] * 2]
    )
    async def test_places_are_kept_exactly(self, opened: Any, positions: list[int]) -> None:
        """Even runs are packed, uneven ones are not; of a number that was read twice the later place counts."""
        peer = Writer("b@1")
        events = [peer.write(f"o-{n}") for n in range(len(positions))]
        received = [Arrival(each, event_hash(each), Place("r", at)) for each, at in zip(events, positions, strict=True)]
        async with opened() as store:
            result = await store.append(received=[*received, received[0]], now_ms=NOW_MS)
            expected = {each.key: at for each, at in zip(events, positions, strict=True)}
            assert places(result.runs) == places(await store.runs("r")) == expected

    async def test_an_echo_is_a_duplicate_that_nobody_looks_at(self, opened: Any) -> None:
        """Where own events were read is kept like any other place; nothing else changes."""
        async with opened() as store:
            own = (await store.append([draft("o-1"), draft("o-2"), draft("o-3")], now_ms=NOW_MS)).appended
            origin = own[0].event.origin
            before = await store.summary("orders")
            runs = [
                PlaceRun("r", "orders", origin, 1, [7, 7]),
                PlaceRun("r", "orders", origin, 3, range(8, 9)),
            ]
            result = await store.append(echoes=runs, offsets={"r": Offset("log", 8)}, now_ms=NOW_MS)
            assert (result.duplicates, result.stored) == (3, ())
            assert result.summaries == {"orders": before}
            expected = {own[0].event.key: 7, own[1].event.key: 7, own[2].event.key: 8}
            assert places(result.runs) == places(await store.runs("r")) == expected
            # Read once more: the later place counts, whichever way it came.
            again = [Arrival(own[0].event, event_hash(own[0].event), Place("r", 9))]
            await store.append(received=again, echoes=[PlaceRun("r", "orders", origin, 1, [8])], now_ms=NOW_MS)
            assert places(await store.runs("r")) == {**expected, own[0].event.key: 9}
        async with opened() as store:
            assert places(await store.runs("r")) == {**expected, own[0].event.key: 9}
            assert await store.offset("r") == Offset("log", 8)

    @pytest.mark.parametrize("step", ["commit", "committed"])
    async def test_a_failed_commit_leaves_nothing_half(self, opened: Any, step: str) -> None:
        """Events, offsets, held ones, quarantine: all or nothing; and what comes next is numbered as the disk says."""
        fail = False

        def probe(at: str) -> None:
            if fail and at == step:
                raise OSError("the disk says no")

        peer = Writer("b@1")
        first, second, third = peer.write(), peer.write(), peer.write()
        async with opened(probe=probe) as store:
            before = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
            fail = True
            with pytest.raises((OSError, StoreError)):
                await store.append(
                    [draft(), draft(id="x")],
                    [*arrivals(third, first, reader="link"), Arrival(None, b"", None, b"raw", "bad")],
                    offsets={"link": Offset("log", 2)},
                    voids=[Key("orders", "gone@1", 1)],
                    now_ms=NOW_MS,
                )
            fail = False
            whole = step == "committed"
            log = await audit(store)
            assert len(log) == (4 if whole else 1)
            assert (await store.offset("link") is not None) == whole
            assert (len(await store.quarantine(after=0, limit=9)), len(await store.runs("link"))) == (
                (1, 2) if whole else (0, 0)
            )
            summary = await store.summary("orders")
            assert (bool(summary.held), bool(summary.voids)) == (whole, whole)
            result = await store.append([draft(id="x"), draft()], arrivals(first, second, third), now_ms=NOW_MS)
            assert result.appended[-1].event.origin == before.origin
            assert len(await read(store)) == 6 + whole
        async with opened() as store:
            assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin != before.origin

    async def test_a_commit_that_fails_before_the_first_write_draws_again(self, opened: Any) -> None:
        """An origin that was drawn for a transaction that failed is on no disk, so nothing is numbered under it."""
        fail = True

        def probe(at: str) -> None:
            if fail and at == "commit":
                raise OSError("the disk says no")

        store_context = opened(probe=probe)
        fail = False
        async with store_context as store:
            fail = True
            with pytest.raises((OSError, StoreError)):
                await store.append([draft()], now_ms=NOW_MS)
            fail = False
            await asyncio.gather(*(store.append([draft()], now_ms=NOW_MS) for _ in range(5)))
            assert {each.event.origin for each in await read(store)} == {store.origin}

    # --- the log -----------------------------------------------------------------------------------------------------

    async def test_pages_of_the_log_are_in_commit_order(self, opened: Any) -> None:
        """By topic and in all, from anywhere; an offset of another log is refused."""
        async with opened() as store:
            for number in range(30):
                await store.append(
                    [draft(f"o-{number % 4}", number, topic=TOPICS[number % 3 == 0])], now_ms=NOW_MS + number
                )
            log = await read(store, page=4)
            assert [each.event.data for each in log] == list(range(30))
            assert [each.event.data for each in await read(store, "stock", page=4)] == list(range(0, 30, 3))
            assert await store.log("nothing", after=None, limit=5) == []
            assert [each.event.data for each in await store.log(after=log[9].offset, limit=2)] == [10, 11]
            with pytest.raises(Invalid):
                await store.log(after=Offset("another", 1), limit=5)
            listed = await store.events("stock", store.origin, (3, 8), limit=4)
            assert [event.seq for event, _ in listed] == [3, 4, 5, 6]
            assert await store.events("stock", "nobody", (1, 9), limit=4) == []
            assert await store.aggregate("orders", "nothing") == []

    async def test_a_reader_beside_writers_misses_nothing(self, opened: Any) -> None:
        """Whatever it has passed was all that there ever will be before its place."""
        async with opened() as store:

            async def write(number: int) -> None:
                for _ in range(20):
                    await store.append([draft(f"o-{number}"), draft("o-0", topic="stock")], now_ms=NOW_MS)

            seen: list[Stored] = []
            writers = asyncio.gather(*(write(number) for number in range(8)))
            finished = False
            while True:
                page = await store.log(after=seen[-1].offset if seen else None, limit=10)
                seen.extend(page)
                if finished and not page:
                    break
                finished = writers.done()
                if not page:
                    await asyncio.sleep(0)
            await writers
            assert [each.position for each in seen] == list(range(1, 321))
            assert seen == await read(store)

    async def test_a_watcher_is_woken(self, opened: Any) -> None:
        """Once for what came since it looked, and its loop ends when the store closes."""
        async with opened() as store:
            wakes = 0
            grown = asyncio.Event()

            async def watch() -> None:
                nonlocal wakes
                async for _ in store.watch():
                    wakes += 1
                    grown.set()

            watching = asyncio.create_task(watch())
            while not wakes:  # it listens from its first step on
                await store.append([draft()], now_ms=NOW_MS)
                with suppress(TimeoutError):
                    await asyncio.wait_for(grown.wait(), 0.05)
            await store.close()
            await asyncio.wait_for(watching, 10)
            await store.open(opening("a"))

    # --- a transaction of one's own ----------------------------------------------------------------------------------

    async def test_an_effect_and_its_offset_commit_together(self, opened: Any, media: Media) -> None:
        """Both, when the block ends; neither, when it raises."""
        async with opened() as store:
            if not store.features.sql:
                pytest.skip("this store declares that it has no SQL")
            async with store.transaction() as tx:
                await tx.execute("CREATE TABLE totals (name TEXT PRIMARY KEY, total INTEGER)")
                await tx.execute_many("INSERT INTO totals VALUES (?, ?)", [("a", 1), ("b", 2)])
                await tx.set_offset("totals", Offset(store.id, 5))
                assert await tx.offset("totals") == Offset(store.id, 5)

            async def fail() -> None:
                async with store.transaction() as tx:
                    await tx.execute("UPDATE totals SET total = 99")
                    await tx.set_offset("totals", Offset(store.id, 6))
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await fail()
            assert await store.offset("totals") == Offset(store.id, 5)
            async with store.transaction() as tx:
                assert await tx.execute("SELECT * FROM totals ORDER BY name") == [("a", 1), ("b", 2)]
                assert await tx.offset("totals") == Offset(store.id, 5)
                assert await tx.offset("nobody") is None
            with pytest.raises(StoreError):
                await tx.execute("SELECT 1")

            async def end_it() -> None:
                async with store.transaction() as tx:
                    await tx.execute("ROLLBACK")
                    await tx.execute("UPDATE totals SET total = 99")

            with pytest.raises(StoreError):
                await end_it()
            async with store.transaction() as tx:
                assert await tx.execute("SELECT sum(total) FROM totals") == [(3,)]

    async def test_a_transaction_keeps_appends_out(self, opened: Any) -> None:
        """They wait until it ends, and nobody sees it half done."""
        async with opened() as store:
            async with store.transaction() as tx:
                await tx.set_offset("one", Offset(store.id, 1))
                waiting = [asyncio.create_task(store.append([draft()], now_ms=NOW_MS)) for _ in range(3)]
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not any(each.done() for each in waiting)
                assert await store.offset("one") is None
                await tx.set_offset("two", Offset(store.id, 2))
            await asyncio.gather(*waiting)
            assert set(await store.offsets()) == {"one", "two"}

    async def test_transactions_one_after_another_and_appends_between(self, opened: Any) -> None:
        """Whoever asks gets his turn."""
        async with opened() as store:

            async def count(name: str) -> None:
                for number in range(1, 6):
                    async with store.transaction() as tx:
                        before = await tx.offset("shared")
                        await asyncio.sleep(0)
                        await tx.set_offset("shared", Offset(store.id, (before.position if before else 0) + 1))
                        await tx.set_offset(name, Offset(store.id, number))

            async def write() -> None:
                for _ in range(10):
                    await store.append([draft()], now_ms=NOW_MS)

            await asyncio.gather(*(count(f"c{n}") for n in range(4)), write(), write())
            assert (await store.offset("shared")).position == 20
            assert len(await read(store)) == 20

    # --- cancellation ------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("seed", range(5))
    async def test_a_cancelled_caller_leaves_the_writer_free(self, opened: Any, seed: int) -> None:
        """Appends and transactions that are cancelled at any await: whole or not at all, and the others go on."""
        dice = random.Random(seed)
        async with opened() as store:

            async def effect(number: int) -> None:
                async with store.transaction() as tx:
                    await tx.set_offset(f"left {number}", Offset(store.id, 1))
                    await tx.set_offset(f"right {number}", Offset(store.id, 1))

            async def write(number: int) -> None:
                await store.append(
                    [draft(data=number), draft("o-2", number)], offsets={f"w {number}": Offset("l", 1)}, now_ms=NOW_MS
                )

            for number in range(60):
                tasks = [
                    asyncio.create_task(dice.choice((effect, write))(number * 10 + at))
                    for at in range(dice.randint(1, 4))
                ]
                for _ in range(dice.randint(0, 12)):
                    await asyncio.sleep(0)
                if dice.random() < 0.3:
                    await store.end()
                for task in dice.sample(tasks, dice.randint(1, len(tasks))):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.wait_for(store.append([draft()], now_ms=NOW_MS), 20)
            offsets = await store.offsets()
            names = {name.partition(" ")[2] for name in offsets if name.startswith(("left", "right"))}
            assert all({f"left {name}", f"right {name}"} <= set(offsets) for name in names)
            written = Counter(each.event.data for each in (await read(store))[:-1])
            assert set(written.values()) <= {2}
            assert {f"w {number}" for number in written} == {name for name in offsets if name.startswith("w ")}

    async def test_a_transaction_that_was_given_up_before_its_turn_is_not_begun(self, opened: Any) -> None:
        """The writer goes to the next one."""
        async with opened() as store:
            async with store.transaction():
                waiting = asyncio.create_task(store.transaction().__aenter__())
                late = asyncio.create_task(store.append([draft()], now_ms=NOW_MS))
                await asyncio.sleep(0)
                waiting.cancel()
            await asyncio.wait_for(late, 20)
            with pytest.raises(asyncio.CancelledError):
                await waiting

    async def test_an_open_that_is_cancelled_gives_the_medium_back(self, media: Media) -> None:
        """Somebody else can take it."""
        store = media.make("a")
        task = asyncio.create_task(store.open(opening("a")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await retry(lambda: store.open(opening("a")))
        await store.append([draft()], now_ms=NOW_MS)
        await audit(store)
        await store.close()

    # --- many callers ------------------------------------------------------------------------------------------------

    async def test_many_callers_get_numbers_without_gaps(self, opened: Any) -> None:
        """Fifty at once; each is acknowledged with its own events, on the disk in the order of their positions."""
        async with opened() as store:

            async def write(caller: int) -> list[Stored]:
                mine: list[Stored] = []
                for at in range(10):
                    result = await store.append([draft(f"o-{caller % 7}", [caller, at])], now_ms=NOW_MS)
                    mine.extend(result.appended)
                return mine

            results = await asyncio.gather(*(write(caller) for caller in range(50)))
            for caller, mine in enumerate(results):
                assert [each.event.data for each in mine] == [[caller, at] for at in range(10)]
                assert [each.position for each in mine] == sorted(each.position for each in mine)
            log = await audit(store)
            assert sorted((each for mine in results for each in mine), key=lambda each: each.position) == log
            assert [each.event.seq for each in log] == list(range(1, 501))

    async def test_callers_of_one_commit_keep_their_own_trace(self, opened: Any) -> None:
        """Neighbours that are written together say each what its caller said: its trace, several events, or none."""
        traces = ["", "00-a", "00-a", "00-b", "", "00-b"]
        async with opened() as store:
            results = await asyncio.gather(
                *(
                    store.append([draft(data=at)] * (at % 3), now_ms=NOW_MS, traceparent=trace)
                    for at, trace in enumerate(traces * 3)
                )
            )
            for at, (trace, result) in enumerate(zip(traces * 3, results, strict=True)):
                events = [each.event for each in result.appended]
                assert [(each.data, each.traceparent) for each in events] == [(at, trace)] * (at % 3)
                assert result.fresh == at % 3

    async def test_a_list_may_be_filled_anew_while_it_is_written(self, opened: Any) -> None:
        """A buffer that its owner empties as soon as he has asked is written as it was, and nobody else's answer
        changes."""
        async with opened() as store:
            before = asyncio.create_task(store.append([draft(data=0)], now_ms=NOW_MS))
            buffer = [draft(data=1), draft(data=2)]
            buffered = asyncio.create_task(store.append(buffer, now_ms=NOW_MS))
            other = asyncio.create_task(store.append([draft(data=3)], now_ms=NOW_MS))
            await asyncio.sleep(0)
            buffer.clear()
            answers = [
                [each.event.data for each in result.appended]
                for result in await asyncio.gather(before, buffered, other)
            ]
            assert answers == [[0], [1, 2], [3]]
            assert [each.event.data for each in await store.log(after=None, limit=10)] == [0, 1, 2, 3]

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def test_a_clean_close_keeps_the_incarnation_and_everything_else(self, opened: Any) -> None:
        """Also over an opening that writes nothing."""
        async with opened() as store:
            origin = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin
            identity = store.id
        async with opened() as store:
            assert store.id == identity
        async with opened() as store:
            result = await store.append([draft()], now_ms=NOW_MS)
            assert (result.appended[0].event.origin, result.appended[0].event.seq) == (origin, 2)
            assert store.id == identity

    async def test_what_was_not_closed_cleanly_draws_a_new_incarnation(self, opened: Any, media: Media) -> None:
        """Killed, copied, put back over the old one, or taken by another node: nobody hands out a key again."""
        origins: list[str] = []

        async def write(medium: str, node: str = "a") -> None:
            async with opened(medium, node=node) as store:
                before = await audit(store)
                result = await store.append([draft(data=len(origins))], now_ms=NOW_MS)
                event = result.appended[0].event
                assert event.key not in {each.event.key for each in before}
                assert event.origin == store.origin
                assert event.context == StoreModelOf(await read(store)).context_before(event)
                origins.append(event.origin)

        await write("live")
        media.copy("live", "backup")
        await write("live")
        assert origins[0] == origins[1]
        await write("backup")
        media.copy("backup", "live")
        await write("live")
        media.copy("live", "live 2")
        await write("live 2")
        await write("live", node="another")
        await write("live")
        store = media.make("live")
        await store.open(opening("a"))
        origins.append((await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin)
        assert origins[-1] == origins[-2], "so far nothing happened to it"
        await media.kill(store)
        await write("live")
        assert len(set(origins[1:-2])) == len(origins[1:-2])
        assert origins[-1] not in origins[:-1]
        assert [node_of(origin) for origin in origins[-4:]] == ["another", "a", "a", "a"]

    async def test_a_store_knows_which_nodes_it_has_been(self, opened: Any) -> None:
        """What an earlier one wrote is the present one's to send, so it must not be forgotten."""
        for node, nodes in (("a", ["a"]), ("b", ["a", "b"]), ("c", ["a", "b", "c"]), ("b", ["a", "c", "b"])):
            async with opened(node=node) as store:
                assert list(store.nodes) == nodes

    async def test_a_copy_taken_while_it_is_written_is_whole(self, opened: Any, media: Media) -> None:
        """It opens, everything acknowledged before is there, and it writes as somebody else."""
        async with opened("live") as store:
            await store.append([draft(), draft("o-2")], now_ms=NOW_MS)
            media.copy("live", "copy")
            await store.append([draft()], now_ms=NOW_MS)
            async with opened("copy", node="live") as copy:
                assert len(await read(copy)) == 2
                result = await copy.append([draft()], now_ms=NOW_MS)
                assert result.appended[0].event.origin != store.origin

    async def test_nothing_works_on_a_store_that_is_not_open(self, media: Media) -> None:
        """Before `open` and after `close`, which may be called twice; then it may be opened again."""
        store = media.make("a")
        for _ in range(2):
            for call in uses(store):
                with pytest.raises(StoreClosed):
                    await call()
            await store.open(opening("a"))
            with pytest.raises(StoreError):
                await store.open(opening("a"))
            await store.append([draft()], now_ms=NOW_MS)
            await asyncio.gather(store.close(), store.close())
            await store.close()
        for call in uses(store):
            with pytest.raises(StoreClosed):
                await call()

    async def test_a_close_lets_those_who_wait_finish(self, opened: Any, media: Media) -> None:
        """Appends that were asked for, and a transaction that is open: they commit; whoever comes later is told."""
        store = media.make("a")
        await store.open(opening("a"))
        async with store.transaction() as tx:
            appends = [asyncio.create_task(store.append([draft(data=n)], now_ms=NOW_MS)) for n in range(5)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
            with pytest.raises(StoreClosed):
                await store.append([draft(data="late")], now_ms=NOW_MS)
            await tx.set_offset("x", Offset(store.id, 1))
        await asyncio.wait_for(closing, 20)
        assert [each.fresh for each in await asyncio.gather(*appends)] == [1] * 5
        async with opened() as store:
            assert [each.event.data for each in await read(store)] == list(range(5))
            assert await store.offset("x") is not None

    # --- everything at once ------------------------------------------------------------------------------------------

    async def test_any_history_agrees_with_a_model_of_sets(self, media: Media) -> None:
        """Whatever is written, received twice, early or twice used, lost, restarted or killed."""
        bounds = settings(
            max_examples=self.histories,
            stateful_step_count=self.steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

        class HistoryHere(History):
            pass

        HistoryHere.media = media
        # In a thread, since a history has an event loop of its own.
        await asyncio.to_thread(run_state_machine_as_test, HistoryHere, settings=bounds)


class StoreModelOf:
    """What a log says about contexts."""

    def __init__(self, log: Sequence[Stored]) -> None:
        self._log = log

    def context_before(self, event: Event) -> VersionVector:
        """The context that the last event of the log should have got."""
        model = StoreModel(TOPICS, 0)
        model.events = {each.event.key: each.event for each in self._log if each.event.key != event.key}
        return model.context(event.topic, event.aggregate_id)


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
        lambda: store.aggregates("orders", after="", limit=1),
        lambda: store.summary("orders"),
        lambda: store.events("orders", "a", (1, 2), limit=1),
        lambda: store.runs("x"),
        lambda: store.offset("x"),
        store.offsets,
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


class History(RuleBasedStateMachine):
    """One store through a random history, compared with `StoreModel` after each step."""

    media: Media
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.medium = f"history {next(self.numbers)}"
        self.fail = ""
        self.loop = asyncio.new_event_loop()
        self.model = StoreModel(TOPICS, held_max=6)
        self.pool: list[Event] = []
        self.writers = {(name, topic): Writer(name, topic=topic) for name in ("p@1", "q@1") for topic in TOPICS}
        self.offset = 0
        self.origins: set[str] = set()
        self.store = self.run(self._open())

    def run(self, call: Awaitable[Any]) -> Any:
        """On this history's own event loop."""
        return self.loop.run_until_complete(call)

    def probe(self, step: str) -> None:
        """Fails the commit when it is told to."""
        if step == self.fail:
            raise OSError("the disk says no")

    async def _open(self) -> EventStore:
        store = self.media.make(self.medium, probe=self.probe)
        await store.open(opening("n", held_max=6))
        return store

    aggregates = st.sampled_from(["x", "y"])
    topics = st.sampled_from(TOPICS)
    index = st.integers(0, 10**6)

    def pick(self, index: int) -> Event | None:
        """One of the events that were ever written."""
        return self.pool[index % len(self.pool)] if self.pool else None

    def arrive(self, *events: Event) -> None:
        """Deliver, and let the model take the same."""
        self.offset += 1
        place = Offset("broker", self.offset)
        self.run(self.store.append(received=arrivals(*events), offsets={"link": place}, now_ms=NOW_MS))
        for event in events:
            self.model.receive(event)

    @rule(topic=topics, aggregate_id=aggregates, knows=st.lists(index, max_size=2), after=st.lists(index, max_size=1))
    def somebody_writes(self, topic: str, aggregate_id: str, knows: list[int], after: list[int]) -> None:
        """A peer writes, while nobody listens."""
        writer = self.writers["pq"[len(self.pool) % 2] + "@1", topic]
        known = [
            each for at in knows if (each := self.pick(at)) and (each.topic, each.aggregate_id) == (topic, aggregate_id)
        ]
        causes = [each.key for at in after if (each := self.pick(at)) is not None]
        self.pool.append(writer.write(aggregate_id, knows=known, after=causes))

    @rule(at=index, number=st.integers(0, 3))
    def a_key_is_used_twice(self, at: int, number: int) -> None:
        """A copy of a store, own or foreign, wrote something else under a key."""
        if (event := self.pick(at)) is not None and event.seq < 20:
            self.pool.append(variant(event, number))

    @rule(picks=st.lists(index, min_size=1, max_size=4))
    def events_arrive(self, picks: list[int]) -> None:
        """In any order, any number of times."""
        if self.pool:
            self.arrive(*(self.pool[at % len(self.pool)] for at in picks))

    @rule(topic=topics, aggregate_id=aggregates, times=st.integers(1, 3))
    def the_node_writes(self, topic: str, aggregate_id: str, times: int) -> None:
        """Numbers and contexts are those that the model computes from all that is there."""
        result = self.run(
            self.store.append([draft(aggregate_id, topic=topic, id=None) for _ in range(times)], now_ms=NOW_MS)
        )
        for stored in result.appended:
            event = stored.event
            last = max((key.seq for key in self.model.events if key[:2] == (topic, event.origin)), default=0)
            assert event.seq == last + 1
            assert event.context == self.model.context(topic, aggregate_id)
            assert event.prev == event.context.get(event.origin, 0)
            self.model.events[event.key] = event
            self.model.settle()
            self.pool.append(event)

    @rule(topic=topics)
    def a_lost_key_is_void(self, topic: str) -> None:
        """One of those that somebody waits for."""
        wanted = self.run(self.store.summary(topic)).wanted
        if wanted:
            self.run(self.store.append(voids=wanted[:1], now_ms=NOW_MS))
            self.model.declare_void(wanted[0])

    @rule()
    def it_restarts(self) -> None:
        """Cleanly."""
        self.run(self.store.close())
        self.store = self.run(self._open())

    @rule()
    def it_is_killed(self) -> None:
        """Nothing acknowledged is lost."""
        self.run(self.media.kill(self.store))
        self.store = self.run(self._open())

    @rule(picks=st.lists(index, min_size=1, max_size=3))
    def a_commit_fails(self, picks: list[int]) -> None:
        """Neither the events nor the offset are there."""
        if not self.pool:
            return
        self.fail = "commit"
        with pytest.raises((OSError, StoreError)):
            self.run(
                self.store.append(
                    [draft("x")],
                    arrivals(*(self.pool[at % len(self.pool)] for at in picks)),
                    offsets={"link": Offset("broker", 10**9)},
                    now_ms=NOW_MS,
                )
            )
        self.fail = ""

    @invariant()
    def store_and_model_agree(self) -> None:
        """In all that can be asked."""
        self.run(audit(self.store))
        for topic in TOPICS:
            summary = self.run(self.store.summary(topic))
            assert summary.seen == self.model.seen(topic)
            assert dict(summary.sums) == self.model.sums(topic)
            assert set(summary.held) == {event.key for event in self.model.held if event.topic == topic}
            assert summary.voids == {key for key in self.model.voids if key.topic == topic}
        offset = self.run(self.store.offset("link"))
        assert (offset.position if offset else 0) == self.offset

    def teardown(self) -> None:
        """Close it, also after a failure."""
        self.fail = ""
        with suppress(Exception):
            self.run(self.store.close())
        self.loop.close()
