"""Who a store writes as."""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Callable


def new_origin(node: str, dice: Callable[[int], bytes]) -> str:
    """A node id with a new incarnation: `node@` and 40 random bits.

    A counter would not do: a copy of the store, started on another machine, would count on from the same number.
    """
    return f"{node}@{b32encode(dice(5)).decode().lower()}"
