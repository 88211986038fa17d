"""How the contract makes, copies and kills our own stores."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import asyncpg
import redis

from synckit_streams.errors import StoreClosed
from synckit_streams.ports.store import EventStore
from synckit_streams.stores.memory import MemoryDisk, MemoryStore
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.stores.redis import RedisStore
from synckit_streams.stores.redis_url import parse_url
from synckit_streams.stores.rocksdb import RocksDbStore
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.testing.store_contract import Probe


class MemoryMedia:
    """Memory stores, each on a `MemoryDisk`."""

    def __init__(self) -> None:
        self.disks: dict[str, MemoryDisk] = {}

    def make(self, medium: str, *, probe: Probe | None = None, read_only: bool = False) -> EventStore:
        """See `Media`."""
        return MemoryStore(disk=self.disks.setdefault(medium, MemoryDisk()), probe=probe, read_only=read_only)

    def copy(self, source: str, target: str) -> None:
        """See `Media`."""
        self.disks[target] = self.disks[source].copy()

    async def kill(self, store: EventStore) -> None:
        """See `Media`."""
        assert isinstance(store, MemoryStore)
        store.abandon()


class SqliteMedia:
    """SQLite stores in one folder."""

    def __init__(self, folder: Path, *, index_events: int = 16_384, **options: Any) -> None:
        self.folder = folder
        self.index_events = index_events
        self.options = options

    def path(self, medium: str) -> Path:
        """Of a medium's file."""
        return self.folder / f"{medium}.db"

    def make(self, medium: str, *, probe: Probe | None = None, read_only: bool = False) -> SqliteStore:
        """See `Media`."""
        url = f"sqlite:///{self.path(medium)}".replace(" ", "%20")
        store = SqliteStore(url, probe=probe, read_only=read_only, **self.options)
        store.index_events = self.index_events
        return store

    def copy(self, source: str, target: str) -> None:
        """See `Media`: `cp -a` of all that lies there, the token beside it included."""
        for beside in ("-wal", "-shm", "-clean"):
            Path(f"{self.path(target)}{beside}").unlink(missing_ok=True)
        for beside in ("", "-wal", "-clean"):
            found = Path(f"{self.path(source)}{beside}")
            if found.exists():
                shutil.copy2(found, Path(f"{self.path(target)}{beside}"))

    async def kill(self, store: EventStore) -> None:
        """See `Media`: what the kernel does when a process dies; the real thing is in test_sqlite_kill.py."""
        assert isinstance(store, SqliteStore)
        store.abandon()


class RocksMedia:
    """RocksDB stores in one folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.open: dict[str, RocksDbStore] = {}

    def path(self, medium: str) -> Path:
        """Of a medium's folder."""
        return self.folder / medium

    def make(self, medium: str, *, probe: Probe | None = None, read_only: bool = False) -> RocksDbStore:
        """See `Media`."""
        url = f"rocksdb:///{quote(str(self.path(medium)))}"
        store = RocksDbStore(url, probe=probe, read_only=read_only, **self.options)
        if not read_only:
            self.open[medium] = store
        return store

    def copy(self, source: str, target: str) -> None:
        """See `Media`: a checkpoint of what is open, `cp -a` of what is not, the token beside it included."""
        shutil.rmtree(self.path(target), ignore_errors=True)
        token = Path(f"{self.path(target)}-clean")
        token.unlink(missing_ok=True)
        try:
            self.open[source].checkpoint(self.path(target))
        except StoreClosed:
            shutil.copytree(self.path(source), self.path(target))
            shutil.copy2(Path(f"{self.path(source)}-clean"), token)

    async def kill(self, store: EventStore) -> None:
        """See `Media`: what the kernel does when a process dies; the real thing is in test_rocksdb.py."""
        assert isinstance(store, RocksDbStore)
        store.abandon()


class RedisMedia:
    """Redis stores, each under a name on one server."""

    def __init__(self, url: str, *, prefix: str = "", **options: Any) -> None:
        self.url = url
        self.prefix = prefix
        self.options = options

    def make(self, medium: str, *, probe: Probe | None = None, read_only: bool = False) -> RedisStore:
        """See `Media`."""
        return RedisStore(self.at(medium), probe=probe, read_only=read_only, **self.options)

    def at(self, medium: str) -> str:
        """The URL of a store."""
        return f"{self.url}?{urlencode({'name': self.prefix + medium})}"

    def copy(self, source: str, target: str) -> None:
        """See `Media`: what a tool does that copies keys, at one moment."""
        old, new = parse_url(self.at(source)), parse_url(self.at(target))
        with redis.Redis.from_url(self.url) as client, client.pipeline(transaction=True) as pipe:
            for part in ("", "order", "head"):
                pipe.delete(new.key(part))
                pipe.copy(old.key(part), new.key(part), replace=True)
            pipe.execute()

    async def kill(self, store: EventStore) -> None:
        """See `Media`: the real thing is in test_chaos.py."""
        assert isinstance(store, RedisStore)
        store.abandon()


class PostgresMedia:
    """PostgreSQL stores, each in a schema of one database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def make(self, medium: str, *, probe: Probe | None = None, read_only: bool = False) -> PostgresStore:
        """See `Media`."""
        return PostgresStore(f"{self.url}?{urlencode({'schema': medium})}", probe=probe, read_only=read_only)

    def copy(self, source: str, target: str) -> None:
        """See `Media`: what `pg_dump --schema` and `pg_restore` do, at one moment."""
        asked(copy_schema(self.url, source, target))

    async def kill(self, store: EventStore) -> None:
        """See `Media`: the real thing is in test_postgres_faults.py and test_chaos.py."""
        assert isinstance(store, PostgresStore)
        store.abandon()


def asked(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives, for a caller on whose event loop something else runs."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def run_sql(url: str, sql: str, *parameters: Any) -> Any:
    """One statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        if parameters or sql.startswith("SELECT"):
            return await connection.fetch(sql, *parameters)
        return await connection.execute(sql)
    finally:
        await connection.close()


async def copy_schema(url: str, source: str, target: str) -> None:
    """Tables with their rows, indexes and comments; the views are nobody's but the reader's."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.execute(f'DROP SCHEMA IF EXISTS "{target}" CASCADE; CREATE SCHEMA "{target}"')
            tables = await connection.fetch(
                "SELECT c.relname, obj_description(c.oid, 'pg_class') FROM pg_class c "
                "WHERE relnamespace = to_regnamespace($1) AND relkind = 'r'",
                f'"{source}"',
            )
            for name, comment in tables:
                await connection.execute(f'CREATE TABLE "{target}".{name} (LIKE "{source}".{name} INCLUDING ALL)')
                await connection.execute(f'INSERT INTO "{target}".{name} SELECT * FROM "{source}".{name}')
                if comment:
                    await connection.execute(f"COMMENT ON TABLE \"{target}\".{name} IS '{comment}'")
    finally:
        await connection.close()
