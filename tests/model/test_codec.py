"""Payloads, limits and what may be stored: each limit at its edge and one above, each refusal with its code."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from synckit_streams.errors import Invalid, SyncKitError, TooLarge
from synckit_streams.model import codec
from synckit_streams.model.clock import COUNTER_MAX, Key, VersionVector, keys_bytes
from synckit_streams.model.event import Draft, Event
from tests.model.strategies import JSON_VALUES, SIGNS, damaged, events

DRAFT = Draft(topic="orders", type="order.placed", aggregate_id="o-1")
EVENT = Event("e", "orders", "order.placed", "o-1", b"{}", b"", "till-1@a", 5, 2, b"", b"", 1)


@dataclasses.dataclass
class Reading:
    value: Any


class Measured(msgspec.Struct):
    value: Any


class Modelled:
    """What pydantic's models look like from outside."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        assert mode == "json"
        return {"value": self.value}


class Unit(enum.Enum):
    NAN = math.nan


# ------------------------------------------------------------------------------------------------------------ payloads


@given(JSON_VALUES)
def test_data_survives_the_payload(data: Any) -> None:
    """Read by us, or by anybody else's JSON."""
    payload = codec.encode_payload(data)
    assert json.loads(payload) == data
    assert msgspec.structs.replace(EVENT, payload=payload).data == data


@given(st.binary(max_size=50))
def test_bytes_are_taken_as_they_are(data: bytes) -> None:
    assert codec.encode_payload(data) == data


@pytest.mark.parametrize("make", [Reading, Measured, Modelled])
def test_objects_are_written_as_what_they_hold(make: Any) -> None:
    assert codec.encode_payload(make(5)) == b'{"value":5}'
    assert codec.encode_payload([make("null"), None]) == b'[{"value":"null"},null]'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "around",
    [
        pytest.param(lambda it: it, id="bare"),
        pytest.param(lambda it: {"a": [1, {"b": it}]}, id="deep in dicts and lists"),
        pytest.param(lambda it: (1, it), id="in a tuple"),
        pytest.param(lambda it: {it}, id="in a set"),
        pytest.param(lambda it: frozenset({it}), id="in a frozenset"),
        pytest.param(Reading, id="in a dataclass"),
        pytest.param(Measured, id="in a Struct"),
        pytest.param(Modelled, id="in a model"),
        pytest.param(lambda it: {"a": [Modelled(Reading(Measured(it)))]}, id="in a model in a dict"),
    ],
)
def test_what_is_not_a_number_is_refused_and_not_stored_as_null(around: Any, number: float) -> None:
    with pytest.raises(Invalid) as caught:
        codec.encode_payload(around(number))
    assert caught.value.code == "SK205"


def test_an_enumeration_of_nan_is_refused_too() -> None:
    with pytest.raises(Invalid):
        codec.encode_payload({"unit": Unit.NAN})


def cycle() -> list[Any]:
    around: list[Any] = []
    around.append(around)
    return around


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param({"\udfff": 1}, id="half a surrogate pair in a name"),
        pytest.param(object(), id="an object"),
        pytest.param({"a": {1, object()}}, id="an object in a set"),
        pytest.param({(1, 2): 3}, id="a tuple as a name"),
        pytest.param(lambda: None, id="a function"),
        pytest.param(1 + 2j, id="a complex number"),
        pytest.param(nested(10_000), id="10,000 levels"),
        pytest.param(cycle(), id="a cycle"),
    ],
)
def test_what_json_cannot_say_is_a_clear_error(data: Any) -> None:
    with pytest.raises(Invalid) as caught:
        codec.encode_payload(data)
    assert caught.value.code == "SK205"


def test_integers_beyond_64_bits_are_kept_exactly() -> None:
    event = msgspec.structs.replace(EVENT, payload=codec.encode_payload(-(2**70)))
    assert event.data == -(2**70)


