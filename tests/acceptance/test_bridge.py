"""Several connectors at once: what comes by one goes out by the others, once, and nothing goes round in circles."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector, memory_broker
from synckit_streams import SyncNode
from synckit_streams.errors import ConfigError, Unavailable
from synckit_streams.ports.connector import Message
from synckit_streams.ports.telemetry import Published
from tests.acceptance.kit import Make, Recorder, draft, drafts, eventually, ids, same


@pytest.fixture
def urls() -> list[str]:
    """Three brokers in memory, which stay as long as the list does."""

    class Kept(list[str]):
        keepers: Sequence[MemoryConnector] = ()

    kept = Kept(f"memory://{uuid.uuid4().hex}" for _ in range(3))
    kept.keepers = [MemoryConnector(url) for url in kept]
    return kept


def broker_of(url: str) -> MemoryBroker:
    return memory_broker(url.removeprefix("memory://"))


def messages(topic: str, urls: Sequence[str]) -> list[int]:
    """How many lie in each broker's log."""
    return [len(broker_of(url).messages(topic)) for url in urls]


async def live(*nodes: SyncNode) -> None:
    for node in nodes:
        await node.start_auto_sync(interval_s=60)


# ------------------------------------------------------------------------------------------------------------- passing


async def test_what_came_by_one_goes_out_by_the_others_once(make: Make, urls: list[str], topic: str) -> None:
    """In one meeting, in both directions, with what was there before the bridge was; and a second one adds nothing."""
    nodes = [await make(f"till-{number}", url) for number, url in enumerate(urls)]
    for node in nodes:
        await node.append_many(drafts(topic, 5))
        await node.sync()
    bridge = await make("bridge", None, connectors=urls, bridge=True)
    await bridge.append_many(drafts(topic, 5))
    result = await bridge.sync()
    assert (result.complete, result.reasons, result.errors) == (True, (), ())
    assert messages(topic, urls) == [20, 20, 20]
    assert result.events_pulled == 15
    assert result.events_pushed == 3 * 5 + 2 * 15
    for node in (*nodes, bridge):
        result = await node.sync()
        assert (result.complete, result.events_pushed) == (True, 0)
    assert await same(topic, *nodes, bridge)
    assert messages(topic, urls) == [20, 20, 20]


async def test_what_a_node_took_in_before_it_became_a_bridge_is_passed_on(
    make: Make, urls: list[str], topic: str
) -> None:
    one = await make("till-1", urls[0])
    await one.append_many(drafts(topic, 3))
    await one.sync()
    plain = await make("both", urls[0])
    await plain.sync()
    await plain.close()
    broker_of(urls[0]).down = True
    bridge = await make("both", None, connectors=urls[:2], bridge=True)
    result = await bridge.sync()
    assert messages(topic, urls[1:2]) == [3]
    assert [type(error) for error in result.errors] == [Unavailable]
    assert (result.complete, result.reasons) == (False, (f"{topic}: {urls[0]} was not reached",))


@pytest.mark.parametrize("packing", ["event", "batch"])
async def test_a_live_bridge_passes_on_as_it_comes(make: Make, urls: list[str], topic: str, packing: str) -> None:
    one, other = [await make(f"till-{number}", url) for number, url in enumerate(urls[:2])]
    bridge = await make("bridge", None, connectors=urls[:2], bridge=True, packing=packing)
    await live(one, other, bridge)
    for number in range(20):
        await (one if number % 2 else other).append(draft(topic, f"o-{number}"))

    async def together() -> bool:
        return len(await ids(one, topic)) == 20 and await same(topic, one, other, bridge)

    await eventually(together)
    assert messages(topic, urls[:2])[0] <= 20


