"""Events as FastStream's messages: ours and other people's CloudEvents come in, and events go out as CloudEvents."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from synckit_streams.app.faststream_internals import Single, StreamMessage, encode_message, is_batch, singles
from synckit_streams.errors import PayloadUndecodable, SyncKitError, Unfit
from synckit_streams.model.cloudevent import KAFKA_PREFIX, PREFIX, from_headers, from_structured, to_structured
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Draft, Event

STRUCTURED = "application/cloudevents+json"
FRAME_HEADER = "sk-frame"
KEY_CHARS_MAX = 500
"""A longer key is kept as its hash."""


class EventCodec:
    """`KafkaBroker(codec=EventCodec())`, or of one subscriber: `@broker.subscriber("orders", codec=EventCodec())`.

    In: of an event of ours or another CloudEvent, in binary or structured mode, the handler gets the data, as its
    model; of any other message its body, which must be JSON. Out: an `Event` becomes a CloudEvent in structured mode;
    anything else is encoded as FastStream does.

    Args:
        events: The handler takes `Event` (in a batch `list[Event]`) in place of the data.
    """

    def __init__(self, *, events: bool = False) -> None:
        self._events = events

    async def decode(self, msg: StreamMessage[Any]) -> Any:
        """FastStream's: one message, or a batch on Redis.

        Raises:
            Unfit: it is no JSON, or a frame of many events.
        """
        if is_batch(msg):
            return await self.decode_batch(msg)
        return self._decoded(singles(msg)[0])

    async def decode_batch(self, msg: StreamMessage[Any]) -> list[Any]:
        """FastStream's: those of a batch."""
        return [self._decoded(each) for each in singles(msg)]

    def _decoded(self, single: Single) -> Any:
        if FRAME_HEADER in single.headers:
            raise Unfit("a packed frame of many events", hint='let its node send them with packing="event"')
        _, event = read(single)
        if self._events:
            return event
        try:
            return event.data
        except PayloadUndecodable as error:
            raise Unfit(error.message) from error

    async def encode(self, msg: Any, serializer: Any = None) -> tuple[bytes, str | None]:
        """FastStream's: what is published.

        Raises:
            Unfit: a Draft, which becomes an event only in a store.
        """
        if isinstance(msg, Event):
            return to_structured(msg, event_hash(msg)), STRUCTURED
        if isinstance(msg, Draft):
            raise Unfit(
                "a Draft is no event yet", hint="return it from a handler under an Inbox, or node.append(draft)"
            )
        return encode_message(msg, serializer)

    async def encode_batch(self, msgs: Sequence[Any], serializer: Any = None) -> list[tuple[bytes, str | None]]:
        """FastStream's: several."""
        return [await self.encode(each, serializer) for each in msgs]


def read(single: Single) -> tuple[str | None, Event]:
    """A message's key in the inbox, and the event in it; see `Delivery`."""
    event = _ours(single)
    if event is not None:
        # By the id alone: a fact that two nodes wrote while offline has one id and two keys.
        return _short(f"{event.topic}/{event.id}"), event
    named = _others(single)
    key = _short("|".join(named[:2])) if named else _short(single.position) if single.position else None
    payload = named[2] if named else single.body
    return key, Event(
        key or "", single.source, single.headers.get(f"{PREFIX}type", ""), key or single.source, payload, b"", "", 0, 0,
        b"", b"", 0, 0, single.headers.get("traceparent", ""),
    )  # fmt: skip


def _ours(single: Single) -> Event | None:
    """An event of ours, whole and unchanged."""
    headers = {name.lower(): value for name, value in single.headers.items()}
    try:
        if f"{PREFIX}skhash" in headers:
            event, hash = from_headers(headers, single.body)
        elif f"{KAFKA_PREFIX}skhash" in headers:
            event, hash = from_headers(headers, single.body, prefix=KAFKA_PREFIX)
        elif headers.get("content-type", "").startswith(STRUCTURED) and b'"skhash"' in single.body:
            event, hash = from_structured(single.body)
        else:
            return None
    except SyncKitError:
        return None  # then it is somebody's message like any other
    return event if event_hash(event) == hash else None


class _CloudEvent(msgspec.Struct):
    source: str
    id: str
    data: msgspec.Raw = msgspec.Raw(b"null")


def _others(single: Single) -> tuple[str, str, bytes] | None:
    """Source, id and data of a CloudEvent of somebody else's."""
    headers = {name.lower(): value for name, value in single.headers.items()}
    for prefix in (PREFIX, KAFKA_PREFIX):
        if f"{prefix}id" in headers and f"{prefix}source" in headers:
            return headers[f"{prefix}source"], headers[f"{prefix}id"], single.body
    if headers.get("content-type", "").startswith(STRUCTURED):
        try:
            found = msgspec.json.decode(single.body, type=_CloudEvent)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return found.source, found.id, bytes(found.data)
    return None


def _short(key: str) -> str:
    return key if len(key) <= KEY_CHARS_MAX else f"sha256:{sha256(key.encode()).hexdigest()}"