def test_the_largest_payload_is_allowed_and_one_byte_more_is_not() -> None:
    largest = "x" * (codec.PAYLOAD_BYTES_MAX - 2)  # and two quotes
    assert len(codec.encode_payload(largest)) == codec.PAYLOAD_BYTES_MAX
    for too_large in (largest + "x", b"x" * (codec.PAYLOAD_BYTES_MAX + 1)):
        with pytest.raises(TooLarge) as caught:
            codec.encode_payload(too_large)
        assert caught.value.code == "SK203"
        assert "reference" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------ metadata


@given(st.dictionaries(st.text(SIGNS, min_size=1), JSON_VALUES, max_size=4))
def test_metadata_have_one_form_whatever_the_order(metadata: dict[str, Any]) -> None:
    """The hash would otherwise tell a retry from its first attempt."""
    raw = codec.encode_metadata(metadata)
    assert raw == codec.encode_metadata(dict(reversed(metadata.items())))
    assert msgspec.structs.replace(EVENT, metadata_json=raw).metadata == metadata
    assert (raw == b"") == (not metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        {"a": math.nan},
        {"a": Reading(math.inf)},
        {"a": object()},
        {"a": "\ud800"},
        {"a": nested(10_000)},
        {1: 2},
        ["a"],
        "a",
        5,
    ],
)
def test_metadata_that_json_cannot_say_are_a_clear_error(metadata: Any) -> None:
    with pytest.raises(Invalid) as caught:
        codec.encode_metadata(metadata)
    assert caught.value.code == "SK205"


def test_the_largest_metadata_are_allowed_and_one_byte_more_is_not() -> None:
    room = codec.METADATA_BYTES_MAX - len('{"a":""}')
    assert len(codec.encode_metadata({"a": "x" * room})) == codec.METADATA_BYTES_MAX
    with pytest.raises(TooLarge):
        codec.encode_metadata({"a": "x" * (room + 1)})


# --------------------------------------------------------------------------------------------------------------- names

EURO = "€"  # three bytes in UTF-8


@pytest.mark.parametrize(
    ("field", "largest"),
    [
        pytest.param("topic", "x" * 100, id="topic"),
        pytest.param("topic", EURO * 33 + "x", id="topic in UTF-8"),
        pytest.param("type", EURO * 85, id="type"),
        pytest.param("id", EURO * 85, id="id"),
        pytest.param("aggregate_id", "x" * 10_000, id="aggregate id"),
        pytest.param("aggregate_id", "😀" * 10_000, id="aggregate id in UTF-8"),
    ],
)
def test_the_longest_name_is_allowed_and_one_sign_more_is_not(field: str, largest: str) -> None:
    """Limits count UTF-8 bytes; an aggregate id's counts characters. A peer's event is held to the same."""
    codec.check_draft(msgspec.structs.replace(DRAFT, **{field: largest}))
    assert codec.refusal(msgspec.structs.replace(EVENT, **{field: largest})) is None
    with pytest.raises(TooLarge) as caught:
        codec.check_draft(msgspec.structs.replace(DRAFT, **{field: largest + "x"}))
    assert caught.value.code == "SK203"
    assert isinstance(codec.refusal(msgspec.structs.replace(EVENT, **{field: largest + "x"})), TooLarge)


@pytest.mark.parametrize("field", ["topic", "type", "id", "aggregate_id"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("a\0b", id="NUL"),
        pytest.param("a\ud800", id="half a surrogate pair"),
        pytest.param(b"a", id="bytes"),
        pytest.param(5, id="a number"),
    ],
)
def test_a_name_that_no_store_could_keep_is_a_clear_error(field: str, name: Any) -> None:
    with pytest.raises(Invalid) as caught:
        codec.check_draft(msgspec.structs.replace(DRAFT, **{field: name}))
    assert caught.value.code == "SK205"
    assert isinstance(codec.refusal(msgspec.structs.replace(EVENT, **{field: name})), Invalid)


@given(st.text(SIGNS, min_size=1, max_size=25))
def test_every_other_unicode_text_is_a_name(name: str) -> None:
    codec.check_draft(Draft(topic=name, type=name, aggregate_id=name, id=name))


