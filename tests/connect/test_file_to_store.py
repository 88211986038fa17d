"""From a file into a store, the thin way through: what moves, what does not, and what a repetition does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synckit_streams import SyncNode
from tests.connect.kit import (
    assert_each_once,
    declare,
    events_of,
    from_file,
    letters,
    move_once,
    moving,
    numbers,
    order,
    taken_from,
    until,
    write_lines,
)


async def test_records_become_events_in_the_files_order(tmp_path: Path) -> None:
    """Type and aggregate come from where the pointers say, and the payload is what stood in the line."""
    (tmp_path / "orders.jsonl").write_text('{"order": "o-1", "kind":"placed","n":1.0}\n\n{"order":"o-2","kind":"sent"}')
    (standing,) = await move_once(declare(tmp_path, from_file()))
    assert (standing.state, standing.moved, standing.dead) == ("stopped", 2, 0)
    events = await events_of(f"sqlite:///{tmp_path}/shop.db")
    assert [(e.topic, e.type, e.aggregate_id) for e in events] == [
        ("orders", "placed", "o-1"),
        ("orders", "sent", "o-2"),
    ]
    assert events[0].payload == b'{"order": "o-1", "kind":"placed","n":1.0}'


async def test_a_second_run_moves_only_what_is_new(tmp_path: Path) -> None:
    """The position is remembered."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(3)])
    file = declare(tmp_path, from_file())
    assert [each.moved for each in await move_once(file)] == [3]
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(3, 5)])
    assert [each.moved for each in await move_once(file)] == [2]
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [0, 1, 2, 3, 4]


async def test_a_lost_position_doubles_nothing(tmp_path: Path) -> None:
    """A record's id says where it lies, so the store knows it again."""
    write_lines(tmp_path / "orders.jsonl", [order(1)] * 3)
    file = declare(tmp_path, from_file())
    await move_once(file)
    (tmp_path / "pipelines.state" / "in.db").unlink()
    (standing,) = await move_once(file)
    assert standing.moved == 3
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [1, 1, 1]


