"""`synckit import` and `synckit export`: as often as one likes, nothing twice, and a clear word about what is bad."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import Draft
from synckit_streams.cli.records import Table, csv_rows, json_lines
from tests.cli.conftest import Command, NodeStarter, Process

STORE = "sqlite:///till.db"
CSV = ("--topic", "airports", "--aggregate-column", "iata", "--type", "airport.recorded")


def cloudevent(number: int, **more: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": str(number),
        "source": "/shop",
        "type": "order.placed",
        "subject": f"o-{number}",
        "data": {"n": number},
        **more,
    }


def jsonl(path: Path, events: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def contents(synckit: Command, store: str = STORE) -> list[tuple[str, str, str, Any]]:
    """What a store holds, in the order of its log."""
    done = synckit("log", "--store", store, "--limit", 0, "--json")
    assert done.status == 0, done.err
    return [(each["id"], each["type"], each["aggregate_id"], each["data"]) for each in done.lines]


# ---------------------------------------------------------------------------------------------------------- JSON Lines


def test_other_peoples_cloudevents_are_imported_once(synckit: Command, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "events.jsonl", [cloudevent(1), cloudevent(2)])
    first = synckit("import", file, "--store", STORE, "--topic", "orders", "--node", "till-7", "--json")
    again = synckit("import", file, "--store", STORE, "--topic", "orders", "--json")
    assert (first.status, again.status) == (0, 0)
    assert {**first.json, "duration_s": 0} == {
        "node": "till-7",
        "read": 2,
        "imported": 2,
        "already_there": 0,
        "skipped": 0,
        "bad": [],
        "duration_s": 0,
    }
    assert (again.json["node"], again.json["imported"], again.json["already_there"]) == ("till-7", 0, 2)
    assert contents(synckit) == [
        ("/shop|1", "order.placed", "o-1", {"n": 1}),
        ("/shop|2", "order.placed", "o-2", {"n": 2}),
    ]


def test_the_lines_of_a_file_may_end_as_they_like(synckit: Command, tmp_path: Path) -> None:
    """A byte order mark, Windows line ends, empty lines, no end of line at the end."""
    lines = [json.dumps(cloudevent(number)).encode() for number in (1, 2, 3)]
    (tmp_path / "e.jsonl").write_bytes(b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n  \n" + lines[1] + b"\n" + lines[2])
    assert synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json").json["imported"] == 3


def test_standard_input_is_a_file_too(synckit: Command) -> None:
    raw = json.dumps(cloudevent(1)).encode() + b"\n"
    assert synckit("import", "-", "--store", STORE, "--topic", "orders", "--json", stdin=raw).json["imported"] == 1


def test_a_bad_line_ends_it_before_its_batch_and_says_which_it_is(synckit: Command, tmp_path: Path) -> None:
    """1,500 good lines: the first 1,000 are one commit and stay; the batch with the bad line is not written."""
    events = [cloudevent(number) for number in range(1500)]
    del events[1200]["source"]
    jsonl(tmp_path / "e.jsonl", events)
    done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json")
    assert done.status == 1
    assert done.error["code"] == "SK205"
    assert done.error["message"].startswith("line 1201 of e.jsonl: ")
    assert "'source' is missing" in done.error["message"]
    assert "1,000 events of the lines before are imported" in done.error["hint"]
    assert "--skip-bad" in done.error["hint"]
    assert len(contents(synckit)) == 1000

    events[1200]["source"] = "/shop"
    jsonl(tmp_path / "e.jsonl", events)
    again = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json")
    assert (again.json["imported"], again.json["already_there"]) == (500, 1000)


def test_bad_lines_can_be_passed_over_and_are_reported(synckit: Command, tmp_path: Path) -> None:
    lines = [
        json.dumps(cloudevent(1)).encode(),
        b"this is no JSON",
        json.dumps(cloudevent(2)).encode(),
        b"\xff\xfe",
        b'{"specversion":"1.0"}',
        b"[" * 10_000,
        json.dumps(cloudevent(3)).encode(),
    ]
    (tmp_path / "e.jsonl").write_bytes(b"\n".join(lines))
    done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--skip-bad", "--json")
    assert done.status == 0
    assert (done.json["read"], done.json["imported"], done.json["skipped"]) == (7, 3, 4)
    assert [(bad["line"], bad["code"]) for bad in done.json["bad"]] == [(n, "SK205") for n in (2, 4, 5, 6)]
    said = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--skip-bad")
    assert "skipped line 2: SK205 not a CloudEvent" in said.err
    assert "imported 0 events" in said.out
    assert "3 were there already, skipped 4" in said.out


def test_an_id_with_other_content_is_a_bad_line(
    synckit: Command, tmp_path: Path, write: Callable[[str, str, Sequence[Any]], None]
) -> None:
    """What the store alone can know is said with the line's number as well, and passed over like the rest."""
    write("till-7", STORE.replace("till.db", str(tmp_path / "till.db")), [
        Draft(topic="orders", type="order.placed", aggregate_id="o-2", data={"other": 1}, id="/shop|2")
    ])  # fmt: skip
    jsonl(tmp_path / "e.jsonl", [cloudevent(number) for number in range(5)])
    done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json")
    assert done.status == 1
    assert done.error["code"] == "SK304"
    assert done.error["message"].startswith("line 3 of e.jsonl: ")
    assert len(contents(synckit)) == 1
    skipped = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--skip-bad", "--json")
    assert (skipped.json["imported"], skipped.json["skipped"]) == (4, 1)
    assert [bad["line"] for bad in skipped.json["bad"]] == [3]


