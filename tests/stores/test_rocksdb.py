"""The RocksDB store: the contract on a folder, and what only a folder can do wrong."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import pytest
import rocksdict

from synckit_streams.errors import (
    ConfigError,
    MissingDependency,
    SchemaNewer,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
)
from synckit_streams.stores.rocksdb import RocksDbStore
from synckit_streams.testing.pytest_plugin import lacking
from synckit_streams.testing.store_contract import NOW_MS, StoreContract, Writer, arrivals, audit, draft, opening
from tests.stores.disks import remount
from tests.stores.killing import kill_writers
from tests.stores.media import RocksMedia
from tests.stores.processes import child, end, line


class TestRocksDbStore(StoreContract):
    """Everything that a store must do."""

    histories = 20

    @pytest.fixture
    def media(self, tmp_path: Path) -> RocksMedia:
        return RocksMedia(tmp_path)


class TestRocksDbStoreInOneThread(StoreContract):
    """The same where a simulation wants no threads, and nothing waits for the disk."""

    histories = 5

    @pytest.fixture
    def media(self, tmp_path: Path) -> RocksMedia:
        return RocksMedia(tmp_path, threads=False, sync=False)


# --- what a folder can be, and what can go wrong with it --------------------------------------------------------------


@asynccontextmanager
async def opened(store: RocksDbStore, node: str = "till-7") -> AsyncIterator[RocksDbStore]:
    await store.open(opening(node))
    try:
        yield store
    finally:
        await store.close()


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def rocksdb(path: Path, **values: bytes) -> Any:
    """A database as another program makes it, still open."""
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    database = rocksdict.Rdict(str(path), options)
    for name, value in values.items():
        database[name.encode()] = value
    return database


@pytest.mark.parametrize("name", ["a b", "what?", "no#1", "100%", "%41", "ünï-日本", "quote'\"", "a;b&c=d"])
async def test_a_path_may_hold_any_sign(tmp_path: Path, name: str) -> None:
    """Percent-encoded where the URL's grammar wants it; the folder has just that name."""
    async with opened(RocksDbStore(f"rocksdb:///{quote(str(tmp_path / name))}")) as store:
        await store.append([draft()], now_ms=NOW_MS)
        assert {each.name for each in tmp_path.iterdir()} == {name, f"{name}-lock"}


@pytest.mark.parametrize(
    "url",
    [
        "rocksdb://",
        "rocksdb:///",
        "rocksdb://till",
        "rocksdb:///till?sync=perhaps",
        "rocksdb:///till?durability=full",
        "rocksdb:///no#1",
        "rocksdb:///a%00b",
        "rocksdb:///a%ffb",
        "rocksdb://[",
        f"rocksdb:///{'x' * 300}",
    ],
)
def test_a_wrong_url_is_refused_at_construction(url: str) -> None:
    """With the reason; and no part of it is silently ignored."""
    with pytest.raises(ConfigError):
        RocksDbStore(url)


async def test_without_sync_everything_is_kept_over_a_kill_and_a_clean_close(tmp_path: Path) -> None:
    """And the store says that it does not promise more."""
    url = f"rocksdb:///{tmp_path}/till"
    store = RocksDbStore(f"{url}?sync=no")
    assert not store.features.durable
    async with opened(store):
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
    store = RocksDbStore(url, sync=False)
    await store.open(opening("till-7"))
    assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin == first.origin
    store.abandon()
    async with opened(RocksDbStore(url)) as store:
        assert store.features.durable
        assert len(await audit(store)) == 2


async def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    """At construction, and where it appears later; it stays what it was."""
    path = tmp_path / "till"
    store = RocksDbStore(f"rocksdb:///{path}")
    path.write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="names a file"):
        RocksDbStore(f"rocksdb:///{path}")
    with pytest.raises(StoreCorrupt, match="is a folder"):
        await store.open(opening("x"))
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("whose", ["SQLite's", "RocksDB's", "RocksDB's with our kind of key", "nobody's"])
async def test_somebody_elses_folder_is_refused_and_left_as_it_is(tmp_path: Path, whose: str, read_only: bool) -> None:
    """Another engine's database, or another program's of the same engine: not a byte of it changes."""
    path = tmp_path / "till"
    if whose.startswith("RocksDB's"):
        values = {"mschema": b"theirs"} if "key" in whose else {"a": b"1"}
        rocksdb(path, **values).close()
        (path / "rocksdict-config.json").unlink()  # not every program uses the driver that we use
    else:
        path.mkdir()
        (path / ("till.db" if whose == "SQLite's" else "CURRENT")).write_bytes(b"SQLite format 3\0")
    before = content(path)
    store = RocksDbStore(f"rocksdb:///{path}", read_only=read_only)
    with pytest.raises(StoreCorrupt) as refused:
        await store.open(opening("x"))
    await store.close()
    assert refused.value.hint
    assert content(path) == before