async def test_three_bridges_in_a_circle_send_a_bounded_number(make: Make, urls: list[str], topic: str) -> None:
    """A to B, B to C, C to A: an event can come to a log from two sides, and no more often than that."""
    pairs = [(urls[0], urls[1]), (urls[1], urls[2]), (urls[2], urls[0])]
    bridges = [await make(f"b-{at}", None, connectors=pair, bridge=True) for at, pair in enumerate(pairs)]
    tills = [await make(f"till-{at}", url) for at, url in enumerate(urls)]
    await live(*bridges, *tills)
    for number in range(30):
        await tills[number % 3].append(draft(topic, f"o-{number}"))

    async def together() -> bool:
        return len(await ids(tills[0], topic)) == 30 and await same(topic, *tills, *bridges)

    await eventually(together)
    for node in (*bridges, *tills):
        await node.stop_auto_sync()
        assert (await node.sync()).complete
    assert all(count <= 2 * 30 for count in messages(topic, urls)), messages(topic, urls)
    before = messages(topic, urls)
    for node in (*bridges, *tills):
        await node.sync()
    assert messages(topic, urls) == before


@pytest.mark.parametrize("bridges", [2, 3])
async def test_bridges_beside_each_other_send_each_event_once(
    make: Make, urls: list[str], topic: str, bridges: int
) -> None:
    """The first one sends, the others look whether it did."""
    told = [Recorder() for _ in range(bridges + 2)]
    between = [
        await make(f"b-{at}", None, connectors=urls[:2], bridge=True, observer=told[at]) for at in range(bridges)
    ]
    one, other = [await make(f"till-{at}", url, observer=told[at - 2]) for at, url in enumerate(urls[:2])]
    await live(*between)
    for bridge in between:
        assert (await bridge.sync()).complete
    await live(one, other)
    for number in range(50):
        await one.append(draft(topic, f"o-{number}"))
        await other.append(draft(topic, f"p-{number}"))
        await asyncio.sleep(0.01)

    async def together() -> bool:
        return len(await ids(one, topic)) == 100 and await same(topic, one, other, *between)

    await eventually(together)
    for node in (*between, one, other):
        assert (await node.sync()).complete
    sent = [
        Counter(urls.index(each.connector) for each in one.of(Published) for _ in range(each.events)) for one in told
    ]
    assert all(100 <= count <= 105 for count in messages(topic, urls[:2])), sent


async def test_the_next_one_goes_on_when_the_first_bridge_is_gone(make: Make, urls: list[str], topic: str) -> None:
    """Within seconds, and long before its lease is over."""
    first, second = [await make(f"b-{at}", None, connectors=urls[:2], bridge=True) for at in range(2)]
    one, other = [await make(f"till-{at}", url) for at, url in enumerate(urls[:2])]
    await live(first, second, one, other)
    await one.append(draft(topic, "o-1"))

    async def together(events: int) -> bool:
        return len(await ids(other, topic)) == events and await same(topic, one, other, second)

    await eventually(lambda: together(1))
    await first.close()
    await one.append(draft(topic, "o-2"))
    await eventually(lambda: together(2))
    assert messages(topic, urls[1:2]) == [2]


# ----------------------------------------------------------------------------------------------------------- what fails


async def test_one_that_is_down_holds_up_nobody_and_is_named(make: Make, urls: list[str], topic: str) -> None:
    bridge = await make("bridge", None, connectors=urls, bridge=True)
    one = await make("till-1", urls[0])
    await one.append_many(drafts(topic, 3))
    await one.sync()
    broker_of(urls[1]).down = True
    result = await bridge.sync()
    assert messages(topic, urls) == [3, 0, 3]
    assert [type(error) for error in result.errors] == [Unavailable]
    assert (result.complete, result.reasons) == (False, (f"{topic}: {urls[1]} was not reached",))
    broker_of(urls[1]).down = False
    result = await bridge.sync()
    assert (result.complete, result.errors) == (True, ())
    assert messages(topic, urls) == [3, 3, 3]


async def test_nobody_there_names_them_all(make: Make, urls: list[str], topic: str) -> None:
    bridge = await make("bridge", None, connectors=urls, bridge=True)
    for url in urls:
        broker_of(url).down = True
    with pytest.raises(Unavailable, match=r"no connector was reached: .*; .*; "):
        await bridge.sync()


