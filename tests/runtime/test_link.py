"""One session over a connector: what it opens and leaves open, how patient it is, and what it tells at once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from synckit_connectors.memory import MemoryConnector, memory_broker
from synckit_streams.errors import StoreCorrupt, StoreFull, Timeout, Unavailable
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX
from synckit_streams.model.event import Draft
from synckit_streams.ports import telemetry
from synckit_streams.ports.connector import Bounds, Connector, Delivery, Message
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.ports.telemetry import Alarmed, Published, Received
from synckit_streams.runtime.driver import Driver, World
from synckit_streams.runtime.link import COMMIT_BYTES, Link
from synckit_streams.runtime.meeting import Meeting
from synckit_streams.runtime.sending import AHEAD_EVENTS_MAX
from synckit_streams.runtime.settings import Settings
from synckit_streams.stores.memory import MemoryDisk, MemoryStore
from synckit_streams.stores.sqlite import SqliteStore
from tests.acceptance.kit import Recorder, eventually

DEADLINE_S = 20.0
"""Nothing here takes that long; whoever waits longer waits for ever."""
PATIENCE_S = 0.3


class Make(Protocol):
    """See the fixture `make`."""

    async def __call__(
        self, connector: Connector, *, store: EventStore | None = None, **settings: Any
    ) -> tuple[Link, Recorder]: ...


@pytest.fixture
def name() -> str:
    """A broker in memory that is there as long as a connector of the test's own is on it."""
    return uuid.uuid4().hex


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes links of nodes that are open, and closes them."""
    async with AsyncExitStack() as stack:

        async def made(
            connector: Connector, *, store: EventStore | None = None, **settings: Any
        ) -> tuple[Link, Recorder]:
            told: dict[str, Any] = {"node": "till-7", "topics": ("t",), "resolver": ("last-write-wins", 1)}
            recorder = Recorder()
            driver = Driver(Settings(**told | settings), store or MemoryStore("memory:"), recorder, World())
            await driver.open()
            stack.push_async_callback(driver.close)
            link = Link("memory://broker", connector, driver)
            stack.push_async_callback(link.close)
            return link, recorder

        yield made


async def meet(link: Link, **settings: Any) -> None:
    """One session, one meeting."""
    async with asyncio.timeout(DEADLINE_S), Meeting([link], **settings) as meeting:
        await meeting.meet()


async def stay(link: Link, then: Callable[[], Awaitable[None]]) -> None:
    """One session that meets, and is live for an hour after something has happened."""
    async with asyncio.timeout(DEADLINE_S), Meeting([link]) as meeting:
        await meeting.meet()
        await then()
        await meeting.live(asyncio.Event(), 3600)


def drafts(times: int, *, topic: str = "t", payload: bytes = b"{}") -> list[Draft]:
    return [Draft(topic, "made", f"a-{number}", payload) for number in range(times)]


async def held(link: Link, topic: str = "t") -> int:
    """How many events a node has."""
    seen = (await link.driver.store.summary(topic)).seen
    return len(seen)


# ----------------------------------------------------------------------------------------------------- the connector


class Watched(MemoryConnector):
    """Writes down what is asked of it, and what its messages' acknowledgements found in the reader's store."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.asked: list[str] = []

    async def open(self) -> None:
        self.asked.append("open")
        await super().open()

    async def close(self) -> None:
        self.asked.append("close")
        await super().close()

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        self.asked.append("bounds")
        return await super().bounds(topic)


async def test_the_connector_is_opened_for_each_session_and_closed_once(make: Make, name: str) -> None:
    """A failure does not close it: it comes back by itself, and the one beside us may be in the middle of something."""
    connector = Watched(f"memory://{name}")
    link, _ = await make(connector)
    broker = memory_broker(name)
    await meet(link)
    broker.down = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await meet(link)
    broker.heal()
    broker.drop(reader="")
    await link.driver.write(drafts(1), traceparent="")
    with pytest.raises(Timeout):
        await meet(link, timeout_s=PATIENCE_S)
    broker.heal()
    await meet(link)
    assert [each for each in connector.asked if each != "bounds"] == ["open"] * 5
    await link.close()
    assert connector.asked[-1] == "close"


async def test_a_failure_is_not_the_end_of_a_broker_in_memory(make: Make, name: str) -> None:
    """It lives as long as somebody is on it. Who fails stays on it, and what he has sent is there for the next one."""
    link, _ = await make(MemoryConnector(f"memory://{name}"))
    broker = memory_broker(name)
    await link.driver.write(drafts(3), traceparent="")
    await meet(link)
    broker.down = True
    with pytest.raises(Unavailable):
        await meet(link)
    broker.down = False
    other, _ = await make(MemoryConnector(f"memory://{name}"), node="till-8")
    await meet(other)
    assert await held(other) == 3


