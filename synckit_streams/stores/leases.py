"""Leases of a store that one process has open: they are in its memory, since nobody else could take one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from synckit_streams.errors import FeatureUnsupported, Invalid
from synckit_streams.ports.store import LEASE_S_MAX, Lease, StoreFeatures
from synckit_streams.stores.commits import CommitQueue


class Leases:
    """Who has what, and until when. Tokens ascend over all names; used by one thread at a time.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._token = 0
        self._held: dict[str, tuple[Lease, float]] = {}

    def take(self, names: Sequence[str], holder: str, ttl_s: float) -> list[Lease]:
        """See `EventStore.lease`."""
        return [self._take(name, holder, ttl_s) for name in dict.fromkeys(names) if self._is_free(name, holder)]

    def _is_free(self, name: str, holder: str) -> bool:
        held = self._held.get(name)
        return held is None or held[0].holder == holder or self._clock() >= held[1]

    def _take(self, name: str, holder: str, ttl_s: float) -> Lease:
        self._token += 1
        lease = Lease(name, holder, self._token)
        self._held[name] = (lease, self._clock() + ttl_s)
        return lease

    def renew(self, leases: Sequence[Lease], ttl_s: float) -> list[Lease]:
        """See `EventStore.renew`."""
        kept = self.current(leases)
        self._held.update((lease.name, (lease, self._clock() + ttl_s)) for lease in kept)
        return kept

    def release(self, leases: Sequence[Lease]) -> None:
        """See `EventStore.release`."""
        self._held.update((lease.name, (lease, self._clock())) for lease in self.current(leases))

    def current(self, leases: Sequence[Lease]) -> list[Lease]:
        """Those that nobody has taken since."""
        nobody = (None, 0.0)
        return [lease for lease in leases if self._held.get(lease.name, nobody)[0] == lease]

    def under(self, prefix: str) -> list[Lease]:
        """See `EventStore.leases`."""
        now = self._clock()
        return sorted(lease for lease, until in self._held.values() if lease.name.startswith(prefix) and now < until)


def check_ttl(ttl_s: float) -> None:
    """Raises Invalid: nobody holds a lease for so long, or so short."""
    if not 0 < ttl_s <= LEASE_S_MAX:
        raise Invalid(f"a lease of {ttl_s} s: more than 0 and at most {LEASE_S_MAX:g} are allowed")


def check_names(names: Sequence[str]) -> None:
    """Raises Invalid: one name stands in the place of several, and would be taken for one of each letter."""
    if isinstance(names, str):
        raise Invalid(f"{names!r:.80} is one name", hint="lease takes a list of them")


class Leasing:
    """The part of a store that gives leases. All of it runs on the writer's thread, so that nobody takes one between
    another one's look at it and his commit."""

    name: str
    features: StoreFeatures
    _leases: Leases

    def _writable(self) -> CommitQueue:
        raise NotImplementedError

    def _leasing(self) -> CommitQueue:
        queue = self._writable()
        if not self.features.leases:
            raise FeatureUnsupported(f"{self.name} has no leases", hint="see `features.leases` of each store")
        return queue

    async def lease(self, names: Sequence[str], holder: str, *, ttl_s: float) -> Sequence[Lease]:
        """See `EventStore`."""
        queue = self._leasing()
        check_names(names)
        check_ttl(ttl_s)
        asked = tuple(names)
        taken: list[Lease] = await queue.run(lambda: self._leases.take(asked, holder, ttl_s))
        return taken

    async def renew(self, leases: Sequence[Lease], *, ttl_s: float) -> Sequence[Lease]:
        """See `EventStore`."""
        queue = self._leasing()
        check_ttl(ttl_s)
        asked = tuple(leases)
        kept: list[Lease] = await queue.run(lambda: self._leases.renew(asked, ttl_s))
        return kept

    async def release(self, leases: Sequence[Lease]) -> None:
        """See `EventStore`."""
        asked = tuple(leases)
        await self._leasing().run(lambda: self._leases.release(asked))

    async def leases(self, prefix: str) -> Sequence[Lease]:
        """See `EventStore`."""
        held: list[Lease] = await self._leasing().run(lambda: self._leases.under(prefix))
        return held