async def test_one_that_comes_and_goes_is_tried_again_and_disturbs_nobody(
    make: Make, urls: list[str], topic: str
) -> None:
    """While the meeting is live, without another one: the way between the other two stays as it is."""
    recorder = Recorder()
    bridge = await make("bridge", None, connectors=urls, bridge=True, observer=recorder)
    tills = [await make(f"till-{at}", url) for at, url in enumerate(urls)]
    await live(bridge, *tills)

    async def has(node: SyncNode, events: int) -> bool:
        return len(await ids(node, topic)) == events

    def on_the_middle_one(events: int) -> bool:
        return len(broker_of(urls[1]).messages(topic)) == events

    for events in (1, 2, 3):
        broker_of(urls[1]).down = True
        await tills[0].append(draft(topic, f"o-{events}"))
        await eventually(partial(has, tills[2], events))
        assert not await has(tills[1], events)
        broker_of(urls[1]).down = False
        await tills[1].stop_auto_sync()
        await eventually(partial(on_the_middle_one, events))
        await live(tills[1])
        await eventually(partial(has, tills[1], events))
    assert recorder.most["sync"] == 1
    sent = [each for each in recorder.of(Published) if each.connector == urls[2]]
    assert [each.again for each in sent] == [0] * len(sent)


async def test_a_log_that_hangs_ends_for_itself_alone(make: Make, urls: list[str], topic: str) -> None:
    """It neither answers nor breaks off."""

    class Hangs(MemoryConnector):
        async def open(self) -> None:
            await asyncio.Event().wait()

    bridge = await make("bridge", None, connectors=[*urls[:2], Hangs(urls[2])], bridge=True)
    one = await make("till-1", urls[0])
    await one.append(draft(topic))
    await one.sync()
    sync = asyncio.create_task(bridge.sync(timeout_s=1.5))
    await eventually(lambda: messages(topic, urls) == [1, 1, 0])
    assert not sync.done()
    result = await sync
    assert [error.code for error in result.errors] == ["SK402"]  # type: ignore[attr-defined]


async def test_a_log_made_anew_gets_everything_again(make: Make, urls: list[str], topic: str) -> None:
    """Also what others wrote, whoever it was; and the other logs get nothing."""
    bridge = await make("bridge", None, connectors=urls[:2], bridge=True)
    one = await make("till-1", urls[0])
    await one.append_many(drafts(topic, 7))
    await one.sync()
    assert (await bridge.sync()).complete
    broker_of(urls[1]).recreate(topic)
    assert (await bridge.sync()).complete
    assert messages(topic, urls[:2]) == [7, 7]


async def test_what_retention_took_is_not_sent_again(make: Make, urls: list[str], topic: str) -> None:
    bridge = await make("bridge", None, connectors=urls[:2], bridge=True)
    one = await make("till-1", urls[0])
    await one.append_many(drafts(topic, 7))
    await one.sync()
    assert (await bridge.sync()).complete
    broker_of(urls[1]).trim(topic, 5)
    left = messages(topic, urls[1:2])
    for _ in range(3):
        assert (await bridge.sync()).complete
    assert messages(topic, urls[1:2]) == left
    await bridge.close()
    again = await make("bridge", None, connectors=urls[:2], bridge=True)
    assert (await again.sync()).complete
    assert messages(topic, urls[1:2]) == left


async def test_a_message_of_somebody_elses_is_not_passed_on(make: Make, urls: list[str], topic: str) -> None:
    connector = MemoryConnector(urls[0])
    await connector.open()
    await connector.send(topic, [Message("x", "x", {"content-type": "text/plain"}, b"\xffjunk")])
    bridge = await make("bridge", None, connectors=urls[:2], bridge=True)
    await bridge.sync()
    assert messages(topic, urls[:2]) == [1, 0]


# ------------------------------------------------------------------------------------------------- directions and ends


