"""The PostgreSQL store: the contract on a real server, and what a database can be instead."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from synckit_streams.errors import (
    ConfigError,
    Invalid,
    SchemaNewer,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreInUse,
    StoreMissing,
    StoreUnavailable,
)
from synckit_streams.model.event import Offset
from synckit_streams.runtime.registry import store_for
from synckit_streams.stores import postgres_schema as schema
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.stores.postgres_url import parse_url
from synckit_streams.testing import PostgresServer, StoreContract
from synckit_streams.testing.postgres_server import USER
from synckit_streams.testing.store_contract import NOW_MS, audit, draft, opening
from tests.stores.media import PostgresMedia, run_sql


class TestPostgresStore(StoreContract):
    """Everything that a store must do."""

    histories = 10
    placeholders = "$1, $2"

    @pytest.fixture
    def media(self, database: str) -> PostgresMedia:
        return PostgresMedia(database)


@asynccontextmanager
async def opened(url: str, node: str = "till-7", **options: Any) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, **options)
    await store.open(opening(node))
    try:
        yield store
    finally:
        await store.close()


async def tables(url: str) -> list[tuple[str, str]]:
    """Every table that is not PostgreSQL's own."""
    found = await run_sql(
        url,
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') "
        "ORDER BY 1, 2",
    )
    return [tuple(row) for row in found]


def as_user(url: str, user: str, password: str = "") -> str:
    """The URL for somebody else."""
    parts = urlsplit(url)
    login = f"{user}:{password}" if password else user
    return urlunsplit(parts._replace(netloc=f"{login}@{parts.hostname}:{parts.port}"))


# --- the URL ----------------------------------------------------------------------------------------------------------


def test_a_url_says_where_and_which_schema() -> None:
    """What is not ours goes to the driver; the name for messages has no password."""
    dsn, name, found = parse_url("postgres://joe:secret@db:5433/shop?sslmode=require&schema=till%207")
    assert (dsn, found) == ("postgresql://joe:secret@db:5433/shop?sslmode=require", "till 7")
    assert name == "postgresql://db:5433/shop, schema till 7"
    assert parse_url("postgresql://db/shop").schema == "synckit"
    for scheme in ("postgres", "postgresql"):
        assert isinstance(store_for(f"{scheme}://db/shop"), PostgresStore)


@pytest.mark.parametrize(
    "url",
    ["sqlite:///x", "postgresql://db:seven/shop", "postgresql://db/shop#x", "postgresql://joe:secret@db/shop?schema="]
    + [f"postgresql://db/shop?schema={name}" for name in ("pg_mine", "x" * 64, "a%00b")],
)
def test_a_url_that_is_wrong_is_a_clear_error_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        PostgresStore(url)
    assert "secret" not in str(raised.value)


# --- what is there instead of a store, and who may not in -------------------------------------------------------------


async def test_a_server_that_is_not_there_is_unavailable(postgres_server: PostgresServer) -> None:
    """Retryable; and nothing is left that would keep the next try out."""
    postgres_server.stop()
    store = PostgresStore(postgres_server.url)
    with pytest.raises(StoreUnavailable) as raised:
        await store.open(opening("x"))
    assert raised.value.retryable
    postgres_server.restart()
    await store.open(opening("x"))
    await store.append([draft()], now_ms=NOW_MS)
    await store.close()


async def test_a_database_that_is_not_there_is_named(postgres_url: str) -> None:
    with pytest.raises(StoreError, match="make the database"):
        await PostgresStore(urlunsplit(urlsplit(postgres_url)._replace(path="/nowhere"))).open(opening("x"))


async def test_a_wrong_password_is_denied_and_not_repeated(postgres_server: PostgresServer) -> None:
    server = postgres_server
    server.stop()
    rules = f"host all {USER} 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    (server.store_dir / "pg_hba.conf").write_text(rules)
    server.restart()
    await run_sql(server.url, "CREATE ROLE joe LOGIN PASSWORD 'right'")
    await run_sql(server.url, f"GRANT CREATE ON DATABASE {USER} TO joe")
    for password in ("wrong-one", ""):
        with pytest.raises(StoreDenied, match="check user and password") as raised:
            await PostgresStore(as_user(server.url, "joe", password)).open(opening("x"))
        assert "wrong-one" not in str(raised.value)
    async with opened(as_user(server.url, "joe", "right")) as store:
        await store.append([draft()], now_ms=NOW_MS)


