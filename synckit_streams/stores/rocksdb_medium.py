"""A RocksDB database as a medium: how it is opened, what is asked of it, and its errors as ours."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

from synckit_streams.errors import (
    MissingDependency,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreMissing,
)
from synckit_streams.stores.kv_medium import PAGE_BYTES, Pair, Range
from synckit_streams.stores.kv_store import check_schema

WRITE_BUFFER_BYTES = 32 * 1024 * 1024
"""So much is written to the log alone before it is sorted into a file of its own."""
LOGS_KEPT = 3
"""RocksDB's own messages, one file for each opening."""
CONFIG = "rocksdict-config.json"
CATCH_UP_MAX = 5
"""How often to try to see what the writer has written, while it removes old files."""

_HALF_MADE = re.compile(r"LOCK|LOG(\.old\.\d+)?|IDENTITY|(MANIFEST|OPTIONS)-\d+|\d+\.(log|dbtmp)|" + re.escape(CONFIG))
"""What is in a folder in which RocksDB had begun to make a database."""


def require_rocksdict() -> Any:
    """The driver.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import rocksdict
    except ImportError as missing:
        raise MissingDependency(
            "the RocksDB store needs rocksdict", hint="pip install 'synckit-streams[rocksdb]'"
        ) from missing
    return rocksdict


def translate(error: BaseException, path: Path) -> BaseException:
    """A driver's error as one of ours. It raises plain `Exception`s, or `OSError`s, told apart by their words."""
    if not isinstance(error, OSError) and type(error) is not Exception:
        return error
    said = str(error)
    if "No space left" in said or "File too large" in said or "Disk quota exceeded" in said:
        return StoreFull(f"no room left for {path}")
    if "/LOCK: " in said:
        return StoreInUse(f"{path} is in use by another program: {said}")
    if said.startswith("Corruption") or "No such file or directory" in said:
        return StoreCorrupt(f"{path} is damaged: {said}")
    if "Permission denied" in said or "Read-only file system" in said:
        return StoreError(f"{path} cannot be written", hint="check the permissions of the folder, its files and disk")
    return StoreError(f"{path}: {said}", hint="the disk may be failing; nothing of this call was written")


