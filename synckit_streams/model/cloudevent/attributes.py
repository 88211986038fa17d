"""An event of ours as the attributes of a CloudEvent, and back: the text, the times, and what each attribute holds.

Both modes are made of these: `headers` puts them into message headers, `structured` into one JSON object.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import msgspec

from synckit_streams.errors import FrameMalformed, Invalid
from synckit_streams.model.clock import COUNTER_MAX
from synckit_streams.model.codec import HASH_BYTES
from synckit_streams.model.event import Event

SPEC_VERSION = "1.0"
SOURCE_ROOT = "/synckit/"
"""Every event of ours has the source `/synckit/<topic>/<origin>`."""

SCHEMA_VERSION_MAX = 2**31 - 1
SOURCE_CHARS_MAX = 2_048
"""Of a source of ours; the longest topic and origin need 1,074."""

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"

ATTRIBUTES = (
    *("specversion", "id", "source", "type", "subject", "time", "datacontenttype"),
    *("skseq", "skprev", "skhlc", "skver", "skhash", "skctx", "skafter", "skmeta", "traceparent"),
)
TEXTS = ("id", "source", "type", "subject", "skmeta", "traceparent")
"""The attributes that may hold more than letters, digits and a few signs."""

NOT_JSON = (msgspec.MsgspecError, ValueError, RecursionError)

_skip_json = msgspec.json.Decoder(msgspec.Raw).decode


class Unreadable(Exception):
    """What is wrong; each public function makes it the error that its caller expects."""


# --------------------------------------------------------------------------------------------------- text in attributes

_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_CONTROLS = "\x00-\x1f\x7f-\x9f"
forbidden = re.compile(f"[{_CONTROLS}{_NONCHARACTERS}]").search
_escape_forbidden = re.compile(f"[%{_CONTROLS}{_NONCHARACTERS}]+").sub
_escape_unprintable = re.compile("[^!-~]+").sub
_escape_segment = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@]+").sub  # all but `pchar` of RFC 3986
_unescape_quoted = re.compile(r"\\(.)").sub
_half_escape = re.compile("%(?![0-9A-Fa-f]{2})").search


def base64_of(raw: bytes) -> str:
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


def to_header_value(text: str) -> str:
    """Printable ASCII without space, quote and plain percent sign: the encoding of the HTTP and NATS bindings."""
    text = text.replace("%", "%25").replace('"', "%22").replace(" ", "%20")
    return text if text.isascii() and text.isprintable() else _escape_unprintable(_percent, text)


def from_header_value(text: str) -> str:
    """The reverse of `to_header_value`, which also reads the quoted strings of older writers."""
    if text[:1] == '"' == text[-1:] and len(text) > 1:
        text = _unescape_quoted(r"\1", text[1:-1])
    text = text.replace("%22", '"').replace("%20", " ")  # all that metadata usually have, and much faster
    return _percent_decode(text) if "%" in text else text


@lru_cache(maxsize=1024)
def to_source(topic: str, origin: str) -> str:
    return f"{SOURCE_ROOT}{_escape_segment(_percent, topic)}/{_escape_segment(_percent, origin)}"


@lru_cache(maxsize=1024)
def from_source(source: str) -> tuple[str, str]:
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
def millisecond(wall_ms: int) -> str:
    seconds, milliseconds = divmod(wall_ms, 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


def _time(at_packed: int) -> str:
    """The wall part of a hybrid time, in UTC with milliseconds."""
    return millisecond(at_packed >> 16)


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


def is_json(payload: bytes) -> bool:
    """Whether the payload is one JSON text in UTF-8. It is scanned and not decoded: about 1 µs a kilobyte."""
    try:
        _skip_json(payload)
        if not payload.isascii():
            payload.decode()
    except NOT_JSON:
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
            if not forbidden(text):
                return text
    return base64_of(metadata_json)


def to_attributes(event: Event, hash: bytes) -> dict[str, str]:
    """The CloudEvents attributes of an event, `datacontenttype` excepted.

    Raises:
        Invalid: a text with a lone surrogate, or a time beyond the calendar.
    """
    try:
        found = {
            "specversion": SPEC_VERSION,
            "id": _to_text(event.id),
            "source": to_source(event.topic, event.origin),
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
            found["skctx"] = base64_of(event.context_bytes)
        if event.after_bytes:
            found["skafter"] = base64_of(event.after_bytes)
        if event.metadata_json:
            found["skmeta"] = _to_metadata(event.metadata_json)
        if event.traceparent:
            found["traceparent"] = _to_text(event.traceparent)
    except (UnicodeEncodeError, OverflowError) as error:
        raise Invalid(f"event {event.origin!r} {event.seq} has no form as a CloudEvent: {error}") from error
    return found


def wrong(name: str, reason: str) -> FrameMalformed:
    return FrameMalformed(f"the CloudEvents attribute {name!r} {reason}")


def _present(attributes: Mapping[str, str], name: str) -> str:
    value = attributes.get(name)
    if not value:
        raise wrong(name, "is empty" if name in attributes else "is missing")
    return value


def _number(attributes: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = _present(attributes, name)
    try:
        number = int(text)
    except ValueError:
        raise wrong(name, f"is not a number: {text!r:.80}") from None
    if str(number) != text:
        raise wrong(name, f"is not written in canonical decimal: {text!r:.80}")
    if not least <= number <= most:
        raise wrong(name, f"is {number}, outside [{least}, {most}]")
    return number


def _bytes(attributes: Mapping[str, str], name: str) -> bytes:
    text = attributes.get(name)
    if text is None:
        return b""
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise wrong(name, f"is not base64: {error}") from None


def from_attributes(attributes: Mapping[str, str], payload: bytes) -> tuple[Event, bytes]:
    """The event that these attributes describe, and the hash that they claim.

    Raises:
        FrameMalformed: an attribute is missing or unreadable; the message names it.
    """
    if attributes.get("specversion") != SPEC_VERSION:
        _present(attributes, "specversion")
        raise wrong("specversion", f"is {attributes['specversion']!r:.80}, not {SPEC_VERSION!r}")
    source = _present(attributes, "source")
    seq = _number(attributes, "skseq", 1, COUNTER_MAX)
    prev = _number(attributes, "skprev", 0, COUNTER_MAX)
    at_packed = _number(attributes, "skhlc", 0, COUNTER_MAX)
    schema_version = _number(attributes, "skver", 0, SCHEMA_VERSION_MAX)
    claimed = _present(attributes, "skhash")
    # The time is for others: the hybrid time says more. An intermediary may have written it anew, or dropped it.
    time = attributes.get("time")
    if time is not None and time != _time(at_packed) and not is_timestamp(time):
        raise wrong("time", f"is not a timestamp of RFC 3339: {time!r:.80}")
    metadata = attributes.get("skmeta", "")
    name = "source"  # of the attribute being read, for the error
    try:
        if len(source) > SOURCE_CHARS_MAX:
            raise ValueError(f"longer than {SOURCE_CHARS_MAX} characters")
        topic, origin = from_source(source)
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
        raise wrong(name, f"is unreadable: {error}") from error
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
