"""What one transaction must write, gathered over every request in it.

Rows are appended; only a reused key moves rows that are there already (`rekeyed`, `removed`). While the transaction is
decided, `under` and `current` answer as the log will be once it is committed.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import islice
from typing import NamedTuple

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.model.exchange import PlaceRun, Raised
from synckit_streams.sync.facts import Fork, Known


class Row(msgspec.Struct, frozen=True, gc=False):
    """One event of the log, with all that is written of it; `body` is its canonical form if that is known already."""

    position: int
    event: Event
    hash: bytes
    twin: bool
    body: bytes = b""


class Aside(NamedTuple):
    """One arrival to set aside.

    Args:
        reason: Why.
        reader: Where it was read; "" when it did not come from a log.
        place: The position there.
        raw: Its bytes, as far as we have them.
        key: When its header was readable and it is refused for good.
    """

    reason: str
    reader: str
    place: int
    raw: bytes
    key: Key | None


class Changes:
    """See the module's text.

    Args:
        position: The last position of the log before.
    """

    def __init__(self, position: int) -> None:
        self.position = position
        self.rows: list[Row] = []
        self.rekeyed: dict[int, Row] = {}
        """By position: rows of the disk, as they stand after a reused key."""
        self.removed: list[int] = []
        """Positions of rows of the disk whose event stands at another position as well."""
        self.reused = False
        """Whether a reused key moved rows. The request that did so is the last of its transaction."""
        self.unsure: set[Fork] = set()
        """Aggregates whose rows moved, so that the mirror may say more of them than is true."""
        self.held_added: dict[bytes, Event] = {}
        self.held_gone: list[bytes] = []
        self.asides: list[Aside] = []
        self.streams: set[Fork] = set()
        self.voids: list[Key] = []
        self.runs: list[PlaceRun] = []
        self.offsets: dict[str, Offset] = {}
        self.alarms: list[Raised] = []
        self.forget: list[str] = []
        self.ids: dict[str, Stored] = {}
        self.late: dict[Fork, Known] = {}
        """Aggregates that are not in the mirror, as far as this transaction added to them."""
        self._by_key: dict[Key, Row] = {}
        self._indexed = 0

    def __bool__(self) -> bool:
        return bool(
            self.rows or self.rekeyed or self.held_added or self.held_gone or self.asides or self.voids
            or self.runs or self.offsets or self.forget
        )  # fmt: skip

    def under(self, key: Key) -> Row | None:
        """The row under a key, if this transaction wrote or moved it."""
        by_key = self._by_key
        if self._indexed < len(self.rows):
            for row in islice(self.rows, self._indexed, None):
                by_key[row.event.key] = row
            self._indexed = len(self.rows)
        return by_key.get(key)

    def put(self, row: Row) -> None:
        """Another event at a position that is taken, on the disk or in this transaction."""
        self.reused = True
        if row.position > self.position:
            self.rows[self._place(row.position)] = row
        else:
            self.rekeyed[row.position] = row
        self._by_key[row.event.key] = row

    def remove(self, position: int) -> None:
        """No event at a position any more."""
        self.reused = True
        if position > self.position:
            at = self._place(position)
            del self.rows[at]
            self._indexed -= at < self._indexed
        else:
            self.rekeyed.pop(position, None)
            self.removed.append(position)

    def _place(self, position: int) -> int:
        return bisect_left(self.rows, position, key=lambda row: row.position)

    def current(self, stored: list[Stored]) -> list[Stored]:
        """What stands at these positions now, after keys were reused; positions that were emptied are left out."""
        found: list[Stored] = []
        removed = set(self.removed)
        for each in stored:
            row = self.rekeyed.get(each.position)
            if row is None and each.position > self.position:
                at = self._place(each.position)
                if at == len(self.rows) or self.rows[at].position != each.position:
                    continue
                row = self.rows[at]
            if row is not None:
                found.append(Stored(row.event, row.position, each.log, row.twin))
            elif each.position not in removed:
                found.append(each)
        return found
