"""CloudEvents: our events there and back, the specification's own examples, and what the SDK reads and writes."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings import http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import assume, example, given
from hypothesis import strategies as st

from synckit_streams.errors import FrameMalformed, Invalid, SyncKitError, TooLarge
from synckit_streams.model.clock import HybridTime, Key, VersionVector, keys_bytes
from synckit_streams.model.cloudevent import (
    draft_from_structured,
    from_headers,
    from_structured,
    is_timestamp,
    to_headers,
    to_structured,
)
from synckit_streams.model.cloudevent.attributes import ATTRIBUTES, forbidden
from synckit_streams.model.cloudevent.structured import ATTRIBUTES_MAX, STRUCTURED_BYTES_MAX
from synckit_streams.model.codec import check_draft, encode_metadata, encode_payload, event_content_hash, event_hash
from synckit_streams.model.event import Draft, Event
from tests.model.strategies import JSON_VALUES, SIGNS, damaged, events

PREFIXES = st.sampled_from(["ce-", "ce_"])

EVENT = Event(
    id="0198c5c0-7b1c-7d1e-9c33-2f6ad2f04f4e",
    topic="orders",
    type="order.placed",
    aggregate_id="o-1",
    payload=b'{"total":5}',
    metadata_json=b'{"user":"u 1"}',
    origin="till-7@ab12",
    seq=3,
    prev=2,
    context_bytes=b"\x91\x92\xa1a\x01",
    after_bytes=keys_bytes([Key("t", "a", 1)]),
    at_packed=HybridTime(1_522_949_460_123, 5).packed,
    schema_version=2,
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01",
)
HASH = event_hash(EVENT)


def changed(**fields: Any) -> Event:
    return msgspec.structs.replace(EVENT, **fields)


# --------------------------------------------------------------------------------------------------------- binary mode


@given(events(), PREFIXES)
def test_the_way_through_headers_gives_the_identical_event(event: Event, prefix: str) -> None:
    hash = event_hash(event)
    headers = to_headers(event, hash, prefix=prefix)
    assert from_headers(headers, event.payload, prefix=prefix) == (event, hash)
    assert all(name.startswith(prefix) or name == "content-type" for name in headers)


@given(events())
def test_headers_are_printable_ascii(event: Event) -> None:
    """Whatever the names hold; a line break in one would end the header."""
    for name, value in to_headers(event, event_hash(event)).items():
        assert re.fullmatch(r"[!-~]+", name)
        assert re.fullmatch(r"[!#$%&'()*+,\-./0-9:;<=>?@A-Z\[\\\]^_`a-z{|}~]+", value)


def test_these_are_the_headers_of_an_event() -> None:
    """Written by hand: 1522949460123 ms is 2018-04-05T17:31:00.123Z; the hybrid time is that times 65,536, and 5."""
    assert to_headers(EVENT, HASH) == {
        "ce-specversion": "1.0",
        "ce-id": "0198c5c0-7b1c-7d1e-9c33-2f6ad2f04f4e",
        "ce-source": "/synckit/orders/till-7@ab12",
        "ce-type": "order.placed",
        "ce-subject": "o-1",
        "ce-time": "2018-04-05T17:31:00.123Z",
        "ce-datacontenttype": "application/json",
        "ce-skseq": "3",
        "ce-skprev": "2",
        "ce-skhlc": "99808015818620933",
        "ce-skver": "2",
        "ce-skhash": HASH.hex(),
        "ce-skctx": base64.b64encode(b"\x91\x92\xa1a\x01").decode(),
        "ce-skafter": base64.b64encode(b"\x91\x93\xa1t\xa1a\x01").decode(),
        "ce-skmeta": "{%22user%22:%22u%201%22}",
        "ce-traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01",
    }
    assert 1_522_949_460_123 * 65_536 + 5 == 99_808_015_818_620_933


def test_what_is_empty_has_no_header() -> None:
    headers = to_headers(changed(metadata_json=b"", context_bytes=b"", after_bytes=b"", traceparent=""), HASH)
    assert not {"ce-skmeta", "ce-skctx", "ce-skafter", "ce-traceparent"} & set(headers)


def test_the_bindings_differ_in_what_names_the_content_type() -> None:
    """NATS treats it as any attribute; Kafka and HTTP have a header for it, and forbid a second one."""
    kafka_headers = to_headers(EVENT, HASH, prefix="ce_")
    assert kafka_headers["content-type"] == "application/json"
    assert "ce_datacontenttype" not in kafka_headers
    http_headers = to_headers(EVENT, HASH, content_type="content-type")
    assert http_headers["content-type"] == "application/json"
    assert "ce-datacontenttype" not in http_headers


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b'{"a":1,"a":2}', "application/json"),
        (b" [1, 2] ", "application/json"),
        ('"größe"'.encode(), "application/json"),
        (b"null", "application/json"),
        (b"", "application/octet-stream"),
        (b"NaN", "application/octet-stream"),
        (b'{"a":1', "application/octet-stream"),
        (b'"\xff"', "application/octet-stream"),
        (b"\x00\x01", "application/octet-stream"),
        (b"[" * 10_000 + b"]" * 10_000, "application/octet-stream"),
    ],
)
def test_the_content_type_is_json_only_where_the_payload_is(payload: bytes, kind: str) -> None:
    event = changed(payload=payload)
    assert to_headers(event, HASH)["ce-datacontenttype"] == kind
    assert json.loads(to_structured(event, HASH))["datacontenttype"] == kind


def test_header_values_are_encoded_as_in_the_specifications_example() -> None:
    """HTTP binding, section 3.1.3.2: `Euro € 😀`."""
    event = changed(type="Euro € 😀")
    assert to_headers(event, HASH)["ce-type"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"
    assert to_headers(event, HASH, prefix="ce_")["ce_type"] == "Euro € 😀"


@pytest.mark.parametrize(
    ("header", "type"),
    [
        pytest.param("%e2%82%ac", "€", id="lower-case digits"),
        pytest.param("%6frder.placed", "order.placed", id="encoded for no need"),
        pytest.param('"order placed"', "order placed", id="a quoted string of an older writer"),
        pytest.param(r'"a \"b\" \\c"', r'a "b" \c', id="escapes in a quoted string"),
        pytest.param("größe", "größe", id="plain UTF-8"),
    ],
)
def test_values_that_others_encoded_otherwise_are_read(header: str, type: str) -> None:
    assert from_headers({**to_headers(EVENT, HASH), "ce-type": header}, EVENT.payload)[0] == changed(type=type)


@pytest.mark.parametrize("header", ["%C0%A0", "%ff", "a%", "a%2", "a%zz", "%25zz", "a\ud800"])
def test_values_that_stand_for_no_text_are_refused(header: str) -> None:
    """`%C0%A0` is an overlong space: the specification's own example."""
    with pytest.raises(FrameMalformed, match="'type'"):
        from_headers({**to_headers(EVENT, HASH), "ce-type": header}, EVENT.payload)


