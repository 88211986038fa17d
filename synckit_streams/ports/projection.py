"""What a read model must do: apply a batch, and reset."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from synckit_streams.model.event import Stored
from synckit_streams.ports.store import Transaction


class Change(NamedTuple):
    """How a batch changed what one aggregate resolves to.

    Args:
        topic: Of the aggregate.
        aggregate_id: Which one.
        previous: The data that *this projection* last applied for it; None at first. Retract it.
        current: The data that it resolves to now. Add it.
    """

    topic: str
    aggregate_id: str
    previous: Any
    current: Any


class Batch(NamedTuple):
    """A page of the log for a projection.

    Args:
        stored: The events in commit order, each fact once (twins are left out).
        changes: For a projection with `resolved = True`: one per aggregate that the page touches, among those of which
            it was given an event, now or before. A twin or an event of another type changes them too.
    """

    stored: Sequence[Stored]
    changes: Sequence[Change] = ()


@runtime_checkable
class Projection(Protocol):
    """A read model. `apply` and the offset commit in one transaction, so each event counts exactly once.

    Attributes:
        name: Its own; the offset is kept under it.
        topics: Which to follow; empty for every topic.
        types: Which types of event; empty for every type.
        resolved: Whether it wants `Batch.changes`: the aggregates as the node's resolver sees them.

    It may also have `batch`, most events in one call (1,000). As long as it is far behind, several calls share a
    transaction: up to 10,000 events, or what fits into 50 ms.
    """

    # Properties, so that a plain class attribute of any sequence type will do; a mutable member would be invariant.
    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> Sequence[str]: ...

    @property
    def types(self) -> Sequence[str]: ...

    @property
    def resolved(self) -> bool: ...

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """Change the read model."""

    async def reset(self, tx: Transaction) -> None:
        """Make the read model empty (its tables included, if they are not there yet)."""


class StreamedProjection(Protocol):
    """A read model that adds up a whole transaction before it writes: `apply` is called once, and takes the pages.

    Only one page is in memory, however many there are. A million events that change ten thousand rows are then some ten
    thousand upserts a transaction instead of a million.

    Attributes:
        name: See `Projection`, as the other ones.
        streamed: True.
        batch: Most events in one transaction, up to 1,000,000.
    """

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> Sequence[str]: ...

    @property
    def types(self) -> Sequence[str]: ...

    @property
    def resolved(self) -> bool: ...

    @property
    def batch(self) -> int: ...

    @property
    def streamed(self) -> bool: ...

    async def apply(self, pages: AsyncIterator[Batch], tx: Transaction) -> None:
        """Change the read model. Pages that were not taken come again with the next call."""

    async def reset(self, tx: Transaction) -> None:
        """Make the read model empty (its tables included, if they are not there yet)."""


AnyProjection = Projection | StreamedProjection