async def test_a_session_leaves_nothing_running(make: Make, name: str) -> None:
    """However it ends: well, by an error of its own, or by one of whoever used it."""
    link, _ = await make(MemoryConnector(f"memory://{name}"))
    before = asyncio.all_tasks()
    await meet(link)
    assert asyncio.all_tasks() == before

    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stay(link, fail)
    memory_broker(name).down = True
    with pytest.raises(Unavailable):
        await meet(link)
    assert asyncio.all_tasks() == before
    assert link.session is None


# --------------------------------------------------------------------------------------------------------- patience


async def test_many_slow_topics_are_joined_however_long_it_takes(make: Make, name: str) -> None:
    """`timeout_s` is for one operation that makes no progress. Each here is quick, and all together take longer."""
    topics = tuple(f"t{number}" for number in range(12))
    link, recorder = await make(MemoryConnector(f"memory://{name}"), topics=topics)
    memory_broker(name).delay_s = PATIENCE_S / 6
    started = asyncio.get_running_loop().time()
    async with asyncio.timeout(DEADLINE_S), Meeting([link], timeout_s=PATIENCE_S):
        await eventually(lambda: recorder.of(telemetry.Link))
        assert recorder.of(telemetry.Link)[0].up
        assert asyncio.get_running_loop().time() - started > PATIENCE_S


async def test_many_slow_topics_are_met_however_long_it_takes(make: Make, name: str) -> None:
    """Looking and announcing are progress, too, where there is nothing to read and nothing to send."""
    topics = tuple(f"t{number}" for number in range(12))
    link, _ = await make(MemoryConnector(f"memory://{name}"), topics=topics)
    memory_broker(name).delay_s = PATIENCE_S / 6
    await meet(link, timeout_s=PATIENCE_S)


@pytest.mark.parametrize("slow_at", ["open", "bounds"])
async def test_an_operation_that_hangs_at_the_join_is_a_timeout(make: Make, name: str, slow_at: str) -> None:
    """After the time that was allowed, and not after a multiple of it; the connector stays open, and works again."""

    class Hangs(MemoryConnector):
        hangs = True

        async def open(self) -> None:
            if self.hangs and slow_at == "open":
                await asyncio.Event().wait()
            await super().open()

        async def bounds(self, topic: str) -> Mapping[int, Bounds]:
            if self.hangs and slow_at == "bounds":
                await asyncio.Event().wait()
            return await super().bounds(topic)

    connector = Hangs(f"memory://{name}")
    link, _ = await make(connector, topics=("t", "u"))
    started = asyncio.get_running_loop().time()
    with pytest.raises(Timeout, match="no progress"):
        await meet(link, timeout_s=PATIENCE_S)
    assert PATIENCE_S <= asyncio.get_running_loop().time() - started < 2 * PATIENCE_S + 2
    connector.hangs = False
    await meet(link)
    assert link.session is None


async def test_patience_begins_anew_with_each_progress(make: Make, name: str) -> None:
    """A meeting that goes on for many times `timeout_s` ends well, as long as something is sent or read meanwhile."""
    link, recorder = await make(MemoryConnector(f"memory://{name}"), batch_events=50)
    await link.driver.write(drafts(1_000), traceparent="")
    memory_broker(name).delay_s = PATIENCE_S / 6
    started = asyncio.get_running_loop().time()
    await meet(link, timeout_s=PATIENCE_S)
    assert asyncio.get_running_loop().time() - started > 3 * PATIENCE_S
    assert sum(each.events for each in recorder.of(Published)) == 1_000


async def test_saying_that_one_is_there_is_no_progress(make: Make, name: str) -> None:
    """A node repeats its digests all the time; a log that does not come is a timeout all the same."""
    connector = MemoryConnector(f"memory://{name}?client=till-7")
    link, _ = await make(connector, topics=("t", "u"), lease_s=0.3)
    memory_broker(name).drop(lambda topic, message: topic == "t", reader="till-7")
    await link.driver.write(drafts(1), traceparent="")
    with pytest.raises(Timeout):
        await meet(link, timeout_s=1.5)


# ----------------------------------------------------------------------------------------------- heard, and at once


class Disk:
    """Says that it is full, from when it is told to."""

    def __init__(self) -> None:
        self.full = False

    def __call__(self, step: str) -> None:
        if self.full and step == "commit":
            raise StoreFull("no room on the disk")