def test_text_that_cloudevents_forbids_travels_percent_encoded() -> None:
    """Control characters and noncharacters; once for CloudEvents, and once more for the header."""
    event = changed(id="50%", type="a\nb", aggregate_id="c\x7f\uffff/d é")
    headers = to_headers(event, HASH, prefix="ce_")
    assert (headers["ce_id"], headers["ce_type"]) == ("50%25", "a%0Ab")
    assert headers["ce_subject"] == "c%7F%EF%BF%BF/d é"
    assert to_headers(event, HASH)["ce-type"] == "a%250Ab"


def test_the_source_is_a_uri_reference_of_two_segments() -> None:
    event = changed(topic="a/b c", origin="größe@1~2")
    assert to_headers(event, HASH, prefix="ce_")["ce_source"] == "/synckit/a%2Fb%20c/gr%C3%B6%C3%9Fe@1~2"


def test_header_names_may_change_case_on_the_way() -> None:
    """HTTP intermediaries write them as they like."""
    titled = {name.title(): value for name, value in to_headers(EVENT, HASH).items()}
    assert from_headers(titled, EVENT.payload) == (EVENT, HASH)


def test_other_headers_do_not_disturb() -> None:
    headers = {"Nats-Msg-Id": "x", "ce-partitionkey": "%zz", **to_headers(EVENT, HASH), "traceparent": "hop"}
    assert from_headers(headers, EVENT.payload) == (EVENT, HASH)


def test_reading_tells_the_claimed_hash_and_does_not_judge_it() -> None:
    """Whoever reads compares; what does not match goes to quarantine with its bytes."""
    event, claimed = from_headers(to_headers(EVENT, HASH), b'{"total":6}')
    assert claimed == HASH
    assert event == changed(payload=b'{"total":6}')
    assert event_hash(event) != claimed


REQUIRED = ["specversion", "id", "source", "type", "subject", "skseq", "skprev", "skhlc", "skver", "skhash"]


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("name", REQUIRED)
def test_an_attribute_that_is_missing_or_empty_is_named(name: str, value: str | None) -> None:
    headers = to_headers(EVENT, HASH)
    if value is None:
        del headers[f"ce-{name}"]
    else:
        headers[f"ce-{name}"] = value
    with pytest.raises(FrameMalformed, match=f"'{name}'") as caught:
        from_headers(headers, EVENT.payload)
    assert caught.value.code == "SK201"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", "1"),
        ("specversion", "1.0.2"),
        *[
            (name, bad)
            for name in ("skseq", "skprev", "skhlc", "skver")
            for bad in ("x", "-1", "01", "+1", "1.0", "1e3")
        ],
        *[(name, bad) for name in ("skseq", "skprev", "skhlc", "skver") for bad in ("1_0", " 1", "１", "0x1")],
        *[
            (name, bad)
            for name in ("skseq", "skprev", "skhlc", "skver")
            for bad in (str(2**63), str(2**64), "9" * 5000)
        ],
        ("skseq", "0"),
        ("skver", str(2**31)),
        ("skhash", HASH.hex()[:-1]),
        ("skhash", HASH.hex() + "0"),
        ("skhash", HASH.hex()[:-2]),
        ("skhash", "g" * 64),
        ("skhash", "ab " * 21 + "a"),
        ("skctx", "A"),
        ("skctx", "A!=="),
        ("skafter", "QQ="),
        ("skafter", "Q Q="),
        ("skmeta", "[1]"),
        ("skmeta", "{%22%ff"),
        ("time", "lunchtime"),
        ("time", ""),
        ("source", "/synckit/orders"),
        ("source", "/synckit/orders/"),
        ("source", "/synckit//till"),
        ("source", "/synckit/a/b/c"),
        ("source", "/other/orders/till"),
        ("source", "x/synckit/orders/till"),
        ("source", "/synckit/orders/%25zz"),
        ("source", "/synckit/orders/%25ff"),
        ("source", "/synckit/orders/" + "x" * 3_000),
        ("traceparent", "%25zz"),
        ("type", '""'),
    ],
)
def test_an_attribute_that_is_wrong_is_named(name: str, value: str) -> None:
    with pytest.raises(FrameMalformed, match=f"'{name}'"):
        from_headers({**to_headers(EVENT, HASH), f"ce-{name}": value}, EVENT.payload)


