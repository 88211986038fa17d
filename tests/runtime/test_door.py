"""The door: whoever finds a store taken hands its work to the node that has it, and can do it no harm."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.errors import (
    IdReused,
    Invalid,
    StoreInUse,
    SyncKitError,
    TooLarge,
    Unavailable,
)
from synckit_streams.model.clock import Key, VersionVector
from synckit_streams.runtime import door as doors
from synckit_streams.runtime import errand
from synckit_streams.runtime.door import SOCKET_PATH_BYTES_MAX, VISITORS_MAX, Door, door_beside, find_door
from synckit_streams.runtime.errand import REQUEST_BYTES_MAX, DraftLine, Trouble
from synckit_streams.runtime.visitor import Visitor


def draft(number: int, *, topic: str = "orders", **more: Any) -> Draft:
    return Draft(
        topic=topic, type="order.placed", aggregate_id=f"o-{number}", data={"n": number}, id=f"id-{number}", **more
    )


async def knock(store: Path) -> Visitor:
    visitor = await Visitor.knock(store)
    assert visitor is not None
    return visitor


async def say(path: Path, raw: bytes) -> bytes:
    """What the door answers to these bytes, and to nothing more."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(raw)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    except OSError:
        return b""
    finally:
        writer.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[SyncNode]:
    async with SyncNode("till-1", store=f"sqlite:///{tmp_path}/till.db", topics=["orders"]) as opened:
        yield opened


@pytest.fixture
def store(node: SyncNode, tmp_path: Path) -> Path:
    return tmp_path / "till.db"


async def test_what_a_visitor_appends_is_in_the_nodes_log(node: SyncNode, store: Path) -> None:
    async with await knock(store) as visitor:
        receipt = await visitor.append([draft(1), draft(2)])
    assert (receipt.events, receipt.fresh) == (2, 2)
    assert [each.event.id async for each in node.log("orders")] == ["id-1", "id-2"]


async def test_what_was_there_already_is_not_fresh(node: SyncNode, store: Path) -> None:
    await node.append(draft(1))
    async with await knock(store) as visitor:
        receipt = await visitor.append([draft(1), draft(2), draft(2)])
    assert (receipt.events, receipt.fresh) == (3, 1)


async def test_a_visitor_learns_who_has_the_store(node: SyncNode, store: Path) -> None:
    async with await knock(store) as visitor:
        about = await visitor.about()
    assert (about.node, about.process, about.topics, about.connectors) == ("till-1", os.getpid(), ("orders",), ())


async def test_an_error_of_the_node_reaches_the_visitor_as_what_it_is(node: SyncNode, store: Path) -> None:
    await node.append(draft(1))
    other = Draft(topic="orders", type="order.placed", aggregate_id="o-1", data={"n": 2}, id="id-1")
    async with await knock(store) as visitor:
        with pytest.raises(IdReused, match="id-1"):
            await visitor.append([draft(2), other])
        with pytest.raises(Invalid, match="not a topic of this node"):
            await visitor.append([draft(3, topic="elsewhere")])
        assert (await visitor.append([draft(4)])).fresh == 1
    assert [each.event.id async for each in node.log()] == ["id-1", "id-4"]


async def test_a_visitor_can_have_the_node_sync(tmp_path: Path) -> None:
    """The result is the node's own; the node's peer gets what the visitor wrote."""
    name = f"memory://door-{os.getpid()}"
    async with (
        SyncNode("a", store=f"sqlite:///{tmp_path}/a.db", topics=["orders"], connectors=[name]) as a,
        SyncNode("b", store="memory:", topics=["orders"], connectors=[name]) as b,
    ):
        async with await knock(tmp_path / "a.db") as visitor:
            assert (await visitor.about()).connectors == (name,)
            await visitor.append([draft(1)])
            result = await visitor.sync()
        assert result.events_pushed == 1
        assert (await b.sync()).complete
        assert await a.digest("orders") == await b.digest("orders")


async def test_a_sync_that_reached_nobody_says_so_through_the_door(tmp_path: Path) -> None:
    with socket.socket() as listening:  # bound, not listening: whoever connects is refused
        listening.bind(("127.0.0.1", 0))
        url = f"nats://127.0.0.1:{listening.getsockname()[1]}"
        node = SyncNode("a", store=f"sqlite:///{tmp_path}/a.db", topics=["orders"], connectors=[url])
        async with node, await knock(tmp_path / "a.db") as visitor:
            with pytest.raises(Unavailable) as caught:
                await visitor.sync()
    assert caught.value.retryable


async def test_nobody_but_its_owner_can_knock(node: SyncNode, store: Path) -> None:
    path = find_door(store)
    assert path == tmp_door(store)
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def tmp_door(store: Path) -> Path:
    return store.with_name(store.name + "-door")


async def test_closing_takes_the_door_away(tmp_path: Path) -> None:
    async with SyncNode("a", store=f"sqlite:///{tmp_path}/a.db"):
        assert find_door(tmp_path / "a.db") is not None
    assert find_door(tmp_path / "a.db") is None
    assert await Visitor.knock(tmp_path / "a.db") is None
    assert sorted(each.name for each in tmp_path.iterdir() if "door" in each.name) == []


