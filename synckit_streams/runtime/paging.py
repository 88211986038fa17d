"""How large a page is: many events while they are small, few when they are large."""

from __future__ import annotations

from collections.abc import Sequence

from synckit_streams.model.event import Event

EVENTS_FIRST = 64
"""Of the first page, when nothing is known yet: these may all have the largest payload there is."""
PAGE_BYTES = 2 * 1024 * 1024
SAMPLE = 256
"""So many of a long page are looked at, spread over it; the store keeps a page of a few monsters small itself."""


class PageSize:
    """Gives `events`, the length to ask for next.

    Args:
        events_max: However small they are, no more than so many.
    """

    def __init__(self, events_max: int) -> None:
        self._events_max = events_max
        self.events = min(EVENTS_FIRST, events_max)

    def learn(self, page: Sequence[Event]) -> None:
        """Such were the events of the last page; the next ones will be alike."""
        looked_at = page[:: len(page) // SAMPLE + 1]
        sizes = [len(event.payload) + len(event.metadata_json) + len(event.aggregate_id) for event in looked_at]
        total = sum(sizes)
        fitting = len(sizes) * PAGE_BYTES // total if total else self._events_max
        self.events = max(1, min(fitting, 4 * self.events, self._events_max))
