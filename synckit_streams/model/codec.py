"""Bytes: what an event hashes to, how data becomes a payload, and the limits that hold on every node.

The canonical form of an event is the MessagePack array of its fields (shortest integers, no maps), so two
implementations that agree on the fields agree on the hash. Limits are constants of the protocol: a node with a smaller
one would refuse what others keep, and never converge.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import msgspec

from synckit_streams.errors import Invalid, SyncKitError, TooLarge
from synckit_streams.model.clock import COUNTER_MAX, VersionVector
from synckit_streams.model.event import Draft, Event

TOPIC_BYTES_MAX = 100
NODE_ID_BYTES_MAX = 64
NAME_BYTES_MAX = 255
"""Of an event's type and its id, in UTF-8."""
AGGREGATE_ID_CHARS_MAX = 10_000
PAYLOAD_BYTES_MAX = 1_000_000
METADATA_BYTES_MAX = 16 * 1024
CONTEXT_BYTES_MAX = 16 * 1024
AFTER_KEYS_MAX = 64
TRACEPARENT_BYTES_MAX = 255
"""Of the W3C trace context; version 00 has 55."""

HASH_BYTES = 32
DIGEST_MODULUS = 1 << 256
EMPTY_METADATA: Mapping[str, Any] = {}

_encode = msgspec.msgpack.Encoder().encode
_encode_json = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


def event_hash(event: Event) -> bytes:
    """SHA-256 over the canonical form of everything in the event; 32 bytes. Digests sum it."""
    return sha256(_encode(event)).digest()


def content_hash(topic: str, type: str, aggregate_id: str, payload: bytes, metadata: bytes, schema: int) -> bytes:
    """SHA-256 over what the caller said: decides whether a repeated id is a repetition or `IdReused`."""
    return sha256(_encode((topic, type, aggregate_id, payload, metadata, schema))).digest()


def event_content_hash(event: Event) -> bytes:
    """`content_hash` of an event."""
    return content_hash(
        event.topic, event.type, event.aggregate_id, event.payload, event.metadata_json, event.schema_version
    )


def digest_add(total: int, hashes: list[bytes]) -> int:
    """The incremental set hash: the sum of event hashes modulo 2^256.

    Source: Clarke et al., "Incremental Multiset Hash Functions", 2003 (MSet-Add-Hash).
    """
    from_bytes = int.from_bytes
    for each in hashes:
        total += from_bytes(each, "big")
    return total % DIGEST_MODULUS


def check_text(what: str, text: str, *, bytes_max: int) -> str:
    """The text itself, if the protocol allows it as a name.

    Raises:
        Invalid: not text, empty, with a NUL or a lone surrogate.
        TooLarge: longer than `bytes_max` in UTF-8.
    """
    if not isinstance(text, str) or not text:
        raise Invalid(f"{what} must be text that is not empty, not {text!r:.80}")
    if "\0" in text:
        raise Invalid(f"{what} {text!r:.80} contains a NUL")
    try:
        length = len(text.encode())
    except UnicodeEncodeError:
        raise Invalid(f"{what} {text!r:.80} contains a lone surrogate") from None
    if length > bytes_max:
        raise TooLarge(f"{what} has {length} bytes; at most {bytes_max} are allowed")
    return text


def check_topic(topic: str) -> str:
    """`check_text` for a topic."""
    return check_text("a topic", topic, bytes_max=TOPIC_BYTES_MAX)


def check_node_id(node_id: str) -> str:
    """`check_text` for a node id; `@` and `~` are kept for the incarnation (`origin`), white space for people.

    Raises:
        Invalid: also when it contains `@`, `~` or white space.
        TooLarge: longer than `NODE_ID_BYTES_MAX`.
    """
    check_text("a node id", node_id, bytes_max=NODE_ID_BYTES_MAX)
    if any(sign in "@~" or sign.isspace() or not sign.isprintable() for sign in node_id):
        raise Invalid(f"node id {node_id!r} contains '@', '~', white space or a control character")
    return node_id


def node_of(origin: str) -> str:
    """The node id inside an origin (`node@incarnation`, or `node@incarnation~hash8` for a re-issued event)."""
    return origin.partition("@")[0]


