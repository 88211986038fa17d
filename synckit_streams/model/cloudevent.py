"""Events as CloudEvents 1.0 and back, and other people's CloudEvents as drafts.

An event of ours is a CloudEvent with extensions (`skseq`, `skhlc`, …) for what the core attributes have no room for, so
that the round trip gives the identical event: every hashed byte, and the hash that its sender claims. There are two
forms. *Binary mode* puts the attributes into message headers and the payload, untouched, into the body. *Structured
mode* is one JSON object, in which a JSON payload stands byte for byte.

What CloudEvents forbids in a text attribute (control characters, Unicode's noncharacters) we allow in ids, types and
aggregate ids. There it stands percent-encoded, and so does `%` itself; whoever percent-decodes gets our text back. The
header encoding of binary mode comes on top of that and ends with the transport.

Reading never checks the hash: whoever reads compares it with `event_hash`, and keeps what does not match.

Source: CloudEvents 1.0.2 (core, JSON event format, HTTP and Kafka bindings); binary mode on NATS, which 1.0.2 lacks,
follows the binding's text for 1.0.3.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from synckit_streams.errors import FrameMalformed, Invalid, TooLarge
from synckit_streams.model.clock import COUNTER_MAX
from synckit_streams.model.codec import (
    HASH_BYTES,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    check_draft,
    encode_metadata,
    encode_payload,
    event_hash,
)
from synckit_streams.model.event import Draft, Event

SPEC_VERSION = "1.0"
SOURCE_ROOT = "/synckit/"
"""Every event of ours has the source `/synckit/<topic>/<origin>`."""

STRUCTURED_BYTES_MAX = 8 * PAYLOAD_BYTES_MAX
"""Of one event in structured mode. A payload of the largest size is a third longer in base64, and six times as long as
a string of escapes."""

ATTRIBUTES_MAX = 256
"""Attributes of one event in structured mode."""

EMBEDDED_DEPTH_MAX = 60
"""A payload nested deeper than this travels as `data_base64`: JSON readers limit the nesting, some at 64."""

SCHEMA_VERSION_MAX = 2**31 - 1
SOURCE_CHARS_MAX = 2_048
"""Of a source of ours; the longest topic and origin need 1,074."""

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"

_ATTRIBUTES = (
    *("specversion", "id", "source", "type", "subject", "time", "datacontenttype"),
    *("skseq", "skprev", "skhlc", "skver", "skhash", "skctx", "skafter", "skmeta", "traceparent"),
)
_TEXTS = ("id", "source", "type", "subject", "skmeta", "traceparent")
"""The attributes that may hold more than letters, digits and a few signs."""

PREFIX = "ce-"
KAFKA_PREFIX = "ce_"

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_skip_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_NOT_JSON = (msgspec.MsgspecError, ValueError, RecursionError)


class _Unreadable(Exception):
    """What is wrong; each public function makes it the error that its caller expects."""


# --------------------------------------------------------------------------------------------------- text in attributes

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_CONTROLS = "\x00-\x1f\x7f-\x9f"
_forbidden = re.compile(f"[{_CONTROLS}{_NONCHARACTERS}]").search
_escape_forbidden = re.compile(f"[%{_CONTROLS}{_NONCHARACTERS}]+").sub
_escape_unprintable = re.compile("[^!-~]+").sub
_escape_segment = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@]+").sub  # all but `pchar` of RFC 3986
_unescape_quoted = re.compile(r"\\(.)").sub
_half_escape = re.compile("%(?![0-9A-Fa-f]{2})").search


def _base64(raw: bytes) -> str:
    return b2a_base64(raw, newline=False).decode()


def _percent(found: re.Match[str]) -> str:
    return "".join([f"%{byte:02X}" for byte in found[0].encode()])


def _percent_decode(text: str) -> str:
    """Raises `ValueError` where a percent sign starts nothing, or the bytes are not UTF-8."""
    if _half_escape(text):
        raise ValueError("a percent sign without two hexadecimal digits")
    return unquote_to_bytes(text).decode()


def _to_text(text: str) -> str:
    """Any text as a CloudEvents String."""
    if text.isascii() and text.isprintable() and "%" not in text:
        return text
    text.encode()  # raises on half a surrogate pair
    return _escape_forbidden(_percent, text)


def _from_text(text: str) -> str:
    """The reverse of `_to_text`."""
    return _percent_decode(text) if "%" in text else text


def _to_header(text: str) -> str:
    """Printable ASCII without space, quote and plain percent sign: the encoding of the HTTP and NATS bindings."""
    text = text.replace("%", "%25").replace('"', "%22").replace(" ", "%20")
    return text if text.isascii() and text.isprintable() else _escape_unprintable(_percent, text)


def _from_header(text: str) -> str:
    """The reverse of `_to_header`, which also reads the quoted strings of older writers."""
    if text[:1] == '"' == text[-1:] and len(text) > 1:
        text = _unescape_quoted(r"\1", text[1:-1])
    text = text.replace("%22", '"').replace("%20", " ")  # all that metadata usually have, and much faster
    return _percent_decode(text) if "%" in text else text


@lru_cache(maxsize=1024)
def _to_source(topic: str, origin: str) -> str:
    return f"{SOURCE_ROOT}{_escape_segment(_percent, topic)}/{_escape_segment(_percent, origin)}"


@lru_cache(maxsize=1024)
def _from_source(source: str) -> tuple[str, str]:
    """Topic and origin. Raises `ValueError`."""
    root, _, path = source.partition(SOURCE_ROOT)
    topic, slash, origin = path.partition("/")
    if root or not topic or not slash or not origin or "/" in origin:
        raise ValueError(f"not {SOURCE_ROOT}<topic>/<origin>")
    return _percent_decode(topic), _percent_decode(origin)


# ----------------------------------------------------------------------------------------------------------------- time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_rfc3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?"
    r"(?:[Zz]|[+-]([0-9]{2}):([0-9]{2}))"
).fullmatch


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


@lru_cache(maxsize=1024)
def _millisecond(wall_ms: int) -> str:
    seconds, milliseconds = divmod(wall_ms, 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


def _time(at_packed: int) -> str:
    """The wall part of a hybrid time, in UTC with milliseconds."""
    return _millisecond(at_packed >> 16)


def is_timestamp(text: str) -> bool:
    """Whether a text is a date and time of RFC 3339 that the calendar has (a leap second counts)."""
    found = _rfc3339(text)
    if found is None:
        return False
    year, month, day, hour, minute, second, offset_hour, offset_minute = (int(part or 0) for part in found.groups())
    if not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 60 or offset_hour > 23 or offset_minute > 59:
        return False
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]
    return 1 <= day <= days


# ----------------------------------------------------------------------------------------------- our events, both modes


def _is_json(payload: bytes) -> bool:
    """Whether the payload is one JSON text in UTF-8. It is scanned and not decoded: about 1 µs a kilobyte."""
    try:
        _skip_json(payload)
        if not payload.isascii():
            payload.decode()
    except _NOT_JSON:
        return False
    return True


def _to_metadata(metadata_json: bytes) -> str:
    """The metadata as text; as base64 when CloudEvents does not allow the text (which never begins with a brace)."""
    if metadata_json[:1] == b"{":
        try:
            text = metadata_json.decode()
        except UnicodeDecodeError:
            pass
        else:
            if not _forbidden(text):
                return text
    return _base64(metadata_json)


def _attributes(event: Event, hash: bytes) -> dict[str, str]:
    """The CloudEvents attributes of an event, `datacontenttype` excepted.

    Raises:
        Invalid: a text with a lone surrogate, or a time beyond the calendar.
    """
    try:
        found = {
            "specversion": SPEC_VERSION,
            "id": _to_text(event.id),
            "source": _to_source(event.topic, event.origin),
            "type": _to_text(event.type),
            "subject": _to_text(event.aggregate_id),
            "time": _time(event.at_packed),
            "skseq": str(event.seq),
            "skprev": str(event.prev),
            "skhlc": str(event.at_packed),
            "skver": str(event.schema_version),
            "skhash": hash.hex(),
        }
        if event.context_bytes:
            found["skctx"] = _base64(event.context_bytes)
        if event.after_bytes:
            found["skafter"] = _base64(event.after_bytes)
        if event.metadata_json:
            found["skmeta"] = _to_metadata(event.metadata_json)
        if event.traceparent:
            found["traceparent"] = _to_text(event.traceparent)
    except (UnicodeEncodeError, OverflowError) as error:
        raise Invalid(f"event {event.origin!r} {event.seq} has no form as a CloudEvent: {error}") from error
    return found


def _wrong(name: str, reason: str) -> FrameMalformed:
    return FrameMalformed(f"the CloudEvents attribute {name!r} {reason}")


def _present(attributes: Mapping[str, str], name: str) -> str:
    value = attributes.get(name)
    if not value:
        raise _wrong(name, "is empty" if name in attributes else "is missing")
    return value


def _number(attributes: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = _present(attributes, name)
    try:
        number = int(text)
    except ValueError:
        raise _wrong(name, f"is not a number: {text!r:.80}") from None
    if str(number) != text:
        raise _wrong(name, f"is not written in canonical decimal: {text!r:.80}")
    if not least <= number <= most:
        raise _wrong(name, f"is {number}, outside [{least}, {most}]")
    return number


def _bytes(attributes: Mapping[str, str], name: str) -> bytes:
    text = attributes.get(name)
    if text is None:
        return b""
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise _wrong(name, f"is not base64: {error}") from None


def _event(attributes: Mapping[str, str], payload: bytes) -> tuple[Event, bytes]:
    """The event that these attributes describe, and the hash that they claim.

    Raises:
        FrameMalformed: an attribute is missing or unreadable; the message names it.
    """
    if attributes.get("specversion") != SPEC_VERSION:
        _present(attributes, "specversion")
        raise _wrong("specversion", f"is {attributes['specversion']!r:.80}, not {SPEC_VERSION!r}")
    source = _present(attributes, "source")
    seq = _number(attributes, "skseq", 1, COUNTER_MAX)
    prev = _number(attributes, "skprev", 0, COUNTER_MAX)
    at_packed = _number(attributes, "skhlc", 0, COUNTER_MAX)
    schema_version = _number(attributes, "skver", 0, SCHEMA_VERSION_MAX)
    claimed = _present(attributes, "skhash")
    # The time is for others: the hybrid time says more. An intermediary may have written it anew, or dropped it.
    time = attributes.get("time")
    if time is not None and time != _time(at_packed) and not is_timestamp(time):
        raise _wrong("time", f"is not a timestamp of RFC 3339: {time!r:.80}")
    metadata = attributes.get("skmeta", "")
    name = "source"  # of the attribute being read, for the error
    try:
        if len(source) > SOURCE_CHARS_MAX:
            raise ValueError(f"longer than {SOURCE_CHARS_MAX} characters")
        topic, origin = _from_source(source)
        name = "skhash"
        hash = bytes.fromhex(claimed)
        if len(hash) != HASH_BYTES or len(claimed) != 2 * HASH_BYTES:
            raise ValueError(f"not {2 * HASH_BYTES} hexadecimal digits")
        name = "skmeta"
        metadata_json = metadata.encode() if metadata[:1] == "{" else _bytes(attributes, name)
        name = "id"
        id = _from_text(_present(attributes, name))
        name = "type"
        type = _from_text(_present(attributes, name))
        name = "subject"
        aggregate_id = _from_text(_present(attributes, name))
        name = "traceparent"
        traceparent = _from_text(attributes.get(name, ""))
    except ValueError as error:
        raise _wrong(name, f"is unreadable: {error}") from error
    event = Event(
        id,
        topic,
        type,
        aggregate_id,
        payload,
        metadata_json,
        origin,
        seq,
        prev,
        _bytes(attributes, "skctx"),
        _bytes(attributes, "skafter"),
        at_packed,
        schema_version,
        traceparent,
    )
    return event, hash


# ---------------------------------------------------------------------------------------------------------- binary mode


@lru_cache(maxsize=16)
def _header_names(prefix: str) -> dict[str, str]:
    return {name: prefix + name for name in _ATTRIBUTES}


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
    attributes = _attributes(event, hash)
    names = _header_names(prefix)
    if prefix == KAFKA_PREFIX:
        content_type = content_type or "content-type"
    else:
        for name in _TEXTS:
            if name in attributes:
                attributes[name] = _to_header(attributes[name])
    found = {names[name]: value for name, value in attributes.items()}
    found[content_type or names["datacontenttype"]] = JSON_TYPE if _is_json(event.payload) else BYTES_TYPE
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
        or "%" in (source := _to_source(event.topic, event.origin))
    ):
        return None
    headers = {
        "ce-specversion": SPEC_VERSION,
        "ce-id": event.id,
        "ce-source": source,
        "ce-type": event.type,
        "ce-subject": event.aggregate_id,
        "ce-time": _millisecond(event.at_packed >> 16),
        "ce-skseq": str(event.seq),
        "ce-skprev": str(event.prev),
        "ce-skhlc": str(event.at_packed),
        "ce-skver": str(event.schema_version),
        "ce-skhash": hash.hex(),
    }
    if event.context_bytes:
        headers["ce-skctx"] = _base64(event.context_bytes)
    if event.after_bytes:
        headers["ce-skafter"] = _base64(event.after_bytes)
    if event.traceparent:
        headers["ce-traceparent"] = event.traceparent
    headers["ce-datacontenttype"] = JSON_TYPE if _is_json(event.payload) else BYTES_TYPE
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
                value = _from_header(value)
            if not value.isascii():
                value.encode()  # a lone surrogate would have no hash
            attributes[name] = value
    except ValueError as error:
        raise _wrong(name, f"is unreadable: {error}") from error
    return _event(attributes, body)


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
        topic, origin = _from_source(source)
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
        or get("ce-time") != _millisecond(at_packed >> 16)
    ):
        return None
    event = Event(
        id, topic, type, subject, body, b"", origin, seq, prev, context_bytes, after_bytes, at_packed, version,
        traceparent,
    )  # fmt: skip
    return event, hash


# ------------------------------------------------------------------------------------------------------ structured mode

_string_or_bracket = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]').finditer


def _depth(payload: bytes) -> int:
    """How deep valid JSON is nested."""
    depth = deepest = 0
    for found in _string_or_bracket(payload):
        sign = found[0]
        if sign in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in b"]}":
            depth -= 1
    return deepest


def _is_embeddable(payload: bytes) -> bool:
    """Whether JSON can stand inside a JSON object, on one line, and be taken out again byte for byte."""
    if payload[:1].isspace() or payload[-1:].isspace() or b"\n" in payload or b"\r" in payload:
        return False
    return payload.count(b"[") + payload.count(b"{") <= EMBEDDED_DEPTH_MAX or _depth(payload) <= EMBEDDED_DEPTH_MAX


def to_structured(event: Event, hash: bytes) -> bytes:
    """The event as one line of JSON, `application/cloudevents+json`.

    A payload that is JSON stands under `data`, byte for byte; where that cannot be (it is not JSON, has white space
    around it or a line break in it, or is nested deeper than `EMBEDDED_DEPTH_MAX`) it stands under `data_base64`.

    Raises:
        Invalid: the event has a text with a lone surrogate, or a time beyond the calendar.
    """
    attributes = _attributes(event, hash)
    payload = event.payload
    json = _is_json(payload)
    attributes["datacontenttype"] = JSON_TYPE if json else BYTES_TYPE
    if json and _is_embeddable(payload):
        return b'%b,"data":%b}' % (_encode_json(attributes)[:-1], payload)
    if payload:
        attributes["data_base64"] = _base64(payload)
    return _encode_json(attributes)


def from_structured(raw: bytes) -> tuple[Event, bytes]:
    """An event that `to_structured` wrote, and the hash that it claims; compare it with `event_hash`.

    Raises:
        FrameMalformed: not JSON, an attribute twice, missing or unreadable; the message says which.
        TooLarge: more than `STRUCTURED_BYTES_MAX` bytes or `ATTRIBUTES_MAX` attributes.
    """
    try:
        members = _members(raw)
        data, data_base64 = _take_data(members)
        attributes = {
            name: value
            for name in _ATTRIBUTES
            if name in members and (value := _text_value(name, members[name])) is not None
        }
        payload = _payload(data, data_base64)
    except _Unreadable as error:
        raise FrameMalformed(f"not an event in structured mode: {error}") from error
    return _event(attributes, payload)


_object_opens = re.compile(rb"[ \t\n\r]*\{").match
_name_at = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*').match
_comma_at = re.compile(rb"[ \t\n\r]*,").match


def _members(raw: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, their values as the bytes that were written.

    Raises:
        _Unreadable: not JSON, not an object, nested too deep, not UTF-8, or a name twice.
        TooLarge: more than `STRUCTURED_BYTES_MAX` bytes or `ATTRIBUTES_MAX` members.
    """
    if len(raw) > STRUCTURED_BYTES_MAX:
        raise TooLarge(f"an event in structured mode has {len(raw)} bytes; at most {STRUCTURED_BYTES_MAX} are allowed")
    try:
        raw.decode()
        members = _decode_members(raw)
    except _NOT_JSON as error:
        raise _Unreadable(f"not JSON: {error}") from error
    if len(members) > ATTRIBUTES_MAX:
        raise TooLarge(f"an event has {len(members)} attributes; at most {ATTRIBUTES_MAX} are allowed")
    # The decoder keeps the last of two members with one name, at the place of the first. So the object holds a name
    # twice if and only if its text is not just these names and values in this order.
    opening = _object_opens(raw)
    at = opening.end() if opening else 0
    for name, value in members.items():
        text = bytes(value)
        member = b'"%b":%b,' % (name.encode(), text)
        if name.isalnum() and raw.startswith(member, at):  # no escapes and no white space: the common case
            at += len(member)
            continue
        found = _name_at(raw, at)
        if found is None or _decode_json(found[1]) != name or not raw.startswith(text, found.end()):
            raise _Unreadable(f"the name {_decode_json(found[1]) if found else name!r:.80} stands twice")
        at = found.end() + len(text)
        comma = _comma_at(raw, at)
        at = comma.end() if comma else at
    if more := _name_at(raw, at):
        raise _Unreadable(f"the name {_decode_json(more[1])!r:.80} stands twice")
    return members