def test_numbers_are_read_to_their_edge() -> None:
    event = changed(seq=2**63 - 1, prev=2**63 - 2, at_packed=2**63 - 1, schema_version=2**31 - 1)
    assert from_headers(to_headers(event, HASH), event.payload)[0] == event
    event = changed(seq=1, prev=0, at_packed=0, schema_version=0)
    headers = to_headers(event, HASH)
    assert headers["ce-time"] == "1970-01-01T00:00:00.000Z"
    assert from_headers(headers, event.payload)[0] == event


@pytest.mark.parametrize("time", ["2018-04-05T17:31:00Z", "2018-04-05T19:31:00.123000+02:00", None])
def test_the_time_may_be_written_anew_or_lost(time: str | None) -> None:
    """It is for others; ours is the hybrid time, which is hashed."""
    headers = to_headers(EVENT, HASH)
    if time is None:
        del headers["ce-time"]
    else:
        headers["ce-time"] = time
    assert from_headers(headers, EVENT.payload) == (EVENT, HASH)


@pytest.mark.parametrize("fields", [{"type": "\ud800"}, {"topic": "\ud800"}, {"at_packed": 2**80}])
def test_an_event_that_is_no_event_has_no_form(fields: dict[str, Any]) -> None:
    event = changed(**fields)
    for write in (to_headers, to_structured, lambda event, hash: to_headers(event, hash, prefix="ce_")):
        with pytest.raises(Invalid):
            write(event, HASH)


@given(st.data(), events(), PREFIXES)
def test_damaged_headers_are_refused_or_give_another_event(data: st.DataObject, event: Event, prefix: str) -> None:
    """Never another exception, and never the same hash for another event."""
    hash = event_hash(event)
    headers = to_headers(event, hash, prefix=prefix)
    name = data.draw(st.sampled_from(sorted(headers)))
    broken = dict(headers)
    value = broken.pop(name)
    if data.draw(st.booleans()):
        broken[name] = data.draw(damaged(value.encode())).decode("utf-8", "surrogateescape")
    else:
        broken[data.draw(damaged(name.encode())).decode("latin-1")] = value
    with contextlib.suppress(FrameMalformed):
        read, claimed = from_headers(broken, event.payload, prefix=prefix)
        assert read == event or event_hash(read) != claimed


# ------------------------------------------------------------------------------------------------------ structured mode


@given(events())
def test_the_way_through_json_gives_the_identical_event(event: Event) -> None:
    hash = event_hash(event)
    assert from_structured(to_structured(event, hash)) == (event, hash)


@given(events())
def test_the_json_is_one_line_that_any_reader_takes(event: Event) -> None:
    """So a file of JSON Lines can hold it."""
    raw = to_structured(event, event_hash(event))
    assert b"\n" not in raw
    assert b"\r" not in raw
    read = json.loads(raw)
    assert ("data" in read) + ("data_base64" in read) == (event.payload != b"")


def test_this_is_an_event_as_json() -> None:
    event = changed(context_bytes=b"", after_bytes=b"", metadata_json=b"", traceparent="", type="größe")
    assert to_structured(event, HASH).decode() == (
        '{"specversion":"1.0","id":"0198c5c0-7b1c-7d1e-9c33-2f6ad2f04f4e","source":"/synckit/orders/till-7@ab12",'
        '"type":"größe","subject":"o-1","time":"2018-04-05T17:31:00.123Z","skseq":"3","skprev":"2",'
        f'"skhlc":"99808015818620933","skver":"2","skhash":"{HASH.hex()}","datacontenttype":"application/json",'
        '"data":{"total":5}}'
    )


@pytest.mark.parametrize(
    "payload",
    [
        b'{"b":1e3,"a":1,"a":2}',
        b'{"a" : [ 1 ,  2 ]}',
        b'"\\u0000 \\u00e9"',
        b"1e999",
        b"-0.0",
        b"null",
        b"[" * 60 + b"]" * 60,
        b"[" + b",".join([b"[[]]"] * 100) + b"]",
        b'["' + b"[" * 100 + b'\\"{"]',
    ],
)
def test_a_json_payload_stands_in_the_json_byte_for_byte(payload: bytes) -> None:
    raw = to_structured(changed(payload=payload), HASH)
    assert raw.endswith(b'"data":' + payload + b"}")
    assert from_structured(raw)[0].payload == payload


@pytest.mark.parametrize(
    "payload",
    [
        b' {"a":1}',
        b'{"a":1} ',
        b'{"a":\n1}',
        b'{"a":1,\r"b":2}',
        b"[" * 61 + b"]" * 61,
        b"NaN",
        b'{"a":1',
        b'1,"id":"other"',
        b'"\xff"',
        b"\x00",
    ],
)
def test_a_payload_that_cannot_stand_in_the_json_is_base64(payload: bytes) -> None:
    """White space around it would be lost, a line break would end the line, and what is no JSON would break it."""
    raw = to_structured(changed(payload=payload), HASH)
    assert json.loads(raw)["data_base64"] == base64.b64encode(payload).decode()
    assert from_structured(raw)[0].payload == payload


