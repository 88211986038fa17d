"""What a store in a key-value medium answers about its log: pages of it, of an aggregate, of an origin.

Two calls see two moments: an event may move while it is looked up, when its key turns out to be used twice. Nothing is
missed by that: a position that was emptied is one of two at which the event stood, and a key that is not where the
index said is looked up again.
"""

from __future__ import annotations

from collections.abc import Sequence

from synckit_streams.errors import StoreCorrupt
from synckit_streams.model.event import Event, Stored
from synckit_streams.model.seen import Interval
from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import kv_runs as runs
from synckit_streams.stores.kv_beside import rows, stream_names
from synckit_streams.stores.kv_facts import event_rows
from synckit_streams.stores.kv_medium import PAGE_BYTES, Medium
from synckit_streams.stores.kv_rows import EventRow, event_row
from synckit_streams.sync.ledger import Fork

ROWS_TOGETHER = 64
"""So many events are fetched by position in one call: they may be large."""
LOOKS_MAX = 5
"""How often a key is looked up that is not where the index says."""


def streams(medium: Medium) -> dict[Fork, int]:
    """The numbers of all streams, by topic and origin."""
    return {stream_names(value): int.from_bytes(key[1:], "big") for key, value in rows(medium, keys.STREAM)}


def log(medium: Medium, id: str, topic: str | None, position: int, limit: int) -> list[Stored]:
    """The next page of the log."""
    end = keys.end_of(keys.EVENT)
    wanted = None if topic is None else {number for (of, _), number in streams(medium).items() if of == topic}
    found: list[Stored] = []
    size = 0
    while len(found) < limit and size < PAGE_BYTES:
        pairs = medium.page(keys.event(position + 1), end, limit)
        for key, value in pairs:
            (position,) = keys.number_of(key[1:])
            row = event_row(position, value)
            if wanted is None or row.stream in wanted:
                found.append(row.stored(id))
                size += len(value)
                if len(found) == limit:
                    break
        if not pairs or wanted is None:
            break
    return found


def aggregate(medium: Medium, topic: str, aggregate_id: str) -> list[Event]:
    """Every event of an aggregate."""
    prefix = keys.OF_AGGREGATE + keys.aggregate(topic, aggregate_id)
    positions = [keys.number_of(key[len(prefix) :])[0] for key, _ in rows(medium, prefix)]
    found: list[Event] = []
    for at in range(0, len(positions), ROWS_TOGETHER):
        found += [row.event for row in event_rows(medium, positions[at : at + ROWS_TOGETHER])]
    return found


def aggregates(medium: Medium, topic: str, after: str, limit: int) -> list[str]:
    """The next page of aggregate ids, in the order of their keys."""
    prefix = keys.AGGREGATE + keys.text(topic)
    start = prefix + keys.text(after) + b"\0" if after else prefix
    pairs = medium.page(start, keys.end_of(prefix), limit)
    return [value.decode("utf-8", "surrogatepass") for _, value in pairs]


def events(medium: Medium, stream: int, interval: Interval, limit: int) -> list[tuple[Event, bytes]]:
    """Events of a stream, with their hashes, ascending by `seq`, until they come to about `PAGE_BYTES`."""
    prefix = keys.OF_KEY + keys.stream(stream)
    at, last = interval
    found: list[tuple[Event, bytes]] = []
    size = looks = 0
    while at <= last and len(found) < limit and size < PAGE_BYTES:
        wanted = min(limit - len(found), ROWS_TOGETHER)
        candidates, upto = runs.interval(medium, prefix, at, last, wanted)
        numbers = sorted(candidates)[:wanted]
        there = _matching(medium, stream, {number: candidates[number] for number in numbers})
        looks += 1
        for number in numbers:
            if number not in there:
                break
            row = there[number]
            found.append((row.event, row.hash))
            size += len(row.value)
            at, looks = number + 1, 0
        else:
            at = upto + 1 if len(numbers) == len(candidates) else at
            continue
        if looks > LOOKS_MAX:
            raise StoreCorrupt(f"the log lacks number {at} or a later one, which its index names")
    return found


def _matching(medium: Medium, stream: int, candidates: dict[int, Sequence[int]]) -> dict[int, EventRow]:
    """By number, the row among the candidates that has it."""
    positions = sorted({position for each in candidates.values() for position in each})
    found: dict[int, EventRow] = {}
    for at in range(0, len(positions), ROWS_TOGETHER):
        for row in event_rows(medium, positions[at : at + ROWS_TOGETHER]):
            if row.stream == stream and row.seq in candidates:
                found[row.seq] = row
    return found
