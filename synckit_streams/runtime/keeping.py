"""Which lanes of a group this worker has, where several share a store: leases, in equal parts, that move when a worker
comes, goes or dies.

Each worker renews what it has and says that it is there; whoever has more than its part lets go, and whoever has less
takes what is free. A worker that was stopped for too long finds out at its next commit, which the store refuses.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from synckit_streams.ports.store import EventStore, Lease
from synckit_streams.runtime.lanes import LANES, lane_name

LEASE_S = 10.0
"""For how long a worker that says nothing keeps its lanes."""
LOOKS = 3
"""So often within that time it says something."""


class Part(NamedTuple):
    """What a look has come to.

    Args:
        kept: Lanes that are still ours.
        gained: Lanes that are ours now.
        surplus: How many of those that were kept are to be let go.
        workers: How many share the group.
    """

    kept: dict[int, Lease]
    gained: dict[int, Lease]
    surplus: int
    workers: int


class Keeper:
    """One worker's part of a group's lanes.

    Args:
        store: That they share.
        group: The group's name.
        lease_s: See `LEASE_S`.
    """

    def __init__(self, store: EventStore, group: str, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{random.SystemRandom().randrange(2**32):08x}"
        self._store = store
        self._names = {lane_name(group, number): number for number in range(LANES)}
        self._prefix = lane_name(group, 0)[:-1]
        self._workers = f"worker|{group}|"
        self._member: Lease | None = None

    @property
    def pause_s(self) -> float:
        """Between two looks."""
        return self.lease_s / LOOKS

    async def look(self, held: Mapping[int, Lease]) -> Part:
        """Say that we are there, keep what is ours, and see what would be our part.

        Raises:
            StoreError: the store cannot say.
        """
        store, ttl_s = self._store, self.lease_s
        (self._member,) = await store.lease([self._workers + self.holder], self.holder, ttl_s=ttl_s)
        kept = await store.renew(list(held.values()), ttl_s=ttl_s) if held else ()
        workers = [each for each in await store.leases(self._workers) if each.name == self._workers + each.holder]
        taken = {each.name for each in await store.leases(self._prefix)}
        part = -(-LANES // max(len(workers), 1))
        gained: Iterable[Lease] = ()
        if len(kept) < part:
            free = [name for name in self._names if name not in taken]
            random.shuffle(free)  # two that come at once should not both want the first ones
            gained = await store.lease(free[: part - len(kept)], self.holder, ttl_s=ttl_s) if free else ()
        return Part(
            {self._names[each.name]: each for each in kept},
            {self._names[each.name]: each for each in gained},
            max(len(kept) - part, 0),
            len(workers),
        )

    async def leave(self, held: Mapping[int, Lease]) -> None:
        """Let the others have everything at once."""
        leases = [*held.values(), *([self._member] if self._member is not None else [])]
        self._member = None
        await self._store.release(leases)
