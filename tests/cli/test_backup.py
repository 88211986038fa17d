"""`synckit backup` and `restore`: taken while a node writes, and nothing is lost by going back to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryConnector
from synckit_streams import Draft, SyncNode
from synckit_streams.runtime.backup import back_up
from synckit_streams.runtime.moving import differences, opening
from synckit_streams.runtime.registry import store_for
from synckit_streams.testing.store_contract import audit
from synckit_streams.testing.store_contract.moving import furnish
from tests.cli.conftest import KINDS, Command

TOPICS = ["orders"]


def drafts(first: int, count: int) -> list[Draft]:
    return [Draft("orders", "made", f"o-{number % 7}", {"n": number}) for number in range(first, first + count)]


@pytest.mark.parametrize("target", KINDS)
def test_a_backup_of_a_running_node_restores_to_a_node_that_lost_nothing(
    synckit: Command, anywhere: str, url_of: Callable[[str, str], str], tmp_path: Path, target: str
) -> None:
    """What was sent after the backup comes back; no key is given out twice; the two agree."""
    broker = f"memory://backup-{os.getpid()}-{tmp_path.name}"

    async def story() -> None:
        keeper = MemoryConnector(broker)
        await keeper.open()
        async with SyncNode("hub", store=anywhere, topics=TOPICS, connectors=[broker]) as hub:
            await hub.append_many(drafts(0, 2_000))
            await hub.sync()

            async def write_on() -> None:
                for first in range(2_000, 3_000, 20):
                    await hub.append_many(drafts(first, 20))
                    await asyncio.sleep(0)

            writing = asyncio.create_task(write_on())
            done = await asyncio.to_thread(synckit, "backup", anywhere, "hub.db", "--json")
            await writing
            assert done.status == 0, done.err
            assert 2_000 <= done.json["events"] <= 3_000
            await hub.sync()
            digest, origin = await hub.digest("orders"), hub.store.origin
        assert (await asyncio.to_thread(synckit, "verify", "sqlite:///hub.db")).status == 0
        restored = url_of(target, "restored")
        assert (await asyncio.to_thread(synckit, "restore", "hub.db", restored)).status == 0
        async with SyncNode("hub", store=restored, topics=TOPICS, connectors=[broker]) as hub:
            assert (await hub.sync()).complete
            assert await hub.digest("orders") == digest
            await hub.append_many(drafts(9_000, 3))
            assert hub.store.origin != origin
            assert (await hub.sync()).complete
            log = await hub.store.log(after=None, limit=10_000)
            assert sorted(each.event.data["n"] for each in log) == [*range(3_000), 9_000, 9_001, 9_002]
        await keeper.close()

    asyncio.run(story())


def test_a_backup_has_everything(synckit: Command, anywhere: str, tmp_path: Path) -> None:
    """Twins, variants, held, refused, void, places, alarms; in a folder it gets a name."""

    async def make() -> None:
        store = store_for(anywhere)
        await store.open(opening("old"))
        await furnish(store)
        await store.close()

    asyncio.run(make())
    (tmp_path / "backups").mkdir()
    done = synckit("backup", anywhere, "backups", "--json")
    (name,) = [path.name for path in (tmp_path / "backups").iterdir()]
    assert (done.status, done.json["where"]) == (0, f"backups/{name}")
    assert name.startswith("old-20")

    async def compare() -> None:
        one, other = store_for(anywhere, read_only=True), store_for(f"sqlite:///backups/{name}", read_only=True)
        await one.open(opening("x"))
        await other.open(opening("x"))
        assert await differences(one, other) == []
        assert [each.event for each in await audit(one)] == [each.event for each in await audit(other)]
        await one.close()
        await other.close()

    asyncio.run(compare())


def test_a_backup_of_a_file_has_the_read_models(synckit: Command, tmp_path: Path) -> None:
    """They and their offsets are of one moment."""

    async def make() -> None:
        store = store_for("sqlite:///till.db")
        await store.open(opening("till"))
        async with store.transaction() as tx:
            await tx.execute("CREATE TABLE totals (n INTEGER)")
            await tx.execute("INSERT INTO totals VALUES (7)")
        await store.close()

    os.chdir(tmp_path)
    asyncio.run(make())
    assert synckit("backup", "sqlite:///till.db", "b.db").status == 0
    assert synckit("restore", "b.db", "sqlite:///again.db").status == 0
    with sqlite3.connect(tmp_path / "again.db") as connection:
        assert connection.execute("SELECT n FROM totals").fetchall() == [(7,)]
    connection.close()


def test_a_backup_that_is_given_up_leaves_nothing(
    tmp_path: Path, write: Callable[[str, str, Sequence[Any]], None]
) -> None:
    """Not even for a moment longer: nothing goes on writing to a file whose name is free again."""
    url = f"sqlite:///{tmp_path}/till.db"
    write("till-7", url, drafts(0, 60_000))
    told: list[int] = []

    async def give_up() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def advance(done: int, total: int) -> None:
            told.append(done)
            loop.call_soon_threadsafe(task.cancel)

        with pytest.raises(asyncio.CancelledError):
            await back_up(url, tmp_path / "b.db", advance=advance)

    asyncio.run(give_up())
    assert told
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("b.db")] == []


def test_nothing_is_written_over_and_nothing_half_made_is_left(
    synckit: Command, tmp_path: Path, write: Callable[[str, str, Sequence[Any]], None]
) -> None:
    """A backup that is there, a store that is there, a backup that is damaged, or none."""
    write("till-7", f"sqlite:///{tmp_path}/till.db", drafts(0, 500))
    assert synckit("backup", "sqlite:///till.db", "b.db").status == 0
    (tmp_path / "gone.db-wal").write_bytes(b"of another file")
    before = sorted(path.name for path in tmp_path.iterdir())
    for words, code in (
        (("backup", "sqlite:///till.db", "b.db"), "SK100"),
        (("backup", "sqlite:///till.db", "no/b.db"), "SK100"),
        (("backup", "sqlite:///nowhere.db", "c.db"), "SK312"),
        (("restore", "b.db", "sqlite:///till.db"), "SK100"),
        (("restore", "nowhere.db", "sqlite:///c.db"), "SK312"),
        (("restore", "b.db", "sqlite:///gone.db"), "SK100"),
    ):
        done = synckit(*words, "--json")
        assert (done.status, done.error["code"]) == (1, code), words
        assert done.error["hint"] or code == "SK100"
    with sqlite3.connect(tmp_path / "b.db") as connection:
        connection.execute("UPDATE events SET hash = x'00' WHERE position = 7")
    connection.close()
    done = synckit("restore", "b.db", "sqlite:///c.db", "--json")
    assert (done.status, done.error["code"]) == (1, "SK303")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
