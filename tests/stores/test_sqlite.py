"""The default store: the contract on a file, and what only a file can do wrong."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest

from synckit_streams.errors import (
    ConfigError,
    SchemaNewer,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
)
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.testing.store_contract import (
    NOW_MS,
    StoreContract,
    Writer,
    arrivals,
    audit,
    draft,
    opening,
)
from tests.stores.disks import remount
from tests.stores.killing import kill_writers
from tests.stores.media import SqliteMedia
from tests.stores.processes import child, end, line


class TestSqliteStore(StoreContract):
    """Everything that a store must do."""

    histories = 20

    @pytest.fixture
    def media(self, tmp_path: Path) -> SqliteMedia:
        return SqliteMedia(tmp_path)


class TestSqliteStoreInOneThread(StoreContract):
    """The same where a simulation wants no threads, and the index by aggregate is brought up to date all the time."""

    histories = 5
    test_two_event_loops = None  # type: ignore[assignment]  # who has one thread has one loop

    @pytest.fixture
    def media(self, tmp_path: Path) -> SqliteMedia:
        return SqliteMedia(tmp_path, threads=False, index_events=3)


# --- what a file can be, and what can go wrong with it ----------------------------------------------------------------


@asynccontextmanager
async def opened(store: SqliteStore, node: str = "till-7") -> AsyncIterator[SqliteStore]:
    await store.open(opening(node))
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize(
    "name",
    ["a b.db", "what?.db", "no#1.db", "100%.db", "%41.db", "ünï-日本.db", "quote'\".db", "a;b&c=d.db", "till.db-wal"],
)
async def test_a_path_may_hold_any_sign(tmp_path: Path, name: str) -> None:
    """Percent-encoded where the URL's grammar wants it; the file has just that name."""
    async with opened(SqliteStore(f"sqlite:///{quote(str(tmp_path / name))}")) as store:
        await store.append([draft()], now_ms=NOW_MS)
        assert (tmp_path / name).exists()
        assert {
            each.name.removesuffix("-wal").removesuffix("-shm").removesuffix("-lock") for each in tmp_path.iterdir()
        } <= {
            name,
            name.removesuffix("-wal"),
        }


async def test_relative_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slashes for a relative path, four for an absolute one; neither moves when the folder is changed later."""
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("sqlite:///till.db")
    (tmp_path / "elsewhere").mkdir()
    assert SqliteStore(f"sqlite:///{tmp_path}/other.db").path == tmp_path / "other.db"
    async with opened(store):
        assert (tmp_path / "till.db").exists()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite://till.db",
        "sqlite:///till.db?durability=half",
        "sqlite:///till.db?durable=full",
        "sqlite:///what?.db",
        "sqlite:///no#1.db",
        "sqlite:///no.db#",
        "sqlite:///a%00b",
        "sqlite:///a%ffb",
        "sqlite:///\udc80",
        "sqlite://[",
        "sqlite:///.",
        f"sqlite:///{'x' * 300}",
    ],
)
def test_a_wrong_url_is_refused_at_construction(url: str) -> None:
    """With the reason; and no part of it is silently ignored."""
    with pytest.raises((ConfigError, StoreError)):
        SqliteStore(url)


async def test_a_second_node_on_the_same_file_is_refused_at_construction(tmp_path: Path) -> None:
    """Under another spelling, through a link to the file or to its folder, before and after the first one opens."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "till.db")
    first = SqliteStore(f"sqlite:///{tmp_path}/till.db")
    names = ["till.db", "./till.db", "sub/../till.db", "folder/till.db", "link.db"]
    for name in names:
        with pytest.raises(StoreInUse):
            SqliteStore(f"sqlite:///{tmp_path}/{name}")
    async with opened(first):
        for name in names:
            with pytest.raises(StoreInUse):
                SqliteStore(f"sqlite:///{tmp_path}/{name}")
    await SqliteStore(f"sqlite:///{tmp_path}/till.db").close()
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/link.db")):
        pass


async def test_a_node_of_another_process_is_named(tmp_path: Path) -> None:
    """The hint says who has the file; when that process is gone, however it went, the file is free."""
    holder = child("asyncio.run(hold(sys.argv[1]))", tmp_path / "till.db")
    try:
        assert line(holder) == "open"
        with pytest.raises(StoreInUse, match=f"node holder, process {holder.pid}"):
            SqliteStore(f"sqlite:///{tmp_path}/till.db")
        # Looking on is allowed.
        async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db", read_only=True)) as look:
            assert len(await audit(look)) == 1
    finally:
        end(holder)
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store:
        assert len(await audit(store)) == 1


