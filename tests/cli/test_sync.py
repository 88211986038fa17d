"""`synckit sync`: one meeting, or many; and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import memory_broker
from synckit_streams import Draft, SyncNode
from synckit_streams.ports.connector import Message
from synckit_streams.testing.brokers import NatsServer
from tests.cli.conftest import Command, NodeStarter, Process

Write = Callable[[str, str, Sequence[Any]], None]


def drafts(*numbers: int, topic: str = "orders") -> list[Draft]:
    return [Draft(topic=topic, type="order.placed", aggregate_id=f"o-{n}", data={"n": n}) for n in numbers]


def status(synckit: Command, store: str) -> Any:
    return synckit("status", "--store", store, "--json").json


def test_two_stores_meet_over_a_server(synckit: Command, tmp_path: Path, write: Write, nats_server: NatsServer) -> None:
    """The topics of the first are those that it holds; the second is new and names its own."""
    write("a", f"sqlite:///{tmp_path}/a.db", [*drafts(1, 2), *drafts(1, topic="others")])
    sent = synckit("sync", "--store", "sqlite:///a.db", "--connector", nats_server.url, "--json")
    assert (sent.status, sent.json["node"], sent.json["complete"]) == (0, "a", True)
    assert (sent.json["events_pushed"], sent.json["events_pulled"]) == (3, 0)
    new = ("--node", "b", "--topic", "orders", "--topic", "others")
    taken = synckit("sync", "--store", "sqlite:///b.db", "--connector", nats_server.url, *new)
    assert taken.status == 0
    assert "in sync: b sent 0 events, took 3" in taken.out
    a, b = (status(synckit, f"sqlite:///{name}.db")["topics"] for name in "ab")
    assert {topic: each["digest"] for topic, each in a.items()} == {topic: each["digest"] for topic, each in b.items()}


def test_of_several_brokers_the_first_that_is_there_is_used(
    synckit: Command, tmp_path: Path, write: Write, nats_server: NatsServer
) -> None:
    """And what was wrong with those before it is said."""
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1, 2))
    urls = ("--connector", "nats://127.0.0.1:1", "--connector", nats_server.url)
    done = synckit("sync", "--store", "sqlite:///a.db", *urls)
    assert done.status == 0
    assert "in sync: a sent 2 events" in done.out
    assert "SK401" in done.err
    again = synckit("sync", "--store", "sqlite:///a.db", *urls, "--json").json
    assert (again["complete"], again["events_pushed"], len(again["errors"])) == (True, 0, 1)


def test_a_bridge_passes_on_what_came_by_one_broker_to_the_other(
    synckit: Command, tmp_path: Path, write: Write, nats_server: NatsServer, redis_url: str
) -> None:
    """And a broker that is not there makes it incomplete, and is named."""
    topic = f"t{tmp_path.name}"
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1, 2, topic=topic))
    assert synckit("sync", "--store", "sqlite:///a.db", "--connector", nats_server.url).status == 0
    urls = ("--connector", nats_server.url, "--connector", redis_url, "--bridge", "--topic", topic)
    done = synckit("sync", "--store", "sqlite:///hub.db", "--node", "hub", *urls, "--json")
    assert (done.status, done.json["complete"], done.json["events_pulled"], done.json["events_pushed"]) == (
        0,
        True,
        2,
        2,
    )
    new = ("--node", "b", "--connector", redis_url, "--topic", topic)
    assert "took 2" in synckit("sync", "--store", "sqlite:///b.db", *new).out
    again = synckit("sync", "--store", "sqlite:///hub.db", *urls, "--connector", "nats://127.0.0.1:1")
    assert "not complete yet" in again.out
    assert "nats://127.0.0.1:1 was not reached" in again.out
    assert "SK401" in again.err


def test_a_bridge_has_two_ends(synckit: Command) -> None:
    done = synckit("sync", "--store", "sqlite:///a.db", "--connector", "nats://h", "--topic", "t", "--bridge")
    assert (done.status, "two connectors" in done.err) == (1, True)


def test_a_running_node_that_is_no_bridge_says_so(synckit: Command, tmp_path: Path, running: NodeStarter) -> None:
    options: dict[str, Any] = {"topics": ["orders"], "connectors": [f"memory://{tmp_path.name}-{n}" for n in (1, 2)]}
    with running("a", store=f"sqlite:///{tmp_path}/a.db", **options):
        done = synckit("sync", "--store", "sqlite:///a.db", "--bridge", "--json")
    assert (done.status, "is no bridge" in done.error["message"]) == (1, True)
    with running("a", store=f"sqlite:///{tmp_path}/a.db", bridge=True, **options):
        assert synckit("sync", "--store", "sqlite:///a.db", "--bridge", "--json").json["complete"]


def test_what_is_missing_is_named(synckit: Command, tmp_path: Path) -> None:
    """The broker withholds two of a peer's three events: the sync succeeds, and is not complete."""
    name = f"sync-missing-{os.getpid()}"

    async def withhold() -> None:
        def those(topic: str, message: Message) -> bool:
            return message.partition_key != "o-3"

        async with SyncNode(
            "b", store=f"sqlite:///{tmp_path}/b.db", topics=["orders"], connectors=[f"memory://{name}"]
        ) as b:
            await b.append_many(drafts(1, 2, 3))
            await b.sync()
            memory_broker(name).drop(those, reader="a")
            sync = (
                "sync",
                "--store",
                "sqlite:///a.db",
                "--connector",
                f"memory://{name}?client=a",
                "--topic",
                "orders",
            )
            done = await asyncio.to_thread(synckit, *sync, "--node", "a")
            again = await asyncio.to_thread(synckit, *sync, "--json")
            origin = b.store.origin
        assert done.status == 0
        assert "not complete yet: a sent 0 events, took 1" in done.out
        assert f"missing of {origin}: 1–2 (2 events)" in done.out
        assert (again.json["complete"], again.json["missing"]) == (False, {"orders": {origin: [[1, 2]]}})

    asyncio.run(withhold())


