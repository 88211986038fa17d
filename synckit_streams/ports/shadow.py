"""A place beside a store's live tables, in which a read model is built anew while the live one is served.

The code of a projection writes to tables by their names. In the transactions of a shadow these names mean tables of the
shadow's own, and so do the projection's offset and what it has noted; everything else is what it is in the store, and
can only be read. In the end one transaction of the store takes over what the shadow holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from synckit_streams.model.event import Offset
from synckit_streams.ports.store import Lease, Transaction


class Shadow(Protocol):
    """One read model's place. One caller at a time; every method may raise `StoreError`."""

    async def stands(self, build: str) -> bool:
        """Whether it was made for this build: what stands there can be gone on with."""

    def making(self, build: str, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """Remove what stands there, and make it for a build: with the tables as the live ones are, and without rows.
        It is made when the block ends.

        Args:
            build: Any name, of this build alone.
            leases: What the caller must still have at the end of the block.

        Raises:
            LeaseLost: somebody has taken one; nothing is made.
            StoreError: the block has changed something outside of the shadow; nothing is made, and nothing changed.
        """

    def transaction(self, leases: Sequence[Lease] = ()) -> AbstractAsyncContextManager[Transaction]:
        """A transaction of the shadow's; see `making`. It appends nothing."""

    def joined(self) -> AbstractAsyncContextManager[None]:
        """Within the block a transaction of the store's can take the shadow over."""

    async def offset(self, tx: Transaction, consumer: str) -> Offset | None:
        """Where a consumer stands in the shadow, which nobody moves until `tx`, a transaction of the store's, ends."""

    async def swap(self, tx: Transaction, notes: Sequence[str]) -> None:
        """Let the tables of the shadow take the place of the live ones, and what is noted in it under these names the
        place of what is noted in the store: in `tx`, a transaction of the store's. Whoever reads sees the old ones
        until it commits, and the new ones then."""

    async def drop(self) -> None:
        """Remove it, if it is there."""

    async def close(self) -> None:
        """Let go of its connection; what stands there stays."""


@runtime_checkable
class Shadowing(Protocol):
    """The part of a store that has shadows; a store without it has none."""

    def shadow(self, projection: str, tables: Sequence[str]) -> Shadow:
        """The place in which a read model is built anew.

        Args:
            projection: Its name.
            tables: Those that it writes.
        """