async def test_a_node_closes_while_visitors_are_there(tmp_path: Path) -> None:
    """An idle visitor delays nothing; its next request says that the node is gone."""
    node = SyncNode("a", store=f"sqlite:///{tmp_path}/a.db")
    await node.open()
    visitor = await knock(tmp_path / "a.db")
    await visitor.append([draft(1)])
    await asyncio.wait_for(node.close(), 5)
    with pytest.raises(StoreInUse, match="closed before it answered"):
        await visitor.append([draft(2)])
    await visitor.close()


async def test_a_memory_store_has_no_door() -> None:
    async with SyncNode("a", store="memory:") as node:
        assert await doors.open_door(node, [], bridge=False) is None


async def test_a_path_too_long_for_a_socket_moves_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket goes to the runtime directory, private to the user; a file beside the store says where."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    async with SyncNode("a", store=f"sqlite:///{deep}/a.db") as node:
        beside = door_beside(deep / "a.db")
        assert beside.is_file()
        assert stat.S_IMODE(beside.stat().st_mode) == 0o600
        path = find_door(deep / "a.db")
        assert path is not None
        assert path.parent == runtime / "synckit"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX
        async with await knock(deep / "a.db") as visitor:
            await visitor.append([draft(1)])
        assert [each.event.id async for each in node.log()] == ["id-1"]
    assert not beside.exists()
    assert list((runtime / "synckit").iterdir()) == []


async def test_a_runtime_directory_that_others_can_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "run" / "synckit"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared.parent))
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    async with SyncNode("a", store=f"sqlite:///{deep}/{'a' * 60}.db"):
        path = find_door(deep / f"{'a' * 60}.db")
        assert path is not None
        assert path.parent != shared


@pytest.mark.parametrize("spare", [0, 1])
def test_the_longest_path_that_fits_is_taken_as_it_is(tmp_path: Path, spare: int) -> None:
    """The boundary as the system sees it: 107 bytes can be bound, 108 cannot."""
    path = tmp_path / ("x" * (SOCKET_PATH_BYTES_MAX + spare - len(os.fsencode(tmp_path)) - 1))
    if spare:
        with pytest.raises(OSError, match="AF_UNIX path too long"):
            doors._bind(path)
    else:
        doors._bind(path).close()
    assert doors._fits(path) == (not spare)


