"""Pages are bounded in bytes too: a thousand events of a megabyte each are not one page."""

from __future__ import annotations

import os
from pathlib import Path

from synckit_streams import Draft
from synckit_streams.ports.store import Opening
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.stores.sqlite_schema import PAGE_BYTES

LARGE = b'"' + b"x" * 900_000 + b'"'


async def test_large_events_come_in_small_pages_and_none_is_left_out(tmp_path: Path) -> None:
    """A few small ones, then large ones: both ways of reading end a page in time, and read to the end."""
    store = SqliteStore(f"sqlite:///{tmp_path}/x.db")
    await store.open(Opening(node="a", topics=("t",), dice=os.urandom))
    drafts = [Draft("t", "made", f"x{n}", b"1" if n < 4 else LARGE) for n in range(44)]
    await store.append(drafts, now_ms=1)
    pages, after = [], None
    while page := await store.log("t", after=after, limit=1_000):
        pages.append([len(stored.event.payload) for stored in page])
        after = page[-1].offset
    assert [size for page in pages for size in page] == [1] * 4 + [len(LARGE)] * 40
    assert all(sum(page) <= 2 * PAGE_BYTES for page in pages)
    assert len(pages) >= 4

    numbers, first = [], 1
    while found := await store.events("t", store.origin, (first, 44), limit=1_000):
        assert len(found) <= 22
        numbers += [event.seq for event, _ in found]
        first = numbers[-1] + 1
    assert numbers == [*range(1, 45)]
    assert len(await store.log("t", after=None, limit=3)) == 3
    await store.close()