async def test_a_commit_that_fails_ends_the_meeting_at_once(make: Make, name: str, tmp_path: Path) -> None:
    """Not when the next batch comes: there may be none, ever. What was read is not lost; it is read again."""
    writer, _ = await make(MemoryConnector(f"memory://{name}"), node="till-8")
    await writer.driver.write(drafts(1), traceparent="")
    await meet(writer)
    disk = Disk()
    store = SqliteStore(f"sqlite:///{tmp_path}/till-7.db", probe=disk)
    link, _ = await make(MemoryConnector(f"memory://{name}"), store=store)
    disk.full = True
    started = asyncio.get_running_loop().time()
    with pytest.raises(StoreFull):
        await meet(link, timeout_s=DEADLINE_S / 2)
    assert asyncio.get_running_loop().time() - started < DEADLINE_S / 4
    disk.full = False
    await meet(link)
    assert await held(link) == 1


async def test_a_commit_that_fails_ends_a_live_session_at_once(make: Make, name: str, tmp_path: Path) -> None:
    """Between two meetings, an hour apart."""
    disk = Disk()
    store = SqliteStore(f"sqlite:///{tmp_path}/till-7.db", probe=disk)
    link, _ = await make(MemoryConnector(f"memory://{name}"), store=store)
    writer, _ = await make(MemoryConnector(f"memory://{name}"), node="till-8")
    await writer.driver.write(drafts(1), traceparent="")

    async def write() -> None:
        disk.full = True
        await meet(writer)

    with pytest.raises(StoreFull):
        await stay(link, write)
    disk.full = False
    await meet(link)
    assert await held(link) == 1


@pytest.mark.parametrize("what", ["recreate", "rewind", "down"])
async def test_a_log_that_became_another_one_ends_a_live_session_at_once(make: Make, name: str, what: str) -> None:
    """The next one joins again, says what it found, and brings back what the log has lost."""
    link, recorder = await make(MemoryConnector(f"memory://{name}"))
    broker = memory_broker(name)
    await link.driver.write(drafts(3), traceparent="")

    async def strike() -> None:
        if what == "down":
            broker.down = True
        elif what == "recreate":
            broker.recreate("t")
        else:
            broker.rewind("t", 1)

    with pytest.raises(Unavailable):
        await stay(link, strike)
    broker.heal()
    await meet(link)
    assert len({message.id for message in broker.messages("t")}) == 3
    expected = {"recreate": {"recreated"}, "rewind": {"rewound"}, "down": set()}[what]
    assert {alarm.kind for alarm in recorder.of(Alarmed)} == expected


async def test_a_store_that_has_lost_what_it_names_is_said_loudly(make: Make, name: str, tmp_path: Path) -> None:
    """Not tried again, at once and for ever; and what is there all the same goes out."""
    path = tmp_path / "till-7.db"
    link, _ = await make(MemoryConnector(f"memory://{name}"), store=SqliteStore(f"sqlite:///{path}"))
    await link.driver.write(drafts(3), traceparent="")
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("DELETE FROM events WHERE position = 2")
    connection.close()
    with pytest.raises(StoreCorrupt, match="lost"):
        await meet(link)


# ------------------------------------------------------------------------------------------------------------ chunks


async def test_what_is_read_is_committed_in_parts_by_count(make: Make, name: str) -> None:
    """One batch of a broker's becomes several commits, of at most so many events each."""
    writer, _ = await make(MemoryConnector(f"memory://{name}"), node="till-8")
    await writer.driver.write(drafts(900), traceparent="")
    await meet(writer)
    link, recorder = await make(MemoryConnector(f"memory://{name}"), batch_events=200)
    await meet(link)
    parts = [each.stored for each in recorder.of(Received) if each.stored]
    assert sum(parts) == 900
    assert max(parts) == 200


async def test_what_is_read_is_committed_in_parts_by_bytes(make: Make, name: str) -> None:
    """Large events come in smaller parts: at most the limit, and the message that reached it."""
    payload = b'"' + b"x" * 700_000 + b'"'
    writer, _ = await make(MemoryConnector(f"memory://{name}"), node="till-8")
    await writer.driver.write(drafts(20, payload=payload), traceparent="")
    await meet(writer)
    link, recorder = await make(MemoryConnector(f"memory://{name}"))
    await meet(link)
    parts = [each for each in recorder.of(Received) if each.stored]
    assert sum(each.stored for each in parts) == 20
    assert max(each.bytes for each in parts) < COMMIT_BYTES + len(payload)
    assert len(parts) >= 20 * len(payload) // (COMMIT_BYTES + len(payload))


async def test_what_is_sent_goes_in_pages_by_bytes(make: Make, name: str, tmp_path: Path) -> None:
    """However many events of however many bytes: no page is larger than what the store gives at once."""
    payload = b'"' + b"x" * (PAYLOAD_BYTES_MAX - 2) + b'"'
    store = SqliteStore(f"sqlite:///{tmp_path}/till-7.db")
    link, recorder = await make(MemoryConnector(f"memory://{name}"), store=store)
    await link.driver.write(drafts(30, payload=payload), traceparent="")
    await meet(link)
    pages = recorder.of(Published)
    assert sum(each.events for each in pages) == 30
    assert max(each.bytes for each in pages) <= 8 * 1024 * 1024 + PAYLOAD_BYTES_MAX