def check_aggregate_id(aggregate_id: str) -> str:
    """`check_text` for an aggregate id, which is limited in characters."""
    check_text("an aggregate id", aggregate_id, bytes_max=4 * AGGREGATE_ID_CHARS_MAX)
    if len(aggregate_id) > AGGREGATE_ID_CHARS_MAX:
        raise TooLarge(f"an aggregate id has {len(aggregate_id)} characters; at most {AGGREGATE_ID_CHARS_MAX}")
    return aggregate_id


def _has_no_number(value: Any) -> bool:
    """Whether a float somewhere inside is not a JSON number (NaN, an infinity)."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_no_number(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_has_no_number(part) for part in value)
    if value is None or isinstance(value, str | int | bytes | msgspec.Raw):
        return False
    # A dataclass, a model, a set, …: what the encoder would make of it, one level down.
    return _has_no_number(msgspec.to_builtins(value, enc_hook=_plain))


def _plain(value: Any) -> Any:
    """What a pydantic model, or any object with `model_dump`, says of itself; the library is not imported for it."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return dump(mode="json")


_encode_any = msgspec.json.Encoder(enc_hook=_plain).encode


def encode_payload(data: Any) -> bytes:
    """Data as JSON bytes; `bytes` as they are.

    Raises:
        Invalid: NaN, an infinity, a lone surrogate, too deep a nesting, or a type that JSON cannot say.
        TooLarge: more than `PAYLOAD_BYTES_MAX`.
    """
    if isinstance(data, bytes):
        payload = data
    else:
        try:
            payload = _encode_any(data)
            # The encoder writes NaN as null. Only a payload that contains "null" is searched for one, since the search
            # costs more than the encoding.
            if b"null" in payload and _has_no_number(data):
                raise Invalid("the data contains NaN or an infinity, which JSON cannot say")
        except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError) as bad:
            raise Invalid(f"the data cannot be written as JSON: {bad}") from bad
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise TooLarge(
            f"the payload has {len(payload)} bytes; at most {PAYLOAD_BYTES_MAX} are allowed",
            hint="store the large part elsewhere and put a reference into the event",
        )
    return payload


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Metadata as canonical JSON (keys sorted); none is the empty string.

    Raises:
        Invalid: not a mapping with text keys, or something in it that JSON cannot say.
        TooLarge: more than `METADATA_BYTES_MAX`.
    """
    if not isinstance(metadata, Mapping) or not all(isinstance(name, str) for name in metadata):
        raise Invalid("the metadata must be a mapping whose names are text")
    if not metadata:
        return b""
    try:
        raw = _encode_sorted(dict(metadata))
        if b"null" in raw and _has_no_number(metadata):
            raise Invalid("the metadata contains NaN or an infinity, which JSON cannot say")
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError) as error:
        raise Invalid(f"the metadata cannot be written as JSON: {error}") from error
    if len(raw) > METADATA_BYTES_MAX:
        raise TooLarge(f"the metadata has {len(raw)} bytes; at most {METADATA_BYTES_MAX} are allowed")
    return raw


def check_draft(draft: Draft) -> None:
    """That the names, the id and the numbers of a draft are allowed; its data is checked when it is encoded.

    Raises:
        Invalid: a name, number or cause that the protocol does not allow.
        TooLarge: a name above its limit, or more than `AFTER_KEYS_MAX` causes.
    """
    check_topic(draft.topic)
    check_text("an event type", draft.type, bytes_max=NAME_BYTES_MAX)
    check_aggregate_id(draft.aggregate_id)
    if draft.id is not None:
        check_text("an event id", draft.id, bytes_max=NAME_BYTES_MAX)
    # Not isinstance: True would be hashed as a boolean, stored as 1, and read back as another event.
    if type(draft.schema_version) is not int or not 0 <= draft.schema_version < 2**31:
        raise Invalid(f"schema_version {draft.schema_version!r:.80} is not an integer in [0, 2^31)")
    if draft.context is not None and not isinstance(draft.context, VersionVector):
        raise Invalid(f"context {draft.context!r:.80} is not a VersionVector")
    if not isinstance(draft.after, tuple | list):
        raise Invalid(f"after {draft.after!r:.80} is not a tuple of keys")
    if len(draft.after) > AFTER_KEYS_MAX:
        raise TooLarge(f"{len(draft.after)} causes in `after`; at most {AFTER_KEYS_MAX} are allowed")
    for key in draft.after:
        if not isinstance(key, tuple) or [type(part) for part in key] != [str, str, int]:
            raise Invalid(f"`after` names {key!r:.80}, which is not a key (topic, origin, seq)")
        if not 1 <= key[2] <= COUNTER_MAX:
            raise Invalid(f"`after` names {key!r:.80}, whose number is outside [1, 2^63)")


def refusal(event: Event) -> SyncKitError | None:
    """Why an event that came from a peer, intact, must not be stored; None if it may be.

    A peer of ours never sends such an event: it kept the same limits at its append.
    """
    try:
        check_topic(event.topic)
        check_text("an event type", event.type, bytes_max=NAME_BYTES_MAX)
        check_aggregate_id(event.aggregate_id)
        check_text("an event id", event.id, bytes_max=NAME_BYTES_MAX)
        check_text("an origin", event.origin, bytes_max=NAME_BYTES_MAX)
        if len(event.payload) > PAYLOAD_BYTES_MAX:
            raise TooLarge(f"the payload has {len(event.payload)} bytes")
        if len(event.metadata_json) > METADATA_BYTES_MAX or len(event.context_bytes) > CONTEXT_BYTES_MAX:
            raise TooLarge("the metadata or the context is above its limit")
        if not (0 < event.seq <= COUNTER_MAX and 0 <= event.prev < event.seq and 0 <= event.at_packed <= COUNTER_MAX):
            raise Invalid(f"seq {event.seq}, prev {event.prev} or time {event.at_packed} is out of range")
        if not 0 <= event.schema_version < 2**31:
            raise Invalid(f"schema version {event.schema_version} is out of range")
        if len(event.traceparent) > TRACEPARENT_BYTES_MAX:
            raise TooLarge(f"the trace context has {len(event.traceparent)} characters")
        if "\0" in event.traceparent:
            raise Invalid("the trace context contains a NUL")
        # An event that waits for itself, or for a later one of its writer, would be held for ever.
        if event.context_bytes and event.context.covers(event.dot):
            raise Invalid(f"the context of {event.key} covers the event itself")
        if event.after_bytes:
            after = event.after
            if len(after) > AFTER_KEYS_MAX:
                raise TooLarge(f"{len(after)} causes in `after`")
            if any(key.topic == event.topic and key.origin == event.origin and key.seq >= event.seq for key in after):
                raise Invalid(f"{event.key} names itself, or what its writer wrote later, as its cause")
        if event.metadata_json:
            _ = event.metadata
    except SyncKitError as error:
        return error
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        return Invalid(f"the metadata is not a JSON object: {error}")
    return None


_half_surrogate = re.compile(r"\\u[dD][89a-fA-F]").search


def json_strict(raw: bytes | str) -> Any:
    """Decode JSON in UTF-8 where a doubtful text is an error and not a choice.

    Raises:
        Invalid: with the reason: also a name twice in one object, NaN, a number beyond what a float holds, half a
            surrogate pair, or a nesting too deep.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise Invalid(f"the name {twice!r:.80} stands twice in one JSON object")
        return found

    def no_number(text: str) -> Any:
        raise Invalid(f"{text} is not a JSON number")

    def number(text: str) -> float:
        found = float(text)
        if math.isinf(found):
            raise Invalid(f"the number {text:.80} is beyond what a float holds")
        return found

    try:
        # The standard library would also guess UTF-16, and let bytes pass that are no Unicode.
        text = raw if isinstance(raw, str) else raw.decode()
        found = json.loads(text, object_pairs_hook=once, parse_constant=no_number, parse_float=number)
        if _half_surrogate(text):
            msgspec.json.decode(text)  # which refuses a half that stands alone
        text.encode()
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise Invalid(f"not JSON: {error}") from error
    return found