def _text_value(name: str, value: msgspec.Raw) -> str | None:
    """A text attribute; None for null, which means that it is not there."""
    try:
        found = _decode_json(value)
    except _NOT_JSON as error:
        raise _Unreadable(f"the attribute {name!r} does not decode: {error}") from error
    if found is not None and not isinstance(found, str):
        raise _Unreadable(f"the attribute {name!r} is not a string")
    return found


def _take_data(members: dict[str, msgspec.Raw]) -> tuple[msgspec.Raw | None, msgspec.Raw | None]:
    """`data` and `data_base64`, of which at most one is there; the other members are the attributes."""
    data, data_base64 = members.pop("data", None), members.pop("data_base64", None)
    if data_base64 is not None and bytes(data_base64) == b"null":  # null `data`, however, are data
        data_base64 = None
    if data is not None and data_base64 is not None:
        raise _Unreadable("`data` and `data_base64` exclude each other")
    return data, data_base64


def _payload(data: msgspec.Raw | None, data_base64: msgspec.Raw | None) -> bytes:
    """The bytes under `data`, or those that `data_base64` stands for; none of the two is no bytes."""
    if data_base64 is None:
        return b"" if data is None else bytes(data)
    try:
        return a2b_base64(_text_value("data_base64", data_base64) or "", strict_mode=True)
    except ValueError as error:
        raise _Unreadable(f"`data_base64` is not base64: {error}") from error


