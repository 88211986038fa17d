"""Events travel as messages and come back the same; whatever else a message is, it does no harm."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.model.codec import event_hash, refusal
from synckit_streams.model.event import Event
from synckit_streams.model.exchange import Place
from synckit_streams.model.frame import FRAME_VERSION
from synckit_streams.ports.connector import Message
from synckit_streams.runtime.envelope import (
    FRAME_BYTES,
    FRAME_EVENTS,
    FRAME_HEADER,
    MESSAGE_BYTES_MAX,
    RAW_BYTES_MAX,
    arrivals,
    fingerprint,
    to_messages,
)
from tests.acceptance.kit import crafted, message_of
from tests.model.strategies import damaged, events

PLACE = Place("link|orders|0", 7)
FRAME = {FRAME_HEADER: "1"}
PACKING = pytest.mark.parametrize("packing", ["event", "batch"])


def with_hashes(*found: Event) -> list[tuple[Event, bytes]]:
    return [(event, event_hash(event)) for event in found]


def packed(*found: Event, packing: str = "batch", bytes_max: int = 8_000_000) -> list[Message]:
    return [
        parcel.message
        for parcel in to_messages(with_hashes(*found), packing=packing, round_id="r1", bytes_max=bytes_max)
    ]


@PACKING
@given(event=events().filter(lambda event: refusal(event) is None))
def test_whatever_a_store_may_hold_comes_back_the_same(packing: str, event: Event) -> None:
    """Every hashed byte; in headers that any broker carries."""
    for message in packed(event, packing=packing):
        for name, value in message.headers.items():
            assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
            assert value.isascii()
            assert value.isprintable()
            assert value == value.strip()
        (arrival,) = arrivals(message, event.topic, PLACE)
        assert (arrival.event, arrival.hash, arrival.place, arrival.reason) == (event, event_hash(event), PLACE, "")


def test_frames_are_bounded_in_events_and_bytes() -> None:
    """And together hold every event once, in order."""
    small = [crafted("orders", "till@1", seq) for seq in range(1, 1_202)]
    parcels = to_messages(with_hashes(*small), packing="batch", round_id="r", bytes_max=8_000_000)
    assert [parcel.events for parcel in parcels] == [FRAME_EVENTS, FRAME_EVENTS, 201]
    assert [parcel.first.seq for parcel in parcels] == [1, 501, 1_001]
    large = [crafted("orders", "till@1", seq, payload=b"x" * 100_000) for seq in range(1, 11)]
    messages = packed(*large)
    assert all(len(message.body) <= FRAME_BYTES for message in messages)
    found = [arrival.event for message in messages for arrival in arrivals(message, "orders", None)]
    assert found == large


def test_an_event_whose_headers_are_too_large_travels_in_a_frame() -> None:
    """Percent-encoding triples a long aggregate id; the broker's limit is not a reason to refuse the event."""
    event = crafted("orders", "till@1", 1, aggregate_id="é" * 10_000)
    (message,) = packed(event, packing="event", bytes_max=48 * 1024)
    assert FRAME_HEADER in message.headers
    (arrival,) = arrivals(message, "orders", None)
    assert arrival.event == event


def test_a_second_publication_is_another_message() -> None:
    """The broker's duplicate window must not swallow it, and a log that was put back must not look the same."""
    event = crafted("orders", "till@1", 1)
    for packing in ("event", "batch"):
        one, other = (
            to_messages(with_hashes(event), packing=packing, round_id=round_id, bytes_max=1_000_000)[0].message
            for round_id in ("r1", "r2")
        )
        assert one.id != other.id
        assert (one.body, one.headers) == (other.body, other.headers)
        assert fingerprint(one) != fingerprint(other)
        assert fingerprint(one) == fingerprint(msgspec.structs.replace(one, partition_key=""))


HEADERS = st.dictionaries(st.text(max_size=12), st.text(max_size=40), max_size=4)


@given(
    headers=st.one_of(HEADERS, HEADERS.map(lambda headers: {**headers, **FRAME}), st.just(FRAME)),
    body=st.one_of(st.binary(max_size=200), st.just(b"")),
)
def test_garbage_is_set_aside_with_a_reason(headers: dict[str, str], body: bytes) -> None:
    """Whatever it is: no exception, and the bytes are kept."""
    message = Message("id", "k", headers, body)
    for arrival in arrivals(message, "orders", PLACE):
        assert arrival.event is None
        assert arrival.reason
        assert arrival.raw.endswith(body)
        assert arrival.place == PLACE
    assert fingerprint(message) == fingerprint(Message("id", "", dict(headers), body))


@given(data=st.data())
def test_a_damaged_frame_gives_only_what_was_in_it(data: st.DataObject) -> None:
    """Bits flipped, bytes dropped, doubled or cut off anywhere: an event is whole, or it is not there."""
    whole = [crafted("orders", "till@1", seq, payload=b'{"n":%d}' % seq) for seq in range(1, 6)]
    (message,) = packed(*whole)
    body = data.draw(damaged(message.body))
    found = arrivals(msgspec.structs.replace(message, body=body), "orders", PLACE)
    assert all(arrival.event in whole for arrival in found if arrival.event is not None)
    if body != message.body:
        assert [arrival for arrival in found if arrival.event is None or len(found) < len(whole)]


