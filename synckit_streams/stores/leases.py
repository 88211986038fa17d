"""Leases of a store that one process has open: they are in its memory, since nobody else could take one."""

from __future__ import annotations

import time
from collections.abc import Callable

from synckit_streams.ports.store import Lease


class Leases:
    """Who has what, and until when. Tokens ascend over all names; used by one thread at a time.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._token = 0
        self._held: dict[str, tuple[Lease, float]] = {}

    def take(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """See `EventStore.lease`."""
        held = self._held.get(name)
        if held is not None and held[0].holder != holder and self._clock() < held[1]:
            return None
        self._token += 1
        lease = Lease(name, holder, self._token)
        self._held[name] = (lease, self._clock() + ttl_s)
        return lease

    def renew(self, lease: Lease, ttl_s: float) -> bool:
        """See `EventStore.renew`."""
        if not self.is_current(lease):
            return False
        self._held[lease.name] = (lease, self._clock() + ttl_s)
        return True

    def release(self, lease: Lease) -> None:
        """See `EventStore.release`."""
        if self.is_current(lease):
            self._held[lease.name] = (lease, self._clock())

    def is_current(self, lease: Lease) -> bool:
        """Whether nobody has taken it since."""
        held = self._held.get(lease.name)
        return held is not None and held[0] == lease
