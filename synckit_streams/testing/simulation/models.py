"""Read models that show whether each fact had its effect once, whatever the crashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synckit_streams.ports.projection import Batch
from synckit_streams.ports.store import Transaction


class Effects:
    """Counts how often each id had its effect: once, if all is well."""

    name = "effects"
    topics: Sequence[str] = ()
    types: Sequence[str] = ()
    resolved = False

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """See `Projection`."""
        await tx.execute_many(
            "INSERT INTO effects VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET times = times + 1",
            [(stored.event.id,) for stored in batch.stored],
        )

    async def reset(self, tx: Transaction) -> None:
        """See `Projection`."""
        await tx.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT PRIMARY KEY, times INTEGER NOT NULL)")
        await tx.execute("DELETE FROM effects")


class Totals:
    """Adds up what the aggregates resolve to: what was added before is taken back first."""

    name = "totals"
    topics: Sequence[str] = ()
    types: Sequence[str] = ()
    resolved = True

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """See `Projection`."""
        await tx.execute_many(
            "INSERT INTO totals VALUES (?, ?) ON CONFLICT (topic) DO UPDATE SET total = total + excluded.total",
            [(change.topic, quantity(change.current) - quantity(change.previous)) for change in batch.changes],
        )

    async def reset(self, tx: Transaction) -> None:
        """See `Projection`."""
        await tx.execute("CREATE TABLE IF NOT EXISTS totals (topic TEXT PRIMARY KEY, total INTEGER NOT NULL)")
        await tx.execute("DELETE FROM totals")


def quantity(data: Any) -> int:
    """What an aggregate's data counts for; 0 when it has none."""
    found = data.get("qty", 0) if isinstance(data, dict) else 0
    return found if isinstance(found, int) else 0
