"""How an aggregate is found in an index: by a hash, since its id may be long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import Struct

from synckit_streams.model.event import Event, Stored
from synckit_streams.sync.ledger import Fork

HASHES_KEPT = 20_000

_int64 = Struct(">q").unpack


class AggregateHash:
    """A signed 64-bit hash of topic and aggregate id, keyed so that nobody can aim for a collision; the last ones kept.

    Args:
        secret: Of the store.
    """

    def __init__(self, secret: bytes) -> None:
        self._keyed = blake2b(digest_size=8, key=secret)
        self._known: dict[Fork, int] = {}

    def __call__(self, fork: Fork) -> int:
        found: int | None = self._known.get(fork)
        if found is None:
            keyed = self._keyed.copy()
            keyed.update(f"{fork[0]}\0{fork[1]}".encode())
            found = _int64(keyed.digest())[0]
            if len(self._known) >= HASHES_KEPT:
                self._known = {}
            self._known[fork] = found
        return found


def by_aggregate(wanted: Sequence[tuple[str, str]], stored: Iterable[Stored]) -> list[list[Event]]:
    """The events of each of some aggregates, out of those whose hash is that of one of them."""
    found: dict[tuple[str, str], list[Event]] = {each: [] for each in wanted}
    for each in stored:
        event = each.event
        of = found.get((event.topic, event.aggregate_id))
        if of is not None:  # another one may have the same hash
            of.append(event)
    return [found[each] for each in wanted]