class FarBehind(MemoryConnector):
    """Its reader begins only when the publisher has been held up for a while, or is done."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.begin = asyncio.Event()
        self.sent = self.read = self.most_ahead = 0

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        places = await super().send(topic, messages)
        self.sent += len(messages)
        self.most_ahead = max(self.most_ahead, self.sent - self.read)
        if self.sent > AHEAD_EVENTS_MAX:
            asyncio.get_running_loop().call_later(0.3, self.begin.set)
        return places

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        async with super().receive(topic, start=start, batch_max=batch_max) as batches:
            yield self._late(batches)

    async def _late(self, batches: AsyncIterator[Sequence[Delivery]]) -> AsyncIterator[Sequence[Delivery]]:
        await self.begin.wait()
        async for batch in batches:
            self.read += len(batch)
            yield batch


async def test_a_publisher_does_not_run_away_from_its_own_reader(make: Make, name: str) -> None:
    """What was sent and not yet read back is kept in memory: only so much of it, and a page."""
    connector = FarBehind(f"memory://{name}")
    link, _ = await make(connector)
    await link.driver.write(drafts(3 * AHEAD_EVENTS_MAX), traceparent="")
    await meet(link)
    assert connector.read == connector.sent == 3 * AHEAD_EVENTS_MAX
    assert AHEAD_EVENTS_MAX < connector.most_ahead <= AHEAD_EVENTS_MAX + link.driver.settings.batch_events


async def test_each_partition_has_a_place_of_its_own(make: Make, name: str) -> None:
    """A reader's place is one number for each partition: the last one that it has read there."""
    writer, _ = await make(MemoryConnector(f"memory://{name}?partitions=3"), node="till-8")
    await writer.driver.write(drafts(300), traceparent="")
    await meet(writer)
    link, _ = await make(MemoryConnector(f"memory://{name}"))
    await meet(link)
    assert await held(link) == 300
    offsets = await link.driver.store.offsets()
    ends = {number: len(memory_broker(name).messages("t", partition=number)) for number in range(3)}
    assert {name_: offset.position for name_, offset in offsets.items()} == {
        f"memory://broker|t|{number}": end for number, end in ends.items()
    }


async def test_one_message_that_is_refused_costs_itself_alone(make: Make, name: str) -> None:
    """It is found by halving the page; the others pass, and the alarm names it."""
    link, recorder = await make(MemoryConnector(f"memory://{name}?bytes_max=100000"))
    wanted = drafts(40)
    wanted[17] = Draft("t", "made", "large", b"x" * 200_000)
    await link.driver.write(wanted, traceparent="")
    await meet(link)
    assert {message.partition_key for message in memory_broker(name).messages("t")} == {
        each.aggregate_id for each in wanted if each.aggregate_id != "large"
    }
    (alarm,) = recorder.of(Alarmed)
    assert alarm.kind == "refused"
    assert alarm.evidence.endswith(": 18)")


async def test_what_is_written_between_two_sessions_goes_out_with_the_next(make: Make, name: str) -> None:
    """Nobody is there to send it when the replica asks for it; it is not forgotten."""
    link, recorder = await make(MemoryConnector(f"memory://{name}"))
    await meet(link)
    await link.driver.write(drafts(2), traceparent="")
    await meet(link)
    await meet(link)
    assert [each.events for each in recorder.of(Published)] == [2]


@pytest.mark.parametrize("times", range(8))
async def test_what_an_earlier_incarnation_left_goes_out_first(make: Make, name: str, times: int) -> None:
    """What was written since may be caused by it; the names of origins are drawn, so nothing follows from them."""
    disk = MemoryDisk()
    crashed = MemoryStore("memory:", disk=disk)
    await crashed.open(Opening(node="till-7", topics=("t",), dice=os.urandom))
    for _ in range(3):
        await crashed.append([Draft("t", "made", "same", b"{}")], now_ms=1)
    crashed.abandon()
    link, _ = await make(MemoryConnector(f"memory://{name}"), store=MemoryStore("memory:", disk=disk))
    for _ in range(3):
        await link.driver.write([Draft("t", "made", "same", b"{}")], traceparent="")
    await meet(link)
    origins = [message.headers["ce-source"] for message in memory_broker(name).messages("t")]
    assert len(set(origins)) == 2
    assert origins == [origins[0]] * 3 + [origins[3]] * 3
    assert link.driver.store.origin.replace("@", "%40") in origins[3] or link.driver.store.origin in origins[3]
