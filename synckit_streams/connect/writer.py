"""Who writes to a store for a pipeline: the pipeline as the store's node, or the node that has it open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from synckit_streams.errors import ConfigError, StoreInUse
from synckit_streams.model.event import Draft
from synckit_streams.runtime.door import append_counted
from synckit_streams.runtime.errand import Receipt
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.ownership import IN_FILES, check_is, draw_node_id, owner_of, scheme_of
from synckit_streams.runtime.visitor import Visitor
from synckit_streams.stores.sqlite import SqliteStore


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
    return draw_node_id("connect")


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
        try:
            check_is(about, node, option="node")
        except ConfigError:
            await visitor.close()
            raise
        return visitor
    return OwnWriter(made)
