"""What says which event, what caused it, and when: identities, version vectors and hybrid time.

Three questions, three types that never mix. A `Dot` (with its topic, a `Key`) says *which event*. A `VersionVector`
says *what its writer knew*. `HybridTime` serves display order and last-write-wins, and nothing else. None of them is a
place in a log: that is `Offset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from synckit_streams.errors import FrameMalformed, Invalid

COUNTER_MAX = 2**63 - 1
"""Largest sequence number or position; what a signed 64-bit column holds."""

WALL_MS_MAX = 2**47 - 1
"""Largest wall time, in milliseconds since 1970 (the year 6429); with 16 bits of counter it fits a signed 64-bit."""


class Order(Enum):
    """How two events or two vectors stand to each other. It is never a number: CONCURRENT has no place on a line."""

    BEFORE = "before"
    AFTER = "after"
    EQUAL = "equal"
    CONCURRENT = "concurrent"


class Dot(NamedTuple):
    """Which event this is within its topic: the writer's origin and its gap-free sequence number, from 1."""

    origin: str
    seq: int


class Key(NamedTuple):
    """Which event this is, anywhere: the identity in every unique index, header and message id."""

    topic: str
    origin: str
    seq: int

    @property
    def dot(self) -> Dot:
        """The key within its topic."""
        return Dot(self.origin, self.seq)


class HybridTime(NamedTuple):
    """A hybrid logical clock: wall milliseconds since 1970, and a counter for what happens within one of them.

    Source: Kulkarni et al., "Logical Physical Clocks", 2014.
    """

    wall_ms: int
    counter: int

    @property
    def packed(self) -> int:
        """Both in one integer that sorts the same way: `wall_ms << 16 | counter`.

        Raises:
            Invalid: a part that does not fit: the counter into 16 bits, the wall time into `WALL_MS_MAX`.
        """
        if not (0 <= self.wall_ms <= WALL_MS_MAX and 0 <= self.counter < 1 << 16):
            raise Invalid(f"{self} does not fit into 63 bits")
        return self.wall_ms << 16 | self.counter

    @classmethod
    def from_packed(cls, packed: int) -> HybridTime:
        """The reverse of `packed`.

        Raises:
            Invalid: negative, or beyond `WALL_MS_MAX`.
        """
        if not 0 <= packed <= COUNTER_MAX:
            raise Invalid(f"hybrid time {packed} is outside [0, 2^63)")
        return cls(packed >> 16, packed & 0xFFFF)


_encode = msgspec.msgpack.Encoder().encode
_decode_vector = msgspec.msgpack.Decoder(list[tuple[str, int]]).decode
_decode_keys = msgspec.msgpack.Decoder(list[tuple[str, str, int]]).decode


class VersionVector(Mapping[str, int]):
    """For each origin, how far its writer had seen: the *cause* of an event. Immutable.

    An origin that is absent stands at 0. The canonical bytes are a MessagePack array of `[origin, seq]`, sorted by
    origin; the empty vector is the empty string.
    """

    __slots__ = ("_counters",)

    def __init__(self, counters: Mapping[str, int] | Iterable[tuple[str, int]] = ()) -> None:
        self._counters: dict[str, int] = {}
        for origin, seq in dict(counters).items():
            if type(seq) is not int or not 0 <= seq <= COUNTER_MAX:
                raise Invalid(f"counter {seq!r:.80} of {origin!r:.80} is not an integer in [0, 2^63)")
            if seq:
                self._counters[origin] = seq

    def __getitem__(self, origin: str) -> int:
        return self._counters[origin]

    def __iter__(self) -> Iterator[str]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)

    def __hash__(self) -> int:
        return hash(frozenset(self._counters.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VersionVector) and self._counters == other._counters

    def __repr__(self) -> str:
        return f"VersionVector({dict(sorted(self._counters.items()))})"

    def covers(self, dot: Dot) -> bool:
        """Whether the holder of this vector knew the event: one look-up, whatever the number of writers."""
        return self._counters.get(dot.origin, 0) >= dot.seq

    def merge(self, other: VersionVector) -> VersionVector:
        """The least vector that covers both."""
        merged = dict(self._counters)
        for origin, seq in other._counters.items():
            if merged.get(origin, 0) < seq:
                merged[origin] = seq
        return VersionVector(merged)

    def with_dot(self, dot: Dot) -> VersionVector:
        """This vector, and the event."""
        return self.merge(VersionVector({dot.origin: dot.seq}))

    def compare(self, other: VersionVector) -> Order:
        """How this vector stands to another; BEFORE means that the other one knows more."""
        ours = any(seq > other._counters.get(origin, 0) for origin, seq in self._counters.items())
        theirs = any(seq > self._counters.get(origin, 0) for origin, seq in other._counters.items())
        if ours and theirs:
            return Order.CONCURRENT
        if ours:
            return Order.AFTER
        return Order.BEFORE if theirs else Order.EQUAL

    def to_bytes(self) -> bytes:
        """The canonical bytes."""
        return vector_bytes(self._counters)

    @classmethod
    def from_bytes(cls, raw: bytes) -> VersionVector:
        """The reverse of `to_bytes`.

        Raises:
            FrameMalformed: not the bytes of a vector, or not the canonical ones.
            Invalid: a counter outside [0, 2^63).
        """
        if not raw:
            return cls()
        try:
            pairs = _decode_vector(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FrameMalformed(f"a version vector does not decode: {error}") from error
        vector = cls(pairs)
        if vector_bytes(vector._counters) != raw:
            raise FrameMalformed("a version vector is not in its canonical form")
        return vector


def vector_bytes(counters: Mapping[str, int]) -> bytes:
    """The canonical bytes of a version vector given as a mapping without zeros; see `VersionVector`.

    Raises:
        Invalid: an origin with a lone surrogate.
    """
    try:
        return _encode(sorted(counters.items())) if counters else b""
    except UnicodeEncodeError as error:
        raise Invalid(f"an origin in a version vector is not Unicode text: {error}") from error


def keys_bytes(keys: Iterable[Key]) -> bytes:
    """The canonical bytes of a tuple of keys (`Event.after`): sorted, without repeats; none is the empty string.

    Raises:
        Invalid: a name with a lone surrogate, or a number beyond 64 bits.
    """
    unique = sorted(set(keys))
    try:
        return _encode(unique) if unique else b""
    except (UnicodeEncodeError, OverflowError) as error:
        raise Invalid(f"a key cannot be written: {error}") from error


def keys_from_bytes(raw: bytes) -> tuple[Key, ...]:
    """The reverse of `keys_bytes`.

    Raises:
        FrameMalformed: not the canonical bytes of keys.
        Invalid: a number outside [1, 2^63); such a cause would never arrive.
    """
    if not raw:
        return ()
    try:
        keys = tuple(Key(*fields) for fields in _decode_keys(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FrameMalformed(f"a list of keys does not decode: {error}") from error
    if keys_bytes(keys) != raw:
        raise FrameMalformed("a list of keys is not in its canonical form")
    for key in keys:
        if not 1 <= key.seq <= COUNTER_MAX:
            raise Invalid(f"the number of {key} is outside [1, 2^63)")
    return keys