async def test_who_only_pulls_passes_nothing_on(make: Make, urls: list[str], topic: str) -> None:
    tills = [await make(f"till-{at}", url) for at, url in enumerate(urls[:2])]
    for till in tills:
        await till.append_many(drafts(topic, 2))
        await till.sync()
    reader = await make("reader", None, connectors=urls[:2], bridge=True, pull_only=True)
    result = await reader.sync()
    assert (result.complete, result.events_pulled) == (True, 4)
    assert messages(topic, urls[:2]) == [2, 2]


async def test_who_only_pushes_sends_his_own_everywhere(make: Make, urls: list[str], topic: str) -> None:
    till = await make("till-1", urls[0])
    await till.append_many(drafts(topic, 2))
    await till.sync()
    sensor = await make("sensor", None, connectors=urls[:2], bridge=True, push_only=True)
    await sensor.append(draft(topic))
    result = await sensor.sync()
    assert (result.complete, result.events_pushed, result.events_pulled) == (True, 2, 0)
    assert messages(topic, urls[:2]) == [3, 1]


async def test_a_pull_publishes_nothing_and_says_what_it_left(make: Make, urls: list[str], topic: str) -> None:
    till = await make("till-1", urls[0])
    await till.append_many(drafts(topic, 2))
    await till.sync()
    bridge = await make("bridge", None, connectors=urls[:2], bridge=True)
    result = await bridge.pull()
    assert messages(topic, urls[:2]) == [2, 0]
    assert (result.complete, result.reasons) == (False, (f"{topic}: 2 events not passed on to {urls[1]}",))


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_whoever_is_cancelled_leaves_nothing_behind(make: Make, urls: list[str], topic: str, steps: int) -> None:
    """At any moment; and the next meeting does what there was to do, once."""
    till = await make("till-1", urls[0])
    await till.append_many(drafts(topic, 5))
    await till.sync()
    bridge = await make("bridge", None, connectors=urls[:2], bridge=True)
    before = asyncio.all_tasks()
    sync = asyncio.create_task(bridge.sync())
    for _ in range(steps):
        await asyncio.sleep(0)
    sync.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sync
    await eventually(lambda: asyncio.all_tasks() <= before)
    assert (await bridge.sync()).complete
    assert messages(topic, urls[:2]) == [5, 5]


@pytest.mark.parametrize("end", ["close", "stop_auto_sync"])
async def test_what_was_written_last_goes_out_everywhere_before_the_end(
    make: Make, urls: list[str], topic: str, end: str
) -> None:
    bridge = await make("bridge", None, connectors=urls, bridge=True)
    await live(bridge)
    await bridge.append(draft(topic))
    closing: Callable[[], Awaitable[None]] = getattr(bridge, end)
    await closing()
    assert messages(topic, urls) == [1, 1, 1]


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("connectors", [[], ["memory://one"]])
async def test_a_bridge_needs_two_ends(make: Make, connectors: list[str]) -> None:
    with pytest.raises(ConfigError, match="two connectors"):
        await make("bridge", None, connectors=connectors, bridge=True)


# --------------------------------------------------------------------------------------------------------- real servers


async def test_kafka_to_jetstream_to_redis(
    make: Make, kafka_url: str, nats_url: str, redis_url: str, topic: str
) -> None:
    """One bridge over all three, and beside it one that has only the way's second half: each event arrives once."""
    servers = [kafka_url, nats_url, redis_url]
    tills = [await make(f"till-{at}", url) for at, url in enumerate(servers)]
    bridge = await make("bridge", None, connectors=servers, bridge=True)
    half = await make("half", None, connectors=servers[1:], bridge=True)
    for till in tills:
        await till.append_many(drafts(topic, 50))
        await till.sync()
    for node in (bridge, half):
        result = await node.sync()
        assert (result.complete, result.reasons, result.errors) == (True, (), ())
    await live(*tills, bridge, half)
    for number in range(30):
        await tills[number % 3].append(draft(topic, f"p-{number}"))

    async def together() -> bool:
        return len(await ids(tills[2], topic)) == 180 and await same(topic, *tills, bridge, half)

    await eventually(together, seconds=60)
