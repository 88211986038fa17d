"""A file as a sink: lines of CloudEvents, whole, each once, and in files of a bounded size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synckit_streams.connect.file_sink import FileSink
from synckit_streams.connect.record import Record
from synckit_streams.errors import ConfigError
from tests.connect.kit import declare, events_of, from_file, move_once, numbers, order, write_lines


def record(number: int, payload: bytes = b"null") -> Record:
    return Record(id=f"r-{number}", type="t", aggregate_id="a", payload=payload, topic="orders")


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


async def written(sink: FileSink, *records: Record) -> None:
    assert await sink.write(records) == []


async def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    """Whoever was killed in the middle of a write left it."""
    path = tmp_path / "out.jsonl"
    sink = FileSink(path)
    await sink.open()
    await written(sink, record(1), record(2))
    await sink.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    await sink.open()
    await written(sink, record(2), record(3))
    await sink.close()
    assert ids(path) == ["r-1", "r-2", "r-3"]


async def test_what_stands_there_is_not_written_again_in_whatever_batches_it_comes(tmp_path: Path) -> None:
    """Smaller ones than before, over a rotation, and with new records between them."""
    path = tmp_path / "out.jsonl"
    sink = FileSink(path, rotate_bytes=600)
    await sink.open()
    await written(sink, *map(record, range(5)))
    await written(sink, *map(record, range(5, 8)))
    await sink.close()
    assert (tmp_path / "out.jsonl.1").exists()
    await sink.open()
    for number in range(8):
        await written(sink, record(number), record(100 + number))
    await sink.close()
    parts = sorted(tmp_path.glob("out.jsonl.*"), key=lambda part: int(part.suffix[1:]))
    found = [id for part in [*parts, path] for id in ids(part)]
    assert found == [*(f"r-{n}" for n in range(8)), *(f"r-{100 + n}" for n in range(8))]
    assert all(part.stat().st_size <= 1000 for part in parts)


async def test_an_event_is_one_line_and_its_json_is_as_it_was(tmp_path: Path) -> None:
    """Line breaks between the parts of a value go, how numbers are written stays; bytes are base64."""
    path = tmp_path / "out.jsonl"
    sink = FileSink(path)
    await sink.open()
    await written(sink, record(1, b'{\n "a": 1.0,\r\n "b": 1e3, "t": "x\\ny"}'), record(2, b"\xff\x00"))
    await sink.close()
    first, second = path.read_bytes().splitlines()
    assert b'"data":{"a":1.0,"b":1e3,"t":"x\\ny"}' in first
    assert json.loads(second)["data_base64"] == "/wA="
    assert "data" not in json.loads(second)


async def test_a_folder_that_cannot_be_written_is_an_error_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "no").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        await FileSink(tmp_path / "no" / "out.jsonl").open()


async def test_what_one_pipeline_wrote_another_reads(tmp_path: Path) -> None:
    """Through a file of CloudEvents into a store, and a second time changes nothing."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(5)])
    out = from_file("out", sink={"kind": "file", "path": "between.jsonl", "topic": "orders"})
    back = from_file("back", source={"kind": "file", "path": "between.jsonl", "format": "cloudevents"})
    for _ in range(2):
        await move_once(declare(tmp_path, out, file="a.yaml"))
        await move_once(declare(tmp_path, back, file="b.yaml"))
        (tmp_path / "b.state" / "back.db").unlink()
    events = await events_of(f"sqlite:///{tmp_path}/shop.db")
    assert numbers(events) == list(range(5))
    assert {event.type for event in events} == {"order.placed"}


async def test_two_records_with_one_id_are_both_written(tmp_path: Path) -> None:
    """Only what is the same in everything is the same."""
    path = tmp_path / "out.jsonl"
    sink = FileSink(path)
    for _ in range(2):
        await sink.open()
        await written(sink, record(1, b'"a"'), record(1, b'"b"'), record(1, b'"a"'))
        await sink.close()
    assert [json.loads(line)["data"] for line in path.read_text().splitlines()] == ["a", "b"]


async def test_notes_and_schema_version_travel_along(tmp_path: Path) -> None:
    """As extensions of the CloudEvent."""
    path = tmp_path / "out.jsonl"
    sink = FileSink(path)
    await sink.open()
    await written(sink, Record(id="r", type="t", aggregate_id="a", payload=b"1", metadata={"by": 7}, schema_version=3))
    await sink.close()
    line = json.loads(path.read_text())
    assert (json.loads(line["skmeta"]), line["skver"]) == ({"by": 7}, 3)
