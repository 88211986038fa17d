"""Structured mode: one JSON object, in which a JSON payload stands byte for byte."""

from __future__ import annotations

import re
from binascii import a2b_base64

import msgspec

from synckit_streams.errors import FrameMalformed, TooLarge
from synckit_streams.model.cloudevent.attributes import (
    ATTRIBUTES,
    BYTES_TYPE,
    JSON_TYPE,
    NOT_JSON,
    Unreadable,
    base64_of,
    from_attributes,
    is_json,
    to_attributes,
)
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX
from synckit_streams.model.event import Event

STRUCTURED_BYTES_MAX = 8 * PAYLOAD_BYTES_MAX
"""Of one event in structured mode. A payload of the largest size is a third longer in base64, and six times as long as
a string of escapes."""

ATTRIBUTES_MAX = 256
"""Attributes of one event in structured mode."""

EMBEDDED_DEPTH_MAX = 60
"""A payload nested deeper than this travels as `data_base64`: JSON readers limit the nesting, some at 64."""

_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

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
    attributes = to_attributes(event, hash)
    payload = event.payload
    json = is_json(payload)
    attributes["datacontenttype"] = JSON_TYPE if json else BYTES_TYPE
    if json and _is_embeddable(payload):
        return b'%b,"data":%b}' % (_encode_json(attributes)[:-1], payload)
    if payload:
        attributes["data_base64"] = base64_of(payload)
    return _encode_json(attributes)


def from_structured(raw: bytes) -> tuple[Event, bytes]:
    """An event that `to_structured` wrote, and the hash that it claims; compare it with `event_hash`.

    Raises:
        FrameMalformed: not JSON, an attribute twice, missing or unreadable; the message says which.
        TooLarge: more than `STRUCTURED_BYTES_MAX` bytes or `ATTRIBUTES_MAX` attributes.
    """
    try:
        members = members_of(raw)
        data, data_base64 = take_data(members)
        attributes = {
            name: value
            for name in ATTRIBUTES
            if name in members and (value := text_value(name, members[name])) is not None
        }
        payload = payload_of(data, data_base64)
    except Unreadable as error:
        raise FrameMalformed(f"not an event in structured mode: {error}") from error
    return from_attributes(attributes, payload)


_object_opens = re.compile(rb"[ \t\n\r]*\{").match
_name_at = re.compile(rb'[ \t\n\r]*("(?:[^"\\]|\\.)*")[ \t\n\r]*:[ \t\n\r]*').match
_comma_at = re.compile(rb"[ \t\n\r]*,").match


def members_of(raw: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, their values as the bytes that were written.

    Raises:
        Unreadable: not JSON, not an object, nested too deep, not UTF-8, or a name twice.
        TooLarge: more than `STRUCTURED_BYTES_MAX` bytes or `ATTRIBUTES_MAX` members.
    """
    if len(raw) > STRUCTURED_BYTES_MAX:
        raise TooLarge(f"an event in structured mode has {len(raw)} bytes; at most {STRUCTURED_BYTES_MAX} are allowed")
    try:
        raw.decode()
        members = _decode_members(raw)
    except NOT_JSON as error:
        raise Unreadable(f"not JSON: {error}") from error
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
            raise Unreadable(f"the name {_decode_json(found[1]) if found else name!r:.80} stands twice")
        at = found.end() + len(text)
        comma = _comma_at(raw, at)
        at = comma.end() if comma else at
    if more := _name_at(raw, at):
        raise Unreadable(f"the name {_decode_json(more[1])!r:.80} stands twice")
    return members


def text_value(name: str, value: msgspec.Raw) -> str | None:
    """A text attribute; None for null, which means that it is not there."""
    try:
        found = _decode_json(value)
    except NOT_JSON as error:
        raise Unreadable(f"the attribute {name!r} does not decode: {error}") from error
    if found is not None and not isinstance(found, str):
        raise Unreadable(f"the attribute {name!r} is not a string")
    return found


def take_data(members: dict[str, msgspec.Raw]) -> tuple[msgspec.Raw | None, msgspec.Raw | None]:
    """`data` and `data_base64`, of which at most one is there; the other members are the attributes."""
    data, data_base64 = members.pop("data", None), members.pop("data_base64", None)
    if data_base64 is not None and bytes(data_base64) == b"null":  # null `data`, however, are data
        data_base64 = None
    if data is not None and data_base64 is not None:
        raise Unreadable("`data` and `data_base64` exclude each other")
    return data, data_base64


def payload_of(data: msgspec.Raw | None, data_base64: msgspec.Raw | None) -> bytes:
    """The bytes under `data`, or those that `data_base64` stands for; none of the two is no bytes."""
    if data_base64 is None:
        return b"" if data is None else bytes(data)
    try:
        return a2b_base64(text_value("data_base64", data_base64) or "", strict_mode=True)
    except ValueError as error:
        raise Unreadable(f"`data_base64` is not base64: {error}") from error