@pytest.mark.parametrize(
    "node_id", ["till 7", "till@7", "till~7", "till\n7", "", "till\u00a07", "till\u200b7", "x" * 65]
)
def test_a_node_id_leaves_room_for_its_incarnation(node_id: str) -> None:
    with pytest.raises(SyncKitError):
        codec.check_node_id(node_id)


def test_the_node_of_an_origin_is_what_was_named() -> None:
    for node_id in ("till-7", "Kasse-7-größe", "x" * 64):
        assert codec.check_node_id(node_id) == node_id
        assert codec.node_of(f"{node_id}@0123abcd") == node_id
        assert codec.node_of(f"{node_id}@0123abcd~89abcdef") == node_id


@pytest.mark.parametrize("version", [-1, 2**31, 1.0, True, "1", None])
def test_a_schema_version_is_a_small_number(version: Any) -> None:
    """True is refused: it would be hashed as a boolean, stored as 1, and be another event when read back."""
    with pytest.raises(Invalid):
        codec.check_draft(msgspec.structs.replace(DRAFT, schema_version=version))


def test_the_largest_schema_version_is_allowed() -> None:
    for version in (0, 2**31 - 1):
        codec.check_draft(msgspec.structs.replace(DRAFT, schema_version=version))


@pytest.mark.parametrize(
    "after",
    [
        (Key("t", "a", 0),),
        (Key("t", "a", -1),),
        (Key("t", "a", 2**63),),
        (Key("t", "a", 2**64),),
        (("t", "a"),),
        (("t", "a", "1"),),
        (("t", "a", True),),
        (1,),
        5,
        "abc",
        None,
    ],
)
def test_causes_that_are_no_keys_are_a_clear_error(after: Any) -> None:
    with pytest.raises(Invalid):
        codec.check_draft(msgspec.structs.replace(DRAFT, after=after))


def test_as_many_causes_as_allowed_and_one_more() -> None:
    causes = tuple(Key("t", "a", seq) for seq in range(1, codec.AFTER_KEYS_MAX + 2))
    codec.check_draft(msgspec.structs.replace(DRAFT, after=causes[:-1]))
    with pytest.raises(TooLarge):
        codec.check_draft(msgspec.structs.replace(DRAFT, after=causes))
    allowed = msgspec.structs.replace(EVENT, after_bytes=keys_bytes(causes[:-1]))
    assert codec.refusal(allowed) is None
    assert isinstance(codec.refusal(msgspec.structs.replace(EVENT, after_bytes=keys_bytes(causes))), TooLarge)


def test_causes_are_allowed_to_the_edge_of_their_numbers() -> None:
    codec.check_draft(msgspec.structs.replace(DRAFT, after=(Key("t", "a", 1), Key("t", "a", COUNTER_MAX))))


@pytest.mark.parametrize("context", [{"a": 1}, b"", "a"])
def test_a_context_is_a_version_vector(context: Any) -> None:
    with pytest.raises(Invalid):
        codec.check_draft(msgspec.structs.replace(DRAFT, context=context))


# ------------------------------------------------------------------------------------------------ what a peer may send


