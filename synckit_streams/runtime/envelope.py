"""Events as a broker's messages, and messages as arrivals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

import msgspec

from synckit_streams.errors import SyncKitError, TooLarge
from synckit_streams.model.clock import COUNTER_MAX
from synckit_streams.model.cloudevent import from_headers, to_headers
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Event
from synckit_streams.model.exchange import Arrival, Place
from synckit_streams.model.frame import pack, unpack
from synckit_streams.ports.connector import Message

PACKINGS = ("event", "batch")
FRAME_HEADER = "sk-frame"
FRAME_EVENTS = 500
FRAME_BYTES = 256 * 1024
HEADROOM_BYTES = 1024
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""Above this a message is none of ours, and is not decoded."""
RAW_BYTES_MAX = 64 * 1024
"""So much is kept of a message above that limit."""
FINGERPRINT_BYTES = 16
HASH_HEADER = "ce-skhash"
WRONG_HASH = "the event does not match its hash"

_FRAME_HEADERS = {"content-type": "application/vnd.synckit.frame+msgpack", FRAME_HEADER: "1"}


class Parcel(msgspec.Struct, frozen=True, gc=False):
    """A message, and which events are in it: so many of one origin, numbered from `first` on."""

    message: Message
    first: Event
    events: int


def to_messages(events: Sequence[tuple[Event, bytes]], *, packing: str, round_id: str, bytes_max: int) -> list[Parcel]:
    """Events with their hashes, as messages.

    Args:
        events: In the order in which they are sent.
        packing: "event": one message each, a CloudEvent in binary mode. "batch": packed frames.
        round_id: Differs for each publication: the broker's duplicate window must not swallow a second one.
        bytes_max: The broker's largest message.
    """
    if packing == "batch":
        return [_frame(frame, round_id) for frame in _frames(events, min(FRAME_BYTES, bytes_max - HEADROOM_BYTES))]
    parcels: list[Parcel] = []
    # A character is at most twelve in a header, and the names are bounded: below this no message is too large.
    room = bytes_max - 16 * 1024
    for event, hash in events:
        headers = to_headers(event, hash)
        payload = event.payload
        texts = len(event.aggregate_id) + len(event.metadata_json) + len(event.context_bytes) + len(event.after_bytes)
        if len(payload) + 12 * texts > room and _size(headers, payload) > bytes_max:
            # Percent-encoding can triple a long aggregate id; a frame carries it as it is.
            parcels.append(_frame([(event, hash)], round_id))
            continue
        message = Message(f"{headers[HASH_HEADER][:32]}.{round_id}", event.aggregate_id, headers, payload)
        parcels.append(Parcel(message, event, 1))
    return parcels


def _size(headers: Mapping[str, str], payload: bytes) -> int:
    return len(payload) + sum(map(len, headers)) + sum(map(len, headers.values())) + HEADROOM_BYTES


def _frame(events: Sequence[tuple[Event, bytes]], round_id: str) -> Parcel:
    first, hash = events[0]
    # Order per aggregate is not the broker's to keep: what is early is held. So a frame may go to any partition.
    message = Message(f"{hash[:16].hex()}.{len(events)}.{round_id}", first.origin, _FRAME_HEADERS, pack(events))
    return Parcel(message, first, len(events))


def _frames(events: Sequence[tuple[Event, bytes]], bytes_max: int) -> Iterator[list[tuple[Event, bytes]]]:
    frame: list[tuple[Event, bytes]] = []
    size = 0
    for each in events:
        event = each[0]
        grows = (
            200 + len(event.payload) + len(event.context_bytes) + 4 * len(event.aggregate_id) + len(event.metadata_json)
        )
        if frame and (size + grows > bytes_max or len(frame) == FRAME_EVENTS):
            yield frame
            frame, size = [], 0
        frame.append(each)
        size += grows
    if frame:
        yield frame


def arrivals(message: Message, topic: str, place: Place | None) -> list[Arrival]:
    """What a message brought. Never raises: what cannot be read is an arrival with a reason, for quarantine."""
    headers = message.headers
    try:
        if len(message.body) > MESSAGE_BYTES_MAX:
            raise TooLarge(f"a message of {len(message.body)} bytes; at most {MESSAGE_BYTES_MAX} are read")
        if FRAME_HEADER in headers:
            whole, broken = unpack(message.body)
        else:
            event, hash = from_headers(headers, message.body)
            right = event_hash(event) == hash
            if right and event.topic == topic:
                return [Arrival(event, hash, place)]
            whole, broken = ([(event, hash)], []) if right else ([], [WRONG_HASH])
    except SyncKitError as error:
        whole, broken = [], [str(error)]
    found = [
        Arrival(event, hash, place) for event, hash in whole if event.topic == topic and 0 < event.seq <= COUNTER_MAX
    ]
    if len(found) < len(whole):
        others = {event.topic for event, _ in whole if event.topic != topic}
        broken += [f"an event of the topic {other!r} in the log of {topic!r}" for other in sorted(others)]
        # Without a number it has no key, so not even its refusal could be told by name.
        broken += [
            f"the number {event.seq} is outside [1, 2^63)" for event, _ in whole if not 0 < event.seq <= COUNTER_MAX
        ]
    if broken:
        # One arrival for all of them: the whole message is kept, and is not to be kept five hundred times.
        reason = broken[0] if len(broken) == 1 else f"{len(broken)} events left out; the first one: {broken[0]}"
        found.append(Arrival(None, b"", place, as_text(message), reason))
    return found


def as_text(message: Message) -> bytes:
    """A message as bytes that a person can read: its headers, an empty line, its body."""
    body = message.body if len(message.body) <= MESSAGE_BYTES_MAX else message.body[:RAW_BYTES_MAX]
    lines = [f"{name}: {value}" for name, value in message.headers.items()]
    return "\n".join([*lines, "", ""]).encode(errors="backslashreplace") + body


def fingerprint(message: Message) -> bytes:
    """What tells a message from every other one: to notice a log that was put back and written again.

    Its id is part of that. An event that is published again is the same bytes, and may come to lie just where it lay
    before; what lay before it may not. Headers that not every wire carries alike (none of ours) are left out: the
    message read back must not look like another one.
    """
    digest = sha256(message.body)
    digest.update(f"\n{message.id}".encode(errors="backslashreplace"))
    for name, value in sorted(message.headers.items()):
        if name.isascii() and value.isascii() and name.isprintable() and value.isprintable():
            digest.update(f"\n{name}: {value.strip()}".encode())
    return digest.digest()[:FINGERPRINT_BYTES]


def traces_of(events: Iterable[Event]) -> list[str]:
    """The different trace contexts that some events carry, in order of first appearance."""
    found = dict.fromkeys([event.traceparent for event in events])
    found.pop("", None)
    return list(found)
