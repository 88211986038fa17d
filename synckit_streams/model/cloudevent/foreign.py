"""Other people's CloudEvents as drafts: held to the specification, and not to what some reader would take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from synckit_streams.errors import FrameMalformed, Invalid
from synckit_streams.model.cloudevent.attributes import (
    JSON_TYPE,
    NOT_JSON,
    SOURCE_ROOT,
    SPEC_VERSION,
    Unreadable,
    forbidden,
    from_attributes,
    is_timestamp,
    wrong,
)
from synckit_streams.model.cloudevent.structured import members_of, payload_of, take_data, text_value
from synckit_streams.model.codec import NAME_BYTES_MAX, check_draft, encode_metadata, encode_payload, event_hash
from synckit_streams.model.event import Draft

_decode_json = msgspec.json.Decoder().decode

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
        members = members_of(raw)
        data, data_base64 = take_data(members)
        attributes = dict(_checked(members))
        for name in ("specversion", "id", "source", "type"):
            if name not in attributes:
                raise Unreadable(f"the attribute {name!r} is missing")
        if attributes["specversion"] != SPEC_VERSION:
            raise Unreadable(f"the attribute 'specversion' is {attributes['specversion']!r:.80}, not {SPEC_VERSION!r}")
        if attributes["source"].startswith(SOURCE_ROOT) and "skhash" in attributes:
            draft = _draft_of_ours(attributes, payload_of(data, data_base64), topic)
        elif topic is None:
            raise Unreadable("it names no topic of ours, so one must be given")
        else:
            payload = _data(data, data_base64, attributes.get("datacontenttype", JSON_TYPE))
            draft = _draft_of_others(attributes, payload, topic)
    except (Unreadable, FrameMalformed) as error:
        reason = error.message if isinstance(error, FrameMalformed) else str(error)
        raise Invalid(f"not a CloudEvent that can be taken: {reason}") from error
    check_draft(draft)
    encode_payload(draft.data)
    encode_metadata(draft.metadata)
    return draft


def _draft_of_ours(attributes: Mapping[str, Any], payload: bytes, topic: str | None) -> Draft:
    strings = {name: value for name, value in attributes.items() if isinstance(value, str)}
    event, hash = from_attributes(strings, payload)
    if event_hash(event) != hash:
        raise wrong("skhash", "does not match the event, which was changed on its way")
    try:
        metadata = event.metadata
    except NOT_JSON as error:
        raise wrong("skmeta", f"is not JSON: {error}") from error
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
            raise Unreadable(f"the attribute name {name!r:.80} has other signs than a to z and 0 to 9")
        text = bytes(raw)
        if text == b"null":
            continue
        if name in _CORE or text[:1] == b'"':
            value = text_value(name, raw)
            if not value and name in _CORE:
                raise Unreadable(f"the attribute {name!r} is empty")
            if value and forbidden(value):
                raise Unreadable(f"the attribute {name!r} contains a control character or a noncharacter")
            check, complaint = _CHECKS.get(name, (None, ""))
            if check and value and not check(value):
                raise Unreadable(f"the attribute {name!r} {complaint}: {value!r:.80}")
            yield name, value
        elif text in (b"true", b"false"):
            yield name, text == b"true"
        elif _integer(text) and len(text) < 12 and abs(number := int(text)) <= _INTEGER_MAX + (text[:1] == b"-"):
            yield name, number
        else:
            raise Unreadable(f"the attribute {name!r} is not a string, a boolean or an integer of 32 bits")


def _data(data: msgspec.Raw | None, data_base64: msgspec.Raw | None, content_type: str) -> bytes:
    """The payload, as the JSON event format says (section 3.1.2)."""
    if data is None:
        return b"null" if data_base64 is None else payload_of(None, data_base64)
    found = _media_type(content_type)
    subtype = found[1].lower() if found else ""
    if subtype == "json" or subtype.endswith("+json"):
        try:
            _decode_json(data)  # the scan lets numbers pass that nobody can read back
        except NOT_JSON as error:
            raise Unreadable(f"`data` does not decode: {error}") from error
        return bytes(data)
    charset = _charset(content_type)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Unreadable(f"`data` is text in {charset[1]!r:.80}; send other texts than UTF-8 as `data_base64`")
    text = text_value("data", data)
    if text is None:
        raise Unreadable(f"`data` is null, which is no content of type {content_type!r:.80}")
    return text.encode()
