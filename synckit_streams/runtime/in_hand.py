"""Which events are in the hands of handlers just now, where the end of the process does not wipe it out.

An exception is caught and counted. A segmentation fault, a SIGKILL or the kernel's out-of-memory killer leaves nobody
to count, and the next process would take the same event and die of it. So each call is noted before it begins, in a
file that is mapped into memory: two writes of 16 bytes, no system call. Its pages survive the process. They do not
survive the machine, and need not: that a machine fails is no event's fault. Whoever gets the lanes next finds the file
of one who is gone, since the lock on it is free.

The file lies in the temporary folder of the machine. Another host does not see it, and counts for itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from synckit_streams.runtime.lanes import LANES

logger = logging.getLogger("synckit_streams")

_entry = struct.Struct("<QII")
_NOTHING = _entry.pack(0, 0, 0)
FILE_BYTES = LANES * _entry.size
OLD_S = 24 * 3600.0
"""A file that nobody has come for is taken away after so long."""


class Trace(NamedTuple):
    """What somebody who is gone had in hand.

    Args:
        path: His file.
        at: Where in it.
        first: Position of the call's first event.
        events: How many the call had.
        alone: Whether nothing else of the group was under way.
    """

    path: Path
    at: int
    first: int
    events: int
    alone: int

    @property
    def there(self) -> bool:
        """Whether nobody has counted it yet."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.at)
                return file.read(_entry.size) == _entry.pack(self.first, self.events, self.alone)
        except OSError:
            return False

    def wipe(self) -> None:
        """It has been counted. The last one takes the file away."""
        with suppress(OSError), self.path.open("r+b") as file:
            file.seek(self.at)
            file.write(_NOTHING)
            file.seek(0)
            if not any(file.read()):
                self.path.unlink(missing_ok=True)


class InHand:
    """What this process has in hand for one group; used as `with in_hand.open()`.

    Args:
        store: The id of the store's log.
        group: The group's name.
    """

    def __init__(self, store: str, group: str) -> None:
        self._prefix = hashlib.sha256(f"{store}|{group}".encode()).hexdigest()[:24]
        self._folder = Path(tempfile.gettempdir(), f"synckit-{os.getuid()}")
        self._map: mmap.mmap | bytearray = bytearray(FILE_BYTES)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Note what follows in a file; without one if there can be none."""
        path, descriptor = Path(), -1
        try:
            path, descriptor = self._make()
        except OSError as error:
            logger.warning("an event that kills its process will not be known by it: %s", error)
        try:
            yield
        finally:
            self._map = bytearray(FILE_BYTES)
            if descriptor >= 0:
                path.unlink(missing_ok=True)
                os.close(descriptor)
                with suppress(OSError):  # others have theirs in it
                    self._folder.rmdir()

    def _make(self) -> tuple[Path, int]:
        while True:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):  # somebody who was the last one has taken the folder away just now
                return self._make_file()

    def _make_file(self) -> tuple[Path, int]:
        if self._folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{self._folder} belongs to somebody else")
        path = self._folder / f"{self._prefix}-{os.getpid()}-{time.monotonic_ns()}"
        new = path.with_suffix(".new")
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Locked before it has its name: whoever finds it unlocked knows that its owner is gone.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.ftruncate(descriptor, FILE_BYTES)
            self._map = mmap.mmap(descriptor, FILE_BYTES)
            new.rename(path)
        except BaseException:
            os.close(descriptor)
            new.unlink(missing_ok=True)
            raise
        return path, descriptor

    def take(self, strand: int, first: int, events: int, *, alone: bool) -> None:
        """A call begins."""
        _entry.pack_into(self._map, strand * _entry.size, first, events, alone)

    def lay_down(self, strand: int) -> None:
        """It has ended, however."""
        at = strand * _entry.size
        self._map[at : at + _entry.size] = _NOTHING

    def left_behind(self) -> list[Trace]:
        """What those had in hand who are gone."""
        found: list[Trace] = []
        with suppress(FileNotFoundError):
            for path in self._folder.glob(f"{self._prefix}-*"):
                with suppress(OSError):  # gone meanwhile
                    found += self._of(path)
        return found

    def _of(self, path: Path) -> list[Trace]:
        with path.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return []  # its owner is alive
            entries = list(_entry.iter_unpack(file.read()))
            if not any(events for _, events, _ in entries) or time.time() - path.stat().st_mtime > OLD_S:
                path.unlink(missing_ok=True)
                return []
        return [Trace(path, at * _entry.size, *entry) for at, entry in enumerate(entries) if entry[1]]