class Links:
    """A folder of links to the files of a database, in which one can look at it.

    Driver and database leave files of their own wherever they open a database, even for reading only. So whoever looks
    does it from here, and not a byte changes there; that folder need not be one that we may write.

    Args:
        path: Of the database's folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = TemporaryDirectory()
        self.notes = Path(self._place.name, "notes")
        """Where the database may write about its doings."""
        self.folder = Path(self._place.name, "links")
        for each in (self.notes, self.folder):
            each.mkdir()
        self.renew()

    def renew(self) -> dict[str, tuple[int, int]]:
        """Make them those of the files that are there now; gives the size and the time of each: whatever is written
        makes one of them longer."""
        with os.scandir(self._path) as entries:
            there = {each.name: (each.stat().st_size, each.stat().st_mtime_ns) for each in entries}
        there.pop(CONFIG, None)
        here = {each.name for each in self.folder.iterdir()} - {CONFIG}
        for name in here - there.keys():
            (self.folder / name).unlink()
        for name in there.keys() - here:
            (self.folder / name).symlink_to(self._path / name)
        return there

    def close(self) -> None:
        """Remove them."""
        self._place.cleanup()


class RocksMedium:
    """See `Medium`.

    After an error RocksDB takes no more writes until it is opened again: see `mend`.

    Args:
        path: Of the folder.
        sync: Whether a commit is on the disk when it returns.
        follow: Look on while somebody else has it open, and write nothing.
    """

    def __init__(self, path: Path, *, sync: bool, follow: bool = False) -> None:
        self._path = path
        self._follow = follow
        self._driver = require_rocksdict()
        self._write_options = self._driver.WriteOptions()
        self._write_options.sync = sync
        self.database: Any = None
        self._broken = False
        # A database that is read cannot be closed, and so not opened again.
        self._lock = Lock()
        self._links: Links | None = None
        """For looking on, and for reading what cannot be opened for writing again."""
        self._caught_up: dict[str, tuple[int, int]] = {}
        """The files as they were when we looked at what somebody else has written; to look takes milliseconds."""

    # --- opening and closing -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open it, or make a new one.

        Raises:
            StoreError, StoreCorrupt, SchemaNewer: it is not ours, or cannot be read or made. Nothing was changed.
        """
        made = self._look()
        try:
            self.database = self._connect()
        except BaseException:
            if made:
                shutil.rmtree(self._path, ignore_errors=True)
            raise

    def _look(self) -> bool:
        """That it is ours to open; makes the folder if there is none, and says so."""
        path = self._path
        if not path.exists():
            if self._follow:
                raise StoreMissing(f"{path} does not exist")
            try:
                path.mkdir()
                sync_folder(path.parent)
            except OSError as error:
                raise StoreError(
                    f"cannot make {path}: {error.strerror}", hint="the folder around it must exist and be writable"
                ) from error
            return True
        if not path.is_dir():
            raise StoreCorrupt(f"{path} is a file", hint="a RocksDB store is a folder: give it a path of its own")
        try:
            names = {each.name for each in path.iterdir()}
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}", hint="check the permissions of the folder") from error
        if "CURRENT" in names:
            self._check_ours()
        elif self._follow or not all(_HALF_MADE.fullmatch(name) for name in names):
            raise StoreCorrupt(
                f"{path} has files in it that are not of a RocksDB store", hint="give the store a path of its own"
            )
        return False

    def _check_ours(self) -> None:
        """Look at what is there before it is opened: RocksDB would open, and change, another program's database."""
        links = Links(self._path)
        try:
            self.database = self._connect_to_read(links, self._driver.AccessType.read_only(False))
            try:
                check_schema(self, str(self._path))
            finally:
                self.database.close()
        finally:
            self.database = None
            links.close()

    def _connect(self) -> Any:
        if self._follow:
            self._links = self._links or Links(self._path)
            return self._connect_to_read(self._links, self._driver.AccessType.secondary(str(self._links.notes)))
        options = self._options()
        options.create_if_missing(True)
        return self._driver.Rdict(str(self._path), options)

    def _connect_to_read(self, links: Links, access: Any) -> Any:
        options = self._options()
        options.set_db_log_dir(str(links.notes))
        return self._driver.Rdict(str(links.folder), options, access_type=access)

    def _options(self) -> Any:
        driver = self._driver
        options = driver.Options(raw_mode=True)
        options.set_write_buffer_size(WRITE_BUFFER_BYTES)
        options.set_keep_log_file_num(LOGS_KEPT)
        # A log whose end was torn off by a crash is read up to there; one that is damaged before its end is an error.
        options.set_wal_recovery_mode(driver.DBRecoveryMode.tolerate_corrupted_tail_records())
        table = driver.BlockBasedOptions()
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        return options

    def close(self) -> None:
        """Close it. May be called twice."""
        with self._lock:
            self._let_go()

    def mend(self) -> bool:
        """Open it again if it has failed; says whether it had. What it holds may be more than was read meanwhile: a
        commit that failed may be there. If it cannot be opened for writing yet, reading goes on."""
        if not self._broken:
            return False
        with self._lock:
            self._let_go()
            try:
                self.database = self._connect()
            except Exception:
                self._links = Links(self._path)
                self.database = self._connect_to_read(self._links, self._driver.AccessType.read_only(False))
                raise
            self._broken = False
        return True

    def _let_go(self) -> None:
        db, self.database = self.database, None
        links, self._links = self._links, None
        try:
            if db is not None:
                db.close()
        except Exception:
            if not self._broken:  # one that has failed cannot bring what it holds to its place; its log has it
                raise
        finally:
            if links is not None:
                links.close()

    def flush(self) -> None:
        """Bring everything from the log to its place, so that the next opening is quick, and all is on the disk."""
        self.database.flush()

    def checkpoint(self, target: Path) -> None:
        """A whole copy at this moment, in a folder that must not exist; files that never change are linked.

        Args:
            target: The folder.
        """
        with self._lock:
            self._driver.Checkpoint(self.database).create_checkpoint(str(target))

    def _usable(self) -> Any:
        """The database, caught up if somebody else writes it. Under the lock."""
        if self._follow and self._links is not None:
            for again in reversed(range(CATCH_UP_MAX)):
                try:
                    there = self._links.renew()
                    if there != self._caught_up:
                        self.database.try_catch_up_with_primary()
                        self._caught_up = there
                    break
                except Exception:
                    if not again:  # files come and go just then
                        raise
        return self.database

    # --- reading and writing -----------------------------------------------------------------------------------------

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """See `Medium`."""
        with self._lock:
            found: list[bytes | None] = self._usable().get(list(keys))
            return found

    def page(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Pair]:
        """See `Medium`."""
        with self._lock:
            return self._page(self._usable(), start, end, limit, reverse=reverse)

    def pages(self, ranges: Sequence[Range]) -> list[list[Pair]]:
        """See `Medium`."""
        found: list[list[Pair]] = []
        with self._lock:
            rows = self._usable().iter()
            for start, end in ranges:
                pairs: list[Pair] = []
                rows.seek(start)
                while rows.valid() and (key := rows.key()) < end:
                    pairs.append((key, rows.value()))
                    rows.next()
                rows.status()
                found.append(pairs)
        return found

    def _page(self, db: Any, start: bytes, end: bytes, limit: int, *, reverse: bool) -> list[Pair]:
        rows = db.iter()
        if reverse:
            rows.seek_for_prev(end)
            if rows.valid() and rows.key() == end:
                rows.prev()
        else:
            rows.seek(start)
        step = rows.prev if reverse else rows.next
        pairs: list[Pair] = []
        size = 0
        while len(pairs) < limit and size < PAGE_BYTES and rows.valid() and start <= (key := rows.key()) < end:
            value = rows.value()
            pairs.append((key, value))
            size += len(value)
            step()
        rows.status()  # an iterator that meets damage only ends
        return pairs

    def commit(self, writes: Mapping[bytes, bytes | None]) -> None:
        """See `Medium`."""
        batch = self._driver.WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in writes.items():
            if value is None:
                delete(key)
            else:
                put(key, value)
        try:
            self.database.write(batch, self._write_options)
        except BaseException:
            self._broken = True
            raise


def sync_folder(folder: Path) -> None:
    """See that a name in it is on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
