"""A broker's log that is not what it was: noticed, told, and healed, on each real server.

Each test changes the server's directory or its log, as an operator or an accident does, and never anything of ours.
`test_put_back.py` has the two ways of putting a log back.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import SyncNode
from synckit_streams.testing.brokers import Server
from tests.acceptance.kit import Make, Recorder, drafts, eventually, ids, same
from tests.administration import delete, trim

EVENTS = 100


async def written(topic: str, *nodes: SyncNode, times: int = EVENTS, start: int = 0) -> set[str]:
    """Each node writes, and all meet; gives the ids of what is there."""
    found: set[str] = set()
    for node in nodes:
        found |= {each.event.id for each in await node.append_many(drafts(topic, times, start=start))}
    for node in (*nodes, *nodes):
        await node.sync()
    return found


async def healed(topic: str, wanted: set[str], *nodes: SyncNode) -> None:
    """After two meetings each, every node has everything, once, and says so."""
    for _ in range(2):
        for node in nodes:
            await node.sync()
    for node in nodes:
        result = await node.sync()
        assert result.complete, result.reasons
        found = await ids(node, topic)
        assert sorted(found) == sorted(wanted)
    assert await same(topic, *nodes)


async def kept(*nodes: SyncNode) -> set[str]:
    """The kinds of alarm that their stores remember, for `synckit status`."""
    return {alarm.kind for node in nodes for alarm in await node.store.alarms()}


async def test_a_server_that_was_set_up_anew(server: Server, make: Make, topic: str) -> None:
    """Nothing of its directory is left: the stores fill it up again, and whoever comes new gets everything."""
    ear = Recorder()
    one, other = [await make(name, server.url, observer=ear) for name in ("till-1", "till-2")]
    wanted = await written(topic, one, other)
    await asyncio.to_thread(server.stop)
    shutil.rmtree(server.store_dir)
    await asyncio.to_thread(server.start)
    await healed(topic, wanted, one, other)
    assert ear.alarms() & {"recreated", "rewound"}
    assert await kept(one, other) & {"recreated", "rewound"}
    await healed(topic, wanted, await make("newcomer", server.url))


async def test_a_log_that_was_deleted(server: Server, make: Make, topic: str) -> None:
    """While a node stands at its end, live: what was in it comes back, and the nodes go on."""
    ear = Recorder()
    one, other = [await make(name, server.url, observer=ear) for name in ("till-1", "till-2")]
    wanted = await written(topic, one, other)
    await other.start_auto_sync(interval_s=1)
    await delete(server, topic)
    wanted |= {each.event.id for each in await one.append_many(drafts(topic, 10, start=1000))}
    await one.sync()

    async def arrived() -> bool:
        return len(await ids(other, topic)) == len(wanted)

    await eventually(arrived, seconds=60)
    await other.stop_auto_sync()
    await healed(topic, wanted, one, other)
    assert ear.alarms() & {"recreated", "rewound"}
    assert await kept(one, other) & {"recreated", "rewound"}
    await healed(topic, wanted, await make("newcomer", server.url))


async def test_a_log_that_was_trimmed_beyond_what_a_node_had_read(server: Server, make: Make, topic: str) -> None:
    """It hears from its peers' digests what it has missed, and they publish that once more."""
    ear = Recorder()
    late = await make("late", server.url, observer=ear)
    await late.sync()
    one, other = [await make(name, server.url) for name in ("till-1", "till-2")]
    wanted = await written(topic, one, other, times=10)
    await late.sync()
    await late.close()
    wanted |= await written(topic, one, other, start=1000)
    await trim(server, topic, 150)
    late = await make("late", server.url, observer=ear)
    await late.sync()  # it cannot be complete before somebody else has been there
    await healed(topic, wanted, one, other, late)
    assert "trimmed" in ear.alarms()
    assert "trimmed" in await kept(late)


async def test_a_log_that_was_trimmed_to_nothing_while_a_node_writes(server: Server, make: Make, topic: str) -> None:
    """What is gone before its writer has read it back is not known to be sent, and goes out again."""
    one, other = [await make(name, server.url) for name in ("till-1", "till-2")]
    wanted = await written(topic, one, other, times=10)
    await one.append_many(drafts(topic, 10, start=500))
    await trim(server, topic, 21)
    wanted |= set(await ids(one, topic))
    await healed(topic, wanted, one, other)


def test_the_servers_are_all_of_them(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The fixture `server` has every broker that a node can have, but the one in memory."""
    from importlib.metadata import entry_points

    schemes = {each.name for each in entry_points(group="synckit_streams.connectors")} - {"memory", "tls", "rediss"}
    marks: Any = request.session._fixturemanager.getfixturedefs("server", request.node)
    assert {name.removesuffix("_server") for name in marks[-1].params} == schemes