async def test_what_cannot_be_read_goes_to_the_dead_letter_and_nothing_waits(tmp_path: Path) -> None:
    """With the error and the line as it stood there."""
    lines = [
        b'{"order":"o-1","kind":"k","n":1}',
        b"{not json",
        b'{"order":"o-1"}',
        b"\xff",
        b'{"order":7,"kind":"k","n":2}',
    ]
    (tmp_path / "orders.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (standing,) = await move_once(declare(tmp_path, from_file()))
    assert (standing.moved, standing.dead) == (2, 3)
    dead = letters(tmp_path / "pipelines.state" / "in.dead.jsonl")
    assert [each["original"].get("raw", each["original"].get("raw_base64")) for each in dead] == [
        "{not json",
        '{"order":"o-1"}',
        "/w==",
    ]
    assert "nothing at /kind" in dead[1]["error"]["message"]
    assert {each["attempts"] for each in dead} == {1}


async def test_what_the_store_refuses_goes_to_the_dead_letter(tmp_path: Path) -> None:
    """Two records with one id and other content: the second can never be written, and the third is."""
    write_lines(tmp_path / "orders.jsonl", [order(1, id="a"), order(2, id="a"), order(3, id="b")])
    pipeline = from_file()
    pipeline["source"]["id"] = "/id"
    (standing,) = await move_once(declare(tmp_path, pipeline))
    assert (standing.moved, standing.dead) == (2, 1)
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == [1, 3]
    (dead,) = letters(tmp_path / "pipelines.state" / "in.dead.jsonl")
    assert dead["error"]["code"] == "SK304"
    assert json.loads(dead["original"]["raw"])["n"] == 2


@pytest.mark.parametrize("rows", ['a,"x\n""y"",z",1\r\n', "a,b\n"], ids=["quoted", "short"])
async def test_a_csv_has_an_object_for_each_row(tmp_path: Path, rows: str) -> None:
    """A field in quotes may go over lines; a row that lacks a field goes to the dead letter."""
    (tmp_path / "rows.csv").write_bytes(f"\ufeffid,text,n\r\nfirst,t,0\r\n{rows}last,t,2".encode())
    source = {"kind": "file", "path": "rows.csv", "format": "csv", "type": "row", "aggregate_id": "/id"}
    (standing,) = await move_once(declare(tmp_path, from_file(source=source)))
    events = await events_of(f"sqlite:///{tmp_path}/shop.db")
    found = [event.data for event in events]
    first, last = {"id": "first", "text": "t", "n": "0"}, {"id": "last", "text": "t", "n": "2"}
    if "x" in rows:
        assert found == [first, {"id": "a", "text": 'x\n"y",z', "n": "1"}, last]
    else:
        assert (found, standing.dead) == ([first, last], 1)


async def test_a_forgotten_quote_costs_one_row(tmp_path: Path) -> None:
    """Not all the rows up to the next quote, of which there may be none."""
    path = tmp_path / "rows.csv"
    rows = [f"r-{n},t,{n}\n" for n in range(2500)]
    rows[3] = 'r-3,"t,3\n'
    path.write_text("id,text,n\n" + "".join(rows))
    source = {"kind": "file", "path": "rows.csv", "format": "csv", "type": "row", "aggregate_id": "/id"}
    (standing,) = await move_once(declare(tmp_path, from_file(source=source)))
    assert (standing.moved, standing.dead) == (2499, 1)
    (dead,) = letters(tmp_path / "pipelines.state" / "in.dead.jsonl")
    assert dead["original"]["raw"] == 'r-3,"t,3'
    assert "a quote that is not closed" in dead["error"]["message"]


@pytest.mark.parametrize("size", [100, 500_000, 2_000_000])
async def test_a_dead_letter_has_the_whole_original_where_an_event_can(tmp_path: Path, size: int) -> None:
    """Else its beginning, and how long it was."""
    line = "x" * size
    (tmp_path / "orders.jsonl").write_text(line + "\n")
    dead_letter = {"kind": "store", "store": "sqlite:///dead.db", "topic": "dead"}
    (standing,) = await move_once(declare(tmp_path, from_file(dead_letter=dead_letter)))
    assert (standing.dead, standing.error) == (1, "")
    (event,) = await events_of(f"sqlite:///{tmp_path}/dead.db")
    if size <= 500_000:
        assert event.data["original"]["raw"] == line
    else:
        assert event.data["original"]["raw"] == line[: 64 * 1024]
        assert event.data["original"]["bytes"] == size


async def test_a_file_may_come_later_and_grow(tmp_path: Path) -> None:
    """Half a line is left until its other half is written."""
    path = tmp_path / "orders.jsonl"
    store = f"sqlite:///{tmp_path}/shop.db"
    async with moving(declare(tmp_path, from_file())) as runner:
        await until(lambda: runner.standings()[0].state == "running")
        write_lines(path, [order(1)])
        await until(lambda: runner.standings()[0].moved == 1)
        line = json.dumps(order(2)) + "\n"
        with path.open("a") as file:
            file.write(line[:9])
            file.flush()
            write_lines(tmp_path / "other", [])
            file.write(line[9:])
        await until(lambda: runner.standings()[0].moved == 2)
    assert numbers(await events_of(store)) == [1, 2]


async def test_a_topic_gets_them_when_a_broker_is_there(tmp_path: Path, nats_url: str) -> None:
    """A file to a topic of a real broker; a node of somebody else's takes them, each once."""
    topic = f"orders-{tmp_path.name}"
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(1200)])
    sink = {"kind": "topic", "connector": nats_url, "topic": topic, "packing": "batch"}
    file = declare(tmp_path, from_file(sink=sink))
    (standing,) = await move_once(file)
    assert (standing.state, standing.moved, standing.error) == ("stopped", 1200, "")
    assert_each_once(numbers(await taken_from(nats_url, topic, 1200, tmp_path)), range(1200))


async def test_a_topic_takes_records_while_no_broker_is_there(tmp_path: Path) -> None:
    """They are in the node's store, and the position moves; with --once it says that the broker lacks them."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(5)])
    sink = {"kind": "topic", "connector": "nats://127.0.0.1:1", "topic": "orders"}
    (standing,) = await move_once(declare(tmp_path, from_file(sink=sink)))
    assert (standing.state, standing.moved) == ("failed", 5)
    assert "SK401" in standing.error
    assert numbers(await events_of(f"sqlite:///{tmp_path}/pipelines.state/in.sink.db")) == [0, 1, 2, 3, 4]


async def test_two_records_with_one_id_have_two_dead_letters(tmp_path: Path) -> None:
    """Whatever a producer gets wrong, neither is lost."""
    write_lines(tmp_path / "orders.jsonl", [order(n, id="a") for n in range(4)])
    pipeline = from_file()
    pipeline["source"]["id"] = "/id"
    (standing,) = await move_once(declare(tmp_path, pipeline))
    assert (standing.moved, standing.dead) == (1, 3)
    dead = letters(tmp_path / "pipelines.state" / "in.dead.jsonl")
    assert [json.loads(each["original"]["raw"])["n"] for each in dead] == [1, 2, 3]


async def test_the_store_of_a_node_is_not_taken_for_a_position(tmp_path: Path) -> None:
    """It would become another node's."""
    async with SyncNode("shop", store=f"sqlite:///{tmp_path}/shop.db"):
        pass
    sink = {"kind": "file", "path": "out.jsonl"}
    (standing,) = await move_once(declare(tmp_path, from_file(store="sqlite:///shop.db", sink=sink)))
    assert standing.state == "failed"
    assert "in the store of the node 'shop'" in standing.error