async def test_a_user_without_rights_is_told_what_to_ask_for(database: str) -> None:
    """Nothing half-made is left; with a schema of its own it works, without the right to read the server's identity."""
    user = f"poor_{urlsplit(database).path[-8:]}"
    await run_sql(database, f"CREATE ROLE {user} LOGIN")
    try:
        with pytest.raises(StoreDenied, match="CREATE SCHEMA"):
            await PostgresStore(as_user(database, user)).open(opening("x"))
        assert await tables(database) == []
        await run_sql(database, f"CREATE SCHEMA synckit AUTHORIZATION {user}")
        await run_sql(database, "REVOKE EXECUTE ON FUNCTION pg_control_system FROM PUBLIC")
        async with opened(as_user(database, user)) as store:
            origin = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin
        async with opened(as_user(database, user)) as store:
            assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin == origin
    finally:
        await run_sql(database, f"DROP OWNED BY {user}")
        await run_sql(database, f"DROP ROLE {user}")


async def test_who_may_only_read_can_look(database: str) -> None:
    """Without a right to write, and without making anything; what another release made is said so."""
    user = f"poor_{urlsplit(database).path[-8:]}"
    await run_sql(database, f"CREATE ROLE {user} LOGIN")
    try:
        with pytest.raises(StoreMissing):
            await PostgresStore(as_user(database, user), read_only=True).open(opening("x"))
        assert await tables(database) == []
        async with opened(database) as store:
            await store.append([draft()], now_ms=NOW_MS)
        with pytest.raises(StoreDenied):
            await PostgresStore(as_user(database, user), read_only=True).open(opening("x"))
        await run_sql(database, f"GRANT USAGE ON SCHEMA synckit TO {user}")
        await run_sql(database, f"GRANT SELECT ON ALL TABLES IN SCHEMA synckit TO {user}")
        async with opened(as_user(database, user), read_only=True) as look:
            assert len(await audit(look)) == 1
            assert await look.size_bytes() > 0
        await run_sql(database, f"UPDATE synckit.store SET version = {schema.SCHEMA_VERSION + 1}")
        with pytest.raises(SchemaNewer):
            await PostgresStore(database, read_only=True).open(opening("x"))
    finally:
        await run_sql(database, f"DROP OWNED BY {user}")
        await run_sql(database, f"DROP ROLE {user}")


async def test_somebody_elses_tables_are_refused_and_left_alone(database: str) -> None:
    """Also beside them there is room, in a schema of its own."""
    await run_sql(database, "CREATE TABLE public.events (x int)")
    with pytest.raises(StoreCorrupt, match="another program: events") as raised:
        await PostgresStore(f"{database}?schema=public").open(opening("x"))
    assert "?schema=" in raised.value.hint
    assert await tables(database) == [("public", "events")]
    async with opened(database) as store:
        await store.append([draft()], now_ms=NOW_MS)


async def test_a_newer_schema_is_refused_and_left_alone(database: str) -> None:
    async with opened(database) as store:
        await store.append([draft()], now_ms=NOW_MS)
    await run_sql(database, f"UPDATE synckit.store SET version = {schema.SCHEMA_VERSION + 1}")
    with pytest.raises(SchemaNewer):
        await PostgresStore(database).open(opening("till-7"))
    await run_sql(database, f"UPDATE synckit.store SET version = {schema.SCHEMA_VERSION}")
    async with opened(database) as store:
        assert len(await audit(store)) == 1