def test_a_line_without_end_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synckit_streams.cli.records.STRUCTURED_BYTES_MAX", 1000)
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"x" * 5_000_000 + b"\n" + json.dumps(cloudevent(1)).encode())
    with path.open("rb") as file:
        records = list(json_lines(file, topic="orders"))
    assert [(each.line, each.error.code if each.error else None) for each in records] == [(1, "SK203"), (2, None)]


def test_events_of_others_need_a_topic(synckit: Command, tmp_path: Path) -> None:
    jsonl(tmp_path / "e.jsonl", [cloudevent(1)])
    done = synckit("import", "e.jsonl", "--store", STORE, "--json")
    assert done.status == 1
    assert "topic" in done.error["message"]


# ----------------------------------------------------------------------------------------------------------------- CSV


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_rows_of_a_csv_become_events(synckit: Command, tmp_path: Path) -> None:
    """As text, under the names of the columns; also with a line break inside a field."""
    table(tmp_path / "a.csv", 'iata,name,note\nLAX,"Los Angeles, Intl","two\nlines"\nSFO,San Francisco,\n')
    done = synckit("import", "a.csv", "--store", STORE, *CSV, "--id-column", "iata", "--json")
    assert done.json["imported"] == 2
    assert contents(synckit) == [
        ("LAX", "airport.recorded", "LAX", {"iata": "LAX", "name": "Los Angeles, Intl", "note": "two\nlines"}),
        ("SFO", "airport.recorded", "SFO", {"iata": "SFO", "name": "San Francisco", "note": ""}),
    ]


def test_without_an_id_column_a_row_is_known_by_what_it_says(synckit: Command, tmp_path: Path) -> None:
    """Importing again, sorted otherwise and with a row more, adds that row; two equal rows are two events."""
    rows = ["LAX,Los Angeles", "SFO,San Francisco", "SFO,San Francisco"]
    table(tmp_path / "a.csv", "iata,name\n" + "\n".join(rows) + "\n")
    assert synckit("import", "a.csv", "--store", STORE, *CSV, "--json").json["imported"] == 3
    assert synckit("import", "a.csv", "--store", STORE, *CSV, "--json").json["imported"] == 0
    table(tmp_path / "a.csv", "iata,name\n" + "\n".join(["SEA,Seattle", *reversed(rows)]) + "\n")
    again = synckit("import", "a.csv", "--store", STORE, *CSV, "--json")
    assert (again.json["imported"], again.json["already_there"]) == (1, 3)
    assert [each[2] for each in contents(synckit)] == ["LAX", "SFO", "SFO", "SEA"]