def test_white_space_and_order_may_change_on_the_way() -> None:
    """An intermediary may write the object anew; only the data must stay."""
    members = json.loads(to_structured(EVENT, HASH))
    data = members.pop("data")
    assert data == {"total": 5}
    rest = json.dumps(dict(reversed(members.items())), indent=2)[1:]
    assert from_structured(b'{ "data" :\t{"total":5} ,' + rest.encode()) == (EVENT, HASH)


def edited(raw: bytes, **members: Any) -> bytes:
    """JSON with members set, or taken out (None)."""
    found = {**json.loads(raw), **members}
    return json.dumps({name: value for name, value in found.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("members", "named"),
    [
        *[({name: None}, f"'{name}'") for name in REQUIRED],
        *[({name: ""}, f"'{name}'") for name in REQUIRED],
        *[({name: 5}, f"'{name}'") for name in REQUIRED],
        ({"specversion": "0.3"}, "'specversion'"),
        ({"skseq": "01"}, "'skseq'"),
        ({"time": "2018-04-05"}, "'time'"),
        ({"data_base64": "AA=="}, "data_base64"),
        ({"data": None, "data_base64": "A"}, "data_base64"),
        ({"data": None, "data_base64": 5}, "data_base64"),
        ({"skmeta": {"user": "u"}}, "'skmeta'"),
    ],
)
def test_a_member_that_is_wrong_is_named(members: dict[str, Any], named: str) -> None:
    with pytest.raises(FrameMalformed, match=named) as caught:
        from_structured(edited(to_structured(EVENT, HASH), **members))
    assert caught.value.code == "SK201"


NO_OBJECTS = [b"", b"null", b"[]", b'"x"', b"{", b"{}", b"{}{}", b"\xef\xbb\xbf{}", b"[" * 10_000, b'{"a":' * 10_000]


@pytest.mark.parametrize("raw", NO_OBJECTS)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(FrameMalformed):
        from_structured(raw)
    with pytest.raises(Invalid):
        draft_from_structured(raw, topic="t")


def test_an_event_of_any_size_is_refused_in_no_time() -> None:
    for raw in (b" " * (STRUCTURED_BYTES_MAX + 1), b"[" * 100_000_000):
        with pytest.raises(TooLarge):
            from_structured(raw)
        with pytest.raises(TooLarge):
            draft_from_structured(raw, topic="t")
    many = json.dumps({f"a{number}": "x" for number in range(ATTRIBUTES_MAX + 1)}).encode()
    with pytest.raises(TooLarge):
        draft_from_structured(many, topic="t")


@pytest.mark.parametrize(
    "payload", [b"x" * 1_000_000, b'"' + b"\\u0001" * 166_666 + b'"', b'"' + b"x" * 999_998 + b'"']
)
def test_an_event_of_the_largest_size_fits(payload: bytes) -> None:
    event = changed(payload=payload, aggregate_id="\U0001fffe" * 10_000, metadata_json=b'{"a":"' + b'"' * 16_000)
    raw = to_structured(event, HASH)
    assert len(raw) <= STRUCTURED_BYTES_MAX
    assert from_structured(raw) == (event, HASH)


WHITE = st.sampled_from(["", "", " ", "\n", "\t \r"])


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "é", 'q"', "\\", "ab"]), JSON_VALUES), max_size=5), st.data())
def test_a_name_that_stands_twice_is_found_however_it_is_written(
    members: list[tuple[str, Any]], data: st.DataObject
) -> None:
    """JSON leaves open which one counts; two readers would read two events."""

    def white() -> str:
        return data.draw(WHITE)

    written = [
        f"{white()}{json.dumps(name, ensure_ascii=data.draw(st.booleans()))}{white()}:{white()}{json.dumps(value)}"
        for name, value in members
    ]
    raw = f"{white()}{{{(white() + ',').join(written)}{white()}}}{white()}".encode()
    names = [name for name, _ in members]
    with pytest.raises(Invalid) as caught:
        draft_from_structured(raw, topic="t")
    twice = re.search(r"the name (.*) stands twice", caught.value.message)
    assert bool(twice) == (len(set(names)) < len(names))
    if twice:
        assert twice[1] in {repr(name) for name in names if names.count(name) > 1}


def test_a_name_that_stands_twice_is_refused_in_our_events_too() -> None:
    raw = to_structured(EVENT, HASH)
    for more in (b'"skseq":"3",', b'"sks\\u0065q":"4",', b'"other":1,"other":1,'):
        with pytest.raises(FrameMalformed, match="twice"):
            from_structured(b"{" + more + raw[1:])


@given(st.data(), events())
def test_damaged_json_is_refused_or_gives_another_event(data: st.DataObject, event: Event) -> None:
    hash = event_hash(event)
    raw = data.draw(damaged(to_structured(event, hash)))
    with contextlib.suppress(FrameMalformed, TooLarge):
        read, claimed = from_structured(raw)
        assert read == event or event_hash(read) != claimed
    with contextlib.suppress(Invalid, TooLarge):
        draft = draft_from_structured(raw, topic=None)
        assert draft.data == event.payload


# ------------------------------------------------------------------------------------------ other people's CloudEvents

MINIMAL = {"specversion": "1.0", "id": "A234", "source": "https://example.com/shop", "type": "com.example.sold"}


def foreign(**members: Any) -> bytes:
    return json.dumps({**MINIMAL, **members}).encode()


