"""What the ledger asks a store before it decides: rows by id, by key, and what an aggregate has seen."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Stored

Fork = tuple[str, str]
"""(topic, origin), or (topic, aggregate id): a pair of names within a topic."""


class Known(msgspec.Struct, gc=False):
    """What a store knows of one aggregate. Changed in place while the mirror holds it.

    Args:
        last: Per origin, its last number on the aggregate: the default context of the next local event.
        at_packed: The greatest hybrid time among its events.
    """

    last: dict[str, int]
    at_packed: int


class Wants(NamedTuple):
    """Rows to look up before a transaction decides: by id, by key, and the aggregates that the mirror does not hold."""

    ids: list[str]
    keys: list[Key]
    aggregates: list[Fork]


class Facts(Protocol):
    """What the store found on its disk. Quick for what `Wants` named; for anything else it may cost a look-up each."""

    nothing_known: bool
    """Whether none of the aggregates that `Wants` named has an event here: a bulk load asks no further."""

    def by_id(self, id: str) -> Stored | None:
        """The first event with this id."""

    def hash_of(self, key: Key) -> bytes | None:
        """The hash of the event under a key; None if there is none."""

    def by_key(self, key: Key) -> tuple[Stored, bytes] | None:
        """The event under a key, and its hash."""

    def aggregate(self, fork: Fork) -> Known | None:
        """What is known of an aggregate, the caller's to change; None for a new one."""