async def test_a_reader_follows_a_writer_in_another_process(tmp_path: Path) -> None:
    """A store that was opened for reading shows what the other one commits, and writes nothing."""
    holder = child("asyncio.run(hold(sys.argv[1]))", tmp_path / "till.db")
    try:
        assert line(holder) == "open"
        async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db", read_only=True)) as look:
            assert holder.stdin is not None
            for number in range(2, 5):
                holder.stdin.write("write\n")
                holder.stdin.flush()
                assert line(holder) == "wrote"
                assert len(await audit(look)) == number
                assert len((await look.summary("orders")).seen) == number
            with pytest.raises(StoreError):
                await look.append([draft()], now_ms=NOW_MS)
            with pytest.raises(StoreError):
                async with look.transaction():
                    pass
    finally:
        end(holder)


async def test_reading_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A store on a medium that is read-only can be looked at, and writing it is a clear error."""
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store:
        await store.append([draft()], now_ms=NOW_MS)
    with TemporaryDirectory() as name:  # not below tmp_path, whose parents only its owner can enter
        folder = Path(name)
        shutil.copy(tmp_path / "till.db", folder)
        (folder / "till.db").chmod(0o444)
        folder.chmod(0o555)
        nobody = "os.getuid() or os.setuid(65534)\n"  # root may write everywhere
        reader = child(nobody + "asyncio.run(look(sys.argv[1]))", folder / "till.db")
        try:
            assert [line(reader), line(reader)] == [
                "1 events",
                "StoreError: the store's folder must exist and be writable",
            ]
        finally:
            end(reader)
            folder.chmod(0o755)


async def test_a_file_that_does_not_exist_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        await SqliteStore(f"sqlite:///{tmp_path}/no.db", read_only=True).open(opening("x"))
    with pytest.raises(StoreError, match="folder must exist"):
        await SqliteStore(f"sqlite:///{tmp_path}/no/till.db").open(opening("x"))
    assert list(tmp_path.iterdir()) == []


async def test_somebody_elses_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """Random bytes, text, another program's database: `StoreCorrupt`, and not a byte of it changes."""
    path = tmp_path / "x.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    database = path.read_bytes()
    for content in (random.Random(1).randbytes(10_000), b"hello", database):
        path.write_bytes(content)
        for read_only in (False, True):
            store = SqliteStore(f"sqlite:///{path}", read_only=read_only)
            with pytest.raises(StoreCorrupt):
                await store.open(opening("x"))
            await store.close()
        assert path.read_bytes() == content


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
async def test_a_file_that_is_cut_off_is_noticed(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "till.db"
    async with opened(SqliteStore(f"sqlite:///{path}")) as store:
        await store.append([draft(data="x" * 1000) for _ in range(500)], now_ms=NOW_MS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(StoreCorrupt):
        await SqliteStore(f"sqlite:///{path}").open(opening("x"))


async def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "till.db").touch()
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store:
        await store.append([draft()], now_ms=NOW_MS)


async def test_a_newer_schema_is_refused_and_an_older_one_is_brought_up(tmp_path: Path) -> None:
    """Each step is one transaction: what fails half-way leaves the version before it."""
    path = tmp_path / "till.db"
    async with opened(SqliteStore(f"sqlite:///{path}")) as store:
        await store.append([draft()], now_ms=NOW_MS)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(connection, path, (*schema.MIGRATIONS, "CREATE TABLE later (x); CREATE TABLE later (x);"))
        assert connection.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA_VERSION,)
        later = (*schema.MIGRATIONS, "CREATE TABLE later (x);", "INSERT INTO later VALUES (7);")
        schema.migrate(connection, path, later)
        schema.migrate(connection, path, later)
        assert connection.execute("SELECT x FROM later").fetchall() == [(7,)]
    for read_only in (False, True):
        store = SqliteStore(f"sqlite:///{path}", read_only=read_only)
        with pytest.raises(SchemaNewer):
            await store.open(opening("x"))
        await store.close()


@pytest.mark.parametrize("version", range(1, schema.SCHEMA_VERSION + 1))
def test_every_older_version_leads_to_the_present_one(tmp_path: Path, version: int) -> None:
    """The same tables, whether a file was made by this release or by the one that had `version`."""
    found: list[Any] = []
    for first in (version, schema.SCHEMA_VERSION):
        with closing(sqlite3.connect(tmp_path / f"{first}-{len(found)}.db", isolation_level=None)) as connection:
            schema.migrate(connection, "x", schema.MIGRATIONS[:first])
            schema.migrate(connection, "x")
            found.append(connection.execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall())
    assert found[0] == found[1]


