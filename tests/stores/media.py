"""How the contract makes, copies and kills our own stores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from synckit_streams.ports.store import EventStore
from synckit_streams.stores.memory import MemoryDisk, MemoryStore
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.testing.store_contract import Probe


class MemoryMedia:
    """Memory stores, each on a `MemoryDisk`."""

    def __init__(self) -> None:
        self.disks: dict[str, MemoryDisk] = {}

    def make(self, medium: str, *, probe: Probe | None = None) -> EventStore:
        """See `Media`."""
        return MemoryStore(disk=self.disks.setdefault(medium, MemoryDisk()), probe=probe)

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

    def make(self, medium: str, *, probe: Probe | None = None) -> SqliteStore:
        """See `Media`."""
        store = SqliteStore(f"sqlite:///{self.path(medium)}".replace(" ", "%20"), probe=probe, **self.options)
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