@given(events())
def test_whatever_a_store_may_hold_is_taken(event: Event) -> None:
    own = [key.seq for key in event.after if (key.topic, key.origin) == (event.topic, event.origin)]
    assume(not event.context.covers(event.dot) and max(own, default=0) < event.seq)
    assert codec.refusal(event) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"seq": 0, "prev": 0}, id="number 0"),
        pytest.param({"seq": -1, "prev": -2}, id="a negative number"),
        pytest.param({"seq": 2**63}, id="number 2^63"),
        pytest.param({"seq": 2**64}, id="number 2^64"),
        pytest.param({"prev": 5}, id="its own predecessor"),
        pytest.param({"prev": -1}, id="a negative predecessor"),
        pytest.param({"at_packed": -1}, id="a time before 1970"),
        pytest.param({"at_packed": 2**63}, id="a time beyond the calendar"),
        pytest.param({"schema_version": -1}, id="a negative schema version"),
        pytest.param({"schema_version": 2**31}, id="schema version 2^31"),
        pytest.param({"origin": ""}, id="no origin"),
        pytest.param({"origin": "a\0"}, id="NUL in the origin"),
        pytest.param({"origin": "x" * 256}, id="a long origin"),
        pytest.param({"payload": b"x" * 1_000_001}, id="a large payload"),
        pytest.param({"metadata_json": b'{"a":"' + b"x" * 16_377 + b'"}'}, id="large metadata"),
        pytest.param({"metadata_json": b"{"}, id="metadata cut off"),
        pytest.param({"metadata_json": b"[1]"}, id="metadata that are a list"),
        pytest.param({"metadata_json": b'{"a":"\xff"}'}, id="metadata that are not UTF-8"),
        pytest.param({"metadata_json": b'{"a":' * 2_000 + b"1" + b"}" * 2_000}, id="metadata nested deep"),
        pytest.param({"context_bytes": b"\x00" * 16_385}, id="a large context"),
        pytest.param({"context_bytes": b"\x90"}, id="a context that is not canonical"),
        pytest.param(
            {"context_bytes": VersionVector({"till-1@a": 5}).to_bytes()}, id="a context with the event itself"
        ),
        pytest.param({"context_bytes": VersionVector({"till-1@a": 9}).to_bytes()}, id="a context from the future"),
        pytest.param({"after_bytes": b"\x90"}, id="causes that are not canonical"),
        pytest.param({"after_bytes": keys_bytes([Key("orders", "till-1@a", 5)])}, id="itself as its cause"),
        pytest.param({"after_bytes": keys_bytes([Key("orders", "till-1@a", 6)])}, id="a later event as its cause"),
        pytest.param({"after_bytes": msgspec.msgpack.encode([("t", "a", 0)])}, id="event 0 as its cause"),
        pytest.param({"traceparent": "x" * 256}, id="a long trace context"),
        pytest.param({"traceparent": "a\0"}, id="NUL in the trace context"),
    ],
)
def test_what_no_peer_of_ours_sends_is_refused_with_a_reason(change: dict[str, Any]) -> None:
    """It is told and never raised: one bad event must not stop the batch that it came in."""
    assert codec.refusal(EVENT) is None
    error = codec.refusal(msgspec.structs.replace(EVENT, **change))
    assert isinstance(error, SyncKitError)
    assert error.code in ("SK201", "SK203", "SK205")


def test_limits_are_the_same_on_every_node() -> None:
    """They are constants of the protocol; a node with another value would keep what the rest refuses."""
    assert (codec.TOPIC_BYTES_MAX, codec.NODE_ID_BYTES_MAX, codec.NAME_BYTES_MAX) == (100, 64, 255)
    assert (codec.AGGREGATE_ID_CHARS_MAX, codec.PAYLOAD_BYTES_MAX) == (10_000, 1_000_000)
    assert (codec.METADATA_BYTES_MAX, codec.CONTEXT_BYTES_MAX) == (16_384, 16_384)
    assert (codec.AFTER_KEYS_MAX, codec.TRACEPARENT_BYTES_MAX) == (64, 255)


def test_limits_are_allowed_to_their_edge() -> None:
    # An array of 66 pairs has a head of 3 bytes; each pair one, a string's head of 2, the string, and a number of one.
    largest = VersionVector({f"{number:0>244}": 1 for number in range(65)} | {"x" * 257: 1})
    assert len(largest.to_bytes()) == 3 + 65 * (1 + 2 + 244 + 1) + (1 + 3 + 257 + 1) == 16_385
    largest = VersionVector({**largest, "x" * 257: 0, "x" * 256: 1})
    for change in (
        {"context_bytes": largest.to_bytes()},
        {"payload": b"x" * codec.PAYLOAD_BYTES_MAX},
        {"metadata_json": codec.encode_metadata({"a": "x" * (codec.METADATA_BYTES_MAX - 8)})},
        {"seq": COUNTER_MAX, "prev": COUNTER_MAX - 1},
        {"seq": 1, "prev": 0, "at_packed": 0, "schema_version": 0},
        {"at_packed": COUNTER_MAX, "schema_version": 2**31 - 1},
        {"origin": "x" * 255, "traceparent": "x" * 255},
        {"context_bytes": VersionVector({"till-1@a": 4, "till-2@b": 9}).to_bytes()},
        {"after_bytes": keys_bytes([Key("orders", "till-1@a", 4), Key("stock", "till-1@a", 9)])},
    ):
        assert codec.refusal(msgspec.structs.replace(EVENT, **change)) is None