async def test_a_full_disk_is_an_error_that_passes(tmp_path: Path) -> None:
    """Nothing of the call is written, all that was there is; with room again it goes on, under the same origin."""
    path = tmp_path / "till.db"
    async with opened(SqliteStore(f"sqlite:///{path}")) as store:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        (pages,) = store.writer.execute("PRAGMA page_count").fetchone()
        store.writer.execute(f"PRAGMA max_page_count={pages + 20}")
        written = 1

        async def fill() -> None:
            nonlocal written
            for _ in range(100):
                await store.append([draft(data="x" * 3000) for _ in range(3)], now_ms=NOW_MS)
                written += 3

        with pytest.raises(StoreFull, match="free some space") as full:
            await fill()
        assert not full.value.retryable
        assert len(await audit(store)) == written
        store.writer.execute("PRAGMA max_page_count=1000000")
        result = await store.append([draft()], arrivals(Writer("b@1").write()), now_ms=NOW_MS)
        assert (result.appended[0].event.origin, result.appended[0].event.seq) == (first.origin, written + 1)
        await audit(store)
    async with opened(SqliteStore(f"sqlite:///{path}")) as store:
        result = await store.append([draft()], now_ms=NOW_MS)
        assert result.appended[0].event.origin == first.origin


async def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """A real one: whatever else fills it, the write-ahead log included, what was acknowledged is there."""
    written: list[int] = []
    async with opened(SqliteStore(f"sqlite:///{small_disk}/till.db")) as store:

        async def fill() -> None:
            for number in range(10_000):
                await store.append([draft(data=[number, "x" * 2000])], now_ms=NOW_MS)
                written.append(number)

        filler = small_disk / "filler"
        for free in (200_000, 50_000, 0):
            filler.write_bytes(b"x" * max(shutil.disk_usage(small_disk).free - 300_000 - free, 0))
            with pytest.raises(StoreFull, match="free some space"):
                await fill()
            assert [each.event.data[0] for each in await audit(store)] == written
            filler.unlink()
            await store.append([draft(data=[-len(written), ""])], now_ms=NOW_MS)
            written.append(-len(written))
    async with opened(SqliteStore(f"sqlite:///{small_disk}/till.db")) as store:
        assert [each.event.data[0] for each in await audit(store)] == written


async def test_a_file_system_that_cannot_be_written(small_disk: Path) -> None:
    """It says so, makes nothing, and whoever only reads can."""
    url = f"sqlite:///{small_disk}/till.db"
    async with opened(SqliteStore(url)) as store:
        await store.append([draft()], now_ms=NOW_MS)
    remount(small_disk, "ro")
    for name in ("till", "new"):
        with pytest.raises(StoreError, match="Read-only file system"):
            await SqliteStore(f"sqlite:///{small_disk}/{name}.db").open(opening("till-7"))
    assert not (small_disk / "new.db").exists()
    async with opened(SqliteStore(url, read_only=True)) as store:
        assert len(await audit(store)) == 1
    remount(small_disk, "rw")
    async with opened(SqliteStore(url)) as store:
        await store.append([draft()], now_ms=NOW_MS)
        await audit(store)


async def test_a_lock_held_by_another_program_is_busy_and_passes(tmp_path: Path) -> None:
    """Retryable; nothing is lost, and the next try goes through."""
    path = tmp_path / "till.db"
    async with opened(SqliteStore(f"sqlite:///{path}", busy_timeout_s=0.1)) as store:
        before = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        locker = child("lock(sys.argv[1])", path)
        try:
            assert line(locker) == "locked"
            for call in (store.append([draft()], now_ms=NOW_MS), store.append([draft()], now_ms=NOW_MS)):
                with pytest.raises(StoreBusy) as busy:
                    await call
                assert busy.value.retryable
            with pytest.raises(StoreBusy):
                async with store.transaction():
                    pass
            assert len(await audit(store)) == 1
        finally:
            end(locker)
        after = await store.append([draft()], now_ms=NOW_MS)
        assert (after.appended[0].event.origin, after.appended[0].event.seq) == (before.origin, 2)
    async with opened(SqliteStore(f"sqlite:///{path}")) as store:
        again = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        assert again.origin == before.origin, "busy leaves no doubt about what the disk holds"


async def test_a_node_of_another_name_goes_on_with_a_closed_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the program's log, and it writes as a new incarnation of its own."""
    path = tmp_path / "till.db"
    async with opened(SqliteStore(f"sqlite:///{path}"), "till-7") as store:
        await store.append([draft()], now_ms=NOW_MS)
    assert not caplog.records
    async with opened(SqliteStore(f"sqlite:///{path}"), "till-8") as store:
        result = await store.append([draft()], now_ms=NOW_MS)
        assert result.appended[0].event.origin.startswith("till-8@")
    assert "till-7" in caplog.text
    assert "till-8" in caplog.text


