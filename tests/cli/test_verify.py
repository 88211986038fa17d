"""`synckit verify`: each kind of damage is done to a real store with SQL, and named."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from synckit_streams.model.clock import VersionVector
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.moving import opening
from synckit_streams.runtime.registry import store_for
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.stores.sqlite_schema import decode_event, encode_event
from synckit_streams.testing.store_contract import Writer, arrivals, draft
from synckit_streams.testing.store_contract.moving import furnish
from tests.cli.conftest import Command, NodeStarter
from tests.stores.media import asked, run_sql

Run = Callable[..., None]
with_sql = pytest.mark.parametrize("anywhere", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def sound(anywhere: str) -> str:
    """The URL of a store that has everything in it, and of which an index holds a part."""

    async def make() -> None:
        store: EventStore = store_for(anywhere)
        if isinstance(store, SqliteStore):
            store.index_events = 5
        await store.open(opening("old"))
        await furnish(store)
        follows_a_void = Writer("w@1").write("o-1", context_bytes=VersionVector({"b@1": 1}).to_bytes())
        await store.append([draft("o-1"), draft("o-2")], received=arrivals(follows_a_void), now_ms=0)
        await store.append(offsets={"projection|totals": Offset(store.id, 2)}, now_ms=0)
        await store.close()

    asyncio.run(make())
    return anywhere


@pytest.fixture
def run(anywhere: str, tmp_path: Path) -> Run:
    """Runs SQL on the store's tables; `?` stands for a parameter."""

    def on_sqlite(sql: str, *parameters: Any) -> None:
        with sqlite3.connect(tmp_path / "till.db") as connection:
            connection.execute(sql, parameters)
        connection.close()

    def on_postgres(sql: str, *parameters: Any) -> None:
        for number in range(len(parameters)):
            sql = sql.replace("?", f"${number + 1}", 1)
        for table in ("events", "streams", "offsets", "held", "voids", "store"):
            sql = sql.replace(f" {table}", f" till.{table}")
        asked(run_sql(anywhere.partition("?")[0], sql, *parameters))

    return on_sqlite if anywhere.startswith("sqlite") else on_postgres


def found(synckit: Command, url: str) -> set[str]:
    done = synckit("verify", url, "--json")
    assert done.status == (1 if done.json["wrong"] else 0), done.err
    assert ("wrong" in synckit("verify", url).out) == bool(done.json["wrong"])
    return {f"{each['where']}: {each['what']}" for each in done.json["findings"]}


def test_a_sound_store_is_found_sound(synckit: Command, sound: str) -> None:
    """Although events are held, keys were used twice, and positions and numbers have holes."""
    assert found(synckit, sound) == set()
    done = synckit("verify", sound)
    assert done.status == 0
    assert "each as it was written; 3 held events, 3 offsets" in done.out


DAMAGE = [
    ("UPDATE events SET hash = ? WHERE position = 2", (bytes(32),), "hash: orders"),
    ("DELETE FROM events WHERE position = 6", (), "numbers: orders: old@"),
    ("UPDATE streams SET total = ? WHERE origin LIKE 'old@%'", (bytes(32),), "sums: orders"),
    ("UPDATE offsets SET position = 1000000 WHERE consumer = 'mine'", (), "offsets: mine stands at 1000000"),
    ("UPDATE offsets SET log = 'another' WHERE consumer = 'projection|totals'", (), "offsets: projection|totals"),
    ("DELETE FROM voids", (), "causes: position"),
    ("UPDATE events SET aggregate = aggregate + 1 WHERE position = 2", (), "medium: position 2: wrong aggregate"),
]


@with_sql
@pytest.mark.parametrize(("sql", "parameters", "said"), DAMAGE, ids=[each[2] for each in DAMAGE])
def test_what_somebody_changed_is_named(
    synckit: Command, sound: str, run: Run, sql: str, parameters: tuple[Any, ...], said: str
) -> None:
    """In whatever table."""
    run(sql, *parameters)
    assert any(each.startswith(said) for each in found(synckit, sound)), found(synckit, sound)


@with_sql
def test_a_twin_mark_that_is_wrong_is_named(synckit: Command, sound: str, run: Run) -> None:
    """A fact that is counted twice, or not at all."""
    run("UPDATE events SET twin = NOT twin WHERE position = 2")
    assert any(each.startswith("twins: position 2") for each in found(synckit, sound))


@with_sql
def test_an_event_that_is_held_in_vain_is_named(synckit: Command, sound: str, run: Run) -> None:
    """Everything that it waits for is here."""
    event = Writer("v@1").write("o-9")
    run("INSERT INTO held VALUES (?, ?)", event_hash(event), msgspec.msgpack.encode(event))
    assert "held: orders v@1:1 is held, and everything that it waits for is here" in found(synckit, sound)


@pytest.mark.parametrize("anywhere", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE events SET id = id + 1 WHERE position = 2", "medium: position 2: wrong id"),
        ("UPDATE events SET at = at + 1 WHERE position = 2", "medium: position 2: wrong at"),
        ("DELETE FROM aggregates WHERE position = 2", "medium: position 2 is not in the index by aggregate"),
        ("UPDATE aggregates SET aggregate = aggregate + 1 WHERE position = 2", "medium: the index by aggregate has 2"),
        ("UPDATE events SET stream = 99 WHERE position = 2", "medium: position 2: wrong stream"),
        ("UPDATE events SET body = x'00' WHERE position = 2", "medium: position 2: wrong the event"),
    ],
)
def test_a_column_of_a_file_that_does_not_fit_its_event_is_named(
    synckit: Command, sound: str, run: Run, sql: str, said: str
) -> None:
    """By which a look-up would miss it, or find another one."""
    run(sql)
    assert any(each.startswith(said) for each in found(synckit, sound)), found(synckit, sound)


@pytest.mark.parametrize("anywhere", ["sqlite"], indirect=True)
def test_an_event_that_was_changed_is_named(synckit: Command, sound: str, run: Run, tmp_path: Path) -> None:
    """Its body is a sound event, and not the one that was written."""
    with sqlite3.connect(tmp_path / "till.db") as connection:
        ((raw,),) = connection.execute("SELECT body FROM events WHERE position = 2")
    connection.close()
    event = msgspec.structs.replace(decode_event(raw), payload=b'{"forged":true}')
    run("UPDATE events SET body = ? WHERE position = 2", encode_event(event))
    assert {each.partition(":")[0] for each in found(synckit, sound)} == {"hash", "sums"}


@pytest.mark.parametrize("anywhere", ["postgres"], indirect=True)
def test_a_head_that_lags_behind_is_named(synckit: Command, sound: str, run: Run) -> None:
    """The next event would get a position that is taken."""
    run("UPDATE store SET position = 1")
    assert "medium: the next position is 2, which is taken" in found(synckit, sound)


def test_a_store_is_verified_beside_its_node(synckit: Command, sound: str, running: NodeStarter) -> None:
    """Which goes on writing."""
    with running("old", store=sound, topics=["orders", "stock", "nobody's"]):
        assert found(synckit, sound) == set()


def test_no_store_cannot_be_verified(synckit: Command) -> None:
    done = synckit("verify", "sqlite:///nowhere.db", "--json")
    assert (done.status, done.error["code"]) == (1, "SK312")