# ------------------------------------------------------------------------------------------- other people's CloudEvents

_OURS_IN_DRAFT = frozenset({"specversion", "id", "type", "subject"})
_INTEGER_MAX = 2**31 - 1
_attribute_name = re.compile("[a-z0-9]+").fullmatch
_integer = re.compile(rb"-?[0-9]+").fullmatch

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER = rf'[ \t]*;[ \t]*{_TOKEN}=(?:{_TOKEN}|"(?:[^"\\]|\\.)*")'
_media_type = re.compile(rf"{_TOKEN}/({_TOKEN})(?:{_PARAMETER})*").fullmatch
_charset = re.compile(r';[ \t]*charset="?([^";\s]*)', re.IGNORECASE).search

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*:"
_PATH = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*"
_AUTHORITY = r"//(?:[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]]|%[0-9A-Fa-f]{2})*"
_AFTER_PATH = r"(?:\?(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?"
_FRAGMENT = r"(?:\#(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*)?"
_uri = re.compile(rf"{_SCHEME}(?:{_AUTHORITY})?{_PATH}{_AFTER_PATH}{_FRAGMENT}").fullmatch
# Without a scheme, a colon in the first segment would make what stands before it look like one.
_relative_reference = re.compile(rf"(?:{_AUTHORITY}|(?![^/?\#]*:)){_PATH}{_AFTER_PATH}{_FRAGMENT}").fullmatch


