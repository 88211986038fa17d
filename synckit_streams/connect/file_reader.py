"""Reads a file that grows, and goes on in the next one when it is rotated; nothing is read twice or passed over.

A place in a file is a byte offset, in a file that is known by what stands in it: a hash of its first line, and of the
bytes before the offset. So a file is found again after it was renamed, or copied and cut off (`copytruncate`), and
another one under its name is noticed. The parts of a file that was rotated follow one another by the time of their last
change. Where the part that was being read is gone, what stood in its rest is lost to this reader; it says so, and goes
on with the file as it is now.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from synckit_streams.errors import ConfigError, Invalid, TooLarge
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX
from synckit_streams.model.event import Offset

logger = logging.getLogger("synckit_streams")

HEAD_BYTES = 4096
TAIL_BYTES = 1024
RECORD_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""Of one record as it stands in a file; a longer one is passed over, and goes to the dead letter."""
RECORD_LINES_MAX = 1_000
"""Over so many lines a record may go; if it does not end there, its first line is a bad record, and no more."""
PORTION_BYTES = 8 * 1024 * 1024
"""No record is begun behind so many bytes of one reading."""
SETTLE_S = 1.0
"""For so long nobody may have written to a file that was rotated before it counts as finished."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4")


class Piece(NamedTuple):
    """One record as bytes.

    Args:
        raw: Its bytes, without the end of the line; cut off if it is too long.
        log: Which file, as in `Offset.log`.
        start: Where it begins.
        error: Why it cannot be one; None mostly.
    """

    raw: bytes
    log: str
    start: int
    error: TooLarge | Invalid | None = None


Flips = Callable[[bytes], bool]
"""Whether a line begins a record that goes over several, or ends it: it has an odd number of quotes, in a CSV."""


class FileReader:
    """See the module's text. Not for several threads.

    Args:
        path: The file.
        rotated: Which files beside it are its earlier parts, as a glob; "" is its name and more.
        flips: Whether a line begins a record that goes over several, or ends it.
        whole: Take a last line without an end as it is: nobody writes any more.
    """

    def __init__(self, path: Path, *, rotated: str, flips: Flips, whole: bool) -> None:
        self.path = path
        self.header = b""
        """The first line of the present file."""
        self._rotated = rotated or re.sub(r"([*?\[])", r"[\1]", path.name) + "[.-]*"
        self._flips = flips
        self._whole = whole
        self._file: BinaryIO | None = None
        self._generation = 0
        self._log = ""
        self._at = 0
        self._print = _short_print(b"")
        self._quiet: tuple[int, float] = (-1, 0.0)
        """A size at which nothing more was there, and since when."""

    # --- where it stands ---------------------------------------------------------------------------------------------

    @property
    def position(self) -> Offset | None:
        """Behind what was read; None before there was a file with a line in it."""
        if self._file is None or not self._log:
            return None
        return Offset(self._log, self._at, self._print)

    def go_to(self, position: Offset | None) -> None:
        """Go on behind a position, wherever the file is now."""
        self.close()
        if position is None:
            return
        try:
            generation, head, _ = position.log.split("/")
            self._generation = int(generation)
        except ValueError:
            raise ConfigError(f"the position {position.log!r:.80} is none in a file") from None
        for candidate in [self.path, *sorted(self._parts(), key=_changed, reverse=True)]:
            file = _open(candidate)
            if file is None:
                continue
            if _head(file)[1] == head and _fingerprint(file, position.position) == position.fingerprint:
                self._take(file, position.log, position.position)
                return
            file.close()
        self._lost(position.position)

    def _lost(self, at: int) -> None:
        logger.warning(
            "%s: the part that was read up to byte %d is gone, or was changed; what it had behind that is not read, "
            "and the file is read from its beginning as it is now",
            self.path,
            at,
        )
        self._leave()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._log, self._at, self._print = None, "", 0, _short_print(b"")

    def bytes_left(self) -> int:
        """How many bytes are there and were not read yet, in the present file and in the one under its name."""
        size = 0 if self._file is None else max(os.fstat(self._file.fileno()).st_size - self._at, 0)
        try:
            now = self.path.stat()
        except OSError:
            return size
        if self._file is not None and now.st_ino != os.fstat(self._file.fileno()).st_ino:
            size += now.st_size
        elif self._file is None:
            size = now.st_size
        return size

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, limit: int) -> list[Piece]:
        """The next records, of one file; none if there is nothing now."""
        while True:
            if not self._ready():
                return []
            if pieces := self._pieces(limit, last=False):
                return pieces
            if not self._finished():
                return []
            if pieces := self._pieces(limit, last=True):
                return pieces
            if not self._next():
                return []

    def _ready(self) -> bool:
        """Whether a file is open whose first line is there."""
        if self._file is None:
            file = _open(self.path)
            if file is None:
                return False
            self._file = file
        if not self._log:
            self.header, head = _head(self._file)
            if not head and self._whole and os.fstat(self._file.fileno()).st_size:
                self.header = self._file.read()
                head = _short(self.header[:HEAD_BYTES])
            if not head:
                if self._is_replaced():  # nothing was ever written to it
                    self.close()
                return False
            self._take(self._file, f"{self._generation}/{head}/{os.fstat(self._file.fileno()).st_ino}", 0)
        return True

    def _take(self, file: BinaryIO, log: str, at: int) -> None:
        self._file, self._log, self._at = file, log, at
        self._print = _fingerprint(file, at)
        self.header = _head(file)[0] or self.header
        self._quiet = (-1, 0.0)

    def _pieces(self, limit: int, *, last: bool) -> list[Piece]:
        """Records from here on. `last`: nothing will be written any more, so a line without an end is one."""
        file = self._file
        assert file is not None
        if not self._is_intact():
            return []
        file.seek(self._at)
        pieces: list[Piece] = []
        first = self._at
        while len(pieces) < limit and self._at - first < PORTION_BYTES:
            piece = self._piece(file, last=last)
            if piece is None:
                break
            pieces.append(piece)
            self._at = file.tell()
        self._print = _fingerprint(file, self._at)
        return pieces

    def _piece(self, file: BinaryIO, *, last: bool) -> Piece | None:
        """The record that begins here, the file behind it; None if it is not whole yet."""
        start = self._at
        line = file.readline(RECORD_BYTES_MAX + 1)
        if len(line) > RECORD_BYTES_MAX:
            if not line.endswith(b"\n") and not _skip_line(file) and not last:
                return None  # its end is not written yet
            error = TooLarge(f"the record at byte {start} is longer than {RECORD_BYTES_MAX} bytes")
            return Piece(line[:HEAD_BYTES], self._log, start, error)
        if not line or not (last or line.endswith(b"\n")):
            return None
        if not self._flips(line):
            return Piece(line.rstrip(b"\r\n"), self._log, start)
        behind, lines, size = file.tell(), [line], len(line)
        while len(lines) < RECORD_LINES_MAX and size <= RECORD_BYTES_MAX:
            more = file.readline(RECORD_BYTES_MAX + 1)
            if not more or not (last or more.endswith(b"\n")):
                if last:
                    break
                return None
            lines.append(more)
            size += len(more)
            if self._flips(more):
                return Piece(b"".join(lines).rstrip(b"\r\n"), self._log, start)
        # Whoever forgot a quote is not to swallow what others wrote.
        file.seek(behind)
        forgotten = Invalid(f"the record that begins at byte {start} has a quote that is not closed")
        return Piece(line.rstrip(b"\r\n"), self._log, start, forgotten)

    def _is_intact(self) -> bool:
        """Whether what was read last still stands where it stood."""
        assert self._file is not None
        return _fingerprint(self._file, self._at) == self._print

    # --- rotation ----------------------------------------------------------------------------------------------------

    def _is_replaced(self) -> bool:
        """Whether another file has taken its name, or it was cut off."""
        assert self._file is not None
        mine = os.fstat(self._file.fileno())
        try:
            now = self.path.stat()
        except OSError:
            return False  # its successor is still to come
        if (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev):
            return True
        return not self._is_intact()

    def _finished(self) -> bool:
        """Whether nothing more will come to the present file."""
        assert self._file is not None
        if not self._is_replaced():
            return self._whole
        size = os.fstat(self._file.fileno()).st_size
        if size != self._quiet[0]:
            # Whoever writes may have it open still, for a moment.
            self._quiet = (size, time.monotonic())
        return self._whole or not self._is_intact() or time.monotonic() - self._quiet[1] >= SETTLE_S

    def _next(self) -> bool:
        """Go over to the part that follows; False if there is none."""
        assert self._file is not None
        mine = os.fstat(self._file.fileno())
        if not self._is_replaced():
            return False
        if not self._is_intact():
            # Cut off: what it had is in a copy, if somebody made one.
            self.go_to(Offset(self._log, self._at, self._print))
            return True
        parts = sorted([*self._parts(), self.path], key=_age)
        here = next((_age(part) for part in parts if _inode(part) == mine.st_ino), (mine.st_mtime_ns, -math.inf))
        following = next((part for part in parts if _age(part) > here and _inode(part) != mine.st_ino), None)
        self._leave()
        if following is not None and (file := _open(following)) is not None:
            self._file = file
        return True

    def _leave(self) -> None:
        self.close()
        self._generation += 1

    def _parts(self) -> list[Path]:
        """Earlier parts, as far as they can be read as they are."""
        try:
            found = list(self.path.parent.glob(self._rotated))
        except OSError:
            return []
        return [each for each in found if each != self.path and each.suffix not in PACKED and each.is_file()]


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _age(path: Path) -> tuple[int, float]:
    """Ascends from the oldest part to the newest; of two that were changed at one moment, `.2` is older than `.1`."""
    number = path.suffix[1:]
    return _changed(path), -int(number) if number.isdecimal() else 0


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _short(raw: bytes) -> str:
    return sha256(raw).hexdigest()[:16]


def _head(file: BinaryIO) -> tuple[bytes, str]:
    """The first line, and its hash; nothing while it has no end."""
    at = file.tell()
    file.seek(0)
    line = file.readline(RECORD_BYTES_MAX)
    file.seek(at)
    if not line.endswith(b"\n") and len(line) < HEAD_BYTES:
        return b"", ""
    return line, _short(line[:HEAD_BYTES])


def _short_print(raw: bytes) -> bytes:
    return sha256(raw).digest()[:16]


def _fingerprint(file: BinaryIO, at: int) -> bytes:
    """Of the bytes before a place; empty when the file does not go that far."""
    back = min(at, TAIL_BYTES)
    now = file.tell()
    file.seek(at - back)
    raw = file.read(back)
    file.seek(now)
    return _short_print(raw) if len(raw) == back else b""


def _skip_line(file: BinaryIO) -> bool:
    """Read on to the end of the line; False if it has none."""
    while rest := file.readline(1 << 20):
        if rest.endswith(b"\n"):
            return True
    return False
