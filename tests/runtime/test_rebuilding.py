"""A read model is built anew beside the live one: who reads sees the old one or the new one, whole, and never an older
one than before."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from synckit_streams import App, Batch, Draft, ProjectionFailed
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.switch import Rebuild, Want, switches
from tests.acceptance.kit import eventually
from tests.runtime.shop import Shop, building, marks, orders
from tests.stores.media import run_sql
from tests.stores.processes import child, end, line

Rows = list[tuple[Any, ...]]
Query = Callable[[str], Awaitable[Rows]]
KINDS = ["sqlite", "postgres"]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store of each kind that can build a model beside."""
    if request.param == "postgres":
        found: str = request.getfixturevalue("database")
        return found
    return f"sqlite:///{tmp_path / 'shop.db'}"


def query_of(url: str) -> Query:
    """Somebody who reads the database, and has nothing to do with us."""

    async def query(sql: str) -> Rows:
        if not url.startswith("sqlite"):
            return [tuple(row) for row in await run_sql(url, sql)]
        with closing(sqlite3.connect(f"file:{url.removeprefix('sqlite:///')}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    return query


async def rebuilt(app: App) -> None:
    """Wait until nothing is being built any more."""

    async def done() -> bool:
        return not await building(app)

    await eventually(done, what="the model was built")


async def test_readers_see_one_whole_model_under_live_traffic(url: str) -> None:
    """The count of orders never goes back and never differs from the rows, and in the end the new rows are there."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 1_000))
        await app.node.project()
        shop.factor = 2  # the code has changed: what was there is wrong now
        seen: list[int] = []
        at, stopped = 1_000, False

        async def write() -> None:
            nonlocal at
            while not stopped:
                await app.node.append_many(orders(at, 7))
                at += 7
                await asyncio.sleep(0)

        async def read() -> None:
            while not stopped:
                ((total, rows),) = await query("SELECT (SELECT orders FROM totals), (SELECT count(*) FROM sales)")
                assert total == rows >= (seen[-1] if seen else 1_000)
                seen.append(total)
                await asyncio.sleep(0)

        async def ask() -> None:
            while not stopped:
                await app.node.project()
                await asyncio.sleep(0)

        # Who asks beside the app moves the live model also between the last page of a build and its swap.
        tasks = [asyncio.create_task(each()) for each in (write, read, ask, ask)]
        await app.node.switch(["sales"], Want.REBUILD)
        await rebuilt(app)
        stopped = True
        await asyncio.gather(*tasks)
        await app.node.project()
        assert sorted(await query("SELECT n FROM sales")) == [(2 * n,) for n in range(at)]
        assert await query("SELECT orders FROM totals") == [(at,)]
        assert len(seen) > 3
        assert seen[-1] > 1_000
        assert await _left(url, query) == []


COUNTS = "SELECT (SELECT orders FROM totals), (SELECT count(*) FROM sales)"
KILLS = 12


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_whoever_is_killed_leaves_one_whole_model_and_the_next_goes_on(url: str) -> None:
    """Kill -9 in the middle of builds, and just before and after they take the live one's place."""
    query, dice = query_of(url), random.Random(7)
    async with Shop(url).app as app:
        await app.node.append_many(orders(0, 2_000))
        await app.node.project()
    seen, in_the_middle = 2_000, 0
    for life in range(100):
        process = child("from tests.runtime.shop import serve; asyncio.run(serve(sys.argv[1]))", url)
        try:
            said = await asyncio.to_thread(line, process)
            # Now and then builds are let through, so that the swap is killed as well.
            for wanted in ["building", *("built", "building") * (life % 3)]:
                while said != wanted:
                    said = await asyncio.to_thread(line, process)
            until = time.monotonic() + dice.random() * 1.5
            while time.monotonic() < until:
                ((total, rows),) = await query(COUNTS)
                assert total == rows >= seen
                seen = total
            os.kill(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            rest = [each.strip() for each in process.stdout if each.endswith("\n")]
            in_the_middle += ([said, *rest])[-1] == "building"
        finally:
            end(process)
        ((total, rows),) = await query(COUNTS)
        assert total == rows >= seen
        if in_the_middle >= KILLS:
            break
    assert in_the_middle >= KILLS
    async with Shop(url).app as app:
        await rebuilt(app)
        await app.node.project()
        count = (await app.node.store.end()).position
        assert sorted(await query("SELECT n FROM sales")) == [(n,) for n in range(count)]
        assert await query("SELECT orders FROM totals") == [(count,)]
        assert await _left(url, query) == []


async def _left(url: str, query: Query) -> list[str]:
    """What lies about of a build."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        return [each.name for each in path.parent.glob("*rebuild*")]
    return [name for (name,) in await query("SELECT nspname FROM pg_namespace WHERE nspname LIKE '%rebuild%'")]


async def _asked(app: App, what: Want = Want.REBUILD) -> None:
    await app.node.switch(["sales"], what)
    await app.node.project()


async def test_what_writes_a_table_that_it_has_not_named_is_not_built(url: str) -> None:
    """It would have its effect there twice. The live model goes on, and whoever asks hears which table it is."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await _execute(app, "CREATE TABLE audit (id TEXT, n BIGINT)")
        shop.row = f"INSERT INTO audit VALUES ({marks(url, 2)})"
        await app.node.append_many(orders(0, 10))
        await app.node.project()
        with pytest.raises(ProjectionFailed, match="has not named"):
            await _asked(app)
        await app.node.append_many(orders(10, 5))
        with pytest.raises(ProjectionFailed, match="has not named"):
            await app.node.project()
        audited = "SELECT count(*), (SELECT orders FROM totals) FROM audit"
        assert await query(audited) == [(15, 15)]
        assert "has not named" in (await _rebuild_of(app)).reason
        await _asked(app, Want.REBUILD_IN_PLACE)  # instead
        assert await query(audited) == [(30, 15)]
        assert not await building(app)


async def _rebuild_of(app: App) -> Rebuild:
    found = (await switches(app.node.store))["sales"].rebuild
    assert found is not None
    return found


async def test_a_build_that_fails_leaves_the_live_model_alone(url: str) -> None:
    """And goes on where it was, once the code is right."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 200))
        await app.node.project()
        shop.refuses = 150
        with pytest.raises(ProjectionFailed, match="position 151"):
            await _asked(app)
        await app.node.append_many(orders(200, 5))
        with pytest.raises(ProjectionFailed, match="position 151"):
            await app.node.project()
        assert await query(COUNTS) == [(205, 205)]
        shop.refuses, calls = -1, shop.calls
        await rebuilt(app)
        assert await query(COUNTS) == [(205, 205)]
        assert shop.calls - calls < 10


async def test_a_table_that_is_made_otherwise_takes_the_live_ones_place(url: str) -> None:
    """The live model of the old form is read until then, although nobody can feed it any more."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 100))
        await app.node.project()
        shop.columns = "id TEXT PRIMARY KEY, n BIGINT NOT NULL, shop TEXT DEFAULT 'Rome'"
        shop.row = f"INSERT INTO sales (n, id, shop) VALUES ({marks(url, 2)}, 'Oslo')"
        shop.turned = True
        await app.node.append_many(orders(100, 1))
        await app.node.switch(["sales"], Want.REBUILD)
        await rebuilt(app)
        assert await query("SELECT count(*), min(shop), max(shop) FROM sales") == [(101, "Oslo", "Oslo")]
        with pytest.raises(Exception, match=r"(?i)unique"):
            await _execute(app, "INSERT INTO sales (n, id) VALUES (1, 'o-1')")


async def _execute(app: App, sql: str) -> None:
    async with app.node.store.transaction() as tx:
        await tx.execute(sql)


async def test_what_stands_on_the_tables_stays(url: str) -> None:
    """A view, and on a server the rights of whoever reads, are those of the live table."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 30))
        await app.node.project()
        await _execute(app, "CREATE VIEW big AS SELECT count(*) AS many FROM sales WHERE n >= 20")
        server = url.startswith("postgres")
        if server:
            await _execute(app, "GRANT SELECT ON sales TO PUBLIC")
        shop.factor = 2
        await _asked(app)
        await rebuilt(app)
        assert await query("SELECT many FROM big") == [(20,)]
        if server:
            granted = "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = 'PUBLIC'"
            assert await query(f"{granted} AND table_name = 'sales'") == [(1,)]


async def test_it_may_read_what_is_not_its_own(url: str) -> None:
    """A table of reference beside it is what it is in the store."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await _execute(app, "CREATE TABLE prices (price BIGINT)")
        await _execute(app, "INSERT INTO prices VALUES (7)")
        shop.row = f"INSERT INTO sales SELECT {marks(url, 2).replace('$2', '$2::bigint')} + price FROM prices"
        await app.node.append_many(orders(0, 30))
        await app.node.project()
        await _asked(app)
        await rebuilt(app)
        assert await query("SELECT sum(n) FROM sales") == [(sum(range(30)) + 7 * 30,)]


async def test_pausing_holds_it_and_resetting_gives_it_up(url: str) -> None:
    """Nothing of it is left, also not of one whose process was gone."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 200))
        await app.node.project()
        shop.refuses = 150
        with pytest.raises(ProjectionFailed):
            await _asked(app)
        assert len(await _left(url, query)) >= 1
    async with shop.app as app:
        await app.node.switch(["sales"], Want.PAUSE)
        shop.refuses = -1
        assert await app.node.project() == 0
        assert await building(app)
        await _asked(app, Want.RESET)
        assert await query(COUNTS) == [(0, 0)]
        assert await _left(url, query) == []
        await _asked(app, Want.RUN)
        assert await query(COUNTS) == [(200, 200)]


async def test_reading_again_keeps_the_rows(url: str) -> None:
    """From a position on, that one included."""
    shop, query = Shop(url), query_of(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 30))
        await app.node.project()
        await _execute(app, "DELETE FROM sales WHERE n >= 20")
        await app.node.switch(["sales"], Want.REPLAY, position=21)
        await app.node.project()
        assert await query("SELECT count(*), max(n) FROM sales") == [(30, 29)]
        assert await query("SELECT orders FROM totals") == [(40,)]  # what adds up adds twice


async def test_a_model_of_resolved_aggregates_takes_its_notes_along(url: str) -> None:
    """What the new model applied last of each aggregate is what it takes back next."""
    app, query = App("shop", store=url), query_of(url)
    factor = 1

    @app.projection("owed", topics=["orders"], resolved=True, tables=["owed"], batch=20)
    async def owed(batch: Batch, tx: Transaction) -> None:
        rows = [(each.current["n"] - (each.previous["n"] if each.previous else 0)) * factor for each in batch.changes]
        await tx.execute_many(f"UPDATE owed SET total = total + {marks(url, 1)}", [(row,) for row in rows])

    @owed.on_reset
    async def nobody(tx: Transaction) -> None:
        await tx.execute("CREATE TABLE IF NOT EXISTS owed (total BIGINT)")
        await tx.execute("DELETE FROM owed")
        await tx.execute("INSERT INTO owed VALUES (0)")

    async with app:
        await app.node.append_many([Draft("orders", "changed", f"o-{n % 30}", {"n": n}) for n in range(90)])
        await app.node.project()
        assert await query("SELECT total FROM owed") == [(sum(range(60, 90)),)]
        factor = 10
        await app.node.switch(["owed"], Want.REBUILD)
        await app.node.project()
        assert await query("SELECT total FROM owed") == [(10 * sum(range(60, 90)),)]
        await app.node.append_many([Draft("orders", "changed", "o-0", {"n": 1_000})])
        await app.node.project()
        assert await query("SELECT total FROM owed") == [(10 * (sum(range(61, 90)) + 1_000),)]


async def test_a_user_who_may_make_no_schema_is_told_so(database: str) -> None:
    """And the live model, and every other one, goes on."""
    role = f"till_{uuid.uuid4().hex[:8]}"
    for sql in (
        f"CREATE ROLE {role} LOGIN",
        f"CREATE SCHEMA synckit AUTHORIZATION {role}",
        f"GRANT CREATE ON SCHEMA public TO {role}",
    ):
        await run_sql(database, sql)
    parts = urlsplit(database)
    url = urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
    shop = Shop(url)
    async with shop.app as app:
        await app.node.append_many(orders(0, 10))
        await app.node.project()
        with pytest.raises(ProjectionFailed, match="permission denied") as refused:
            await _asked(app)
        assert "GRANT CREATE ON DATABASE" in refused.value.hint
        await app.node.append_many(orders(10, 5))
        with pytest.raises(ProjectionFailed, match="permission denied"):
            await app.node.project()
        assert await query_of(url)(COUNTS) == [(15, 15)]


async def test_a_streamed_model_is_built_too(url: str) -> None:
    """One that adds up many pages before it writes."""
    app, query = App("shop", store=url), query_of(url)
    factor = 1

    @app.projection("sums", topics=["orders"], streamed=True, batch=100_000, tables=["sums"])
    async def sums(pages: AsyncIterator[Batch], tx: Transaction) -> None:
        total = 0
        async for page in pages:
            total += sum(each.event.data["n"] for each in page.stored) * factor
        await tx.execute(f"UPDATE sums SET total = total + {marks(url, 1)}", (total,))

    @sums.on_reset
    async def reset(tx: Transaction) -> None:
        await tx.execute("CREATE TABLE IF NOT EXISTS sums (total BIGINT)")
        await tx.execute("DELETE FROM sums")
        await tx.execute("INSERT INTO sums VALUES (0)")

    async with app:
        await app.node.append_many(orders(0, 3_000))
        await app.node.project()
        factor = 2
        await app.node.switch(["sums"], Want.REBUILD)
        await app.node.project()
        assert await query("SELECT total FROM sums") == [(2 * sum(range(3_000)),)]
        assert await _left(url, query) == []


async def test_in_memory_it_is_rebuilt_in_place() -> None:
    """There is no second place."""
    app = App("shop", store="memory:")

    @app.projection("sales", topics=["orders"], tables=["sales"])
    async def sales(batch: Batch, tx: Transaction) -> None:
        await tx.execute_many("INSERT INTO sales VALUES (?)", [(each.event.data["n"],) for each in batch.stored])

    @sales.on_reset
    async def reset(tx: Transaction) -> None:
        await tx.execute("DROP TABLE IF EXISTS sales")
        await tx.execute("CREATE TABLE sales (n INTEGER)")

    async with app:
        await app.node.append_many(orders(0, 10))
        await app.node.project()
        await _asked(app)
        async with app.node.store.transaction() as tx:
            assert await tx.execute("SELECT count(*) FROM sales") == [(10,)]
        assert (await switches(app.node.store))["sales"].tables == ()


MADE_OF = {
    "sqlite": (
        'CREATE TABLE IF NOT EXISTS "day book" (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, '
        "n INTEGER CHECK (n >= 0), twice INTEGER GENERATED ALWAYS AS (2 * n) STORED)",
        'CREATE TABLE IF NOT EXISTS pages (id TEXT REFERENCES "day book" (id), PRIMARY KEY (id)) WITHOUT ROWID',
    ),
    "postgres": (
        'CREATE TABLE IF NOT EXISTS "day book" (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, '
        "old serial, id text NOT NULL UNIQUE, n bigint CHECK (n >= 0), "
        "twice bigint GENERATED ALWAYS AS (2 * n) STORED)",
        'CREATE TABLE IF NOT EXISTS pages (id text PRIMARY KEY REFERENCES "day book" (id))',
    ),
}


async def test_whatever_a_table_is_made_of(url: str) -> None:
    """Numbers that the database gives out go on behind those of the new model; what refers to a table still does."""
    app, query = App("shop", store=url), query_of(url)
    made_of = MADE_OF["postgres" if url.startswith("postgres") else "sqlite"]

    @app.projection("books", topics=["orders"], batch=10, tables=["day book", "pages"])
    async def books(batch: Batch, tx: Transaction) -> None:
        rows = [(each.event.aggregate_id, each.event.data["n"]) for each in batch.stored]
        await tx.execute_many(f'INSERT INTO "day book" (id, n) VALUES ({marks(url, 2)})', rows)
        await tx.execute_many(f"INSERT INTO pages VALUES ({marks(url, 1)})", [(id,) for id, _ in rows])

    @books.on_reset
    async def reset(tx: Transaction) -> None:
        for sql in made_of:
            await tx.execute(sql)
        await tx.execute('CREATE INDEX IF NOT EXISTS by_n ON "day book" (n) WHERE n > 3')
        await tx.execute("DELETE FROM pages")
        await tx.execute('DELETE FROM "day book"')

    async with app:
        await app.node.append_many(orders(0, 25))
        await app.node.project()
        await _execute(app, 'CREATE VIEW seen AS SELECT sum(twice) AS total FROM "day book"')
        for _ in range(2):
            await app.node.switch(["books"], Want.REBUILD)
            await app.node.project()
            assert not await building(app)
        await app.node.append_many(orders(25, 5))
        await app.node.project()
        assert await query("SELECT total FROM seen") == [(2 * sum(range(30)),)]
        assert await query('SELECT count(DISTINCT number), count(*) FROM "day book" JOIN pages USING (id)') == [
            (30, 30)
        ]
        with pytest.raises(Exception, match=r"(?i)check"):
            await _execute(app, "INSERT INTO \"day book\" (id, n) VALUES ('x', -1)")