@pytest.mark.parametrize("option", ["--aggregate-column", "--id-column"])
def test_a_missing_column_is_named_with_those_that_there_are(synckit: Command, tmp_path: Path, option: str) -> None:
    table(tmp_path / "a.csv", "iata,name\nLAX,Los Angeles\n")
    given = dict(zip(CSV[::2], CSV[1::2], strict=True)) | {option: "icao"}
    done = synckit("import", "a.csv", "--store", STORE, *(each for pair in given.items() for each in pair), "--json")
    assert done.status == 1
    assert done.error["message"] == "there is no column 'icao'"
    assert done.error["hint"] == f"{option} names one of: iata, name"
    assert not (tmp_path / "till.db").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the CSV is empty"),
        ("iata,name,name\n", "two columns 'name'"),
        ('iata,"name\n', "not the header of a CSV"),
    ],
)
def test_a_header_that_is_none_is_said_so(synckit: Command, tmp_path: Path, text: str, message: str) -> None:
    table(tmp_path / "a.csv", text)
    done = synckit("import", "a.csv", "--store", STORE, *CSV, "--json")
    assert done.status == 1
    assert message in done.error["message"]


def test_each_bad_row_costs_itself_alone(tmp_path: Path) -> None:
    """Too few fields, too many, no aggregate, no id, a quote astray, bytes that are no UTF-8, a NUL in an id."""
    path = tmp_path / "a.csv"
    path.write_bytes(
        b'\xef\xbb\xbfiata,id\r\nA,1\r\nB\r\nC,3,4\r\n,5\r\nE,\r\n"F"x,7\r\nG\xff,8\r\nH,9\0\r\n\r\nJ,11\r\n'
    )
    with path.open("rb") as file:
        records = list(csv_rows(file, Table("t", "x", "iata", "id")))
    assert [each.line for each in records if each.draft is not None] == [2, 11]
    assert [each.line for each in records if each.error is not None] == [3, 4, 5, 6, 7, 8, 9]
    assert {each.error.code for each in records if each.error is not None} == {"SK205"}


def test_a_quote_that_is_never_closed_is_one_bad_row(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", 'iata,name\nA,"never closed\n' + "B,b\n" * 10)
    with path.open("rb") as file:
        (record,) = csv_rows(file, Table("t", "x", "iata"))
    assert record.error is not None
    assert "not a row of a CSV" in record.error.message


def test_a_tsv_is_split_at_its_tabs(synckit: Command, tmp_path: Path) -> None:
    table(tmp_path / "a.tsv", "iata\tname\nLAX\tLos Angeles, Intl\n")
    assert synckit("import", "a.tsv", "--store", STORE, *CSV, "--json").json["imported"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.csv", "--store", STORE),
        ("a.csv", "--store", STORE, "--aggregate-column", "iata", "--topic", "t"),
        ("a.csv", "--store", STORE, "--aggregate-column", "iata", "--type", "x"),
        ("a.jsonl", "--store", STORE, "--topic", "t", "--type", "x"),
        ("a.jsonl",),
    ],
)
def test_a_wrong_call_ends_with_2(synckit: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "a.csv").write_text("iata\nLAX\n")
    (tmp_path / "a.jsonl").write_text("")
    done = synckit("import", *arguments)
    assert done.status == 2
    assert "Usage: synckit import" in done.err
    assert not (tmp_path / "till.db").exists()


