"""In a file: transactions that append, and what consumers note."""

from __future__ import annotations

from pathlib import Path

import pytest

from synckit_streams.errors import StoreFull
from synckit_streams.model.event import Offset
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.testing.store_contract import NOW_MS, audit, draft
from tests.stores.test_sqlite import opened


async def test_a_full_disk_undoes_a_block(tmp_path: Path) -> None:
    """Neither its effect nor its events are there, wherever the room ended; and no number is passed over."""
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store:
        await store.append([draft()], now_ms=NOW_MS)
        (pages,) = store.writer.execute("PRAGMA page_count").fetchone()
        for room in range(1, 12):
            store.writer.execute(f"PRAGMA max_page_count={pages + room}")

            async def effect() -> None:
                async with store.transaction() as tx:
                    await tx.set_offset("handler", Offset(store.id, 1))
                    await tx.append([draft(data="x" * 3000) for _ in range(30)], now_ms=NOW_MS)

            with pytest.raises(StoreFull):
                await effect()
            assert (len(await audit(store)), await store.offset("handler")) == (1, None)
        store.writer.execute("PRAGMA max_page_count=1000000")
        result = await store.append([draft()], now_ms=NOW_MS)
        assert result.appended[0].event.seq == 2


async def test_notes_are_found_by_their_names(tmp_path: Path) -> None:
    """However many there are: neither a page of them nor a look at some reads the others."""
    async with opened(SqliteStore(f"sqlite:///{tmp_path}/till.db")) as store:
        for sql, parameters in (
            (schema.APPLIED_PAGE, ("totals", "orders", "o-1", 9)),
            (schema.SELECT_APPLIED, ("[]", "totals")),
        ):
            plan = [row[3] for row in store.writer.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
            assert [step for step in plan if "projection_applied" in step and "topic" in step], plan