def test_the_least_that_a_cloudevent_has() -> None:
    """Its source is its aggregate, source and id are its id, and no data are JSON's null."""
    assert draft_from_structured(foreign(), topic="shop") == Draft(
        topic="shop",
        type="com.example.sold",
        aggregate_id="https://example.com/shop",
        data=b"null",
        metadata={"source": "https://example.com/shop"},
        id="https://example.com/shop|A234",
    )


def test_the_most_that_a_cloudevent_has() -> None:
    raw = foreign(
        subject="o-1",
        time="2018-04-05T17:31:00Z",
        datacontenttype="application/vnd.shop+json; charset=utf-8",
        dataschema="https://example.com/schema#v2",
        extinteger=-(2**31),
        extboolean=True,
        exttext="",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01",
        unset=None,
    )
    draft = draft_from_structured(raw[:-1] + b', "data": {"b":1e3, "a":1,"a":2}}', topic="shop")
    assert draft == Draft(
        topic="shop",
        type="com.example.sold",
        aggregate_id="o-1",
        data=b'{"b":1e3, "a":1,"a":2}',
        metadata={
            "source": "https://example.com/shop",
            "time": "2018-04-05T17:31:00Z",
            "datacontenttype": "application/vnd.shop+json; charset=utf-8",
            "dataschema": "https://example.com/schema#v2",
            "extinteger": -(2**31),
            "extboolean": True,
            "exttext": "",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01",
        },
        id="https://example.com/shop|A234",
    )


def test_null_means_that_an_attribute_is_not_there() -> None:
    """JSON event format, section 2.2: it MUST be treated as unset. So a required one is missing."""
    nulls = dict.fromkeys(["datacontenttype", "dataschema", "subject", "time", "data_base64", "ext"])
    assert draft_from_structured(foreign(**nulls), topic="t") == draft_from_structured(foreign(), topic="t")
    for name in MINIMAL:
        with pytest.raises(Invalid, match=f"'{name}' is missing"):
            draft_from_structured(foreign(**{name: None}), topic="t")


@pytest.mark.parametrize(
    ("members", "payload"),
    [
        pytest.param({"data": {"a": 1}}, b'{"a": 1}', id="JSON"),
        pytest.param({"data": None}, b"null", id="an explicit null"),
        pytest.param({"data": "text"}, b'"text"', id="a JSON string"),
        pytest.param({"data": "text", "datacontenttype": "text/json"}, b'"text"', id="a JSON string by its type"),
        pytest.param({"data": "<a/>", "datacontenttype": "application/xml"}, b"<a/>", id="XML"),
        pytest.param({"data": "é", "datacontenttype": "text/plain; charset=UTF-8"}, "é".encode(), id="text"),
        pytest.param({"data": '{"a":1}', "datacontenttype": "text/plain"}, b'{"a":1}', id="text that looks like JSON"),
        pytest.param({"data_base64": "AAE="}, b"\x00\x01", id="bytes"),
        pytest.param({"data_base64": "", "datacontenttype": "image/png"}, b"", id="no bytes"),
        pytest.param(
            {"data_base64": "eyJhIjoxfQ==", "datacontenttype": "application/json"}, b'{"a":1}', id="JSON bytes"
        ),
        pytest.param({"data": 1, "data_base64": None}, b"1", id="no base64"),
    ],
)
def test_data_are_taken_as_the_json_format_says(members: dict[str, Any], payload: bytes) -> None:
    assert draft_from_structured(foreign(**members), topic="t").data == payload


@pytest.mark.parametrize(
    "source",
    [
        "https://github.com/cloudevents",
        "mailto:cncf-wg-serverless@lists.cncf.io",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
        "/cloudevents/spec/pull/123",
        "1-555-123-4567",
        "#fragment",
        "//authority/path?query=a:b/c?d",
        "http://[2001:db8::1]:80/%C3%A9",
        "/synckit/looks/like-ours",
    ],
)
def test_every_uri_reference_is_a_source(source: str) -> None:
    assert draft_from_structured(foreign(source=source), topic="t").metadata["source"] == source


# What the SDK takes and the specification forbids, with the place that forbids it.
SDK_TAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no specversion": ({"specversion": None}, "core: specversion is REQUIRED"),
    "a space in the source": ({"source": "a b"}, "core: source is a URI-reference"),
    "half an escape in the source": ({"source": "/%zz"}, "core: source is a URI-reference"),
    "an accent in the source": ({"source": "/é"}, "core: source is a URI-reference"),
    "a port without a host": ({"source": "1:2"}, "RFC 3986: no colon in the first segment of a relative reference"),
    "a time without seconds": ({"time": "2018-04-05T17:31Z"}, "core: time is RFC 3339"),
    "a time by week": ({"time": "2018-W14-4T17:31:00Z"}, "core: time is RFC 3339"),
    "a time with a comma": ({"time": "2018-04-05T17:31:00,5Z"}, "core: time is RFC 3339"),
    "midnight as 24": ({"time": "2018-04-05T24:00:00Z"}, "core: time is RFC 3339"),
    "an offset of hours": ({"time": "2018-04-05T17:31:00+05"}, "core: time is RFC 3339"),
    "an offset without a colon": ({"time": "2018-04-05T17:31:00+0100"}, "core: time is RFC 3339"),
    "a space in the time": ({"time": "2018-04-05 17:31:00Z"}, "core: time is RFC 3339"),
    "a time without signs": ({"time": "20180405T173100Z"}, "core: time is RFC 3339"),
    "a line break in a name": ({"ext\n": "x"}, "core: names are lower-case letters and digits"),
    "no media type": ({"datacontenttype": "xyz"}, "core: datacontenttype is RFC 2046"),
    "a relative schema": ({"dataschema": "/schema"}, "core: dataschema is an absolute URI"),
    "a fraction": ({"ext": 1.5}, "JSON format: only the integer component"),
    "a number of 33 bits": ({"ext": 2**31}, "core: Integer is of 32 bits"),
    "an object as an extension": ({"ext": {"a": 1}}, "JSON format: no such type"),
    "a list as an extension": ({"ext": [1]}, "JSON format: no such type"),
    "a line break in the subject": ({"subject": "a\nb"}, "core: a String has no control characters"),
    "a noncharacter in an extension": ({"ext": "a\ufffeb"}, "core: a String has no noncharacters"),
    "half a surrogate pair": ({"subject": "a\ud800"}, "core: a String has no surrogates but in pairs"),
    "null data beside bytes": ({"data": None, "data_base64": "AA=="}, "JSON format: data excludes data_base64"),
    "an object as XML": ({"datacontenttype": "application/xml", "data": {"a": 1}}, "JSON format, 3.1.2"),
    "NaN": ({"data": float("nan")}, "RFC 8259"),
}


