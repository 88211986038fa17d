"""Whose a store is, and how it is looked at beside its node, for whoever has its URL and nothing else."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from synckit_streams.errors import ConfigError, StoreMissing
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.runtime.errand import About
from synckit_streams.runtime.registry import store_for

IN_FILES = ("sqlite", "rocksdb")
"""Stores that one process has to itself, so that a node id drawn here is remembered by whoever opens them next."""


def scheme_of(url: str) -> str:
    """Of a URL, in lower case."""
    return url.partition(":")[0].lower()


def shown(url: str) -> str:
    """A URL for people: without user, password and options."""
    scheme, colon, rest = url.partition("#")[0].partition("?")[0].partition("://")
    return f"{scheme}{colon}{rest if scheme.lower() in IN_FILES else rest.rpartition('@')[2]}"


async def open_reader(url: str | EventStore) -> EventStore:
    """A store, opened for reading only: also while a node writes it, and without taking anything from it.

    Args:
        url: Its URL, or the store itself, made for reading only.

    Raises:
        StoreMissing: there is no such store.
        StoreError: what is there is no store, or cannot be reached.
        ConfigError: not the URL of a store, or one that only its own process can read.
    """
    store = store_for(url, read_only=True)
    await store.open(Opening(node="reader", topics=None, dice=os.urandom))
    return store


@asynccontextmanager
async def reading(url: str | EventStore) -> AsyncIterator[EventStore]:
    """`open_reader`, for a block."""
    store = await open_reader(url)
    try:
        yield store
    finally:
        await store.close()


def node_of_store(store: EventStore) -> str:
    """The node that has an open store, or had it last; "" before its first."""
    return store.nodes[-1] if store.nodes else ""


async def owner_of(url: str) -> str:
    """The node that a store belongs to; "" when there is none yet, or no store."""
    if scheme_of(url) == "memory":
        return ""
    try:
        async with reading(url) as store:
            return node_of_store(store)
    except StoreMissing:
        return ""


def draw_node_id(kind: str) -> str:
    """An id for a node that nobody named.

    Args:
        kind: What it begins with.
    """
    # Not the host's name: it would travel to every peer, with every event.
    return f"{kind}-" + "".join(secrets.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(8))


def check_is(about: About, node: str | None, *, option: str) -> None:
    """That the node which has the store is the one that was meant.

    Args:
        about: Who has it.
        node: Who was meant; None or "" is anybody.
        option: How the caller calls what names the node.

    Raises:
        ConfigError: it is another one.
    """
    if node and node != about.node:
        raise ConfigError(
            f"the store is open as the node {about.node!r} (process {about.process}), not as {node!r}",
            hint=f"leave {option} out, or close that node first",
        )
