"""What a key-value store must offer, for a `KeyValueStore` to live in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

Pair: TypeAlias = tuple[bytes, bytes]
"""A key and its value."""
Range: TypeAlias = tuple[bytes, bytes]
"""The keys from the first one on and before the second one."""

PAGE_BYTES = 8 * 1024 * 1024
"""A page ends when its values come to so much, however many were asked for."""


class Medium(Protocol):
    """Keys and values, both bytes, the keys in order. Called from two threads: one writes and reads, one only reads.

    What each call raises is the driver's own; the store translates it.
    """

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """The values of these keys, in one call; None where there is none."""

    def page(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Pair]:
        """The first `limit` pairs of a range, or the last ones, the last one first. It ends sooner when the values
        come to about `PAGE_BYTES`, but has at least one if there is one."""

    def pages(self, ranges: Sequence[Range]) -> list[list[Pair]]:
        """All pairs of each range, in one call; the ranges are small."""

    def commit(self, writes: Mapping[bytes, bytes | None]) -> None:
        """Put these values, and delete the keys whose value is None: all or nothing, and durable when it returns."""