@pytest.mark.parametrize(("file", "reason"), [("nowhere.jsonl", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_said_so(synckit: Command, file: str, reason: str) -> None:
    done = synckit("import", file, "--store", STORE, "--topic", "t", "--json")
    assert done.status == 1
    assert reason in done.error["message"]


def test_the_demos_airports_are_a_csv_like_any_other(synckit: Command, tmp_path: Path) -> None:
    """3,376 rows; the digest of the store does not depend on how often they were imported."""
    source = Path(__file__).parents[2] / "synckit_streams" / "cli" / "data" / "airports.csv"
    synckit("import", source, "--store", STORE, *CSV, "--id-column", "iata")
    done = synckit("import", source, "--store", STORE, *CSV, "--id-column", "iata", "--json")
    assert (done.json["read"], done.json["imported"], done.json["already_there"]) == (3376, 0, 3376)
    with source.open(newline="") as file:
        assert [each[3] for each in contents(synckit)] == list(csv.DictReader(file))


# -------------------------------------------------------------------------------------------------------------- export


def test_what_is_exported_can_be_imported_elsewhere(
    synckit: Command, tmp_path: Path, write: Callable[[str, str, Sequence[Any]], None]
) -> None:
    """Ids, types, aggregates, metadata and payloads byte for byte; also odd ones; also topic by topic."""
    drafts = [
        Draft(topic="a", type="x", aggregate_id="1", data={"n": 1}, metadata={"who": "é"}, id="one"),
        Draft(topic="a", type="x y", aggregate_id="ü/%\n", data=b'{"b":1e3, "a":1,"a":2}'),
        Draft(topic="b", type="x", aggregate_id="1", data=b"\xff\x00 no text", schema_version=3),
        Draft(topic="b", type="x", aggregate_id="2", data=None),
    ]
    write("a", f"sqlite:///{tmp_path}/till.db", drafts)
    whole = synckit("export", "--store", STORE, "-o", "all.jsonl", "--json")
    assert whole.json == {"exported": 4, "file": "all.jsonl"}
    assert synckit("export", "--store", STORE, "--topic", "b", "-o", "b.jsonl").status == 0
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 2
    assert synckit("import", "all.jsonl", "--store", "sqlite:///other.db", "--json").json["imported"] == 4
    ours, theirs = (
        [
            {name: each[name] for name in ("topic", "type", "aggregate_id", "id", "data", "metadata", "schema_version")}
            for each in synckit("log", "--store", store, "--limit", 0, "--json").lines
        ]
        for store in (STORE, "sqlite:///other.db")
    )
    assert ours == theirs
    again = synckit("export", "--store", "sqlite:///other.db")
    payloads = [json.loads(line).get("data_base64") for line in again.out.splitlines()]
    assert payloads[2] == "/wAgbm8gdGV4dA=="
    assert b'"data":{"b":1e3, "a":1,"a":2}' in (tmp_path / "all.jsonl").read_bytes()
    assert synckit("import", "all.jsonl", "--store", STORE, "--json").json["already_there"] == 4


def test_export_gives_the_events_to_standard_output_and_the_summary_beside_it(synckit: Command, tmp_path: Path) -> None:
    jsonl(tmp_path / "e.jsonl", [cloudevent(1)])
    synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders")
    done = synckit("export", "--store", STORE, "--json")
    assert json.loads(done.out)["specversion"] == "1.0"
    assert json.loads(done.err) == {"exported": 1, "file": None}


def test_export_leaves_a_whole_file_or_none(synckit: Command, tmp_path: Path) -> None:
    done = synckit("export", "--store", "sqlite:///nowhere.db", "-o", "e.jsonl", "--json")
    assert (done.status, done.error["code"]) == (1, "SK312")
    jsonl(tmp_path / "in.jsonl", [cloudevent(1)])
    synckit("import", "in.jsonl", "--store", STORE, "--topic", "orders")
    done = synckit("export", "--store", STORE, "-o", "no/such/folder/e.jsonl", "--json")
    assert done.status == 1
    assert "cannot write no/such/folder/e.jsonl" in done.error["message"]
    assert [each.name for each in tmp_path.iterdir() if "e.jsonl" in each.name] == []


# ----------------------------------------------------------------------------------------------------- beside a node


def test_import_and_export_work_while_a_node_has_the_store_open(
    synckit: Command, tmp_path: Path, running: NodeStarter
) -> None:
    """The node writes what is imported: it is in its log, under its origin, and counted as ever."""
    jsonl(tmp_path / "e.jsonl", [cloudevent(number) for number in range(2500)])
    with running("till-7", store=f"sqlite:///{tmp_path}/till.db", topics=["orders"]) as node:
        done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json")
        assert (done.status, done.json["node"], done.json["imported"]) == (0, "till-7", 2500)
        again = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders")
        assert "The node till-7 (process " in again.err
        assert "imported 0 events into till-7, 2,500 were there already" in again.out
        assert len(synckit("export", "--store", STORE).out.splitlines()) == 2500
        origin = node.store.origin
    assert {each["origin"] for each in synckit("log", "--store", STORE, "--limit", 0, "--json").lines} == {origin}


def test_a_bad_record_is_found_through_the_door_as_well(synckit: Command, tmp_path: Path, running: NodeStarter) -> None:
    events = [cloudevent(1), cloudevent(2), cloudevent(1, data={"other": True})]
    jsonl(tmp_path / "e.jsonl", events)
    with running("till-7", store=f"sqlite:///{tmp_path}/till.db", topics=["orders"]):
        done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json")
        assert (done.status, done.error["code"]) == (1, "SK304")
        wrong = synckit("import", "e.jsonl", "--store", STORE, "--topic", "elsewhere", "--json")
        assert "not a topic of this node" in wrong.error["message"]
        skipped = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--skip-bad", "--json")
        assert (skipped.json["imported"], [bad["line"] for bad in skipped.json["bad"]]) == (2, [3])


def test_the_running_node_must_be_the_one_that_was_named(
    synckit: Command, tmp_path: Path, running: NodeStarter
) -> None:
    jsonl(tmp_path / "e.jsonl", [cloudevent(1)])
    with running("till-7", store=f"sqlite:///{tmp_path}/till.db", topics=["orders"]):
        done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--node", "till-8", "--json")
    assert (done.status, done.error["code"]) == (1, "SK100")
    assert "open as the node 'till-7'" in done.error["message"]


# -------------------------------------------------------------------------------------------------------- who it is


def test_a_store_remembers_its_node(synckit: Command, tmp_path: Path) -> None:
    """A new store draws a node id nobody else has, and says so; from then on it is that node."""
    jsonl(tmp_path / "e.jsonl", [cloudevent(1)])
    first = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders")
    assert "This store had no node yet: from now on it is node-" in first.err
    name = synckit("status", "--store", STORE, "--json").json["node"]
    assert name.startswith("node-")
    second = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders")
    assert second.err == ""
    assert f"into {name}" in second.out
    renamed = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--node", "till-7")
    assert f"This store was the node {name}; from now on it is till-7" in renamed.err
    assert synckit("status", "--store", STORE, "--json").json["node"] == "till-7"


def test_a_run_of_commands_keeps_one_incarnation(synckit: Command, tmp_path: Path) -> None:
    """Also when somebody looks at the store in between: the summary does not grow with every import."""
    for number in range(3):
        jsonl(tmp_path / "e.jsonl", [cloudevent(number)])
        assert synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--node", "till-7").status == 0
        assert synckit("status", "--store", STORE).status == 0
    origins = synckit("status", "--store", STORE, "--json").json["topics"]["orders"]["origins"]
    assert list(origins.values()) == [3]


@pytest.mark.parametrize("node", ["", "two words", "a@b", "x" * 65])
def test_a_node_id_that_is_not_allowed_is_refused(synckit: Command, tmp_path: Path, node: str) -> None:
    jsonl(tmp_path / "e.jsonl", [cloudevent(1)])
    done = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--node", node, "--json")
    if node:
        assert (done.status, done.error["code"]) == (1, "SK100")
    else:  # nobody named one
        assert done.status == 0


# ----------------------------------------------------------------------------------------------------------- stopping


def test_an_import_that_is_interrupted_leaves_whole_batches(
    synckit: Command, process: Callable[..., Process], tmp_path: Path
) -> None:
    """Ctrl-C in the middle: status 130, no traceback, and the next import does the rest."""
    jsonl(tmp_path / "e.jsonl", [cloudevent(number) for number in range(12_000)])
    importing = process("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--node", "till-7")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        log = synckit("status", "--store", STORE, "--json") if (tmp_path / "till.db").exists() else None
        if log is not None and log.status == 0 and log.json["topics"]:
            break
        time.sleep(0.01)
    done = importing.end(signal.SIGINT)
    assert (done.status, done.err) == (130, "")
    written = synckit("status", "--store", STORE, "--json").json["topics"]["orders"]["events"]
    assert 0 < written < 12_000
    assert written % 1000 == 0
    again = synckit("import", "e.jsonl", "--store", STORE, "--topic", "orders", "--json").json
    assert (again["imported"], again["already_there"]) == (12_000 - written, written)
