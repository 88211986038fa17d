"""What a pipeline remembers: up to where it came, and whether somebody paused it.

It stands in a store of ours, as a reader's offset: so it can be a file beside the pipeline's, or a database where the
machine's own disk does not last. A store that several machines share gives the pipeline to one of them at a time; the
commit of a position checks that it is still that one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress

from synckit_streams.errors import ConfigError, StoreInUse, SyncKitError
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import EventStore, Lease, Opening
from synckit_streams.runtime.ownership import owner_of
from synckit_streams.runtime.registry import store_for

NODE = "connect"
"""As what the store is opened: no events are written under it."""
LEASE_S = 30.0


async def open_ours(url: str) -> EventStore:
    """A store in which a pipeline keeps something for itself.

    Raises:
        StoreInUse: another process has it.
        ConfigError: the store is a node's.
    """
    node = await owner_of(url)
    if node not in ("", NODE):
        raise ConfigError(
            f"a pipeline cannot keep anything in the store of the node {node!r}", hint="name another store, or none"
        )
    store = store_for(url)
    await store.open(Opening(node=NODE, topics=(), dice=os.urandom))
    return store


class State:
    """See the module's text.

    Args:
        url: Of the store.
        pipeline: Its name.
        shared: Several processes may have the pipeline at a time: it keeps no position here.
    """

    def __init__(self, url: str, pipeline: str, *, shared: bool = False) -> None:
        self._url = url
        self._shared = shared
        self._position = f"connect/{pipeline}"
        self._switch = f"connect/{pipeline}/paused"
        self._store: EventStore | None = None
        self._leases: Sequence[Lease] = ()
        self._renewing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Have the pipeline to oneself.

        Raises:
            StoreInUse: another process has it.
            ConfigError: the store is a node's.
        """
        async with self._turn:
            await self._open()

    async def _open(self) -> None:
        store = self._store = await open_ours(self._url)
        if store.features.shared and store.features.leases and not self._shared:
            self._leases = await store.lease([self._position], secrets.token_hex(8), ttl_s=LEASE_S)
            if not self._leases:
                await self._close()
                raise StoreInUse(f"another process runs this pipeline, with {store.name}", hint="it is waited for")
            self._renewing = asyncio.create_task(self._renew(store, self._leases))

    async def _renew(self, store: EventStore, leases: Sequence[Lease]) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            # Whoever has lost it hears so at the next commit.
            with suppress(SyncKitError):
                await store.renew(leases, ttl_s=LEASE_S)

    async def close(self) -> None:
        """Let go of it."""
        async with self._turn:
            await self._close()

    async def _close(self) -> None:
        renewing, self._renewing = self._renewing, None
        store, self._store = self._store, None
        leases, self._leases = self._leases, ()
        if renewing is not None:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        if store is not None:
            try:
                if leases:
                    await store.release(leases)
            finally:
                await store.close()

    @property
    def _opened(self) -> EventStore:
        assert self._store is not None, "the state is not open"
        return self._store

    async def position(self) -> Offset | None:
        """Where the pipeline goes on; None at first."""
        return await self._opened.offset(self._position)

    async def move(self, position: Offset) -> None:
        """Everything up to there is with the sink.

        Raises:
            LeaseLost: another process has taken the pipeline over; nothing was moved.
        """
        async with self._opened.transaction(self._leases) as tx:
            await tx.set_offset(self._position, position)

    async def paused(self) -> bool:
        """Whether somebody paused it."""
        switch = await self._opened.offset(self._switch)
        return switch is not None and switch.position == 1

    async def pause(self, paused: bool) -> None:
        """Remember that somebody paused it, or let it go on; also while it is not open."""
        async with self._turn:
            opened = self._store is not None
            if not opened:
                await self._open()
            try:
                async with self._opened.transaction(self._leases) as tx:
                    await tx.set_offset(self._switch, Offset("paused", int(paused)))
            finally:
                if not opened:
                    await self._close()
