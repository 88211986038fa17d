"""The PostgreSQL store when the server, its disk or the way to it fails."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from synckit_streams.errors import StoreDenied, StoreError, StoreFull, StoreUnavailable
from synckit_streams.model.event import Draft, Offset
from synckit_streams.model.exchange import AppendResult
from synckit_streams.ports.store import EventStore
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.stores.postgres_line import READERS_MAX
from synckit_streams.testing import FaultProxy, PostgresServer
from synckit_streams.testing.postgres_server import USER
from synckit_streams.testing.pytest_plugin import lacking
from synckit_streams.testing.store_contract import NOW_MS, arrivals, audit, draft, opening
from tests.stores.media import run_sql
from tests.stores.processes import child, end, line
from tests.stores.test_postgres import as_user, tables
from tests.stores.test_postgres_shared import DEADLINE_S, opened, until


async def append_in_block(store: EventStore, drafts: list[Draft]) -> AppendResult:
    """With an effect of its own."""
    async with store.transaction() as tx:
        await tx.append(drafts, now_ms=NOW_MS)
        await tx.set_offset("handler", Offset(store.id, 1))
    assert tx.appended is not None
    return tx.appended


async def append_plainly(store: EventStore, drafts: list[Draft]) -> AppendResult:
    """Beside an offset."""
    return await store.append(drafts, now_ms=NOW_MS, offsets={"handler": Offset(store.id, 1)})


@pytest.mark.parametrize("append", [append_plainly, append_in_block])
@pytest.mark.parametrize("lost", ["the order", "the answer"])
async def test_a_connection_that_is_lost_in_the_middle_of_a_commit(database: str, lost: str, append: Any) -> None:
    """If the server had done it, it is acknowledged; if not, that is an error which a retry may follow. No event is
    there twice, whether its draft had an id or not, and its offset is there with it."""
    loop = asyncio.get_running_loop()
    async with FaultProxy(database) as proxy:
        fail = False

        def probe(step: str) -> None:
            nonlocal fail
            if fail and step == "commit":
                fail = False
                frozen = threading.Event()

                def freeze() -> None:
                    proxy.freeze("up" if lost == "the order" else "down")
                    frozen.set()

                loop.call_soon_threadsafe(freeze)
                assert frozen.wait(DEADLINE_S)

        async with opened(proxy.url, probe=probe) as store:
            await store.append([draft(data=0)], now_ms=NOW_MS)
            busy = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
            count = "SELECT position FROM synckit.events"
            fail = True
            task = asyncio.create_task(append(store, [draft(data=1), draft(data=2)]))

            async def stuck() -> bool:
                if lost == "the order":
                    return not fail and bool(await run_sql(database, busy))
                return len(await run_sql(database, count)) == 3

            await until(stuck, "it hangs in its commit")
            proxy.cut()
            proxy.heal()
            if lost == "the order":
                with pytest.raises(StoreUnavailable):
                    await task
                assert await store.offset("handler") is None
                result = await append(store, [draft(data=1), draft(data=2)])
            else:
                result = await task
            assert [each.position for each in result.appended] == [2, 3]
            assert [each.event.data for each in await audit(store)] == [0, 1, 2]
            assert await store.offset("handler") == Offset(store.id, 1)


async def test_a_connection_that_is_lost_between_two_commits_is_made_anew(database: str) -> None:
    """Nothing was asked of it, so nobody notices: neither writers nor readers."""
    async with opened(database) as store:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        ours = "FROM pg_stat_activity WHERE application_name = 'synckit-streams' AND datname = current_database()"
        await run_sql(database, f"SELECT pg_terminate_backend(pid) {ours}")
        second = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        assert (second.origin, second.seq) == (first.origin, 2)
        await run_sql(database, f"SELECT pg_terminate_backend(pid) {ours}")
        assert len(await audit(store)) == 2
    assert await run_sql(database, f"SELECT 1 {ours}") == [], "a close leaves no connection"


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_callers_leave_no_connection_behind(database: str, seed: int) -> None:
    """Reads, writes and transactions that are cancelled at any await: no more connections than there may be, none of
    them in a transaction, and the store goes on."""
    dice = random.Random(seed)
    async with opened(database) as store:

        async def effect() -> None:
            async with store.transaction() as tx:
                await tx.set_offset("x", Offset(store.id, 1))
                await tx.append([draft("o-1"), draft("o-2")], now_ms=NOW_MS)

        calls: list[Callable[[], Awaitable[Any]]] = [
            effect,
            lambda: store.append([draft(), draft()], now_ms=NOW_MS),
            lambda: store.log(after=None, limit=5),
            lambda: store.summary("orders"),
            lambda: store.lease(["lane-1"], "a", ttl_s=9.0),
        ]
        for _ in range(100):
            tasks = [asyncio.ensure_future(dice.choice(calls)()) for _ in range(dice.randint(1, 9))]
            for _ in range(dice.randint(0, 20)):
                await asyncio.sleep(0)
            for task in dice.sample(tasks, dice.randint(1, len(tasks))):
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert not isinstance(outcome, Exception), outcome
        await asyncio.wait_for(store.append([draft()], now_ms=NOW_MS), DEADLINE_S)
        assert len(await audit(store)) % 2 == 1
        states = await run_sql(
            database,
            "SELECT state FROM pg_stat_activity WHERE application_name = 'synckit-streams' "
            "AND datname = current_database()",
        )
        assert len(states) <= READERS_MAX + 2
        assert {row["state"] for row in states} == {"idle"}


async def append_until_it_works(store: EventStore, drafts: list[Draft]) -> Any:
    """As a caller would: again while the server is away."""
    limit = time.monotonic() + DEADLINE_S
    while True:
        try:
            return await store.append(drafts, now_ms=NOW_MS)
        except StoreUnavailable:
            assert time.monotonic() < limit
            await asyncio.sleep(0.05)


@asynccontextmanager
async def writing(store: EventStore) -> AsyncIterator[list[str]]:
    """Three callers, two drafts a call, until the block ends; gives the calls that were acknowledged."""
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def write(caller: int) -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            call = f"{caller}/{number}"
            drafts = [draft(f"o-{number % 3}", call, id=f"{call}/{part}") for part in range(2)]
            await append_until_it_works(store, drafts)
            acknowledged.append(call)

    writers = asyncio.gather(*(write(caller) for caller in range(3)))
    try:
        yield acknowledged
    finally:
        stop.set()
        await writers


@pytest.mark.parametrize(("way", "seed"), [("kill", 0), ("kill", 1), ("stop", 2)])
async def test_a_server_that_goes_under_load_loses_nothing_acknowledged(
    postgres_server: PostgresServer, way: str, seed: int
) -> None:
    """Callers go on when it is back: each draft is there once, those with an id whatever was answered; nothing by
    half. A server that was down may have been put back, so they go on under a new origin."""
    dice = random.Random(seed)
    async with opened(postgres_server.url) as store:
        async with writing(store) as acknowledged:
            for kills in range(3):
                wanted = len(acknowledged) + dice.randint(3, 20)

                async def written(wanted: int = wanted) -> bool:
                    return len(acknowledged) >= wanted

                await until(written, f"they write, {kills} kills")
                await asyncio.to_thread(getattr(postgres_server, way))
                await asyncio.to_thread(postgres_server.start)
        log = await audit(store)
        calls = Counter(each.event.data for each in log)
        assert set(calls.values()) <= {2}, "half a call, or one twice"
        assert set(acknowledged) <= set(calls)
        assert len({each.event.origin for each in log}) == 4
    async with opened(postgres_server.url) as store:
        assert await audit(store) == log


@pytest.mark.parametrize("seed", range(6))
async def test_kill_9_of_a_writing_process_loses_nothing_acknowledged(database: str, seed: int) -> None:
    """At a random moment, again and again on one store: what was acknowledged is there, nothing is there by half, and
    since the server was there all the time, the next process goes on under the same origin."""
    dice = random.Random(seed)
    acknowledged: set[str] = set()
    for life in range(2):
        process = child("asyncio.run(write_for_ever(sys.argv[1], int(sys.argv[2])))", database, life)
        try:
            for _ in range(dice.randint(1, 60)):
                acknowledged.update(json.loads(line(process)))
            moment = time.monotonic() + dice.random() * 0.01
            while time.monotonic() < moment:
                pass
            os.kill(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            for rest in process.stdout:  # what it had still acknowledged
                if rest.endswith("\n"):
                    acknowledged.update(json.loads(rest))
        finally:
            end(process)
        async with opened(database) as store:
            log = await audit(store)
            ids = {each.event.id for each in log}
            assert acknowledged <= ids, f"seed {seed}: {len(acknowledged - ids)} acknowledged events are lost"
            calls = Counter(each.event.data["call"] for each in log if each.event.type == "pair")
            assert set(calls.values()) <= {2}, f"seed {seed}: half a call"
            blocks = sum(call.startswith(f"{life}/0/") for call in calls)
            done = await store.offset(f"blocks {life}")
            assert blocks == (done.position if done is not None else 0), f"seed {seed}: events without their effect"
            offset = await store.offset("link")
            received = [each.event.seq for each in log if each.event.origin == f"peer@{life}"]
            assert not received or (offset is not None and offset.position == len(received)), f"seed {seed}"
            assert received == list(range(1, len(received) + 1))
            assert len({each.event.origin for each in log if each.event.origin.startswith("writer@")}) <= 1


# --- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def server_disk() -> Iterator[Path]:
    """A file system of 128 MiB, which is in memory; where the server's user may look, as he may not in `tmp_path`."""
    place = Path(tempfile.mkdtemp(prefix="synckit-small-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m,mode=777", "tmpfs", place], check=False)
    if mounted.returncode:
        place.rmdir()
        lacking("this user may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()


class Ballast:
    """What takes the room away; all but so many MiB of it."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "ballast"

    def leave(self, mib: int) -> None:
        """Fill the rest."""
        stat = os.statvfs(self._file.parent)
        with self._file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_bsize - mib * 2**20)

    def drop(self) -> None:
        """All of it."""
        self._file.unlink()


def large(number: int) -> Draft:
    """A draft that no compression makes small."""
    return draft(data=random.Random(number).randbytes(300_000).hex(), id=f"large/{number}")


async def fill(store: EventStore) -> int:
    """Append until it fails; gives how many were acknowledged."""
    for number in range(1_000):
        try:
            await store.append([large(number)], now_ms=NOW_MS)
        except (StoreFull, StoreUnavailable):
            return number
    raise AssertionError("it never was full")


async def test_a_full_tablespace_is_said_and_survived(postgres_server: PostgresServer, server_disk: Path) -> None:
    """What was acknowledged is there and can be read; with room again the same store goes on, under the same origin."""
    place = server_disk / "tables"
    place.mkdir()
    place.chmod(0o777)
    give_to_server(place)
    await run_sql(postgres_server.url, f"CREATE TABLESPACE small LOCATION '{place}'")
    await run_sql(postgres_server.url, "CREATE DATABASE shop TABLESPACE small")
    async with opened(postgres_server.url.removesuffix(USER) + "shop") as store:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        ballast = Ballast(server_disk)
        ballast.leave(4)
        written = await fill(store)
        with pytest.raises(StoreFull, match="free some space") as raised:
            await store.append([large(written)], now_ms=NOW_MS)
        assert "No space left" in str(raised.value)
        log = await audit(store)
        assert [each.event.id for each in log[1:]] == [f"large/{number}" for number in range(written)]
        ballast.drop()
        last = (await store.append([large(written)], now_ms=NOW_MS)).appended[0].event
        assert (last.origin, last.seq) == (first.origin, written + 2)
        assert len(await audit(store)) == written + 2
        async with store.transaction() as tx:
            await tx.set_offset("x", Offset(store.id, 1))


async def test_a_server_that_dies_of_a_full_disk_loses_nothing_acknowledged(
    server_disk: Path,
) -> None:
    """The whole server is on it: it gives up when it cannot write its own log, and comes back when there is room."""
    server = PostgresServer(server_disk / "server", settings={"max_wal_size": "32MB", "min_wal_size": "32MB"})
    with server:
        store = PostgresStore(server.url)
        await store.open(opening("writer"))
        await store.append([draft()], now_ms=NOW_MS)
        ballast = Ballast(server_disk)
        ballast.leave(2)
        written = await fill(store)
        ballast.drop()
        await asyncio.to_thread(server.restart)
        await append_until_it_works(store, [large(written)])
        log = await audit(store)
        assert [each.event.id for each in log[1:]] == [f"large/{number}" for number in range(written + 1)]
        await store.close()


def give_to_server(place: Path) -> None:
    """Its owner is who runs the server."""
    if os.geteuid() == 0:
        os.chown(place, pwd.getpwnam("nobody").pw_uid, -1)


async def test_a_pool_of_transactions_is_named_in_the_hint(database: str) -> None:
    """What such a pool does: the next statement meets a server that has not prepared it. Nothing is written."""
    async with opened(database) as store:
        await store.append([draft()], now_ms=NOW_MS)
        async with store.transaction() as tx:
            await tx.execute("DEALLOCATE ALL")
        with pytest.raises(StoreError, match="a pool in between"):
            await store.append([draft()], now_ms=NOW_MS)
        assert len(await store.log(after=None, limit=9)) == 1


# --- a server that may not be written ---------------------------------------------------------------------------------


async def test_a_database_that_is_read_only_is_unavailable(database: str) -> None:
    """Nothing half-made is left; one that becomes so while it is open is told from one that is away by its hint."""
    name = database.rpartition("/")[2]
    await run_sql(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="needs the primary"):
        await PostgresStore(database).open(opening("x"))
    assert await tables(database) == []
    await run_sql(database.replace(name, USER), f"ALTER DATABASE {name} RESET default_transaction_read_only")
    async with opened(database) as store:
        await store.append([draft()], now_ms=NOW_MS)
    await run_sql(database.replace(name, USER), f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(StoreUnavailable, match="needs the primary"):
        await PostgresStore(database).open(opening("writer"))


async def test_a_schema_that_the_user_may_only_read_is_denied(database: str) -> None:
    """Somebody else's schema without tables: nothing is made in it."""
    user = f"poor_{database[-8:]}"
    await run_sql(database, f"CREATE ROLE {user} LOGIN")
    await run_sql(database, "CREATE SCHEMA synckit")
    await run_sql(database, f"GRANT USAGE ON SCHEMA synckit TO {user}")
    try:
        with pytest.raises(StoreDenied, match="AUTHORIZATION"):
            await PostgresStore(as_user(database, user)).open(opening("x"))
        assert await tables(database) == []
    finally:
        await run_sql(database, f"DROP OWNED BY {user}")
        await run_sql(database, f"DROP ROLE {user}")


# --- failover ---------------------------------------------------------------------------------------------------------


class Standby(PostgresServer):
    """A copy of a running server that follows it, until it is promoted."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__(binary=primary.binary)
        self._primary = primary

    def _init(self) -> None:
        command: list[str | Path] = [self.binary.parent / "pg_basebackup", "-D", self.store_dir]
        command += ["-d", self._primary.url, "-R", "-X", "stream", "-c", "fast", "--no-sync"]
        subprocess.run(self._as_nobody(command), check=True, cwd=self.directory)

    async def promote(self) -> None:
        """It is a primary from now on."""
        assert await run_sql(self.url, "SELECT pg_promote(true, 60)")


@pytest.fixture
def standby(postgres_server: PostgresServer) -> Iterator[Standby]:
    """Of `postgres_server`."""
    with Standby(postgres_server) as server:
        yield server


async def follows(standby: Standby, primary: PostgresServer) -> None:
    """Wait until it has all that was written."""
    (written,) = (await run_sql(primary.url, "SELECT pg_current_wal_lsn()::text"))[0]

    async def there() -> bool:
        sql = f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn"
        return bool((await run_sql(standby.url, sql))[0][0])

    await until(there, "the standby follows")


async def test_a_promoted_standby_is_another_life(postgres_server: PostgresServer, standby: Standby) -> None:
    """What the primary had shipped is there. What it had acknowledged and not shipped is gone with it, and its numbers
    are not given to other events; it is taken again from a peer that has it."""
    both = f"postgresql://{USER}@127.0.0.1:{postgres_server.port},127.0.0.1:{standby.port}/{USER}"
    async with opened(f"{both}?target_session_attrs=read-write") as store:
        shipped = [(await store.append([draft(data=number)], now_ms=NOW_MS)).appended[0] for number in range(5)]
        await follows(standby, postgres_server)
        with pytest.raises(StoreUnavailable, match="standby"):
            await PostgresStore(standby.url).open(opening("writer"))
        await asyncio.to_thread(standby.kill)
        late = [(await store.append([draft(data=number)], now_ms=NOW_MS)).appended[0].event for number in range(5, 8)]
        assert {each.origin for each in late} == {shipped[0].event.origin}
        await asyncio.to_thread(postgres_server.kill)
        await asyncio.to_thread(standby.start)
        await standby.promote()
        fresh = (await append_until_it_works(store, [draft(data="after")])).appended[0].event
        assert fresh.origin != shipped[0].event.origin
        assert (await audit(store))[:-1] == shipped
        again = await store.append(received=arrivals(*late), now_ms=NOW_MS)
        assert (len(again.stored), list(again.reused)) == (3, [])
        log = await audit(store)
        assert sorted(str(each.event.data) for each in log) == [*"01234567", "after"]
    async with opened(standby.url) as store:
        assert await audit(store) == log


@pytest.mark.parametrize("seed", range(2))
async def test_a_standby_that_commits_wait_for_has_all_that_was_acknowledged(
    postgres_server: PostgresServer, standby: Standby, seed: int
) -> None:
    """The primary is killed under load, the standby promoted; the same callers go on. Nothing is lost or doubled."""
    await run_sql(postgres_server.url, "ALTER SYSTEM SET synchronous_standby_names = '*'")
    await run_sql(postgres_server.url, "SELECT pg_reload_conf()")
    waits = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
    await until(lambda: run_sql(postgres_server.url, waits), "commits wait for the standby")
    both = f"postgresql://{USER}@127.0.0.1:{postgres_server.port},127.0.0.1:{standby.port}/{USER}"
    wanted = random.Random(seed).randint(10, 40)
    async with opened(f"{both}?target_session_attrs=read-write") as store:
        async with writing(store) as acknowledged:

            async def written() -> bool:
                return len(acknowledged) >= wanted

            await until(written, "they write")
            await asyncio.to_thread(postgres_server.kill)
            await standby.promote()
            wanted = len(acknowledged) + 20
            await until(written, "they write again")
        calls = Counter(each.event.data for each in await audit(store))
        assert set(calls.values()) <= {2}, "half a call, or one twice"
        assert set(acknowledged) <= set(calls)
