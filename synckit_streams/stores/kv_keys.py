"""How rows are named in a key-value medium: one letter for the table, then what they are found and sorted by.

Numbers are big-endian, so that the order of the keys is the order of the numbers. Text is UTF-8 with an end, so that no
name is the beginning of another one; a long one is its hash.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

META = b"m"
"""By name: who this store is, and how it was left."""
STREAM = b"s"
"""By the number of a stream: its topic and origin, and what is here of it."""
EVENT = b"e"
"""By position: the log."""
OF_KEY = b"k"
"""By stream and `seq`: positions, as runs (`kv_runs`)."""
OF_ID = b"i"
"""By the hash of an event's id: positions, as runs."""
OF_AGGREGATE = b"a"
"""By topic, aggregate id and position: an event of an aggregate."""
AGGREGATE = b"g"
"""By topic and aggregate id: that there is such an aggregate, and its whole id."""
HELD = b"h"
"""By hash: events that wait for a cause."""
QUARANTINE = b"q"
"""By number: what was set aside."""
UNREAD = b"u"
"""By the same number: that it could not be read, so that it may go when there are many."""
REFUSED = b"f"
"""By key: why an event is refused for good."""
VOID = b"v"
"""By key: nobody holds it any more."""
OFFSET = b"o"
"""By consumer: where it stands."""
PLACE = b"p"
"""By reader and number: a run of places."""
ALARM = b"l"
"""By kind and topic: what was raised."""
APPLIED = b"t"
"""By projection, topic and aggregate id: the state that it applied last."""

TEXT_BYTES = 64
"""A longer text is named by its hash."""

number = Struct(">Q").pack
"""A number from 0 to 2^64 - 1, in a key."""
number_of = Struct(">Q").unpack
stream = Struct(">I").pack
"""The number of a stream, in a key."""


def text(name: str) -> bytes:
    """A text in a key: no other text's begins like this one. Any text will do, half a surrogate pair included."""
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) > TEXT_BYTES:
        return b"#" + blake2b(raw, digest_size=20).hexdigest().encode() + b"\0"
    return b"=" + raw.replace(b"\0", b"\0\xff") + b"\0\0"


def end_of(prefix: bytes) -> bytes:
    """The least key after all those that begin with `prefix`."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1])


def event(position: int) -> bytes:
    """Of an event."""
    return EVENT + number(position)


def aggregate(topic: str, aggregate_id: str) -> bytes:
    """Of an aggregate, without its table's letter."""
    return text(topic) + text(aggregate_id)


def key(topic: str, origin: str, seq: int) -> bytes:
    """Of an event's key, without its table's letter."""
    return text(topic) + text(origin) + number(seq)