@pytest.mark.parametrize("case", SDK_TAKES)
def test_what_the_sdk_takes_and_the_specification_forbids_is_refused(case: str) -> None:
    """If the SDK learns to refuse one of these, the first half of this test says so."""
    members, _ = SDK_TAKES[case]
    event = {**MINIMAL, **members}
    if members == {"specversion": None}:
        del event["specversion"]
    raw = json.dumps(event).encode()
    JSONFormat().read(CloudEvent, raw)
    with pytest.raises(Invalid) as caught:
        draft_from_structured(raw, topic="t")
    assert caught.value.code == "SK205"


NO_TEXT: list[Any] = ["", 25, True, {"a": 1}, []]


def test_the_sdk_takes_the_last_of_two_and_we_take_none() -> None:
    raw = foreign()[:-1] + b', "id": "B"}'
    assert JSONFormat().read(CloudEvent, raw).get_id() == "B"
    with pytest.raises(Invalid, match="the name 'id' stands twice"):
        draft_from_structured(raw, topic="t")


@pytest.mark.parametrize(
    ("members", "named"),
    [
        *[({name: bad}, f"'{name}'") for name in MINIMAL for bad in NO_TEXT],
        *[
            ({name: bad}, f"'{name}'")
            for name in ("subject", "datacontenttype", "dataschema", "time")
            for bad in ("", 5)
        ],
        ({"specversion": "0.3"}, "'specversion'"),
        ({"specversion": "2.0"}, "'specversion'"),
        ({"MyExtension": "bad"}, "MyExtension"),
        ({"my-extension": "bad"}, "my-extension"),
        ({"größe": "bad"}, "größe"),
        ({"": "bad"}, "name ''"),
        ({"data": "text", "data_base64": "AA=="}, "exclude"),
        ({"data_base64": "A!A="}, "base64"),
        ({"data_base64": "QQ"}, "base64"),
        ({"data_base64": 5}, "base64"),
        ({"data": "x", "datacontenttype": "text/plain; charset=utf-16"}, "utf-16"),
        ({"data": None, "datacontenttype": "text/plain"}, "null"),
        ({"datacontenttype": "text/plain;"}, "'datacontenttype'"),
        ({"ext": -(2**31) - 1}, "'ext'"),
        ({"ext": 10**400}, "'ext'"),
        ({"time": "lunchtime"}, "'time'"),
        ({"time": "2018-04-05T17:31:00X"}, "'time'"),
        ({"time": "2018-04-05T17:31:00+25:00"}, "'time'"),
        ({"time": "2018-04-05T17:31:00+xx:00"}, "'time'"),
    ],
)
def test_what_nobody_should_take_is_refused_by_name(members: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid, match=re.escape(named)):
        draft_from_structured(foreign(**members), topic="t")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"1e999", id="a number beyond a float"),
        pytest.param(b"9" * 5_000, id="5,000 digits"),
        pytest.param(b'"\xff"', id="not UTF-8"),
        pytest.param(b"[" * 10_000 + b"]" * 10_000, id="10,000 levels"),
        pytest.param(b"-Infinity", id="minus infinity"),
        pytest.param(b'"\\ud800"', id="half a surrogate pair"),
    ],
)
def test_data_that_nobody_could_read_back_are_refused(data: bytes) -> None:
    """Once appended they would be there for ever, and fail every handler."""
    with pytest.raises(Invalid):
        draft_from_structured(foreign()[:-1] + b', "data": ' + data + b"}", topic="t")


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"type": "x" * 256}, TooLarge),
        ({"subject": "x" * 10_001}, TooLarge),
        ({"ext": "x" * 16_384}, TooLarge),
        ({"data": "x" * 1_000_000}, TooLarge),
    ],
)
def test_our_limits_hold_for_everybody(members: dict[str, Any], error: type[SyncKitError]) -> None:
    with pytest.raises(error):
        draft_from_structured(foreign(**members), topic="t")
    with pytest.raises(TooLarge):
        draft_from_structured(foreign(), topic="t" * 101)


def test_somebody_elses_event_needs_a_topic() -> None:
    with pytest.raises(Invalid, match="topic"):
        draft_from_structured(foreign(), topic=None)