async def test_a_door_left_by_a_node_that_was_killed_is_replaced(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\n"
        "from synckit_streams import SyncNode\n"
        "async def main():\n"
        "    async with SyncNode('a', store=sys.argv[1]):\n"
        "        print('open', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    store = tmp_path / "a.db"
    with subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{store}"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        async with await knock(store) as visitor:
            assert (await visitor.about()).process == child.pid
        child.send_signal(signal.SIGKILL)
    assert door_beside(store).exists()
    assert await Visitor.knock(store) is None
    async with SyncNode("a", store=f"sqlite:///{store}"), await knock(store) as visitor:
        assert (await visitor.about()).process == os.getpid()


async def test_something_else_in_the_doors_place_is_no_door(tmp_path: Path) -> None:
    store = tmp_path / "a.db"
    for content in (b"", b"/nowhere/at/all\n", b"\0", b"\xff" * 5000):
        door_beside(store).write_bytes(content)
        assert find_door(store) is None
        assert await Visitor.knock(store) is None


async def test_a_node_without_a_door_is_a_node_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory stands where the door should be, and there is no runtime directory."""

    def nowhere(store: Path) -> Path:
        raise OSError("no runtime directory")

    monkeypatch.setattr(doors, "_runtime_socket", nowhere)
    door_beside(tmp_path / "a.db").mkdir()
    async with SyncNode("a", store=f"sqlite:///{tmp_path}/a.db") as node:
        await node.append(draft(1))
    assert "no commands can be handed to this node" in caplog.text


@pytest.mark.parametrize(
    "raw",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"\xff\xfe\n",
        b"GET / HTTP/1.1\r\n",
        b'{"ask":"open sesame"}\n',
        b'{"ask":"append"}\n',
        b'{"ask":"append","drafts":[{}]}\n',
        b'{"ask":"append","drafts":[{"topic":"t","type":"x","aggregate_id":"a","payload":"!"}]}\n',
        b'{"ask":"sync","timeout_s":"soon"}\n',
        b'{"ask":' + b"[" * 100_000 + b"\n",
        b'{"ask":"about"',
    ],
    ids=lambda raw: repr(raw[:40]),
)
async def test_a_request_that_is_none_is_answered_and_harms_nobody(node: SyncNode, store: Path, raw: bytes) -> None:
    answer = json.loads(await say(tmp_door(store), raw))
    assert answer["error"]["code"] == "SK201"
    await node.append(draft(1))
    async with await knock(store) as visitor:
        assert (await visitor.about()).node == "till-1"


async def test_drafts_that_the_protocol_forbids_are_refused_at_the_door(node: SyncNode, store: Path) -> None:
    """By the node, also when the visitor is not ours: an empty topic, causes that are no causes."""
    for field, value in [("topic", ""), ("context", "AAAA"), ("after", "AAAA"), ("schema_version", -1)]:
        line = {"topic": "orders", "type": "x", "aggregate_id": "a", "payload": "e30=", field: value}
        raw = json.dumps({"ask": "append", "drafts": [line]}).encode() + b"\n"
        answer = json.loads(await say(tmp_door(store), raw))
        assert answer["error"]["code"] in ("SK201", "SK205"), field
    assert [each async for each in node.log()] == []


async def test_a_request_without_end_is_cut_off(node: SyncNode, store: Path) -> None:
    """Neither memory nor the node's time is a visitor's to take."""

    def talk() -> tuple[int, bytes]:
        written = 0
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(tmp_door(store)))
            try:
                while written < 16 * REQUEST_BYTES_MAX:
                    written += line.send(b"x" * 65536)
            except OSError:
                return written, line.recv(65536)
        return written, b""

    written, answer = await asyncio.to_thread(talk)
    assert written < 4 * REQUEST_BYTES_MAX
    assert json.loads(answer)["error"]["code"] == TooLarge.code
    await node.append(draft(1))


async def test_more_visitors_than_there_is_room_for_are_sent_away(node: SyncNode, store: Path) -> None:
    visitors = [await knock(store) for _ in range(VISITORS_MAX)]
    for visitor in visitors:
        assert (await visitor.about()).node == "till-1"
    async with await knock(store) as late:
        with pytest.raises(StoreInUse, match="talking to this node already"):
            await late.about()
    await visitors.pop().close()
    for _ in range(100):
        await asyncio.sleep(0.01)
        async with await knock(store) as again:
            try:
                assert (await again.about()).node == "till-1"
                break
            except StoreInUse:
                continue
    else:
        pytest.fail("the place of a visitor who left is not given to another one")
    for visitor in visitors:
        await visitor.close()


async def test_a_visitor_who_says_nothing_is_sent_away(
    node: SyncNode, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "IDLE_S", 0.05)
    reader, writer = await asyncio.open_unix_connection(tmp_door(store))
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_fault_of_ours_costs_the_visitor_an_answer_and_not_the_node(
    node: SyncNode, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(drafts: Sequence[Draft]) -> list[Any]:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(node, "append_many", broken)
    async with await knock(store) as visitor:
        with pytest.raises(SyncKitError, match="ZeroDivisionError: a fault"):
            await visitor.append([draft(1)])
        assert (await visitor.about()).node == "till-1"
    assert "a command failed" in caplog.text


async def test_many_large_drafts_go_in_several_requests(node: SyncNode, store: Path) -> None:
    """Ten payloads of 900 kB are more than one request holds."""
    large = [
        Draft(topic="orders", type="x", aggregate_id=f"a-{n}", data={"text": "y" * 900_000}, id=f"id-{n}")
        for n in range(10)
    ]
    async with await knock(store) as visitor:
        receipt = await visitor.append(large)
    assert (receipt.events, receipt.fresh) == (10, 10)
    assert [each.event.data["text"] == "y" * 900_000 async for each in node.log()] == [True] * 10


def test_a_draft_passes_the_door_unchanged() -> None:
    """Payload byte for byte; context and causes too."""
    given = Draft(
        topic="orders",
        type="x",
        aggregate_id="a",
        data=b'{"b":1e3, "a":\xc3\xa9}',
        metadata={"who": "é", "n": [1, None]},
        id="1",
        context=VersionVector({"n@x": 3}),
        after=(Key("orders", "n@x", 2),),
        schema_version=7,
    )
    line = errand.decode_request(errand.encode(errand.AskAppend([DraftLine.of(given)])))
    assert isinstance(line, errand.AskAppend)
    assert line.drafts[0].draft() == given


def test_each_error_comes_back_as_the_class_it_was() -> None:
    for cls in errand._classes().values():
        back = Trouble.of(cls("it went wrong", hint="do this")).error()
        assert type(back) is cls
        assert (back.message, back.hint) == ("it went wrong", "do this")
    assert type(Trouble("SK999", "from a later release").error()) is SyncKitError


def test_an_applications_own_error_does_not_stand_for_the_code_that_it_inherits() -> None:
    class Mine(IdReused):
        pass

    assert type(Trouble.of(Mine("m")).error()) is IdReused


async def test_a_door_that_was_moved_away_is_not_another_nodes_to_remove(tmp_path: Path) -> None:
    """Closing removes what this node made, and nothing that took its place."""
    async with SyncNode("a", store=f"sqlite:///{tmp_path}/a.db"):
        path = door_beside(tmp_path / "a.db")
        path.rename(tmp_path / "moved")
        shutil.copyfile("/dev/null", path)
    assert path.exists()


async def test_a_door_may_be_closed_twice(node: SyncNode, tmp_path: Path) -> None:
    door = Door(node, tmp_path / "other.db")
    await door.open()
    assert door.path is not None
    await door.close()
    await door.close()
    assert door.path is None
