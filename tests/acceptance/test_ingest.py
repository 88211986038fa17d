"""JSON of producers that know nothing of us: each message becomes one event, and what cannot does no harm."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector
from synckit_streams import ConfigError, FeatureUnsupported, Ingest, Ingested, Invalid, Rejected, SyncNode, Unavailable
from synckit_streams.model.pointer import check_pointer, point
from synckit_streams.ports.connector import Features, Message
from synckit_streams.stores.memory import MemoryStore
from tests.acceptance.kit import Make, Recorder, eventually, ids

SOURCE = "shop.orders"


def placed(number: int, **more: Any) -> bytes:
    return json.dumps({"kind": "order.placed", "order": {"id": f"o-{number % 7}"}, "n": number, **more}).encode()


def wanted(url: str, topic: str, **more: Any) -> Ingest:
    told: dict[str, Any] = {"type": "/kind", "aggregate_id": "/order/id", "source": SOURCE}
    return Ingest(connector=url, topic=topic, **told | more)


async def publish(url: str, *bodies: bytes, key: str = "k", source: str = SOURCE) -> None:
    connector = MemoryConnector(url)
    await connector.open()
    await connector.send(source, [Message("", key, {}, body) for body in bodies])
    await connector.close()


async def test_each_message_becomes_one_event(make: Make, memory_url: str, topic: str) -> None:
    """Type and aggregate are read from the body; the body stays what it was, byte for byte."""
    odd = b'{ "kind": "order.placed", "order": {"id": 5}, "price": 1.10 }'
    await publish(memory_url, *(placed(number) for number in range(50)), odd)
    node = await make("hub", None)
    done = await node.ingest(wanted(memory_url, topic), idle_s=0.2)
    assert done == Ingested(read=51, written=51, known=0, set_aside=0)
    events = [stored.event async for stored in node.log(topic)]
    assert {event.type for event in events} == {"order.placed"}
    assert events[-1].aggregate_id == "5"
    assert events[-1].payload == odd
    assert len({uuid.UUID(event.id).version for event in events} & {5}) == 1
    # The group has acknowledged them: a second run finds nothing.
    assert await node.ingest(wanted(memory_url, topic), idle_s=0.2) == Ingested()


async def test_what_comes_again_is_known(make: Make, memory_url: str, topic: str) -> None:
    """Its id says where it lies, also for another group, and for another node: then they are one fact."""
    await publish(memory_url, *(placed(number) for number in range(20)))
    hub, other = await make("hub", memory_url), await make("other", memory_url)
    assert (await hub.ingest(wanted(memory_url, topic), idle_s=0.2)).written == 20
    assert await hub.ingest(wanted(memory_url, topic, group="again"), idle_s=0.2) == Ingested(20, 0, 20, 0)
    assert (await other.ingest(wanted(memory_url, topic, group="third"), idle_s=0.2)).written == 20
    for node in (hub, other, hub):
        await node.sync()
    assert len(await ids(hub, topic)) == 20
    assert sorted(await ids(hub, topic)) == sorted(await ids(other, topic))


async def test_a_producers_own_id(make: Make, memory_url: str, topic: str) -> None:
    """The same id and content again is no second event; with other content it is set aside."""
    await publish(memory_url, placed(1, id="a"), placed(1, id="a"), placed(2, id="a"), placed(3, id=7))
    recorder = Recorder()
    node = await make("hub", None, observer=recorder)
    done = await node.ingest(wanted(memory_url, topic, id="/id"), idle_s=0.2)
    assert done == Ingested(read=4, written=2, known=1, set_aside=1)
    assert sorted(await ids(node, topic)) == ["7", "a"]
    assert recorder.alarms() == {"quarantined"}


async def test_what_cannot_become_an_event_is_set_aside(make: Make, memory_url: str, topic: str) -> None:
    """With the reason and the whole message; nothing waits behind it, and it does not come again."""
    bad = [b"", b"\xff\xfe", b"{", b'{"kind": "x"}', b'{"kind": 1.5, "order": {"id": "o"}}', b"[]", b"[" * 5000]
    bad += [b'{"kind": "", "order": {"id": "o"}}', placed(1, order={"id": "x" * 10_001}), placed(2, order={"id": True})]
    await publish(memory_url, *bad, placed(1))
    node = await make("hub", None)
    done = await node.ingest(wanted(memory_url, topic), idle_s=0.2)
    assert (done.written, done.set_aside) == (1, len(bad))
    aside = await node.store.quarantine(after=0, limit=100)
    assert len(aside) == len(bad)
    assert all(SOURCE in each.reason for each in aside)
    assert aside[3].raw.endswith(b'{"kind": "x"}')
    assert await node.ingest(wanted(memory_url, topic), idle_s=0.2) == Ingested()


async def test_the_key_may_be_the_aggregate(make: Make, memory_url: str, topic: str) -> None:
    """And the type the same for all."""
    await publish(memory_url, b"1", b'"text"', key="o-9")
    node = await make("hub", None)
    done = await node.ingest(wanted(memory_url, topic, type="order.placed", aggregate_id=""), idle_s=0.2)
    assert done.written == 2
    assert [event.data for event in await node.aggregate(topic, "o-9")] == [1, "text"]


async def test_a_group_shares_the_work(make: Make, memory_url: str, topic: str) -> None:
    """Two nodes with one group name: every message is taken by one of them."""
    await publish(memory_url, *(placed(number) for number in range(3000)))
    nodes = [await make(name, memory_url) for name in ("hub-1", "hub-2")]
    done = await asyncio.gather(*(node.ingest(wanted(memory_url, topic), idle_s=0.5) for node in nodes))
    assert sum(each.written for each in done) == 3000
    for node in (*nodes, *nodes):
        await node.sync()
    assert len(await ids(nodes[0], topic)) == 3000


async def test_nothing_is_acknowledged_that_the_disk_did_not_take(make: Make, memory_url: str, topic: str) -> None:
    """A commit that fails ends it; the messages come again and are written once."""
    await publish(memory_url, *(placed(number) for number in range(10)))
    fail = True

    def probe(step: str) -> None:
        if fail and step == "commit":
            raise OSError("the disk is full")

    node = await make("hub", None, store=MemoryStore("memory:", probe=probe))
    with pytest.raises(Exception, match="disk"):
        await node.ingest(wanted(memory_url, topic), idle_s=0.2)
    fail = False
    assert (await node.ingest(wanted(memory_url, topic), idle_s=0.2)).written == 10


async def test_an_outage_is_waited_for(make: Make, memory: MemoryBroker, memory_url: str, topic: str) -> None:
    """For ever, unless somebody said when to end: then it is an error."""
    await publish(memory_url, placed(1))
    node = await make("hub", None)
    memory.down = True
    with pytest.raises(Unavailable):
        await node.ingest(wanted(memory_url, topic), idle_s=0.2)
    running = asyncio.ensure_future(node.ingest(wanted(memory_url, topic)))
    memory.down = False
    await eventually(lambda: has(node, topic, 1))
    memory.down = True
    memory.down = False
    await publish(memory_url, placed(2))
    await eventually(lambda: has(node, topic, 2))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def has(node: SyncNode, topic: str, count: int) -> bool:
    return len(await ids(node, topic)) == count


async def test_since_when(make: Make, memory_url: str, topic: str) -> None:
    """A group that is new begins there."""
    await publish(memory_url, placed(1))
    await asyncio.sleep(0.01)
    since = datetime.now(UTC)
    await asyncio.sleep(0.01)
    await publish(memory_url, placed(2))
    node = await make("hub", None)
    assert (await node.ingest(wanted(memory_url, topic, since=since), idle_s=0.2)).written == 1


async def test_what_is_wrong_is_said_at_once(make: Make, memory_url: str, topic: str) -> None:
    """Before anything is read."""
    node = await make("hub", None)
    with pytest.raises(Rejected):
        await node.ingest(wanted(memory_url, topic, source="nobody's"), idle_s=0.2)
    for more in ({"type": ""}, {"source": ""}, {"group": ""}, {"aggregate_id": "order"}, {"id": "/a~2"}):
        with pytest.raises(ConfigError):
            await node.ingest(wanted(memory_url, topic, **more), idle_s=0.2)
    with pytest.raises(ConfigError):
        await node.ingest(wanted(memory_url, topic, since=datetime(2026, 1, 1)), idle_s=0.2)  # noqa: DTZ001 - that is it
    with pytest.raises(ConfigError):
        await node.ingest(wanted(memory_url, "another"), idle_s=0.2)
    with pytest.raises(ConfigError):
        await node.ingest(wanted(memory_url, topic), idle_s=0)

    class Tapless(MemoryConnector):
        @property
        def features(self) -> Features:
            return Features()

    tapless: Any = Tapless(memory_url)
    with pytest.raises(FeatureUnsupported):
        await node.ingest(wanted(tapless, topic), idle_s=0.2)


@pytest.mark.parametrize(
    ("pointer", "found"),
    # The examples of RFC 6901, section 5, which are what everybody else gives.
    [
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_a_pointer_points_as_the_standard_says(pointer: str, found: Any) -> None:
    document = {
        "foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8,
    }  # fmt: skip
    check_pointer(pointer)
    assert point(document, pointer) == found
    for nowhere in ("/foo/2", "/foo/-", "/foo/01", "/foo/bar", "/none", "/a~1b/c"):
        with pytest.raises(Invalid):
            point(document, nowhere)


async def test_the_store_may_be_a_file(tmp_path: Path, memory_url: str, topic: str) -> None:
    """And what was ingested is durable."""
    await publish(memory_url, *(placed(number) for number in range(5)))
    for wanted_count in (5, 0):
        async with SyncNode("hub", store=f"sqlite:///{tmp_path}/hub.db", topics=[topic]) as node:
            assert (await node.ingest(wanted(memory_url, topic), idle_s=0.2)).written == wanted_count
            assert len(await ids(node, topic)) == 5