async def test_a_token_holds_only_for_the_very_file_it_was_left_beside(tmp_path: Path) -> None:
    """Another inode, another time of change, another machine, a token that was used: a new incarnation each time."""
    path, token = tmp_path / "till.db", tmp_path / "till.db-clean"
    origins: list[str] = []

    async def write() -> None:
        async with opened(SqliteStore(f"sqlite:///{path}")) as store:
            origins.append((await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin)

    await write()
    used = token.read_bytes()
    await write()
    assert origins[0] == origins[1]
    token.write_bytes(used)
    await write()
    shutil.copy2(path, tmp_path / "copy")
    shutil.copy2(tmp_path / "copy", path)  # what `cp -a` does: the same inode, the same time of writing
    await write()
    (tmp_path / "copy").rename(path)
    await write()
    found = json.loads(token.read_bytes())
    token.write_text(json.dumps({**found, "machine": "another"}))
    await write()
    token.write_text("not json")
    await write()
    token.unlink()
    await write()
    assert len(set(origins)) == len(origins) - 1


async def test_a_close_beside_a_reader_leaves_no_token_for_half_a_file(tmp_path: Path) -> None:
    """What a reader keeps in the WAL could be lost without a trace; whatever is kept, no key is used twice."""
    path = tmp_path / "till.db"
    store = SqliteStore(f"sqlite:///{path}", busy_timeout_s=0.05)
    await store.open(opening("till-7"))
    first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        await store.append([draft()], now_ms=NOW_MS)
        await store.close()
        assert not (tmp_path / "till.db-clean").exists()
    (tmp_path / "till.db-wal").unlink(missing_ok=True)
    async with opened(SqliteStore(f"sqlite:///{path}")) as again:
        fresh = (await again.append([draft()], now_ms=NOW_MS)).appended[0].event
        assert fresh.origin != first.origin


async def test_normal_durability_keeps_everything_over_a_kill_and_a_clean_close(tmp_path: Path) -> None:
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db?durability=normal")) as store:
        assert store.writer.execute("PRAGMA synchronous").fetchone() == (1,)
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db", durability="normal")) as store:
        assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin == first.origin
        assert len(await audit(store)) == 2


@pytest.mark.parametrize("seed", range(20))
async def test_kill_9_of_a_writing_process_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    """At a random moment, again and again on one file: what was acknowledged is there, and nothing is there by half."""
    path = tmp_path / "till.db"
    await kill_writers(path, lambda: opened(SqliteStore(f"sqlite:///{path}"), "writer"), seed)


def test_another_process_finds_no_token_of_a_store_that_is_open(tmp_path: Path) -> None:
    """It is consumed at open, so a copy made while the node runs can never pass for the node itself."""

    async def run() -> None:
        async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store:
            await store.append([draft()], now_ms=NOW_MS)
        assert (tmp_path / "till.db-clean").exists()
        async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")):
            assert not (tmp_path / "till.db-clean").exists()

    asyncio.run(run())


async def test_a_page_costs_the_same_wherever_it_is(tmp_path: Path) -> None:
    """No query that readers repeat scans or sorts the whole log: asked of SQLite's own plan."""
    store = SqliteStore(f"sqlite:///{tmp_path}/till.db")
    store.index_events = 100
    async with opened(store):
        for _ in range(3):
            await store.append([draft(f"o-{n}", topic=("orders", "stock")[n % 2]) for n in range(150)], now_ms=NOW_MS)
    async with (
        opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store,
        opened(SqliteStore(f"sqlite:///{tmp_path}/till.db", read_only=True)) as look,
    ):
        asked: list[str] = []
        for each in (store, look):
            each._reader.set_trace_callback(asked.append)
            await each.log(after=None, limit=5)
            await each.log("orders", after=None, limit=5)
            await each.aggregate("orders", "o-1")
            await each.aggregates("orders", after="", limit=5)
            await each.events("orders", "x", (1, 9), limit=5)
            await each.end()
            each._reader.set_trace_callback(None)
        assert len(asked) == 12
        for statement in asked:
            plan = [row[3] for row in store.writer.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert not [step for step in plan if step in ("SCAN events", "SCAN e")], statement
            assert "SEARCH events USING INDEX events_key (stream=?)" not in plan, statement
            assert "SEARCH e USING INDEX events_key (stream=?)" not in plan, statement
