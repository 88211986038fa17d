"""Disks: what survives a node's process, can be copied, and fails when it is told to.

A disk is either the memory store's own or an SQLite file; both are opened by the shipped store. It refuses to commit
(full), fails on the way to the platter, or is the last thing that a crashing process touched, all through the stores'
own probe.
"""

from __future__ import annotations

import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

from synckit_streams.errors import StoreError, StoreFull
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event
from synckit_streams.stores.ledger_store import LedgerStore
from synckit_streams.stores.memory import MemoryDisk, MemoryStore
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.sync.ledger import Row

_decode_event = msgspec.msgpack.Decoder(Event).decode


class Dead(BaseException):
    """The process is gone; whatever it still tries comes to nothing."""


class Trouble(Enum):
    """What a disk can be told to do at its next commit."""

    CRASH_BEFORE = "crash before commit"
    CRASH_AFTER = "crash after commit"
    FSYNC = "fsync error"
    FSYNC_DOUBT = "fsync error, written all the same"


class Disk(ABC):
    """See the module's text.

    Args:
        name: Whose disk it is.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.trouble: Trouble | None = None
        self.ripe: Callable[[], bool] = lambda: True
        """Asked at each commit at which the trouble could strike, whether it does."""
        self.full = False
        self.crash: Callable[[], None] = lambda: None
        """Called when the process dies at a commit."""
        self.alive: Callable[[], bool] = lambda: True
        self.commits: Callable[[], None] = lambda: None
        """Called at each commit, before anything happens to it."""
        self.struck: Callable[[Trouble], None] = lambda trouble: None
        """Told which trouble has struck."""
        # What the oracle knows of the log: how far it has looked, and per aggregate the keys in commit order.
        self.learned = 0
        self.histories: dict[tuple[str, str], list[Key]] = {}

    def probe(self, step: str) -> None:
        """See `Probe`."""
        if not self.alive():
            raise Dead
        self.commits()
        if self.full and step == "commit":
            raise self._full()
        trouble = self.trouble
        if trouble is None or (step == "committed") != (trouble in (Trouble.CRASH_AFTER, Trouble.FSYNC_DOUBT)):
            return
        if not self.ripe():
            return
        self.trouble = None
        self.struck(trouble)
        if trouble in (Trouble.CRASH_BEFORE, Trouble.CRASH_AFTER):
            self.crash()
            raise Dead
        raise self._failed()

    def _full(self) -> Exception:
        return StoreFull("the disk is full")

    def _failed(self) -> Exception:
        return StoreError("fsync failed")

    @abstractmethod
    def store(self) -> LedgerStore:
        """A store on this disk, not yet open."""

    @abstractmethod
    def abandon(self, store: LedgerStore) -> None:
        """Its process has died: free what the kernel would have freed."""

    @abstractmethod
    def rows(self, after: int) -> Iterator[tuple[int, Event]]:
        """The log on this disk behind a position, with positions, in commit order."""

    @abstractmethod
    def origin(self) -> str:
        """Under which the last event of this disk's own was numbered; "" if there is none."""

    @abstractmethod
    def copy(self, name: str) -> Disk:
        """A backup: the store, without what lies beside it."""

    @abstractmethod
    def delete(self, key: Key) -> None:
        """Take one event out of the log behind the store's back, for a test of the checks."""

    def _remember(self, copy: Disk) -> None:
        copy.learned = self.learned
        copy.histories = {fork: list(keys) for fork, keys in self.histories.items()}


class InMemory(Disk):
    """The memory store's own disk."""

    def __init__(self, name: str, disk: MemoryDisk | None = None) -> None:
        super().__init__(name)
        self.disk = disk or MemoryDisk()

    def store(self) -> LedgerStore:
        """See `Disk`."""
        return MemoryStore(disk=self.disk, probe=self.probe)

    def abandon(self, store: LedgerStore) -> None:
        """See `Disk`."""
        if self.disk.models.in_transaction:
            self.disk.models.execute("ROLLBACK")

    def rows(self, after: int) -> Iterator[tuple[int, Event]]:
        """See `Disk`."""
        for row in self.disk.rows[after:]:
            if row is not None:
                yield row.position, row.event

    def origin(self) -> str:
        """See `Disk`."""
        return self.disk.meta.get("origin", "")

    def copy(self, name: str) -> Disk:
        """See `Disk`."""
        copy = InMemory(name, self.disk.copy())
        self._remember(copy)
        return copy

    def delete(self, key: Key) -> None:
        """See `Disk`."""
        position = self.disk.keys.pop(key)
        row = self.disk.row(position)
        self.disk.rows[position - 1] = None
        self.disk.ids[row.event.id].remove(position)
        self.disk.aggregates[row.event.topic, row.event.aggregate_id].remove(position)

    def repeat(self, key: Key) -> None:
        """Put one event into the log once more behind the store's back, for a test of the checks."""
        row = self.disk.row(self.disk.keys[key])
        self.disk.rows.append(Row(len(self.disk.rows) + 1, row.event, row.hash, row.twin))


class OnFile(Disk):
    """An SQLite file.

    Args:
        name: Whose disk it is.
        folder: Where files may be made.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.folder = folder
        self.path = folder / f"{name}.db"

    def _full(self) -> Exception:
        return _sqlite_error("database or disk is full", sqlite3.SQLITE_FULL)

    def _failed(self) -> Exception:
        return _sqlite_error("disk I/O error", sqlite3.SQLITE_IOERR)

    def store(self) -> LedgerStore:
        """See `Disk`."""
        # "normal" does not wait for the platter: what survives a crash is decided by the probe here, not by a disk.
        return SqliteStore(f"sqlite:///{self.path}", durability="normal", threads=False, probe=self.probe)

    def abandon(self, store: LedgerStore) -> None:
        """See `Disk`."""
        assert isinstance(store, SqliteStore)
        for connection in (getattr(store, "writer", None), getattr(store, "_reader", None)):
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()
        store._unclaim()

    def rows(self, after: int) -> Iterator[tuple[int, Event]]:
        """See `Disk`."""
        page = "SELECT position, body FROM events WHERE position > ? ORDER BY position"
        for position, body in self._ask(page, after):
            yield position, _decode_event(body)

    def origin(self) -> str:
        """See `Disk`."""
        return str(next(iter(self._ask("SELECT value FROM meta WHERE name = ?", "origin")), ("",))[0])

    def _ask(self, sql: str, value: object) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            return connection.execute(sql, (value,)).fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return []
        finally:
            connection.close()

    def copy(self, name: str) -> Disk:
        """See `Disk`."""
        copy = OnFile(name, self.folder)
        for path in self.folder.glob(f"{name}.db*"):
            path.unlink()
        for ending in ("", "-wal"):
            source = self.path.with_name(self.path.name + ending)
            if source.exists():
                shutil.copyfile(source, copy.path.with_name(copy.path.name + ending))
        self._remember(copy)
        return copy

    def delete(self, key: Key) -> None:
        """See `Disk`."""
        connection = sqlite3.connect(self.path)
        with connection:
            connection.execute(
                "DELETE FROM events WHERE seq=? AND stream=(SELECT stream FROM streams WHERE topic=? AND origin=?)",
                (key.seq, key.topic, key.origin),
            )
        connection.close()


def _sqlite_error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error
