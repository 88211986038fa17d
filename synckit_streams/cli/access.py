"""How a command gets at a store: to read it, beside whoever writes it; or to write to it, as its node or through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.markup import escape

from synckit_streams.cli.terminal import note
from synckit_streams.errors import ConfigError, StoreInUse
from synckit_streams.model.event import Draft
from synckit_streams.ports.telemetry import Observer
from synckit_streams.runtime.door import append_counted
from synckit_streams.runtime.errand import Receipt
from synckit_streams.runtime.link import link_name
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.ownership import check_is, draw_node_id, owner_of, scheme_of, shown
from synckit_streams.runtime.registry import connector_for
from synckit_streams.runtime.result import SyncResult
from synckit_streams.runtime.switch import Want
from synckit_streams.runtime.visitor import Visitor
from synckit_streams.stores.sqlite import SqliteStore

KNOCK_S = 3.0
"""How long to wait for a node that has the file and opens no door: it may just be opening, or closing."""

StoreUrl = Annotated[str, typer.Option("--store", metavar="URL", help="The node's store, e.g. sqlite:///till.db")]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE_URL", help="A store, e.g. sqlite:///till.db")]
NodeName = Annotated[
    str | None,
    typer.Option(
        "--node",
        metavar="ID",
        help="The node id, unique among the nodes that share topics. A store remembers it.",
        show_default=False,
    ),
]
ConnectorUrl = Annotated[
    str | None,
    typer.Option("--connector", metavar="URL", help="The broker, e.g. nats://127.0.0.1:4222", show_default=False),
]


def file_of(url: str) -> Path | None:
    """The file of a store URL; None when it is no store in a file.

    Raises:
        ConfigError: a wrong URL of a file.
    """
    return SqliteStore(url, read_only=True).path if url.lower().startswith("sqlite:") else None


async def check_closed(url: str) -> None:
    """That no node has the store open, as far as it says so itself.

    Raises:
        StoreInUse: one has.
    """
    path = file_of(url)
    visitor = await Visitor.knock(path) if path is not None else None
    if visitor is not None:
        async with visitor:
            about = await visitor.about()
        raise StoreInUse(
            f"{path} is open as the node {about.node!r} (process {about.process})", hint="close that node first"
        )


class Writer(Protocol):
    """Whoever writes to the store for a command."""

    @property
    def node_id(self) -> str: ...

    async def append(self, drafts: Sequence[Draft]) -> Receipt: ...

    async def sync(self, *, timeout_s: float) -> SyncResult: ...

    async def switch(self, projections: Sequence[str], what: Want, *, position: int = 0) -> None: ...


class OwnNode:
    """The command itself is the node, for as long as it runs."""

    def __init__(self, node: SyncNode) -> None:
        self.node = node
        self.node_id = node.node_id

    async def append(self, drafts: Sequence[Draft]) -> Receipt:
        """One durable commit."""
        return await append_counted(self.node, drafts)

    async def sync(self, *, timeout_s: float) -> SyncResult:
        """One meeting."""
        return await self.node.sync(timeout_s=timeout_s)

    async def switch(self, projections: Sequence[str], what: Want, *, position: int = 0) -> None:
        """Kept in the store when it returns."""
        await self.node.switch(projections, what, position=position)


class RunningNode:
    """A node that runs in another process, and lets us in."""

    def __init__(self, visitor: Visitor, node_id: str) -> None:
        self.visitor = visitor
        self.node_id = node_id

    async def append(self, drafts: Sequence[Draft]) -> Receipt:
        """Durable when it returns."""
        return await self.visitor.append(drafts)

    async def sync(self, *, timeout_s: float) -> SyncResult:
        """One meeting, over the node's own connector."""
        return await self.visitor.sync(timeout_s=timeout_s)

    async def switch(self, projections: Sequence[str], what: Want, *, position: int = 0) -> None:
        """Kept in the store when it returns."""
        await self.visitor.switch(projections, what, position=position)


