"""A log of ours as a source: a store that its node goes on writing, and a topic at a real broker."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryConnector
from synckit_streams import Draft, SyncNode
from tests.connect.kit import (
    assert_each_once,
    declare,
    events_of,
    letters,
    move_once,
    moving,
    numbers,
    taken_from,
    until,
)


def draft(number: int, topic: str = "orders") -> Draft:
    """An order, with notes of its writer's."""
    return Draft(topic, "order.placed", f"o-{number % 7}", {"n": number}, {"till": 7}, id=f"order-{number}")


def outbox_to_file(**more: Any) -> dict[str, Any]:
    return {
        "name": "out",
        "source": {"kind": "outbox", "store": "sqlite:///till.db"},
        "sink": {"kind": "file", "path": "out.jsonl"},
        **more,
    }


async def test_a_store_is_read_while_its_node_writes_it(tmp_path: Path) -> None:
    """Nothing is taken from the node, and each event comes with its id and its notes."""
    pipeline = outbox_to_file(sink={"kind": "store", "store": "sqlite:///copy.db"})
    async with SyncNode("till-7", store=f"sqlite:///{tmp_path}/till.db") as node:
        await node.append_many([draft(n) for n in range(10)])
        async with moving(declare(tmp_path, pipeline)) as runner:
            await until(lambda: runner.standings()[0].moved == 10)
            await node.append_many([draft(n, "returns") for n in range(10, 15)])
            await until(lambda: runner.standings()[0].moved == 15)
            assert runner.standings()[0].lag is not None
    events = await events_of(f"sqlite:///{tmp_path}/copy.db")
    assert numbers(events) == list(range(15))
    assert {event.topic for event in events} == {"orders", "returns"}
    assert (events[3].id, events[3].metadata) == ("order-3", {"till": 7})


async def test_one_topic_of_a_store(tmp_path: Path) -> None:
    """The others are passed over, and a second run moves nothing."""
    async with SyncNode("till-7", store=f"sqlite:///{tmp_path}/till.db") as node:
        await node.append_many([draft(1), draft(2, "returns"), draft(3)])
    pipeline = outbox_to_file()
    pipeline["source"]["topic"] = "orders"
    file = declare(tmp_path, pipeline)
    assert [each.moved for each in await move_once(file)] == [2]
    assert [each.moved for each in await move_once(file)] == [0]


async def test_a_store_that_took_anothers_place_is_read_from_its_beginning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sink that knows ids takes what is new to it."""
    pipeline = outbox_to_file(sink={"kind": "store", "store": "sqlite:///copy.db"})
    file = declare(tmp_path, pipeline)
    for range_ in (range(5), range(3, 8)):
        for path in tmp_path.glob("till.db*"):
            path.unlink()
        async with SyncNode("till-7", store=f"sqlite:///{tmp_path}/till.db") as node:
            await node.append_many([draft(n) for n in range_])
        await move_once(file)
    assert numbers(await events_of(f"sqlite:///{tmp_path}/copy.db")) == list(range(8))
    assert "another log" in caplog.text


async def test_a_fact_that_two_nodes_wrote_is_moved_once(tmp_path: Path) -> None:
    """Twins: two nodes took the same import while offline, and met afterwards."""
    broker = f"memory://{tmp_path.name}"
    keeper = MemoryConnector(broker)
    stores = [f"sqlite:///{tmp_path}/{name}.db" for name in ("till", "other")]
    for store, name in zip(stores, ("till", "other"), strict=True):
        async with SyncNode(name, store=store) as node:
            await node.append_many([draft(1), draft(2)])
    for store, name in [*zip(stores, ("till", "other"), strict=True)] * 2:
        async with SyncNode(name, store=store, connectors=[broker], topics=["orders"]) as node:
            await node.sync()
    await keeper.close()
    assert len(await events_of(stores[0])) == 4
    (standing,) = await move_once(declare(tmp_path, outbox_to_file()))
    assert standing.moved == 2
    assert [each["n"] for each in letters(tmp_path / "out.jsonl")] == [1, 2]


@pytest.mark.parametrize("broker", ["nats_url", "redis_url", "kafka_url"])
async def test_from_topic_to_topic_over_a_real_broker(
    tmp_path: Path, broker: str, request: pytest.FixtureRequest
) -> None:
    """Live, and after the pipeline was away; ids stay what they are."""
    url = request.getfixturevalue(broker)
    source, target = (f"{name}-{uuid.uuid4().hex[:8]}" for name in ("from", "to"))
    pipeline = {
        "name": "bridge",
        "source": {"kind": "topic", "connector": url, "topic": source},
        "sink": {"kind": "topic", "connector": url, "topic": target},
    }
    file = declare(tmp_path, pipeline)
    async with SyncNode("writer", store=f"sqlite:///{tmp_path}/writer.db", connectors=[url], topics=[source]) as node:
        await node.append_many([draft(n, source) for n in range(20)])
        await node.sync()
        async with moving(file) as runner:
            await until(lambda: runner.standings()[0].moved == 20)
        await node.append_many([draft(n, source) for n in range(20, 30)])
        await node.sync()
    (standing,) = await move_once(file)
    assert (standing.moved, standing.error) == (10, "")
    events = await taken_from(url, target, 30, tmp_path)
    assert_each_once(numbers(events), range(30))
    assert {event.id for event in events} == {f"order-{n}" for n in range(30)}
