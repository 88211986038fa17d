"""Binary mode: the attributes in message headers, and the payload, untouched, in the body."""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Mapping
from functools import lru_cache

from synckit_streams.model.clock import COUNTER_MAX
from synckit_streams.model.cloudevent.attributes import (
    ATTRIBUTES,
    BYTES_TYPE,
    JSON_TYPE,
    SCHEMA_VERSION_MAX,
    SOURCE_CHARS_MAX,
    SPEC_VERSION,
    TEXTS,
    base64_of,
    from_attributes,
    from_header_value,
    from_source,
    is_json,
    millisecond,
    to_attributes,
    to_header_value,
    to_source,
    wrong,
)
from synckit_streams.model.codec import HASH_BYTES
from synckit_streams.model.event import Event

PREFIX = "ce-"
KAFKA_PREFIX = "ce_"


@lru_cache(maxsize=16)
def _header_names(prefix: str) -> dict[str, str]:
    return {name: prefix + name for name in ATTRIBUTES}


def to_headers(event: Event, hash: bytes, *, prefix: str = PREFIX, content_type: str = "") -> dict[str, str]:
    """The headers of an event in binary mode; the message's body is `event.payload` as it is.

    Args:
        event: The event.
        hash: Its `event_hash`, which travels with it.
        prefix: Of the header names. `ce-` (NATS, HTTP) makes every value printable ASCII by percent-encoding; `ce_`
            (Kafka) leaves the text, to be sent in UTF-8, as that binding has it.
        content_type: Name of the header that says what the payload is. "" takes what the binding says: the attribute
            like any other under `ce-`, as NATS wants it, and `content-type` under `ce_`. HTTP wants `content-type`.

    Raises:
        Invalid: the event has a text with a lone surrogate, or a time beyond the calendar.
    """
    if prefix == PREFIX and not content_type and (headers := _to_plain_headers(event, hash)) is not None:
        return headers
    attributes = to_attributes(event, hash)
    names = _header_names(prefix)
    if prefix == KAFKA_PREFIX:
        content_type = content_type or "content-type"
    else:
        for name in TEXTS:
            if name in attributes:
                attributes[name] = to_header_value(attributes[name])
    found = {names[name]: value for name, value in attributes.items()}
    found[content_type or names["datacontenttype"]] = JSON_TYPE if is_json(event.payload) else BYTES_TYPE
    return found


def _to_plain_headers(event: Event, hash: bytes) -> dict[str, str] | None:
    """What `to_headers` gives for an event whose texts need no encoding, in half the time; None for any other."""
    text = f"{event.id}{event.type}{event.aggregate_id}{event.traceparent}{event.topic}{event.origin}"
    if (
        not (text.isascii() and text.isprintable())
        or " " in text
        or '"' in text
        or "%" in text
        or event.metadata_json
        or not 0 <= event.at_packed <= COUNTER_MAX
        or "%" in (source := to_source(event.topic, event.origin))
    ):
        return None
    headers = {
        "ce-specversion": SPEC_VERSION,
        "ce-id": event.id,
        "ce-source": source,
        "ce-type": event.type,
        "ce-subject": event.aggregate_id,
        "ce-time": millisecond(event.at_packed >> 16),
        "ce-skseq": str(event.seq),
        "ce-skprev": str(event.prev),
        "ce-skhlc": str(event.at_packed),
        "ce-skver": str(event.schema_version),
        "ce-skhash": hash.hex(),
    }
    if event.context_bytes:
        headers["ce-skctx"] = base64_of(event.context_bytes)
    if event.after_bytes:
        headers["ce-skafter"] = base64_of(event.after_bytes)
    if event.traceparent:
        headers["ce-traceparent"] = event.traceparent
    headers["ce-datacontenttype"] = JSON_TYPE if is_json(event.payload) else BYTES_TYPE
    return headers


def from_headers(headers: Mapping[str, str], body: bytes, *, prefix: str = PREFIX) -> tuple[Event, bytes]:
    """The event of a message in binary mode, and the hash that its sender claims; compare it with `event_hash`.

    Args:
        headers: The message's headers. Their names may have changed case on the way. Others than ours are ignored.
        body: The message's body.
        prefix: See `to_headers`.

    Raises:
        FrameMalformed: an attribute is missing or unreadable; the message names it.
    """
    if prefix == PREFIX and (found := _from_plain_headers(headers, body)) is not None:
        return found
    encoded = prefix != KAFKA_PREFIX
    names = _header_names(prefix)
    if names["specversion"] not in headers:
        headers = {name.lower(): value for name, value in headers.items()}
    attributes: dict[str, str] = {}
    name = ""  # of the attribute being read, for the error
    try:
        for name, header in names.items():
            value = headers.get(header)
            if value is None:
                continue
            if encoded and ("%" in value or '"' in value):
                value = from_header_value(value)
            if not value.isascii():
                value.encode()  # a lone surrogate would have no hash
            attributes[name] = value
    except ValueError as error:
        raise wrong(name, f"is unreadable: {error}") from error
    return from_attributes(attributes, body)


def _from_plain_headers(headers: Mapping[str, str], body: bytes) -> tuple[Event, bytes] | None:
    """What `from_headers` gives for what `_to_plain_headers` made, in half the time; None for any other.

    None also for what is wrong: the long way finds out what it is.
    """
    get = headers.get
    try:
        id, source, type, subject = headers["ce-id"], headers["ce-source"], headers["ce-type"], headers["ce-subject"]
        seq_text, prev_text, at_text = headers["ce-skseq"], headers["ce-skprev"], headers["ce-skhlc"]
        version_text, claimed = headers["ce-skver"], headers["ce-skhash"]
        context, after, traceparent = get("ce-skctx", ""), get("ce-skafter", ""), get("ce-traceparent", "")
        digits = f"{seq_text}{prev_text}{at_text}{version_text}"
        text = f"{id}{type}{subject}{traceparent}{source}{context}{after}"
        if (
            not (id and type and subject and digits.isascii() and digits.isdecimal() and text.isascii())
            or "%" in text
            or '"' in text
            or len(digits) > 80
            or len(source) > SOURCE_CHARS_MAX
            or len(claimed) != 2 * HASH_BYTES
            or headers["ce-specversion"] != SPEC_VERSION
            or "ce-skmeta" in headers
        ):
            return None
        seq, prev, at_packed, version = int(seq_text), int(prev_text), int(at_text), int(version_text)
        hash = bytes.fromhex(claimed)
        topic, origin = from_source(source)
        context_bytes = a2b_base64(context, strict_mode=True) if context else b""
        after_bytes = a2b_base64(after, strict_mode=True) if after else b""
    except (KeyError, ValueError):
        return None
    if (
        # A leading zero would be lost on the way to the number and back.
        f"{seq}{prev}{at_packed}{version}" != digits
        or not 0 < seq <= COUNTER_MAX
        or prev > COUNTER_MAX
        or at_packed > COUNTER_MAX
        or version > SCHEMA_VERSION_MAX
        or len(hash) != HASH_BYTES
        or get("ce-time") != millisecond(at_packed >> 16)
    ):
        return None
    event = Event(
        id, topic, type, subject, body, b"", origin, seq, prev, context_bytes, after_bytes, at_packed, version,
        traceparent,
    )  # fmt: skip
    return event, hash