def test_ids_of_two_sources_never_meet() -> None:
    """CloudEvents are unique by source and id together, and a source may hold the sign `#`."""
    pairs = [("a", "b#c"), ("a#b", "c"), ("a", "b|c"), ("b", "b#c")]
    drafts = [draft_from_structured(foreign(source=source, id=id), topic="t") for source, id in pairs]
    assert len({draft.id for draft in drafts}) == len(pairs)


def test_an_id_that_is_too_long_is_hashed_and_kept_in_the_metadata() -> None:
    room = 255 - len(MINIMAL["source"]) - 1
    longest = draft_from_structured(foreign(id="x" * room), topic="t")
    assert longest.id == MINIMAL["source"] + "|" + "x" * room
    assert "id" not in longest.metadata
    one = draft_from_structured(foreign(id="x" * room + "y"), topic="t")
    other = draft_from_structured(foreign(id="x" * room + "z"), topic="t")
    assert one.id is not None
    assert re.fullmatch("sha256:[0-9a-f]{64}", one.id)
    assert one.id != other.id
    assert one.metadata["id"] == "x" * room + "y"


@given(
    st.dictionaries(
        st.from_regex("[a-z0-9]{1,9}", fullmatch=True), st.one_of(st.text(SIGNS), st.integers(), st.booleans())
    ),
    JSON_VALUES,
    st.booleans(),
)
@example({}, 1e300, False)
def test_what_is_taken_can_be_appended(extensions: dict[str, Any], data: Any, dense: bool) -> None:
    """Whatever the attributes: either a clear refusal, or a draft that passes every check of an append."""
    assume("data" not in extensions)
    raw = json.dumps({**MINIMAL, **extensions, "data": data}, separators=(",", ":") if dense else None).encode()
    with contextlib.suppress(Invalid, TooLarge):
        draft = draft_from_structured(raw, topic="t")
        check_draft(draft)
        assert encode_payload(draft.data) == json.dumps(data, separators=(",", ":") if dense else None).encode()
        encode_metadata(draft.metadata)


# ---------------------------------------------------------------------------------------------------- ours, imported


@given(events())
def test_importing_what_was_exported_is_the_same_content(event: Event) -> None:
    """So importing a file twice changes nothing; and every event of ours passes the checks for everybody's."""
    draft = draft_from_structured(to_structured(event, event_hash(event)), topic=None)
    metadata_json = encode_metadata(draft.metadata)
    again = msgspec.structs.replace(event, metadata_json=metadata_json)
    assert event.metadata == again.metadata
    assert (draft.id, draft.topic, draft.type, draft.aggregate_id) == (
        event.id,
        event.topic,
        event.type,
        event.aggregate_id,
    )
    assert (draft.data, draft.schema_version) == (event.payload, event.schema_version)
    assert (draft.context, draft.after) == (None, ())
    if event.metadata_json == metadata_json:
        assert event_content_hash(again) == event_content_hash(event)


def test_an_event_of_ours_may_go_to_another_topic() -> None:
    assert draft_from_structured(to_structured(EVENT, HASH), topic="copies").topic == "copies"


@pytest.mark.parametrize(
    "members",
    [
        {"type": "order.paid"},
        {"subject": "o-2"},
        {"skmeta": '{"user":"other"}'},
        {"skver": "3"},
        {"data": {"total": 6}},
        {"skhash": "00" * 32},
        {"skhash": "00"},
        {"skseq": "x"},
        {"skseq": 3},
    ],
)
def test_an_event_of_ours_that_was_edited_is_refused(members: dict[str, Any]) -> None:
    """It still carries our id, so it would pass for the fact that we know."""
    with pytest.raises(Invalid):
        draft_from_structured(edited(to_structured(EVENT, HASH), **members), topic=None)


def test_metadata_of_ours_that_are_no_object_are_refused() -> None:
    event = changed(metadata_json=b"[1]")
    with pytest.raises(Invalid, match="skmeta"):
        draft_from_structured(to_structured(event, event_hash(event)), topic=None)


# -------------------------------------------------------------------------------------------------------- timestamps


@given(st.datetimes(), st.integers(-1439, 1439), st.sampled_from(["T", "t"]))
def test_every_moment_of_the_calendar_is_a_timestamp(moment: datetime, offset: int, sign: str) -> None:
    here = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert is_timestamp(here.isoformat().replace("T", sign))
    assert is_timestamp(moment.isoformat() + "Z")
    assert not is_timestamp(moment.isoformat())


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("2018-04-05T17:31:00.000000000Z", True),
        ("2018-04-05t17:31:00z", True),
        ("1990-12-31T23:59:60Z", True),
        ("2020-02-29T00:00:00-00:00", True),
        ("0000-02-29T00:00:00Z", True),
        ("2019-02-29T00:00:00Z", False),
        ("1900-02-29T00:00:00Z", False),
        ("2018-04-31T00:00:00Z", False),
        ("2018-13-01T00:00:00Z", False),
        ("2018-00-01T00:00:00Z", False),
        ("2018-01-00T00:00:00Z", False),
        ("2018-01-01T24:00:00Z", False),
        ("2018-01-01T00:60:00Z", False),
        ("2018-01-01T00:00:61Z", False),
        ("2018-01-01T00:00:00.Z", False),
        ("2018-01-01T00:00:00+24:00", False),
        ("2018-01-01T00:00:00+00:60", False),
        ("2018-01-01T00:00:00Z\n", False),
        ("２０１８-01-01T00:00:00Z", False),
        ("", False),
    ],
)
def test_the_calendar_at_its_edges(text: str, right: bool) -> None:
    assert is_timestamp(text) == right


