"""What is wrong in a key-value medium, as far as only the medium can tell: rows that do not say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from synckit_streams.errors import StoreCorrupt
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import kv_runs as runs
from synckit_streams.stores.kv_beside import rows, stream_names
from synckit_streams.stores.kv_medium import Medium, Pair
from synckit_streams.stores.kv_rows import EventRow, event_row, id_number, known_value

NAMED = 20
"""So many places are named."""
ROWS_TOGETHER = 1_000


def damage(medium: Medium) -> list[str]:
    """Everything, in words; empty if the medium is sound."""
    return list(islice(_damage(medium), NAMED))


def _damage(medium: Medium) -> Iterator[str]:
    forks = {int.from_bytes(key[1:], "big"): stream_names(value) for key, value in rows(medium, keys.STREAM)}
    page: list[EventRow] = []
    for key, value in rows(medium, keys.EVENT):
        position = keys.number_of(key[1:])[0]
        try:
            row = event_row(position, value)
            fork = (row.event.topic, row.event.origin)
        except StoreCorrupt as error:
            yield f"position {position}: {error.message}"
            continue
        except msgspec.MsgspecError as error:
            yield f"position {position}: {error}"
            continue
        if forks.get(row.stream) != fork or row.seq != row.event.seq:
            yield f"position {position}: wrong stream or seq"
            continue
        page.append(row)
        if len(page) == ROWS_TOGETHER:
            yield from _unlisted(medium, page)
            page = []
    yield from _unlisted(medium, page)
    yield from _stray(medium)


def _unlisted(medium: Medium, page: Sequence[EventRow]) -> Iterator[str]:
    """Events that an index does not lead to."""
    if not page:
        return
    aggregates = [keys.aggregate(row.event.topic, row.event.aggregate_id) for row in page]
    known = [name + keys.number(row.position) for name, row in zip(aggregates, page, strict=True)]
    of_aggregate = medium.get_many([keys.OF_AGGREGATE + name for name in known])
    named = medium.get_many([keys.AGGREGATE + name for name in aggregates])
    wanted: dict[bytes, list[int]] = {keys.OF_ID: [id_number(row.event.id) for row in page]}
    for row in page:
        wanted.setdefault(keys.OF_KEY + keys.stream(row.stream), []).append(row.seq)
    found = runs.positions(medium, wanted)
    for row, listed, name in zip(page, of_aggregate, named, strict=True):
        if listed != known_value(row.stream, row.event) or name is None:
            yield f"position {row.position} is not in the index by aggregate"
        if row.position not in found[keys.OF_ID].get(id_number(row.event.id), ()):
            yield f"position {row.position} is not in the index by id"
        if row.position not in found[keys.OF_KEY + keys.stream(row.stream)].get(row.seq, ()):
            yield f"position {row.position} is not in the index by key"


def _stray(medium: Medium) -> Iterator[str]:
    """Rows of the index by aggregate that lead to no event of it. The others may lead astray: they say candidates."""
    page: list[Pair] = []
    for pair in rows(medium, keys.OF_AGGREGATE):
        page.append(pair)
        if len(page) == ROWS_TOGETHER:
            yield from _astray(medium, page)
            page = []
    yield from _astray(medium, page)


def _astray(medium: Medium, page: Sequence[Pair]) -> Iterator[str]:
    positions = [keys.number_of(key[-8:])[0] for key, _ in page]
    there = medium.get_many([keys.event(position) for position in positions])
    for (key, _), position, value in zip(page, positions, there, strict=True):
        if value is None or _aggregate_of(position, value) not in (None, key[1:-8]):
            yield f"the index by aggregate has {position}, where no such event is"


def _aggregate_of(position: int, value: bytes) -> bytes | None:
    """Which aggregate an event is of; None if it cannot be read, which has been said already."""
    try:
        event = event_row(position, value).event
    except (msgspec.MsgspecError, StoreCorrupt):
        return None
    return keys.aggregate(event.topic, event.aggregate_id)
