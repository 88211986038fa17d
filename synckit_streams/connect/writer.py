"""Who writes to a store for a pipeline: the pipeline as the store's node, or the node that has it open."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import Protocol

from synckit_streams.errors import ConfigError, StoreInUse, StoreMissing
from synckit_streams.model.event import Draft
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.runtime.door import append_counted
from synckit_streams.runtime.errand import Receipt
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.registry import store_for
from synckit_streams.runtime.visitor import Visitor
from synckit_streams.stores.sqlite import SqliteStore

IN_FILES = ("sqlite", "rocksdb")
"""Stores that one process has to itself, so that a node id drawn here is remembered by whoever opens them next."""


class Writer(Protocol):
    """Whoever writes."""

    async def append(self, drafts: Sequence[Draft]) -> Receipt: ...

    async def close(self) -> None: ...


class OwnWriter:
    """The pipeline is the node."""

    def __init__(self, node: SyncNode) -> None:
        self._node = node

    async def append(self, drafts: Sequence[Draft]) -> Receipt:
        """One durable commit."""
        return await append_counted(self._node, drafts)

    async def close(self) -> None:
        """A clean close."""
        await self._node.close()


class Reader:
    """A store that is looked at, beside whoever writes it."""

    @staticmethod
    async def open(url: str) -> EventStore:
        """The store, opened for reading only.

        Raises:
            StoreMissing: there is none.
        """
        store = store_for(url, read_only=True)
        await store.open(Opening(node="reader", topics=None, dice=os.urandom))
        return store


def scheme_of(url: str) -> str:
    """Of a URL, in lower case."""
    return url.partition(":")[0].lower()


async def owner_of(url: str) -> str:
    """The node whose store it is; "" for a new store."""
    try:
        store = await Reader.open(url)
    except StoreMissing:
        return ""
    try:
        return store.nodes[-1] if store.nodes else ""
    finally:
        await store.close()


async def node_id_for(url: str, given: str) -> str:
    """The id under which a store is opened: the one that is given, the store's own, or for a new one any.

    Raises:
        ConfigError: the store is shared, so that it would not be remembered whose it is.
    """
    if given:
        return given
    if scheme_of(url) != "memory":
        if owner := await owner_of(url):
            return owner
        if scheme_of(url) not in IN_FILES:
            raise ConfigError("nobody says whose the store is", hint="give the pipeline's store a node: an id")
    # Not the host's name: it would travel to every peer, with every event.
    return "connect-" + "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(8))


async def open_writer(url: str, node: str) -> Writer:
    """A store, to be written: as its node if nobody has it open, and otherwise through the node that has.

    Raises:
        StoreInUse: a node has it, and opens no door.
        ConfigError: the node that has it is another one than was named.
    """
    try:
        made = SyncNode(await node_id_for(url, node), store=url)
        await made.open()
    except StoreInUse:
        path = SqliteStore(url, read_only=True).path if scheme_of(url) == "sqlite" else None
        visitor = await Visitor.knock(path) if path is not None else None
        if visitor is None:
            raise
        about = await visitor.about()
        if node and node != about.node:
            await visitor.close()
            raise ConfigError(
                f"the store is open as the node {about.node!r} (process {about.process}), not as {node!r}",
                hint="leave node out, or close that node first",
            ) from None
        return visitor
    return OwnWriter(made)