@pytest.mark.parametrize("year", [1900, 2000, 2019, 2020])
def test_every_month_has_its_days(year: int) -> None:
    for month in range(14):
        for day in range(33):
            try:
                right = bool(date(year, month, day))
            except ValueError:
                right = False
            assert is_timestamp(f"{year}-{month:02}-{day:02}T00:00:00Z") == right


@given(st.integers(0, 2**47 - 1))
def test_the_time_attribute_is_the_wall_part_of_the_hybrid_time(wall_ms: int) -> None:
    text = to_headers(changed(at_packed=wall_ms << 16), HASH)["ce-time"]
    assert is_timestamp(text)
    assert datetime.fromisoformat(text) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=wall_ms)


# --------------------------------------------------------------------------------------------------------- the SDK

SDK_TEXT = st.text(SIGNS, min_size=1, max_size=12).filter(lambda text: not forbidden(text))


@given(
    id=SDK_TEXT,
    type=SDK_TEXT,
    subject=st.none() | SDK_TEXT,
    time=st.none() | st.datetimes(timezones=st.just(UTC)),
    extension=SDK_TEXT,
    data=st.dictionaries(SDK_TEXT, st.integers() | SDK_TEXT, max_size=3),
)
def test_what_the_sdk_writes_we_read(
    id: str, type: str, subject: str | None, time: datetime | None, extension: str, data: dict[str, Any]
) -> None:
    attributes: dict[str, Any] = {"id": id, "source": "/sdk", "type": type, "specversion": "1.0", "ext": extension}
    attributes |= {"time": time or datetime(2018, 4, 5, tzinfo=UTC)}
    attributes |= {"subject": subject} if subject else {}
    draft = draft_from_structured(JSONFormat().write(CloudEvent(attributes, data)), topic="t")
    assert (draft.type, draft.aggregate_id) == (type, subject or "/sdk")
    assert json.loads(draft.data) == data
    assert draft.metadata["ext"] == extension
    assert datetime.fromisoformat(draft.metadata["time"]) == attributes["time"]
    if "id" not in draft.metadata:
        assert draft.id == f"/sdk|{id}"


@given(st.binary(max_size=30))
def test_bytes_that_the_sdk_writes_we_read(data: bytes) -> None:
    event = CloudEvent({"source": "/sdk", "type": "t", "datacontenttype": "image/png"}, data)
    assert draft_from_structured(JSONFormat().write(event), topic="t").data == data


def described(event: Event) -> dict[str, str]:
    """The attributes by which somebody else knows an event of ours."""
    headers = to_headers(event, event_hash(event), prefix="ce_")
    return {
        name.removeprefix("ce_"): value for name, value in headers.items() if name not in ("content-type", "ce_time")
    }


def seen_by_sdk(found: Mapping[str, Any], event: Event) -> bool:
    wall = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=event.at.wall_ms)
    rest = {name: value for name, value in found.items() if name not in ("time", "datacontenttype", "partitionkey")}
    return rest == described(event) and found["time"] == wall


def through_http(event: Event) -> Any:
    headers = to_headers(event, event_hash(event), content_type="content-type")
    return http.from_binary_event(http.HTTPMessage(headers, event.payload))


def through_nats(event: Event) -> Any:
    return http.from_binary_event(http.HTTPMessage(to_headers(event, event_hash(event)), event.payload))


def through_kafka(event: Event) -> Any:
    headers = to_headers(event, event_hash(event), prefix="ce_")
    sent = {name: value.encode() for name, value in headers.items()}
    return kafka.from_binary_event(kafka.KafkaMessage(sent, b"key", event.payload))


def through_json(event: Event) -> Any:
    return JSONFormat().read(CloudEvent, to_structured(event, event_hash(event)))


@pytest.mark.parametrize("through", [through_http, through_nats, through_kafka, through_json])
@given(event=events())
def test_what_we_write_the_sdk_reads(through: Callable[[Event], Any], event: Event) -> None:
    """Every attribute, through every binding."""
    assert seen_by_sdk(through(event).get_attributes(), event)


@given(event=events())
def test_the_sdk_gives_our_events_back(event: Event) -> None:
    """Through its objects and out again: the event is the identical one as long as the body was not written anew."""
    hash = event_hash(event)
    read = http.from_binary_event(http.HTTPMessage(to_headers(event, hash), b""))
    attributes = read.get_attributes()
    written = http.to_binary_event(CloudEvent(dict(attributes), event.payload))
    assert from_headers(written.headers, event.payload) == (event, hash)


def test_the_sdk_sees_the_data() -> None:
    for through in (through_http, through_nats, through_kafka, through_json):
        assert through(EVENT).get_data() == {"total": 5}


# ---------------------------------------------------------------------------------------------------------------- docs


def test_the_reference_explains_every_attribute() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "cloudevents.md").read_text()
    for name in ATTRIBUTES:
        assert f"`{name}`" in page


def test_a_context_survives_as_it_was_hashed() -> None:
    """Also one that another implementation wrote in a form that is not canonical: it is refused later, and by name."""
    vector = VersionVector({"till-1@a": 4}).to_bytes()
    for context_bytes in (vector, vector + b"\x00", b"\x90"):
        event = changed(context_bytes=context_bytes)
        assert from_headers(to_headers(event, HASH), event.payload)[0] == event
