"""What an event is: its fields, its hash, its payload; and where it stands in a log."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given

from synckit_streams.errors import Invalid, PayloadUndecodable
from synckit_streams.model.clock import Dot, HybridTime, Key, VersionVector, keys_bytes
from synckit_streams.model.codec import event_content_hash, event_hash
from synckit_streams.model.event import Draft, Event, Offset, Stored
from tests.model.strategies import events

EVENT = Event(
    id="e-1",
    topic="orders",
    type="order.placed",
    aggregate_id="o-1",
    payload=b'{"total":5}',
    metadata_json=b'{"user":"u"}',
    origin="till-1@a",
    seq=300,
    prev=2,
    context_bytes=VersionVector({"till-1@a": 2}).to_bytes(),
    after_bytes=keys_bytes([Key("stock", "till-2@b", 1)]),
    at_packed=HybridTime(1_700_000_000_000, 7).packed,
    schema_version=3,
    traceparent="00-x",
)

# Another value of the right type for every field.
OTHER: dict[str, Any] = {
    "id": "e-2",
    "topic": "order",
    "type": "sorder.placed",
    "aggregate_id": "o-2",
    "payload": b'{"total":6}',
    "metadata_json": b"",
    "origin": "till-1@b",
    "seq": 301,
    "prev": 3,
    "context_bytes": b"",
    "after_bytes": b"",
    "at_packed": 0,
    "schema_version": 4,
    "traceparent": "",
}


def reference_bytes(value: Any) -> bytes:
    """MessagePack as its specification has it, as far as an event needs it: an encoder to check the other one with."""

    def head(length: int, *forms: tuple[int, int, int]) -> bytes:
        """The first form (limit, leading byte, bytes of length) that is long enough."""
        for limit, lead, width in forms:
            if length < limit:
                return bytes([lead | length]) if width == 0 else bytes([lead]) + length.to_bytes(width, "big")
        raise ValueError(length)

    if isinstance(value, int):
        return head(
            value, (1 << 7, 0, 0), (1 << 8, 0xCC, 1), (1 << 16, 0xCD, 2), (1 << 32, 0xCE, 4), (1 << 64, 0xCF, 8)
        )
    if isinstance(value, str):
        raw = value.encode()
        return head(len(raw), (32, 0xA0, 0), (1 << 8, 0xD9, 1), (1 << 16, 0xDA, 2), (1 << 32, 0xDB, 4)) + raw
    if isinstance(value, bytes):
        return head(len(value), (1 << 8, 0xC4, 1), (1 << 16, 0xC5, 2), (1 << 32, 0xC6, 4)) + value
    return head(len(value), (16, 0x90, 0)) + b"".join(map(reference_bytes, value))


@given(events())
def test_the_hash_is_sha256_of_a_messagepack_array_of_the_fields(event: Event) -> None:
    """So that another language can compute it from the fields alone."""
    assert event_hash(event) == sha256(reference_bytes(msgspec.structs.astuple(event))).digest()


def test_the_hash_of_this_event_never_changes() -> None:
    """The digests of every replica that ever ran rest on it."""
    assert event_hash(EVENT).hex() == "3bf7e36384cb6542cf9db6824c73560873f8b1977f29ce6a445f5c2ab10faadb"
    assert event_content_hash(EVENT).hex() == "a4217b6865973a10be8dff3f3b019aabede101e5c4737e4fffd799ee8f08f140"


@pytest.mark.parametrize("field", Event.__struct_fields__)
def test_every_single_field_is_hashed(field: str) -> None:
    changed = msgspec.structs.replace(EVENT, **{field: OTHER[field]})
    assert changed != EVENT
    assert event_hash(changed) != event_hash(EVENT)


@pytest.mark.parametrize("field", Event.__struct_fields__)
def test_the_content_is_what_the_caller_said(field: str) -> None:
    """A retry from another machine, later, is the same content; other data, or another type, is not."""
    said_by_caller = {"topic", "type", "aggregate_id", "payload", "metadata_json", "schema_version"}
    changed = msgspec.structs.replace(EVENT, **{field: OTHER[field]})
    assert (event_content_hash(changed) != event_content_hash(EVENT)) == (field in said_by_caller)


def test_neighbouring_fields_do_not_run_together() -> None:
    """`ab` + `c` is another event than `a` + `bc`."""
    one = msgspec.structs.replace(EVENT, topic="ab", type="c")
    other = msgspec.structs.replace(EVENT, topic="a", type="bc")
    assert event_hash(one) != event_hash(other)
    assert event_content_hash(one) != event_content_hash(other)


@given(events())
def test_an_event_survives_its_canonical_bytes(event: Event) -> None:
    raw = msgspec.msgpack.encode(event)
    read = msgspec.msgpack.decode(raw, type=Event)
    assert read == event
    assert hash(read) == hash(event)
    assert msgspec.msgpack.encode(read) == raw


def test_the_properties_are_the_decoded_fields() -> None:
    assert EVENT.dot == Dot("till-1@a", 300)
    assert EVENT.key == Key("orders", "till-1@a", 300)
    assert EVENT.at == HybridTime(1_700_000_000_000, 7)
    assert EVENT.context == VersionVector({"till-1@a": 2})
    assert EVENT.after == (Key("stock", "till-2@b", 1),)
    assert EVENT.data == {"total": 5}
    assert EVENT.metadata == {"user": "u"}
    assert msgspec.structs.replace(EVENT, metadata_json=b"").metadata == {}
    assert EVENT.canonical_order == (EVENT.at_packed, "till-1@a", 300)


def test_nobody_can_change_what_others_read() -> None:
    EVENT.data["total"] = 7
    EVENT.metadata["user"] = "other"
    assert EVENT.data == {"total": 5}
    assert EVENT.metadata == {"user": "u"}
    for value, field in ((EVENT, "seq"), (Stored(EVENT, 7, "log-1"), "twin"), (Offset("log-1", 7), "position")):
        with pytest.raises(AttributeError):
            setattr(value, field, 1)
    with pytest.raises(AttributeError):
        Draft("orders", "order.placed", "o-1").topic = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"NaN",
        b"Infinity",
        b"1e999",
        b'"\xff"',
        b'"\\ud800"',
        b"[" * 10_000 + b"]" * 10_000,
        b"1" * 5_000,
        b"\x00",
        b"{} {}",
    ],
)
def test_a_payload_that_is_not_json_is_kept_and_says_so(payload: bytes) -> None:
    event = msgspec.structs.replace(EVENT, payload=payload)
    with pytest.raises(PayloadUndecodable) as caught:
        _ = event.data
    assert caught.value.code == "SK204"
    assert "orders" in caught.value.message
    assert event.payload == payload


def test_an_offset_is_past_what_was_read_before_it() -> None:
    assert Offset("log-1", 8).is_past(Offset("log-1", 7))
    assert not Offset("log-1", 7).is_past(Offset("log-1", 7))
    assert not Offset("log-1", 6).is_past(Offset("log-1", 7))


def test_offsets_of_two_logs_have_no_order() -> None:
    """Position 8 of one log says nothing about position 7 of another; the answer is an error and never a guess."""
    with pytest.raises(Invalid) as caught:
        Offset("log-1", 8).is_past(Offset("log-2", 7))
    assert caught.value.code == "SK205"
    with pytest.raises(TypeError):
        _ = Offset("log-1", 8) > Offset("log-1", 7)  # type: ignore[operator]


def test_a_stored_event_says_where_its_reader_stands() -> None:
    stored = Stored(EVENT, 7, "log-1")
    assert stored.offset == Offset("log-1", 7)
    assert not stored.twin


def test_a_draft_needs_no_more_than_what_happened_to_what() -> None:
    draft = Draft(topic="orders", type="order.placed", aggregate_id="o-1")
    assert (draft.data, draft.metadata, draft.id, draft.context, draft.after) == (None, {}, None, None, ())
    assert draft.schema_version == 1
    plain = Event("e", "orders", "order.placed", "o-1", b"{}", b"", "till-1@a", 1, 0, b"", b"", 1)
    assert (plain.schema_version, plain.traceparent) == (1, "")
