"""Packed frames: many events in one message, which is where a broker's throughput comes from.

A frame is the MessagePack array `[1, hashes, [event, …]]`: the version, the event hashes end to end (32 bytes each),
and the events in canonical form. Each hash is checked by hashing the event anew, so a bit that flipped anywhere is
found, and costs that event alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from synckit_streams.errors import FrameMalformed
from synckit_streams.model.codec import HASH_BYTES
from synckit_streams.model.event import Event

FRAME_VERSION = 1
FRAME_EVENTS_MAX = 10_000

_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(tuple[int, bytes, list[Event]]).decode
_decode_parts = msgspec.msgpack.Decoder(tuple[int, bytes, list[msgspec.Raw]]).decode
_decode_event = msgspec.msgpack.Decoder(Event).decode


def pack(events: Sequence[tuple[Event, bytes]]) -> bytes:
    """One frame of events with their hashes."""
    return _encode((FRAME_VERSION, b"".join([each[1] for each in events]), [each[0] for each in events]))


def unpack(raw: bytes) -> tuple[list[tuple[Event, bytes]], list[str]]:
    """The events of a frame whose hash is right, and a reason for each one that had to be left out.

    Raises:
        FrameMalformed: not a frame, cut off, of another version, or with another number of hashes than events.
    """
    broken: list[str] = []
    events: Sequence[Event | None]
    try:
        version, hashes, events = _decode_frame(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        version, hashes, events = _salvage(raw)
    if version != FRAME_VERSION:
        raise FrameMalformed(f"a frame of version {version}; this release reads {FRAME_VERSION}")
    if len(hashes) != HASH_BYTES * len(events):
        raise FrameMalformed(f"a frame of {len(events)} events with {len(hashes)} bytes of hashes")
    if len(events) > FRAME_EVENTS_MAX:
        raise FrameMalformed(f"a frame of {len(events)} events; at most {FRAME_EVENTS_MAX} are allowed")
    whole: list[tuple[Event, bytes]] = []
    for at, event in enumerate(events):
        claimed = hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]
        if event is None:
            broken.append(f"event {at} of the frame does not decode")
        elif sha256(_encode(event)).digest() != claimed:
            broken.append(f"event {at} of the frame does not match its hash")
        else:
            whole.append((event, claimed))
    return whole, broken


def _salvage(raw: bytes) -> tuple[int, bytes, list[Event | None]]:
    """A frame in which some event does not decode: the others, and None for each of those."""
    try:
        version, hashes, parts = _decode_parts(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FrameMalformed(f"not a frame: {error}") from error
    events: list[Event | None] = []
    for part in parts:
        try:
            events.append(_decode_event(part))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
            events.append(None)
    return version, hashes, events
