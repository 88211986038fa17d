"""Who a store writes as."""

from __future__ import annotations

import logging
from base64 import b32encode
from collections.abc import Callable

_log = logging.getLogger("synckit_streams.stores")


def new_origin(node: str, dice: Callable[[int], bytes]) -> str:
    """A node id with a new incarnation: `node@` and 40 random bits.

    A counter would not do: a copy of the store, started on another machine, would count on from the same number.
    """
    return f"{node}@{b32encode(dice(5)).decode().lower()}"


def warn_of_other_node(store: str, before: str, node: str) -> None:
    """Say in the log of the program that a store changes hands: its new node writes under an incarnation of its own."""
    if before and before != node:
        _log.warning(
            "%s was last opened by node %s; node %s goes on with it, as a new incarnation", store, before, node
        )