async def test_a_folder_that_does_not_exist_is_not_made_by_a_reader(tmp_path: Path) -> None:
    """Nor by a writer whose path is wrong."""
    with pytest.raises(StoreError, match="does not exist"):
        await RocksDbStore(f"rocksdb:///{tmp_path}/no", read_only=True).open(opening("x"))
    with pytest.raises(StoreError, match="folder must exist"):
        await RocksDbStore(f"rocksdb:///{tmp_path}/no/till").open(opening("x"))
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_in_which_a_store_was_only_begun_is_taken(tmp_path: Path) -> None:
    """A crash while it was made leaves RocksDB's own files, and nothing that anybody was promised."""
    path = tmp_path / "till"
    rocksdb(path).close()
    async with opened(RocksDbStore(f"rocksdb:///{path}")) as store:
        assert await audit(store) == []
    for each in path.iterdir():
        if not each.name.startswith("LOG"):
            each.unlink()
    async with opened(RocksDbStore(f"rocksdb:///{path}")) as store:
        await store.append([draft()], now_ms=NOW_MS)
        assert len(await audit(store)) == 1


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "till"
    async with opened(RocksDbStore(f"rocksdb:///{path}")) as store:
        store.medium.commit({b"mschema": b"2"})
    before = content(path)
    for read_only in (False, True):
        store = RocksDbStore(f"rocksdb:///{path}", read_only=read_only)
        with pytest.raises(SchemaNewer):
            await store.open(opening("x"))
        await store.close()
    assert content(path) == before


async def test_a_second_node_is_refused_and_told_why(tmp_path: Path) -> None:
    """In this process, in another one of ours, and a program that knows nothing of our lock."""
    url = f"rocksdb:///{tmp_path}/till"
    first = RocksDbStore(url)
    with pytest.raises(StoreInUse):
        RocksDbStore(f"rocksdb:///{tmp_path}/./till")
    await first.close()
    holder = child("asyncio.run(hold(sys.argv[1]))", url)
    try:
        assert line(holder) == "open"
        with pytest.raises(StoreInUse, match=f"node holder, process {holder.pid}") as refused:
            RocksDbStore(url)
        assert "close the other one" in refused.value.hint
    finally:
        end(holder)
    other = rocksdb(tmp_path / "till")
    with pytest.raises(StoreInUse, match="another program"):
        await RocksDbStore(url).open(opening("x"))
    other.close()
    async with opened(RocksDbStore(url)) as store:
        assert len(await audit(store)) == 1


async def test_a_reader_follows_a_writer_in_another_process(tmp_path: Path) -> None:
    """A store that was opened for reading shows what the other one commits, and writes nothing."""
    url = f"rocksdb:///{tmp_path}/till"
    holder = child("asyncio.run(hold(sys.argv[1]))", url)
    try:
        assert line(holder) == "open"
        async with opened(RocksDbStore(url, read_only=True)) as look:
            assert holder.stdin is not None
            for number in range(2, 5):
                holder.stdin.write("write\n")
                holder.stdin.flush()
                assert line(holder) == "wrote"
                assert len(await audit(look)) == number
                assert len((await look.summary("orders")).seen) == number
            with pytest.raises(StoreError, match="reading only"):
                await look.append([draft()], now_ms=NOW_MS)
            with pytest.raises(StoreError, match="reading only"):
                async with look.transaction():
                    pass
    finally:
        end(holder)