def draft_from_structured(raw: bytes, *, topic: str | None) -> Draft:
    """Anybody's CloudEvent, as a draft to append; it is held to the specification, and to our limits.

    - The aggregate is the `subject`, or the `source` of an event that has none.
    - The id is `<source>|<id>`, since CloudEvents are unique by both (a URI has no bar, so no two pairs meet); one that
      would be too long is `sha256:` and its hash, and the metadata keep the `id`.
    - The other attributes and the extensions become metadata, under their own names.
    - JSON data is kept byte for byte; a text of another content type becomes UTF-8; no data is JSON's null.
    - An event of ours (source `/synckit/…`, with its `skhash`) keeps its id, aggregate, metadata and schema version, so
      importing twice what was exported changes nothing. Its hash is checked. It is written anew: its key, context and
      causes belong to the store it came from.

    Args:
        raw: One JSON object, `application/cloudevents+json`.
        topic: Where it is to be written; None takes the topic of an event of ours.

    Raises:
        Invalid: not a CloudEvent by the specification; the message names the attribute.
        TooLarge: above a limit of the protocol.
    """
    try:
        members = _members(raw)
        data, data_base64 = _take_data(members)
        attributes = dict(_checked(members))
        for name in ("specversion", "id", "source", "type"):
            if name not in attributes:
                raise _Unreadable(f"the attribute {name!r} is missing")
        if attributes["specversion"] != SPEC_VERSION:
            raise _Unreadable(f"the attribute 'specversion' is {attributes['specversion']!r:.80}, not {SPEC_VERSION!r}")
        if attributes["source"].startswith(SOURCE_ROOT) and "skhash" in attributes:
            draft = _draft_of_ours(attributes, _payload(data, data_base64), topic)
        elif topic is None:
            raise _Unreadable("it names no topic of ours, so one must be given")
        else:
            payload = _data(data, data_base64, attributes.get("datacontenttype", JSON_TYPE))
            draft = _draft_of_others(attributes, payload, topic)
    except (_Unreadable, FrameMalformed) as error:
        reason = error.message if isinstance(error, FrameMalformed) else str(error)
        raise Invalid(f"not a CloudEvent that can be taken: {reason}") from error
    check_draft(draft)
    encode_payload(draft.data)
    encode_metadata(draft.metadata)
    return draft


