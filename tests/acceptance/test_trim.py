"""`trim=True`: a broker keeps what somebody has still to read, and nobody loses anything by the rest being gone."""

from __future__ import annotations

from typing import Any

import pytest

from synckit_connectors.memory import MemoryConnector
from synckit_streams import ConfigError, FeatureUnsupported, SyncNode
from synckit_streams.ports.connector import Features
from synckit_streams.runtime.registry import connector_for
from tests.acceptance.kit import Make, Recorder, drafts, ids, same


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


async def first(url: str, topic: str) -> int:
    """Where the log begins."""
    connector = connector_for(url)
    await connector.open()
    bounds = (await connector.bounds(topic))[0]
    await connector.close()
    return bounds.first


async def test_what_everybody_has_is_taken_away(make: Make, url: str, topic: str) -> None:
    """And nothing else: a node that is behind finds what it has still to read, and one that comes new gets all."""
    hub = await make("hub", url, trim=True)
    one, other = await make("one", url), await make("other", url)
    await hub.append_many(drafts(topic, 50))
    for node in (hub, one, hub, other, hub):
        await node.sync()
    assert await first(url, topic) == 51
    await one.append_many(drafts(topic, 30, start=100))
    for node in (one, hub, one, hub):
        assert (await node.sync()).complete
    assert await first(url, topic) == 51  # the other one has still to read them
    recorder = Recorder()
    newcomer = await make("newcomer", url, observer=recorder)
    for node in (newcomer, hub, other, newcomer):
        await node.sync()
    for node in (hub, one, other, newcomer):
        assert (await node.sync()).complete
        assert len(await ids(node, topic)) == 80
    assert await same(topic, hub, one, other, newcomer)
    assert recorder.alarms() == set()


async def test_a_log_that_nobody_else_has_read_stays(make: Make, url: str, topic: str) -> None:
    """It is the second copy of what a single node has written."""
    hub = await make("hub", url, trim=True)
    await hub.append_many(drafts(topic, 20))
    for _ in range(3):
        await hub.sync()
    assert await first(url, topic) == 1


async def test_only_who_was_told_to_trims(make: Make, url: str, topic: str) -> None:
    nodes = [await make(name, url) for name in ("one", "other")]
    await nodes[0].append_many(drafts(topic, 20))
    for node in (*nodes, *nodes):
        await node.sync()
    assert await first(url, topic) == 1


async def test_where_nobody_can_it_is_refused() -> None:
    """At once, where the node is made."""

    class Untrimmed(MemoryConnector):
        @property
        def features(self) -> Features:
            return Features()

    with pytest.raises(FeatureUnsupported):
        SyncNode("hub", store="memory:", connectors=[Untrimmed("memory://x")], topics=["t"], trim=True)
    wrong: Any = "yes"
    with pytest.raises(ConfigError):
        SyncNode("hub", store="memory:", connectors=["memory://x"], topics=["t"], trim=wrong)