async def test_a_reader_leaves_a_clean_store_clean(tmp_path: Path) -> None:
    """Whoever looked in between, the node goes on under its origin."""
    url = f"rocksdb:///{tmp_path}/till"
    origins = set()
    for _ in range(2):
        async with opened(RocksDbStore(url)) as store:
            origins.add((await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin)
        async with opened(RocksDbStore(url, read_only=True)) as look:
            assert look.id == store.id
            await audit(look)
    assert len(origins) == 1


async def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """It can be looked at, and writing it is a clear error."""
    with TemporaryDirectory() as name:  # not below tmp_path, whose parents only its owner can enter
        folder = Path(name)
        url = f"rocksdb:///{folder}/till"
        async with opened(RocksDbStore(url)) as store:
            await store.append([draft()], now_ms=NOW_MS)
        for each in (folder / "till").iterdir():
            each.chmod(0o444)
        (folder / "till").chmod(0o555)
        folder.chmod(0o777)
        # Root may write everywhere; and where root's Python is, nobody else can import what the driver imports late.
        nobody = "import pickle\nos.getuid() or os.setuid(65534)\n"
        (folder / "till-lock").chmod(0o666)
        reader = child(nobody + "asyncio.run(look(sys.argv[1]))", url)
        try:
            assert [line(reader), line(reader)] == [
                "1 events",
                "StoreError: check the permissions of the folder, its files and disk",
            ]
        finally:
            end(reader)
            (folder / "till").chmod(0o755)


def largest(path: Path, pattern: str) -> Path:
    """The largest file of a kind."""
    return max(path.glob(pattern), key=lambda each: each.stat().st_size)


@pytest.mark.parametrize("where", ["cut off", "a bit", "gone", "manifest", "current"])
async def test_a_damaged_file_is_noticed(tmp_path: Path, where: str) -> None:
    """Cut off, changed or missing; never a log that ends early as if nothing had been there."""
    path = tmp_path / "till"
    async with opened(RocksDbStore(f"rocksdb:///{path}")) as store:
        await store.append([draft(data="x" * 1000) for _ in range(500)], now_ms=NOW_MS)
    table = largest(path, "*.sst")
    raw, at = table.read_bytes(), table.stat().st_size // 2
    if where == "cut off":
        table.write_bytes(raw[:at])
    elif where == "a bit":
        table.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
    elif where == "gone":
        table.unlink()
    elif where == "manifest":
        for each in path.glob("MANIFEST-*"):
            each.unlink()
    else:
        (path / "CURRENT").write_bytes(b"MANIFEST-")
    with pytest.raises(StoreCorrupt):
        async with opened(RocksDbStore(f"rocksdb:///{path}")) as store:
            await audit(store)


async def test_a_log_that_is_damaged_before_its_end_is_noticed(tmp_path: Path) -> None:
    """A torn end is what a crash leaves, and nobody was promised what was in it; anything before it is an error."""
    path = tmp_path / "till"
    writer = child("asyncio.run(hold(sys.argv[1]))", f"rocksdb:///{path}")
    try:
        assert line(writer) == "open"
        assert writer.stdin is not None
        for _ in range(19):
            writer.stdin.write("write\n")
            writer.stdin.flush()
            assert line(writer) == "wrote"
    finally:
        end(writer)
    log = largest(path, "*.log")
    raw = log.read_bytes()
    log.write_bytes(raw[:-3])
    async with opened(RocksDbStore(f"rocksdb:///{path}", read_only=True)) as look:
        assert len(await audit(look)) == 19
    at = len(raw) // 2
    log.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
    with pytest.raises(StoreCorrupt):
        await RocksDbStore(f"rocksdb:///{path}").open(opening("till-7"))
    log.write_bytes(raw)
    async with opened(RocksDbStore(f"rocksdb:///{path}")) as store:
        assert len(await audit(store)) == 20


async def test_a_full_disk_is_an_error_that_passes(tmp_path: Path) -> None:
    """Nothing of the call is written, all that was there is; with room again it goes on, under the same origin."""
    url = f"rocksdb:///{tmp_path}/till"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(RocksDbStore(url)) as store:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        written = 1

        async def fill() -> None:
            nonlocal written
            for _ in range(100):
                await store.append([draft(data="x" * 3000) for _ in range(3)], now_ms=NOW_MS)
                written += 3

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(StoreFull, match="free some space") as full:
                await fill()
            assert not full.value.retryable
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(await audit(store)) == written
        result = await store.append([draft()], arrivals(Writer("b@1").write()), now_ms=NOW_MS)
        assert (result.appended[0].event.origin, result.appended[0].event.seq) == (first.origin, written + 1)
        await audit(store)
    async with opened(RocksDbStore(url)) as store:
        result = await store.append([draft()], now_ms=NOW_MS)
        assert result.appended[0].event.origin == first.origin


async def test_a_disk_that_fills_up(small_disk: Path) -> None:
    """A real one: what was acknowledged is there, it can be read meanwhile, and it is written again with room again."""
    url = f"rocksdb:///{small_disk}/till"
    written: list[int] = []
    async with opened(RocksDbStore(url)) as store:

        async def fill() -> None:
            for number in range(10_000):
                await store.append([draft(data=[number, "x" * 2000])], now_ms=NOW_MS)
                written.append(number)

        filler = small_disk / "filler"
        for free in (200_000, 0):
            filler.write_bytes(b"x" * max(shutil.disk_usage(small_disk).free - 500_000 - free, 0))
            with pytest.raises(StoreFull, match="free some space"):
                await fill()
            with pytest.raises(StoreFull):  # it cannot be opened again yet
                await store.append([draft(data=[0, "x" * 2000])], now_ms=NOW_MS)
            assert [each.event.data[0] for each in await audit(store)] == written
            filler.unlink()
            await store.append([draft(data=[-len(written), ""])], now_ms=NOW_MS)
            written.append(-len(written))
    async with opened(RocksDbStore(url)) as store:
        assert [each.event.data[0] for each in await audit(store)] == written


async def test_a_file_system_that_cannot_be_written(small_disk: Path) -> None:
    """It says so, makes nothing, and whoever only reads can."""
    url = f"rocksdb:///{small_disk}/till"
    async with opened(RocksDbStore(url)) as store:
        await store.append([draft()], now_ms=NOW_MS)
    remount(small_disk, "ro")
    for name in ("till", "new"):
        with pytest.raises(StoreError, match="Read-only file system"):
            await RocksDbStore(f"rocksdb:///{small_disk}/{name}").open(opening("till-7"))
    assert not (small_disk / "new").exists()
    async with opened(RocksDbStore(url, read_only=True)) as look:
        assert len(await audit(look)) == 1
    remount(small_disk, "rw")
    async with opened(RocksDbStore(url)) as store:
        await store.append([draft()], now_ms=NOW_MS)
        await audit(store)


async def test_a_commit_that_failed_and_is_there_all_the_same_is_seen(tmp_path: Path) -> None:
    """What the driver says is not what the disk holds: it is opened again, and the mirror goes by the disk."""

    class Doubtful:
        """A database that says that it has not written; and it has, as is seen when it is opened again."""

        def __init__(self, database: Any) -> None:
            self._database = database
            self._written: Any = ()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._database, name)

        def write(self, *arguments: Any) -> None:
            self._written = arguments
            raise Exception("IO error: While fsync: Input/output error")

        def close(self) -> None:
            self._database.write(*self._written)
            self._database.close()

    url = f"rocksdb:///{tmp_path}/till"
    async with opened(RocksDbStore(url)) as store:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        store.medium.database = Doubtful(store.medium.database)
        with pytest.raises(StoreError, match="fsync"):
            await store.append([draft(), draft()], now_ms=NOW_MS)
        await store.summary("orders")  # the mirror is loaded anew before the database is opened again
        await store.append([draft()], now_ms=NOW_MS)
        assert [each.event.seq for each in await audit(store)] == [1, 2, 3, 4]
    async with opened(RocksDbStore(url)) as store:
        assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin != first.origin