def test_nobody_there_is_an_error_that_can_be_tried_again(synckit: Command, tmp_path: Path, write: Write) -> None:
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1))
    started = time.monotonic()
    done = synckit("sync", "--store", "sqlite:///a.db", "--connector", "nats://127.0.0.1:1", "--json")
    assert time.monotonic() - started < 10
    assert (done.status, done.out) == (1, "")
    assert (done.error["code"], done.error["retryable"]) == ("SK401", True)
    said = synckit("sync", "--store", "sqlite:///a.db", "--connector", "nats://127.0.0.1:1").err
    assert "error SK401" in said
    assert "hint  being offline is normal" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--store", "sqlite:///a.db"), "over which broker?"),
        (("--store", "sqlite:///new.db", "--connector", "memory://x"), "which topics?"),
        (("--store", "sqlite:///a.db", "--connector", "pigeon://x"), "no connector for pigeon://"),
    ],
)
def test_what_is_missing_in_the_call_is_asked_for(
    synckit: Command, tmp_path: Path, write: Write, arguments: tuple[str, ...], said: str
) -> None:
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1))
    done = synckit("sync", *arguments, "--json")
    assert done.status == 1
    assert said in done.error["message"]
    assert done.error["hint"]
    assert not (tmp_path / "new.db").exists()


def test_a_running_node_syncs_for_the_command(synckit: Command, tmp_path: Path, running: NodeStarter) -> None:
    url = f"memory://sync-running-{os.getpid()}"
    options: dict[str, Any] = {"topics": ["orders"], "connectors": [url]}
    with running("a", store=f"sqlite:///{tmp_path}/a.db", **options) as a:
        asyncio.run(_append_there(a, tmp_path))
        done = synckit("sync", "--store", "sqlite:///a.db", "--json")
        assert (done.status, done.json["node"], done.json["complete"]) == (0, "a", True)
        named = synckit("sync", "--store", "sqlite:///a.db", "--connector", url)
        assert named.status == 0
        assert "The node a (process " in named.err
        other = synckit("sync", "--store", "sqlite:///a.db", "--connector", "memory://elsewhere", "--json")
        assert other.status == 1
        assert f"syncs over {url}, not over memory://elsewhere" in other.error["message"]


async def _append_there(node: SyncNode, directory: Path) -> None:
    from synckit_streams.runtime.visitor import Visitor

    visitor = await Visitor.knock(directory / f"{node.node_id}.db")
    assert visitor is not None
    async with visitor:
        await visitor.append(drafts(1))


