"""A file of CloudEvents, one a line, synced to the disk at every batch; it can be imported, and be a source again.

Whoever is killed may leave half a line, and a batch of which nobody knows that it is there. So the file's end is read
when it is opened: half a line is cut off, and what the last batch had is not written a second time.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import msgspec

from synckit_streams.connect.cloudevents import as_cloudevent
from synckit_streams.connect.record import Record, Refusal
from synckit_streams.connect.spec import BATCH_RECORDS_MAX
from synckit_streams.errors import ConfigError, StoreFull, SyncKitError

BLOCK_BYTES = 1 << 20
LAST_BYTES = 64 << 20
"""So much of a file's end is looked at for what may come again."""
_encode = msgspec.json.Encoder().encode


class FileSink:
    """See the module's text.

    Args:
        path: The file.
        topic: See `as_cloudevent`.
        rotate_bytes: A new file is begun at this size; 0 is never.
    """

    def __init__(self, path: Path, *, topic: str = "", rotate_bytes: int = 0) -> None:
        self._path = path
        self._topic = topic
        self._rotate_bytes = rotate_bytes
        self._file: BinaryIO | None = None
        self._size = 0
        self._known: dict[bytes, None] = {}
        """What the last records are, oldest first: only these can come again."""
        self.name = str(path)

    async def open(self) -> None:
        """See `Sink`."""
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._begin()
            last: deque[bytes] = deque()
            for part in [self._path, *reversed(self._parts())][:2]:
                with part.open("rb") as file:
                    last.extendleft(reversed(deque(_last_records(file), BATCH_RECORDS_MAX - len(last))))
            self._known = dict.fromkeys(last)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> SyncKitError:
        kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
        return kind(f"cannot write {self._path}: {error.strerror}", hint="it is tried again")

    def _begin(self) -> None:
        """Open the file, and cut off what is no whole line."""
        self._file = self._path.open("a+b", buffering=0)
        self._size = _whole_bytes(self._file)
        self._file.truncate(self._size)
        _sync_folder(self._path.parent)

    def _parts(self) -> list[Path]:
        """What was rotated away, oldest first."""
        found = self._path.parent.glob(f"{self._path.name}.*")
        return sorted((each for each in found if each.suffix[1:].isdecimal()), key=lambda each: int(each.suffix[1:]))

    async def write(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """See `Sink`."""
        lines: dict[bytes, bytes] = {}
        refused: list[Refusal] = []
        for record in records:
            try:
                line = _encode(as_cloudevent(record, self._topic)) + b"\n"
            except (msgspec.MsgspecError, SyncKitError, ValueError) as error:
                refused.append(Refusal(record, ConfigError(f"cannot be written as a line: {error}")))
                continue
            mark = _mark(line)
            if mark not in self._known:
                lines[mark] = line
        if lines:
            await asyncio.to_thread(self._write, b"".join(lines.values()))
        self._known |= dict.fromkeys(lines)
        for _ in range(len(self._known) - BATCH_RECORDS_MAX):
            del self._known[next(iter(self._known))]
        return refused

    def _write(self, raw: bytes) -> None:
        assert self._file is not None
        try:
            if self._rotate_bytes and self._size and self._size + len(raw) > self._rotate_bytes:
                self._rotate()
            view = memoryview(raw)
            while view:
                view = view[self._file.write(view) or 0 :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._size)
            raise self._failure(error) from error
        self._size += len(raw)

    def _rotate(self) -> None:
        assert self._file is not None
        self._file.close()
        parts = self._parts()
        number = int(parts[-1].suffix[1:]) + 1 if parts else 1
        self._path.rename(self._path.with_name(f"{self._path.name}.{number}"))
        self._begin()

    async def settle(self) -> None:
        """It is there already."""

    async def close(self) -> None:
        """See `Sink`."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class _Line(msgspec.Struct):
    """What tells a record from another one: a producer may give one id to two."""

    id: str
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: str = ""


_decode = msgspec.json.Decoder(_Line).decode


def _mark(line: bytes) -> bytes:
    """Of the record in a line."""
    found = _decode(line)
    return sha256(_encode([found.id, found.data_base64]) + bytes(found.data)).digest()[:16]


def _last_records(file: BinaryIO) -> Iterator[bytes]:
    """Marks of a file's last records."""
    file.seek(max(os.fstat(file.fileno()).st_size - LAST_BYTES, 0))
    for line in file:
        try:
            yield _mark(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # somebody else's line, or the rest of one


def _whole_bytes(file: BinaryIO) -> int:
    """Up to where a file has whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - BLOCK_BYTES, 0)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _sync_folder(folder: Path) -> None:
    """So that a new file's name outlives a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
