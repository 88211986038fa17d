"""What became of what was written: counted from each store's own log, event by event, against the input.

Nothing here asks a node how it is doing. The stores are opened read-only, every event is hashed anew, and an event
counts only if its payload is the one that was written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec

from synckit_streams.cli.exporting import pages
from synckit_streams.model.codec import digest_add, event_hash
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.ownership import reading


class Holding(msgspec.Struct, frozen=True):
    """What one store's log holds.

    Args:
        events: How many events.
        lost: Events of the input that are not there, or not as they were written.
        duplicates: How often an event is there more than once.
        strange: Events that nobody wrote.
        digest: Sum of the hashes of all of them, 64 hex digits.
    """

    events: int
    lost: int
    duplicates: int
    strange: int
    digest: str


class Audit(msgspec.Struct, frozen=True):
    """All stores together."""

    written: int
    holdings: Mapping[str, Holding]

    @property
    def lost(self) -> int:
        """Over all stores."""
        return sum(each.lost for each in self.holdings.values())

    @property
    def duplicates(self) -> int:
        """Over all stores."""
        return sum(each.duplicates for each in self.holdings.values())

    @property
    def converged(self) -> bool:
        """Whether every store holds all that was written, once, and nothing else."""
        alike = len({each.digest for each in self.holdings.values()}) == 1
        return alike and not any(each.lost or each.duplicates or each.strange for each in self.holdings.values())


async def holding(place: str | EventStore, topic: str, written: Mapping[str, bytes]) -> Holding:
    """What one store holds of a topic, against the payloads that were written, by id."""
    found: Counter[str] = Counter()
    strange = total = 0
    async with reading(place) as store:
        async for page in pages(store, topic, (await store.end()).position):
            total = digest_add(total, [event_hash(stored.event) for stored in page])
            for stored in page:
                if written.get(stored.event.id) == stored.event.payload:
                    found[stored.event.id] += 1
                else:
                    strange += 1
    return Holding(
        events=found.total() + strange,
        lost=len(written) - len(found),
        duplicates=found.total() - len(found),
        strange=strange,
        digest=f"{total:064x}",
    )


async def audit(stores: Mapping[str, str | EventStore], topic: str, written: Mapping[str, bytes]) -> Audit:
    """Count in every store.

    Args:
        stores: By node id: their URLs, or stores that are not open.
        topic: Which topic was written.
        written: The payload of every event, by id.
    """
    holdings = {node: await holding(place, topic, written) for node, place in stores.items()}
    return Audit(len(written), holdings)