@asynccontextmanager
async def writing(
    url: str,
    *,
    node: str | None,
    topics: Sequence[str] = (),
    connectors: Sequence[str] = (),
    bridge: bool = False,
    group: str = "",
    observer: Observer | None = None,
    quiet: bool = False,
) -> AsyncIterator[Writer]:
    """A store, to be written: as its node if nobody has it open, and otherwise through the node that has.

    Args:
        url: Of the store.
        node: Its node id; None takes the one that it remembers, and draws one for a new store.
        topics: What the node replicates, if this command is the node.
        connectors: Its brokers. A running node has its own, and these must be among them.
        bridge: Whether it meets over all of them at once. A running node does, or does not.
        group: Of which consumer group it is a member, if this command is the node.
        observer: Told of what the node does, if this command is the node.
        quiet: Say nothing about how it goes (with `--json`).

    Raises:
        StoreInUse: a node has it, and opens no door.
        ConfigError: the running node is another one than was named, or syncs over another broker.
    """
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"topics": topics, "connectors": connectors, "group": group, "observer": observer}
        # Of too few brokers nothing is said before it is clear whose they are.
        settings["bridge"] = bridge and len(connectors) > 1
        own = await _take(stack, url, node, settings, quiet=quiet)
        yield own if own is not None else await _enter(stack, url, node, connectors, bridge=bridge, quiet=quiet)


async def _take(
    stack: AsyncExitStack,
    url: str,
    node: str | None,
    settings: Mapping[str, Any],
    *,
    quiet: bool,
) -> Writer | None:
    """The store as its node; None when another process has it and lets us in.

    Raises:
        StoreInUse: another process has it, and does not let us in.
    """
    path = file_of(url)
    deadline = asyncio.get_running_loop().time() + KNOCK_S
    while True:
        known = await owner_of(url)
        if path is None and not node and not known and not scheme_of(url) == "memory":
            # All processes of a node share such a store: what is drawn here the next one would not know.
            raise ConfigError(f"whose is {shown(url)}?", hint="say --node ID")
        node_id = node or known or draw_node_id("node")
        try:
            opened = SyncNode(node_id, store=url, **settings)
            await stack.enter_async_context(opened)
        except StoreInUse:
            visitor = await Visitor.knock(path) if path is not None else None
            if visitor is not None:
                await visitor.close()
                return None
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.1)
            continue
        if not node and not known:
            note(
                f"This store had no node yet: from now on it is [bold]{escape(node_id)}[/bold] (--node chooses)",
                quiet=quiet,
            )
        elif node and known and node != known:
            note(
                f"This store was the node [bold]{escape(known)}[/bold]; from now on it is [bold]{escape(node)}[/bold]",
                quiet=quiet,
            )
        return OwnNode(opened)


async def _enter(
    stack: AsyncExitStack, url: str, node: str | None, connectors: Sequence[str], *, bridge: bool, quiet: bool
) -> RunningNode:
    """The node that has the store open, as a visitor."""
    path = file_of(url)
    visitor = await Visitor.knock(path) if path is not None else None
    if visitor is None:
        raise StoreInUse(f"{path} was in use a moment ago, by a node that has just closed", hint="try again")
    await stack.enter_async_context(visitor)
    about = await visitor.about()
    check_is(about, node, option="--node")
    for connector in connectors:
        name = link_name(connector_for(connector), connector)
        if name not in about.connectors:
            raise ConfigError(
                f"the node {about.node!r} (process {about.process}) has the store open, and syncs over "
                f"{', '.join(about.connectors) or 'no connector'}, not over {name}",
                hint="leave --connector out, or close that node first",
            )
    if bridge and not about.bridge:
        raise ConfigError(
            f"the node {about.node!r} (process {about.process}) has the store open, and is no bridge",
            hint="leave --bridge out, or close that node first",
        )
    note(
        f"The node [bold]{escape(about.node)}[/bold] (process {about.process}) has the store open, and does it",
        quiet=quiet,
    )
    return RunningNode(visitor, about.node)
