"""Runners that share a topic by the broker's consumer group: each message by one of them, and none lost."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.ports.connector import Message
from synckit_streams.runtime.registry import connector_for
from tests.connect.kit import declare, letters, move_once, moving, until

BROKERS = ["nats_url", "kafka_url", "redis_url"]


@pytest.fixture(params=BROKERS)
def url(request: pytest.FixtureRequest) -> str:
    """Each broker."""
    found: str = request.getfixturevalue(request.param)
    return found


def new_topic() -> str:
    return f"orders-{uuid.uuid4().hex[:8]}"


def sharing(url: str, topic: str, folder: Path, **more: Any) -> Path:
    """A runner of its own, which writes a file of its own."""
    folder.mkdir()
    pipeline = {
        "name": "share",
        "source": {"kind": "topic", "connector": url, "topic": topic, "group": "archive"},
        "sink": {"kind": "file", "path": "out.jsonl"},
        "batch": {"records": 10},
        **more,
    }
    return declare(folder, pipeline)


async def publish(url: str, topic: str, numbers: Sequence[int], packing: str = "event") -> None:
    node = SyncNode("till", store="memory:", connectors=[url], topics=[topic], packing=packing)
    async with node:
        await node.append_many([Draft(topic, "order.placed", f"o-{n % 7}", {"n": n}) for n in numbers])
        await node.sync()


def taken(*folders: Path) -> list[int]:
    """The numbers in the files."""
    return sorted(each["n"] for folder in folders for each in letters(folder / "out.jsonl"))


@pytest.mark.parametrize("packing", ["event", "batch"])
async def test_none_is_lost_between_them(tmp_path: Path, url: str, packing: str) -> None:
    """Also of what one of them gave up by stopping in the middle; what comes again at a rebalance has the same id."""
    topic, one, two = new_topic(), tmp_path / "one", tmp_path / "two"
    files = [sharing(url, topic, one), sharing(url, topic, two)]
    async with moving(files[0]) as first, moving(files[1]):
        await publish(url, topic, range(300), packing)
        await until(lambda: set(taken(one, two)) == set(range(300)))
        await first.stop()
        await publish(url, topic, range(300, 400), packing)
        await until(lambda: set(taken(one, two)) == set(range(400)))
    lines = [json.loads(line) for folder in (one, two) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == 400


async def test_what_one_cannot_deliver_another_one_does(tmp_path: Path, url: str) -> None:
    """The sink of the first takes nothing; it acknowledges nothing, and lets go."""
    topic, one, two = new_topic(), tmp_path / "one", tmp_path / "two"
    nobody = "http://127.0.0.1:9/"  # the port is reserved for whoever throws away
    stuck = sharing(url, topic, one, sink={"kind": "http", "url": nobody, "timeout_seconds": 1.0})
    await publish(url, topic, range(50))
    async with moving(stuck) as first:
        await until(lambda: first.standings()[0].state == "failed")
        async with moving(sharing(url, topic, two)):
            await until(lambda: taken(two) == list(range(50)))
        assert first.standings()[0].moved == 0


async def test_once_ends_when_the_group_has_everything(tmp_path: Path, url: str) -> None:
    """A second run, by somebody else, finds nothing left."""
    topic = new_topic()
    await publish(url, topic, range(100))
    for folder, moved in ((tmp_path / "one", 100), (tmp_path / "two", 0)):
        (standing,) = await move_once(sharing(url, topic, folder))
        assert (standing.moved, standing.error, standing.lag) == (moved, "", 0)


async def test_what_nobody_can_read_goes_to_the_dead_letter(tmp_path: Path, url: str) -> None:
    """And is acknowledged: nothing waits behind it."""
    topic = new_topic()
    connector = connector_for(url)
    await connector.open()
    await connector.send(topic, [Message(id="", partition_key="x", headers={}, body=b"nonsense")])
    await connector.close()
    await publish(url, topic, range(3))
    (standing,) = await move_once(sharing(url, topic, tmp_path / "one"))
    assert (standing.moved, standing.dead) == (3, 1)
    (letter,) = letters(tmp_path / "one" / "pipelines.state" / "share.dead.jsonl")
    assert "nonsense" in letter["original"]["raw"]


async def test_a_database_for_the_switch_may_be_shared_too(tmp_path: Path, nats_url: str, database: str) -> None:
    """Without a position there is nothing that only one of them may move."""
    topic, one, two = new_topic(), tmp_path / "one", tmp_path / "two"
    files = [sharing(nats_url, topic, folder, store=database) for folder in (one, two)]
    async with moving(files[0]) as first, moving(files[1]) as second:
        await publish(nats_url, topic, range(100))
        await until(lambda: set(taken(one, two)) == set(range(100)))
        assert (first.standings()[0].error, second.standings()[0].error) == ("", "")
