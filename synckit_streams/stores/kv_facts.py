"""The rows that a ledger wants, looked up in a key-value medium in a few large calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Stored
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import kv_runs as runs
from synckit_streams.stores.kv_medium import Medium
from synckit_streams.stores.kv_rows import EventRow, EventRows, event_row, id_number, known_of
from synckit_streams.sync.ledger import Fork, Known, Wants


def event_rows(medium: Medium, positions: Sequence[int]) -> list[EventRow]:
    """The rows at these positions, without those where there is none."""
    values = medium.get_many([keys.event(position) for position in positions]) if positions else ()
    return [event_row(position, value) for position, value in zip(positions, values, strict=True) if value is not None]


class KeyValueFacts:
    """See `Facts`. What was not foreseen costs a look-up each.

    Args:
        medium: To look in.
        rows: The log, as its writer knows it.
        log: Identity of the log.
        wants: What the ledger foresees.
    """

    def __init__(self, medium: Medium, rows: EventRows, log: str, wants: Wants) -> None:
        self._medium = medium
        self._rows = rows
        self._log = log
        self._ids: dict[str, Stored | None] = {}
        self._keys: dict[Key, EventRow | None] = {}
        self._aggregates: dict[Fork, Known | None] = {}
        if wants.ids:
            self._look_up_ids(wants.ids)
        if wants.keys:
            self._look_up_keys(wants.keys)
        if wants.aggregates:
            self._look_up_aggregates(wants.aggregates)
        self.nothing_known = not any(self._aggregates.values())

    def _look_up_ids(self, ids: Iterable[str]) -> None:
        self._ids.update(dict.fromkeys(ids))
        found = runs.positions(self._medium, {keys.OF_ID: [id_number(id) for id in ids]})[keys.OF_ID]
        positions = sorted({position for candidates in found.values() for position in candidates})
        for row in event_rows(self._medium, positions):
            event = row.event
            if self._ids.get(event.id, event) is None:  # the first in the log
                self._ids[event.id] = Stored(event, row.position, self._log, row.twin)

    def _look_up_keys(self, wanted: Sequence[Key]) -> None:
        self._keys.update(dict.fromkeys(wanted))
        numbers = self._rows.numbers
        by_index: dict[bytes, dict[int, Key]] = {}
        for key in wanted:
            stream = numbers.get((key.topic, key.origin))
            if stream is not None:
                by_index.setdefault(keys.OF_KEY + keys.stream(stream), {})[key.seq] = key
        found = runs.positions(self._medium, by_index)
        asked = {
            position: by_index[index][seq]
            for index, of_index in found.items()
            for seq, positions in of_index.items()
            for position in positions
        }
        for row in event_rows(self._medium, list(asked)):
            key = asked[row.position]
            if (row.stream, row.seq) == (numbers[key.topic, key.origin], key.seq):
                self._keys[key] = row

    def _look_up_aggregates(self, forks: Sequence[Fork]) -> None:
        self._aggregates.update(dict.fromkeys(forks))
        names = [keys.aggregate(*fork) for fork in forks]
        there = self._medium.get_many([keys.AGGREGATE + name for name in names])
        known = [(fork, name) for fork, name, one in zip(forks, names, there, strict=True) if one is not None]
        prefixes = [keys.OF_AGGREGATE + name for _, name in known]
        pages = self._medium.pages([(prefix, keys.end_of(prefix)) for prefix in prefixes]) if known else ()
        for (fork, _), pairs in zip(known, pages, strict=True):
            self._aggregates[fork] = known_of([value for _, value in pairs], self._rows.origins)

    def by_id(self, id: str) -> Stored | None:
        """See `Facts`."""
        if id not in self._ids:
            self._look_up_ids([id])
        return self._ids[id]

    def _row_of(self, key: Key) -> EventRow | None:
        if key not in self._keys:
            self._look_up_keys([key])
        return self._keys[key]

    def hash_of(self, key: Key) -> bytes | None:
        """See `Facts`."""
        row = self._row_of(key)
        return row.hash if row is not None else None

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """See `Facts`."""
        row = self._row_of(key)
        return (row.stored(self._log), row.hash) if row is not None else None

    def aggregate(self, fork: Fork) -> Known | None:
        """See `Facts`."""
        if fork not in self._aggregates:
            self._look_up_aggregates([fork])
        return self._aggregates[fork]