def test_a_running_node_without_a_broker_says_so(synckit: Command, tmp_path: Path, running: NodeStarter) -> None:
    with running("a", store=f"sqlite:///{tmp_path}/a.db", topics=["orders"]):
        done = synckit("sync", "--store", "sqlite:///a.db", "--json")
    assert (done.status, done.error["code"]) == (1, "SK100")
    assert "no connector" in done.error["message"]


def test_import_can_sync_at_the_end(synckit: Command, tmp_path: Path, nats_server: NatsServer) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "x", "subject": "o-1", "data": {"n": 1}}
    (tmp_path / "e.jsonl").write_text(json.dumps(event))
    done = synckit(
        *("import", "e.jsonl", "--store", "sqlite:///a.db", "--node", "a", "--topic", "imported"),
        *("--connector", nats_server.url, "--json"),
    )
    assert (done.status, done.json["imported"], done.json["complete"]) == (0, 1, True)
    taken = synckit(
        *("sync", "--store", "sqlite:///b.db", "--node", "b", "--topic", "imported"),
        *("--connector", nats_server.url, "--json"),
    )
    assert taken.json["events_pulled"] == 1


def test_watch_stays_in_sync_and_ends_cleanly(
    process: Callable[..., Process], synckit: Command, tmp_path: Path, write: Write, nats_server: NatsServer
) -> None:
    """What is sent elsewhere arrives; Ctrl-C ends with 130, and the store was closed cleanly."""
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1, topic="watched"))
    watching = process(
        *("sync", "--store", "sqlite:///b.db", "--node", "b", "--topic", "watched"),
        *("--connector", nats_server.url, "--watch", "--interval", 0.5, "--json"),
    )
    assert json.loads(watching.line())["node"] == "b"
    sent = synckit("sync", "--store", "sqlite:///a.db", "--connector", nats_server.url, "--json")
    assert sent.status == 0
    digest = status(synckit, "sqlite:///a.db")["topics"]["watched"]["digest"]
    deadline = time.monotonic() + 20
    while status(synckit, "sqlite:///b.db")["topics"].get("watched", {}).get("digest") != digest:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = watching.end(signal.SIGINT)
    assert (done.status, done.err) == (130, "")
    assert all(json.loads(line)["node"] == "b" for line in done.out.splitlines())
    assert not (tmp_path / "b.db-door").exists()


def test_watch_waits_while_it_is_offline(process: Callable[..., Process], tmp_path: Path, write: Write) -> None:
    """It says that it is offline, and SIGTERM ends it with 143."""
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1))
    watching = process("sync", "--store", "sqlite:///a.db", "--connector", "nats://127.0.0.1:1", "--watch")
    assert "offline: " in watching.line()
    done = watching.end(signal.SIGTERM)
    assert done.status == 143
    assert "Traceback" not in done.err
    assert (tmp_path / "a.db-clean").exists() or not (tmp_path / "a.db-door").exists()


def test_a_worker_of_a_group(synckit: Command, tmp_path: Path, write: Write, redis_url: str) -> None:
    """It takes what its group gets, and status says what is left for the group."""
    topic = f"t{uuid.uuid4().hex[:12]}"
    write("a", f"sqlite:///{tmp_path}/a.db", drafts(1, 2, 3, topic=topic))
    assert synckit("sync", "--store", "sqlite:///a.db", "--connector", redis_url).status == 0
    asked = ("status", "--store", "sqlite:///a.db", "--connector", redis_url, "--group", "billing")
    assert synckit(*asked, "--json").json["broker"]["groups"] == {topic: {"waiting": 3, "pending": 0}}
    assert "the group has 3 waiting, 0 delivered and not acknowledged" in " ".join(synckit(*asked).out.split())
    worker = ("--store", "sqlite:///b.db", "--node", "b", "--topic", topic, "--connector", redis_url)
    done = synckit("sync", *worker, "--group", "billing", "--json").json
    assert (done["complete"], done["events_pulled"]) == (True, 3)
    assert synckit(*asked, "--json").json["broker"]["groups"] == {topic: {"waiting": 0, "pending": 0}}
