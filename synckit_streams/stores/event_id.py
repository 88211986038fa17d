"""How an event is found by its id: by a hash, since an id may be anything."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from struct import Struct

_int64 = Struct(">q").unpack


def id_hash(id: str) -> int:
    """A signed 64-bit hash of an event's id. Of a UUIDv7 it is the part that ascends, so that the index
    grows at its end.

    Not keyed: whoever aims for a collision makes a look-up compare a few more ids, nothing else.
    """
    head = id[:15]
    base = _id_base(head) if len(id) == 36 and id[14] == "7" else None
    low = HEX_DIGITS.get(id[15:18])
    if base is None or low is None:
        found: int = _int64(blake2b(id.encode(), digest_size=8).digest())[0]
        return found
    return base + low


HEX_DIGITS = {f"{number:03x}": number for number in range(1 << 12)}


@lru_cache(maxsize=64)  # thousands of ids in a row begin alike
def _id_base(head: str) -> int | None:
    """The hash of a UUIDv7 whose last three digits, of the first sixteen, are 0."""
    digits = head.replace("-", "")
    if len(digits) != 13 or not digits.isascii() or not digits.isalnum():
        return None
    try:
        return (int(digits, 16) << 12) - (1 << 63)
    except ValueError:
        return None
