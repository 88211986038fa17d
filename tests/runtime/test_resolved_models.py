"""A read model of resolved aggregates follows whatever changes what they resolve to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from synckit_streams import Draft, SyncNode
from synckit_streams.ports.projection import Batch
from synckit_streams.ports.store import Transaction


class Quantities:
    """What it was told last of each aggregate, and of which events."""

    name = "quantities"
    topics: Sequence[str] = ()
    resolved = True

    def __init__(self, *types: str) -> None:
        self.types: Sequence[str] = types
        self.now: dict[str, Any] = {}
        self.ids: list[str] = []

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        self.ids += [stored.event.id for stored in batch.stored]
        for change in batch.changes:
            assert change.previous == self.now.get(change.aggregate_id)
            self.now[change.aggregate_id] = change.current

    async def reset(self, tx: Transaction) -> None:
        self.now = {}


def draft(id: str, qty: int, aggregate_id: str = "o-1", type: str = "placed") -> Draft:
    return Draft("orders", type, aggregate_id, {"qty": qty}, id=id)


def node(name: str, connector: str, **options: Any) -> SyncNode:
    return SyncNode(name, store="memory:", connectors=[connector], topics=["orders"], **options)


async def test_a_twin_changes_what_its_aggregate_resolves_to() -> None:
    """It is no new fact, but its writer knew more: here of the write that had won until then."""
    model = Quantities()
    log = "memory://a-twin-changes"
    async with node("a", log) as a, node("b", log) as b, node("c", log, projections=[model]) as c:
        await b.append(draft("fact", 2))
        await asyncio.sleep(0.01)  # later by the clock, whichever origin sorts first
        await a.append(draft("later", 9))
        await a.sync()
        await b.sync()
        await c.sync()
        assert model.now == {"o-1": {"qty": 9}}
        await a.append(draft("fact", 2))
        await a.sync()
        await c.sync()
        assert (await c.resolve("orders", "o-1")).data == {"qty": 2}
        assert model.now == {"o-1": {"qty": 2}}
        assert sorted(model.ids) == ["fact", "later"]


async def test_an_event_of_another_type_changes_it_too() -> None:
    """Of an aggregate that the read model follows; of others it hears nothing."""
    model = Quantities("placed")
    async with SyncNode("a", store="memory:", projections=[model]) as a:
        await a.append_many([draft("1", 1), draft("2", 2, "o-2", "changed")])
        await a.project()
        assert model.now == {"o-1": {"qty": 1}}
        await a.append_many([draft("3", 3, "o-1", "changed"), draft("4", 4, "o-2", "changed")])
        await a.project()
        assert model.now == {"o-1": {"qty": 3}}
        assert model.ids == ["1"]
