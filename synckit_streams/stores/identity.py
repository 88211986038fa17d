"""Who a store writes as."""

from __future__ import annotations

import logging
from base64 import b32encode
from collections.abc import Callable

import msgspec

_log = logging.getLogger("synckit_streams.stores")


def new_origin(node: str, dice: Callable[[int], bytes]) -> str:
    """A node id with a new incarnation: `node@` and 40 random bits.

    A counter would not do: a copy of the store, started on another machine, would count on from the same number.
    """
    return f"{node}@{b32encode(dice(5)).decode().lower()}"


def nodes_of(noted: str, last: str, node: str) -> tuple[str, ...]:
    """The nodes that a store has been, the present one last.

    Args:
        noted: What `noted_nodes` gave at the last open; "" if nobody has noted them yet.
        last: The node that had it then; "" for a new store.
        node: The one that has it now.
    """
    before = msgspec.json.decode(noted, type=list[str]) if noted else [last] * bool(last)
    return (*(each for each in before if each != node), node)


def known_nodes(noted: str, last: str) -> tuple[str, ...]:
    """The nodes that a store has been, for somebody who only looks; see `nodes_of`."""
    return nodes_of(noted, last, last) if last else ()


def noted_nodes(nodes: tuple[str, ...]) -> str:
    """As text, for the store to keep."""
    return msgspec.json.encode(nodes).decode()


def warn_of_other_node(store: str, before: str, node: str) -> None:
    """Say in the log of the program that a store changes hands: its new node writes under an incarnation of its own."""
    if before and before != node:
        _log.warning(
            "%s was last opened by node %s; node %s goes on with it, as a new incarnation", store, before, node
        )