def _draft_of_ours(attributes: Mapping[str, Any], payload: bytes, topic: str | None) -> Draft:
    strings = {name: value for name, value in attributes.items() if isinstance(value, str)}
    event, hash = _event(strings, payload)
    if event_hash(event) != hash:
        raise _wrong("skhash", "does not match the event, which was changed on its way")
    try:
        metadata = event.metadata
    except _NOT_JSON as error:
        raise _wrong("skmeta", f"is not JSON: {error}") from error
    return Draft(
        topic=topic or event.topic,
        type=event.type,
        aggregate_id=event.aggregate_id,
        data=payload,
        metadata=metadata,
        id=event.id,
        schema_version=event.schema_version,
    )


def _draft_of_others(attributes: Mapping[str, Any], payload: bytes, topic: str) -> Draft:
    metadata = {name: value for name, value in attributes.items() if name not in _OURS_IN_DRAFT}
    if metadata.get("datacontenttype") == JSON_TYPE:
        del metadata["datacontenttype"]
    id = f"{attributes['source']}|{attributes['id']}"
    if len(id.encode()) > NAME_BYTES_MAX:
        id = f"sha256:{sha256(id.encode()).hexdigest()}"
        metadata["id"] = attributes["id"]
    return Draft(
        topic=topic,
        type=attributes["type"],
        aggregate_id=attributes.get("subject", attributes["source"]),
        data=payload,
        metadata=metadata,
        id=id,
    )


