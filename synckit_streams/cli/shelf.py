"""Where the demo's offices keep their stores: each in one of its own, of the kind that was asked for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from synckit_streams.cli.offices import OFFICES
from synckit_streams.errors import ConfigError
from synckit_streams.ports.store import EventStore
from synckit_streams.stores.memory import MemoryDisk, MemoryStore
from synckit_streams.testing.brokers import RedisServer, Server
from synckit_streams.testing.postgres_server import PostgresServer


class Shelf(ABC):
    """The three stores.

    Attributes:
        each_in: What each office keeps its log in, for the picture.
        table: The name of an office's read model; "" where a store has no SQL.
        placeholders: Two of them, as the store's SQL writes them.
    """

    each_in: str
    table = "airports_per_state"
    placeholders = "?, ?"

    @abstractmethod
    def place(self, office: str) -> str | EventStore:
        """Of an office's store, for its node."""

    def look(self, office: str) -> str | EventStore:
        """The same, to be read."""
        return self.place(office)

    def table_of(self, office: str) -> str:
        """The read model's table."""
        return self.table


class Kept(Shelf):
    """Stores that lie in a directory.

    Args:
        directory: Which.
    """

    suffix = ""

    def __init__(self, directory: Path) -> None:
        self.paths = {office: directory / f"{office}{self.suffix}" for office in OFFICES}


class Files(Kept):
    """A SQLite file each."""

    each_in = "a SQLite file"
    suffix = ".db"

    def place(self, office: str) -> str:
        """See `Shelf`."""
        return f"sqlite:///{quote(str(self.paths[office]))}"


class Folders(Kept):
    """A RocksDB folder each."""

    each_in = "a RocksDB database"
    table = ""

    def place(self, office: str) -> str:
        """See `Shelf`."""
        return f"rocksdb:///{quote(str(self.paths[office]))}"


class Schemas(Shelf):
    """A schema each in a PostgreSQL server."""

    each_in = "a PostgreSQL schema"
    placeholders = "$1, $2"

    def __init__(self, url: str) -> None:
        self._url = url

    def place(self, office: str) -> str:
        """See `Shelf`."""
        return f"{self._url}?schema={office}"

    def table_of(self, office: str) -> str:
        """One database has them all."""
        return f"{self.table}_{office}"


class Names(Shelf):
    """A name each on a Redis server."""

    each_in = "a Redis server, under a name"
    table = ""

    def __init__(self, url: str) -> None:
        self._url = url

    def place(self, office: str) -> str:
        """See `Shelf`."""
        return f"{self._url}?name={office}"


class Memory(Shelf):
    """In memory."""

    each_in = "the memory"

    def __init__(self) -> None:
        self._disks = {office: MemoryDisk() for office in OFFICES}

    def place(self, office: str) -> EventStore:
        """See `Shelf`."""
        return MemoryStore(disk=self._disks[office])

    def look(self, office: str) -> EventStore:
        """See `Shelf`."""
        return MemoryStore(disk=self._disks[office], read_only=True)


ON_DISK: dict[str, type[Kept]] = {"sqlite": Files, "rocksdb": Folders}
SERVED: dict[str, tuple[Callable[[], Server], Callable[[str], Shelf]]] = {
    "postgres": (PostgresServer, Schemas),
    "redis": (lambda: RedisServer(appendfsync="always"), Names),
}
KINDS = (*ON_DISK, *SERVED, "memory")


@asynccontextmanager
async def shelf(kind: str, directory: Path) -> AsyncIterator[Shelf]:
    """The offices' stores, and the server that has them if there is one.

    Args:
        kind: One of `KINDS`.
        directory: For what is kept in files.

    Raises:
        ConfigError: there is no such kind.
        MissingDependency: there is no such server; the hint is the command that brings one.
    """
    if kind in ON_DISK:
        yield ON_DISK[kind](directory)
    elif kind == "memory":
        yield Memory()
    elif kind in SERVED:
        make, stores = SERVED[kind]
        server = make()
        await asyncio.to_thread(server.start)
        try:
            yield stores(server.url)
        finally:
            await asyncio.to_thread(server.close)
    else:
        raise ConfigError(f"--store {kind!r:.80} is unknown", hint=f"one of {', '.join(KINDS)}")