@given(data=st.data())
def test_a_damaged_message_is_the_event_or_nothing(data: st.DataObject) -> None:
    """Its headers and its body are both under the hash."""
    event = crafted("orders", "till@1", 3, payload=b'{"n":3}', metadata_json=b'{"by":"ann"}')
    message = message_of(event)
    name = data.draw(st.sampled_from(sorted(message.headers)))
    raw = data.draw(damaged(message.headers[name].encode()))
    headers = {**message.headers, name: raw.decode("latin-1")}
    body = data.draw(st.one_of(st.just(message.body), damaged(message.body)))
    for arrival in arrivals(Message("id", "k", headers, body), "orders", PLACE):
        assert arrival.event in (event, None)
        assert bool(arrival.reason) == (arrival.event is None)


def test_one_broken_event_of_a_frame_costs_that_event_alone() -> None:
    """The others are taken; the frame is kept once, however many are broken."""
    whole = [crafted("orders", "till@1", seq, payload=b'"payload %03d"' % seq) for seq in range(1, 101)]
    (message,) = packed(*whole)
    for times in (1, 40):
        body = message.body
        for seq in range(1, times + 1):
            body = body.replace(b"payload %03d" % seq, b"PAYLOAD %03d" % seq)
        found = arrivals(msgspec.structs.replace(message, body=body), "orders", PLACE)
        assert [arrival.event for arrival in found if arrival.event] == whole[times:]
        (broken,) = [arrival for arrival in found if arrival.event is None]
        assert "hash" in broken.reason
        assert str(times) in broken.reason or times == 1
        assert broken.raw.endswith(body)


def test_an_event_of_another_topic_is_set_aside() -> None:
    """Somebody copied messages from one log to another."""
    ours, theirs = crafted("orders", "till@1", 1), crafted("stock", "till@1", 1)
    found = arrivals(packed(ours, theirs)[0], "orders", PLACE)
    assert [arrival.event for arrival in found] == [ours, None]
    assert "'stock'" in found[1].reason
    assert arrivals(message_of(theirs), "orders", PLACE)[0].event is None


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (msgspec.msgpack.encode([2, b"", []]), "version 2"),
        (msgspec.msgpack.encode([FRAME_VERSION, b"", [1]]), "hashes"),
        (msgspec.msgpack.encode([FRAME_VERSION, b"x" * 32, []]), "hashes"),
        (msgspec.msgpack.encode([FRAME_VERSION, b"", [["x"]] * 10_001]), ""),
        (b"\x93" * 100_000, ""),
        (b"\xdd\xff\xff\xff\xff", ""),
        (b"\xc6\xff\xff\xff\xff", ""),
        (b"", ""),
    ],
)
def test_a_frame_that_is_none_is_refused(body: bytes, says: str) -> None:
    """Another version, numbers that do not fit, lengths that promise more than there is, nesting without end."""
    (arrival,) = arrivals(Message("id", "k", FRAME, body), "orders", PLACE)
    assert arrival.event is None
    assert says in arrival.reason


def test_a_message_beyond_every_limit_is_not_decoded_and_not_kept_whole() -> None:
    """A hundred megabytes leave a reason and the beginning of them."""
    (arrival,) = arrivals(Message("id", "k", FRAME, b"\x93" * 100_000_000), "orders", PLACE)
    assert str(MESSAGE_BYTES_MAX) in arrival.reason
    assert len(arrival.raw) < RAW_BYTES_MAX + 1_000


@pytest.mark.parametrize("value", ["-1", "0", str(2**63), str(2**64), "1e3", " 1", "", "١", "9" * 5_000])
def test_a_counter_out_of_range_is_set_aside(value: str) -> None:
    """Negative, too large, or no integer at all: in a header, and in a frame."""
    message = message_of(crafted("orders", "till@1", 1))
    (arrival,) = arrivals(Message("id", "k", {**message.headers, "ce-skseq": value}, b"{}"), "orders", PLACE)
    assert arrival.event is None


@pytest.mark.parametrize(
    "fields",
    [{"seq": -1}, {"seq": 2**63}, {"prev": -5}, {"at_packed": -1}, {"schema_version": -1}, {"prev": 2**64 - 1}],
)
def test_a_counter_out_of_range_in_a_frame_is_refused(fields: dict[str, Any]) -> None:
    """Its hash is right, its numbers are not: it is an event that must not be stored, and that is said by name."""
    event = msgspec.structs.replace(crafted("orders", "till@1", 1), **fields)
    body = msgspec.msgpack.encode((FRAME_VERSION, event_hash(event), [event]))
    (arrival,) = arrivals(Message("id", "k", FRAME, body), "orders", PLACE)
    assert arrival.event is None or refusal(arrival.event) is not None