def _is_uri_reference(text: str) -> bool:
    return bool(_uri(text) or _relative_reference(text))


def _is_media_type(text: str) -> bool:
    return _media_type(text) is not None


_CHECKS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "source": (_is_uri_reference, "is not a URI reference"),
    "time": (is_timestamp, "is not a timestamp of RFC 3339"),
    "dataschema": (_uri, "is not an absolute URI"),
    "datacontenttype": (_is_media_type, "is not a media type"),
}
_CORE = frozenset({"specversion", "id", "source", "type", "subject", *_CHECKS})


def _checked(members: Mapping[str, msgspec.Raw]) -> Iterator[tuple[str, Any]]:
    """The attributes that are there (null means that one is not), each checked."""
    for name, raw in members.items():
        if not _attribute_name(name):
            raise _Unreadable(f"the attribute name {name!r:.80} has other signs than a to z and 0 to 9")
        text = bytes(raw)
        if text == b"null":
            continue
        if name in _CORE or text[:1] == b'"':
            value = _text_value(name, raw)
            if not value and name in _CORE:
                raise _Unreadable(f"the attribute {name!r} is empty")
            if value and _forbidden(value):
                raise _Unreadable(f"the attribute {name!r} contains a control character or a noncharacter")
            check, complaint = _CHECKS.get(name, (None, ""))
            if check and value and not check(value):
                raise _Unreadable(f"the attribute {name!r} {complaint}: {value!r:.80}")
            yield name, value
        elif text in (b"true", b"false"):
            yield name, text == b"true"
        elif _integer(text) and len(text) < 12 and abs(number := int(text)) <= _INTEGER_MAX + (text[:1] == b"-"):
            yield name, number
        else:
            raise _Unreadable(f"the attribute {name!r} is not a string, a boolean or an integer of 32 bits")


def _data(data: msgspec.Raw | None, data_base64: msgspec.Raw | None, content_type: str) -> bytes:
    """The payload, as the JSON event format says (section 3.1.2)."""
    if data is None:
        return b"null" if data_base64 is None else _payload(None, data_base64)
    found = _media_type(content_type)
    subtype = found[1].lower() if found else ""
    if subtype == "json" or subtype.endswith("+json"):
        try:
            _decode_json(data)  # the scan lets numbers pass that nobody can read back
        except _NOT_JSON as error:
            raise _Unreadable(f"`data` does not decode: {error}") from error
        return bytes(data)
    charset = _charset(content_type)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise _Unreadable(f"`data` is text in {charset[1]!r:.80}; send other texts than UTF-8 as `data_base64`")
    text = _text_value("data", data)
    if text is None:
        raise _Unreadable(f"`data` is null, which is no content of type {content_type!r:.80}")
    return text.encode()
