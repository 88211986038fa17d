"""Which of a node's projections this process runs, where several share the store: one process each, by leases.

The others stand by. When the one that runs it stops it lets go; when it dies or is stopped for too long its lease runs
out, and whoever asks next has it. A process that was stopped and goes on finds out at its next commit, which the store
refuses.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from synckit_streams.errors import StoreClosed, StoreError
from synckit_streams.ports.store import EventStore, Lease
from synckit_streams.runtime.cancel import end
from synckit_streams.runtime.keeping import LEASE_S, LOOKS

logger = logging.getLogger("synckit_streams")


class Tenure:
    """See the module's text. On a store that is not shared it has everything.

    Args:
        store: That they share.
        names: Of the leases, one for each projection.
    """

    def __init__(self, store: EventStore, names: Sequence[str]) -> None:
        self.lease_s = LEASE_S
        """For how long a process that says nothing keeps what it has."""
        self.gained: Callable[[], None] = lambda: None
        """Called when something is ours that somebody else had."""
        self._store = store
        self._names = tuple(names)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{random.SystemRandom().randrange(2**32):08x}"
        self._leases: dict[str, Lease] = {}
        self._users = 0
        self._keeping: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Within the block what nobody else has is ours, and stays so; what is let go during it is ours soon.

        Raises:
            StoreError: the store cannot say whose it is.
        """
        if not self._store.features.shared or not self._names:
            yield
            return
        async with self._turn:
            if not self._users:
                await self._look()
                self._keeping = asyncio.create_task(self._keep(), name="synckit-tenure")
            self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                await asyncio.shield(self._let_go())

    async def _let_go(self) -> None:
        async with self._turn:
            if self._users:
                return
            keeping, self._keeping = self._keeping, None
            if keeping is not None:
                await end(keeping)
            leases, self._leases = list(self._leases.values()), {}
            with suppress(StoreError):  # whoever cannot say so is gone when his leases have run out
                await self._store.release(leases)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self.lease_s / LOOKS)
            try:
                await self._look()
            except StoreClosed:
                return
            except StoreError as error:  # a commit tells whether they are still ours
                logger.debug("projections: their leases could not be renewed: %s", error)

    async def _look(self) -> None:
        kept = await self._store.renew(list(self._leases.values()), ttl_s=self.lease_s) if self._leases else ()
        self._leases = {each.name: each for each in kept}
        missing = [name for name in self._names if name not in self._leases]
        if missing:
            for lease in await self._store.lease(missing, self._holder, ttl_s=self.lease_s):
                self._leases[lease.name] = lease
                self.gained()

    def has(self, name: str) -> bool:
        """Whether it is this process that runs it."""
        return not self._store.features.shared or name in self._leases

    def leases(self, name: str) -> Sequence[Lease]:
        """By which this process runs it: what its commits must still have."""
        return [self._leases[name]] if name in self._leases else ()

    def lost(self, name: str) -> None:
        """Somebody else has it."""
        self._leases.pop(name, None)