async def test_text_that_is_not_utf_8_is_refused(database: str) -> None:
    name = f"{urlsplit(database).path[1:]}_latin"
    await run_sql(database, f"CREATE DATABASE {name} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    try:
        with pytest.raises(StoreError, match="LATIN1"):
            await PostgresStore(urlunsplit(urlsplit(database)._replace(path=f"/{name}"))).open(opening("x"))
    finally:
        await run_sql(database, f"DROP DATABASE {name}")


# --- whose it is ------------------------------------------------------------------------------------------------------


async def test_another_node_gets_it_when_nobody_has_it_open(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """All processes of one node share it; another one is told who has it."""
    async with opened(database, "till-7") as store, opened(database, "till-7") as again:
        first = (await store.append([draft()], now_ms=NOW_MS)).appended[0].event
        second = (await again.append([draft()], now_ms=NOW_MS)).appended[0].event
        assert (second.origin, second.seq, second.prev) == (first.origin, 2, 1)
        with pytest.raises(StoreInUse, match="the node till-7"):
            await PostgresStore(database).open(opening("till-8"))
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    async with opened(database, "till-8") as store:
        assert list(store.nodes) == ["till-7", "till-8"]
        assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].event.origin.startswith("till-8@")
    assert "till-7" in caplog.text
    async with opened(f"{database}?schema=other", "till-9") as store:
        assert (await store.append([draft()], now_ms=NOW_MS)).appended[0].position == 1


# --- a transaction of one's own ---------------------------------------------------------------------------------------


async def test_a_failed_statement_is_not_passed_over(database: str) -> None:
    """A transaction in which one failed writes nothing, and says so even where its author swallowed the error."""
    async with opened(database) as store:
        async with store.transaction() as tx:
            await tx.execute("CREATE TABLE totals (name text PRIMARY KEY, total int)")
            await tx.execute("INSERT INTO totals VALUES ($1, $2)", ("a", 1))

        async def swallow() -> None:
            async with store.transaction() as tx:
                await tx.execute("UPDATE totals SET total = 2")
                with pytest.raises(StoreError, match="duplicate key"):
                    await tx.execute("INSERT INTO totals VALUES ($1, $2)", ("a", 1))

        with pytest.raises(StoreError, match="rolled"):
            await swallow()
        async with store.transaction() as tx:
            assert await tx.execute("SELECT * FROM totals") == [("a", 1)]
        await audit(store)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "é" * 501])
async def test_a_name_that_cannot_be_kept_hurts_nobody_else(database: str, name: str) -> None:
    async with opened(database) as store:
        with pytest.raises(Invalid):
            await store.append(offsets={name: Offset("log", 1)}, now_ms=NOW_MS)
        await store.append(offsets={"é" * 500: Offset("log", 1)}, now_ms=NOW_MS)
        assert list(await store.offsets()) == ["é" * 500]


async def test_the_log_can_be_read_with_any_client(database: str) -> None:
    """The view `log` has names and bytes as they were written."""
    async with opened(database) as store:
        await store.append([draft("o-1", {"qty": 2})], now_ms=NOW_MS)
    (row,) = await run_sql(
        database,
        "SELECT position, topic, aggregate_id, convert_from(payload, 'UTF8')::jsonb ->> 'qty' AS qty, "
        "extract(epoch FROM written_at) * 1000 AS at FROM synckit.log",
    )
    assert tuple(row) == (1, "orders", "o-1", "2", NOW_MS)


async def test_a_page_ends_when_its_payloads_are_large(database: str) -> None:
    """Whatever was asked for; one event always fits, and nothing is passed over."""
    async with opened(database) as store:
        for number in range(20):
            await store.append([draft(data=b"%02d" % number + b"x" * 699_998)], now_ms=NOW_MS)
        sizes: list[int] = []
        after: Offset | None = None
        while page := await store.log(after=after, limit=1000):
            sizes.append(len(page))
            after = page[-1].offset
        assert sizes == [12, 8], "8 MiB are eleven of them and a part of the twelfth"
        listed = await store.events("orders", store.origin, (3, 20), limit=1000)
        assert [event.seq for event, _ in listed] == list(range(3, 15))