@pytest.mark.parametrize("sync", [True, False])
async def test_a_commit_is_synced_unless_one_says_otherwise(tmp_path: Path, sync: bool) -> None:
    """By what the kernel was asked for: a power cut is the only other witness."""
    tracer = shutil.which("strace") or ""
    if not tracer:
        lacking("strace is not installed")
    url = f"rocksdb:///{tmp_path}/till?sync={'yes' if sync else 'no'}"
    writer = child("asyncio.run(hold(sys.argv[1]))", url)
    try:
        assert line(writer) == "open"
        command = [tracer, "-f", "-e", "trace=fsync,fdatasync", "-o", str(tmp_path / "trace"), "-p", str(writer.pid)]
        trace = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        assert trace.stderr is not None
        await trace.stderr.readline()  # it is attached
        assert writer.stdin is not None
        for _ in range(20):
            writer.stdin.write("write\n")
            writer.stdin.flush()
            assert line(writer) == "wrote"
    finally:
        end(writer)
    await trace.wait()
    calls = [text for text in (tmp_path / "trace").read_text().splitlines() if "sync(" in text]
    assert (len(calls) >= 20) == sync


async def test_a_checkpoint_is_a_whole_store_of_its_own(tmp_path: Path) -> None:
    """Taken while it is written; a folder that is there already is not touched."""
    async with opened(RocksDbStore(f"rocksdb:///{tmp_path}/till")) as store:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        store.checkpoint(tmp_path / "copy")
        await store.append([draft()], now_ms=NOW_MS)
        with pytest.raises(StoreError):
            store.checkpoint(tmp_path / "copy")
        async with opened(RocksDbStore(f"rocksdb:///{tmp_path}/copy")) as copy:
            assert [each.event for each in await audit(copy)] == [first]
            assert (await copy.append([draft()], now_ms=NOW_MS)).appended[0].event.origin != first.origin
        assert len(await audit(store)) == 2
    with pytest.raises(StoreClosed):
        store.checkpoint(tmp_path / "other")


@pytest.mark.parametrize("seed", range(10))
async def test_kill_9_of_a_writing_process_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    """At a random moment, again and again: what was acknowledged is there, and nothing is there by half."""
    url = f"rocksdb:///{tmp_path}/till"
    await kill_writers(url, lambda: opened(RocksDbStore(url), "writer"), seed)


async def test_without_the_driver_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rocksdict", None)
    with pytest.raises(MissingDependency, match=r"synckit-streams\[rocksdb\]"):
        RocksDbStore("rocksdb:///till")
