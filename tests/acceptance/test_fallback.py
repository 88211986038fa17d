"""Several connectors on one node: the first one that can be reached, in the order in which they were named."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector, memory_broker
from synckit_connectors.redis_streams import RedisConnector
from synckit_streams.errors import ConfigError, Timeout, Unauthorised, Unavailable
from synckit_streams.runtime.result import nobody_reached
from synckit_streams.testing.brokers import NatsServer, RedisServer
from tests.acceptance.kit import Make, draft, drafts, eventually, ids, same


@pytest.fixture
def two() -> tuple[str, str, object]:
    """Two brokers in memory, and what keeps them."""
    names = [uuid.uuid4().hex for _ in range(2)]
    urls = [f"memory://{name}" for name in names]
    return urls[0], urls[1], [MemoryConnector(url) for url in urls]


def broker_of(url: str) -> MemoryBroker:
    return memory_broker(url.removeprefix("memory://"))


async def test_the_first_one_that_is_there_is_used(make: Make, two: tuple[str, str, object], topic: str) -> None:
    """And the errors of those before it are in the result; once the first one is back, it is used again."""
    first, second, _ = two
    node = await make("till-1", None, connectors=[first, second])
    await node.append(draft(topic))
    result = await node.sync()
    assert (result.complete, result.events_pushed, result.errors) == (True, 1, ())
    assert len(broker_of(second).messages(topic)) == 0
    broker_of(first).down = True
    await node.append(draft(topic))
    result = await node.sync()
    assert result.complete
    assert [type(error) for error in result.errors] == [Unavailable]
    # The second log had neither: what a node wrote is sent to every log in which it meets others.
    assert len(broker_of(second).messages(topic)) == 2
    broker_of(first).down = False
    result = await node.sync()
    assert (result.complete, result.errors) == (True, ())
    assert len(broker_of(first).messages(topic)) == 2


async def test_nodes_with_different_first_choices_converge(
    make: Make, two: tuple[str, str, object], topic: str
) -> None:
    """As long as some node comes by both brokers: what it has from one, the peers on the other are owed."""
    first, second, _ = two
    one, other = await make("till-1", first), await make("till-2", second)
    between = await make("till-3", None, connectors=[first, second])
    for node in (one, other):
        await node.append_many(drafts(topic, 5))
        await node.sync()
    await between.sync()
    broker_of(first).down = True
    await between.sync()
    broker_of(first).down = False
    for node in (other, between, one, between, one):
        await node.sync()
    assert await same(topic, one, other, between)
    assert len(await ids(one, topic)) == 10


async def test_nobody_there_names_them_all(make: Make, two: tuple[str, str, object], topic: str) -> None:
    first, second, _ = two
    node = await make("till-1", None, connectors=[first, second])
    for url in (first, second):
        broker_of(url).down = True
    with pytest.raises(Unavailable, match=r"no connector was reached: .*; "):
        await node.sync()


def test_who_made_no_progress_is_named_with_the_others() -> None:
    assert nobody_reached([Timeout("one"), Unavailable("other")]).message == "no connector was reached: one; other"


async def test_what_somebody_has_to_put_right_is_said_first(
    make: Make, memory_url: str, redis_server: RedisServer
) -> None:
    """A wrong password does not pass by itself, however many brokers are away."""
    redis_server.password = "a word"
    await asyncio.to_thread(redis_server.restart)
    wrong = f"redis://:nothing@127.0.0.1:{redis_server.port}"
    broker_of(memory_url).down = True
    node = await make("till-1", None, connectors=[memory_url, wrong])
    with pytest.raises(Unauthorised):
        await node.sync()


async def test_a_server_that_is_killed_while_a_node_is_live_is_replaced(
    make: Make, nats_server: NatsServer, redis_url: str, topic: str
) -> None:
    """Over another broker of another kind, and by itself; and back again."""
    urls = [nats_server.url, redis_url]
    one, other = [await make(name, None, connectors=urls) for name in ("till-1", "till-2")]
    for node in (one, other):
        await node.start_auto_sync(interval_s=2)
    await one.append(draft(topic, "o-1"))

    async def together(events: int) -> bool:
        return len(await ids(other, topic)) == events and await same(topic, one, other)

    await eventually(lambda: together(1), seconds=30)
    await asyncio.to_thread(nats_server.kill)
    await one.append(draft(topic, "o-2"))
    await eventually(lambda: together(2), seconds=60)
    await asyncio.to_thread(nats_server.start)
    await one.append(draft(topic, "o-3"))
    await eventually(lambda: together(3), seconds=60)
    for node in (one, other):
        await node.stop_auto_sync()
    only_nats = await make("till-3", nats_server.url)
    for node in (one, only_nats):
        await node.sync()
    assert await same(topic, one, only_nats)


async def test_one_connector_named_twice_is_an_error(make: Make) -> None:
    for other in ("nats://h", "nats://user:word@h", "nats://h?timeout_s=3"):
        with pytest.raises(ConfigError, match="nats://h is named twice"):
            await make("till-1", None, connectors=["nats://h", other])


async def test_connectors_that_were_made_already_are_told_apart(make: Make, redis_url: str, topic: str) -> None:
    """Two of one class are two brokers, and each has its own places."""
    first, second = [RedisConnector(f"{redis_url}/{database}") for database in (1, 2)]
    node = await make("till-1", None, connectors=[first, second])
    await node.append(draft(topic))
    assert (await node.sync()).events_pushed == 1
    with pytest.raises(ConfigError, match="twice"):
        await make("till-2", None, connectors=[first, RedisConnector(first.url)])