@given(st.data(), events())
def test_a_damaged_event_is_refused_or_has_another_hash(data: st.DataObject, event: Event) -> None:
    whole = msgspec.msgpack.encode(event)
    raw = data.draw(damaged(whole))
    try:
        read = msgspec.msgpack.decode(raw, type=Event)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    codec.refusal(read)  # raises nothing, whatever it was
    assert (codec.event_hash(read) == codec.event_hash(event)) == (read == event)


# -------------------------------------------------------------------------------------------------------------- digest


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=8), st.randoms(use_true_random=False))
def test_the_digest_is_of_the_set_whatever_the_order(hashes: list[bytes], random: Any) -> None:
    shuffled = random.sample(hashes, len(hashes))
    half = len(hashes) // 2
    assert codec.digest_add(0, hashes) == codec.digest_add(codec.digest_add(0, shuffled[:half]), shuffled[half:])
    assert codec.digest_add(0, hashes) == sum(int(each.hex() or "0", 16) for each in hashes) % 2**256


def test_the_digest_wraps_at_256_bits() -> None:
    assert codec.digest_add(1, [b"\xff" * 32]) == 0
    assert codec.digest_add(0, []) == 0


# --------------------------------------------------------------------------------------------------------- strict JSON


@given(JSON_VALUES, st.booleans())
def test_good_json_is_read(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert codec.json_strict(text) == value
    assert codec.json_strict(text.encode()) == value


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b'{"a":1', id="cut off"),
        pytest.param(b'{"a":1}{', id="more behind"),
        pytest.param(b'{"a":1,"a":1}', id="a name twice"),
        pytest.param(b'[{"b":{"a":1,"c":2,"a":3}}]', id="a name twice, deep inside"),
        pytest.param(b'{"a":1,"\\u0061":2}', id="a name twice, once in disguise"),
        pytest.param(b"NaN", id="NaN"),
        pytest.param(b"[-Infinity]", id="minus infinity"),
        pytest.param(b"1e999", id="a number beyond a float"),
        pytest.param(b"1" * 5_000, id="5,000 digits"),
        pytest.param(b'"\\ud800"', id="half a surrogate pair"),
        pytest.param(b'"\xed\xa0\x80"', id="half a surrogate pair in bytes"),
        pytest.param('"\ud800"', id="half a surrogate pair as text"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param('{"a":1}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf{}", id="a byte order mark"),
        pytest.param(b"[" * 10_000 + b"]" * 10_000, id="10,000 levels"),
    ],
)
def test_doubtful_json_is_an_error_and_not_a_choice(raw: bytes | str) -> None:
    with pytest.raises(Invalid) as caught:
        codec.json_strict(raw)
    assert caught.value.code == "SK205"


def test_what_only_looks_like_half_a_surrogate_pair_is_read() -> None:
    assert codec.json_strict(b'"\\\\ud800 \\ud83d\\ude00"') == "\\ud800 😀"


@pytest.mark.timeout(10)
def test_a_repeated_name_among_many_is_found_at_once() -> None:
    names = ",".join(f'"{number}":0' for number in range(200_000))
    with pytest.raises(Invalid, match="'7'"):
        codec.json_strict(f'{{{names},"7":1}}')


@given(st.data(), JSON_VALUES)
def test_damaged_json_is_an_error_or_other_json(data: st.DataObject, value: Any) -> None:
    raw = data.draw(damaged(json.dumps(value).encode()))
    try:
        codec.json_strict(raw)
    except Invalid:
        return
    json.loads(raw)
