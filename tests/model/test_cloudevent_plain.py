"""The short way through the headers of binary mode, for ordinary events, does what the long way does.

The long way is had under another prefix, of which the short one knows nothing.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from synckit_streams.errors import FrameMalformed
from synckit_streams.model.cloudevent import from_headers, to_headers
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Event
from tests.model.strategies import PAYLOADS, events

ORDINARY = st.builds(
    Event,
    id=st.from_regex(r"[0-9a-f-]{1,36}", fullmatch=True),
    topic=st.sampled_from(["orders", "a/b", "a b", "%41"]),
    type=st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True),
    aggregate_id=st.sampled_from(["o-1", "o 1", 'o"1', "o%1", "ö", "{1}"]),
    payload=PAYLOADS,
    metadata_json=st.sampled_from([b"", b"", b'{"a":1}']),
    origin=st.sampled_from(["till-1@a", "till-2@b~01234567"]),
    seq=st.integers(1, 2**63 - 1),
    prev=st.integers(0, 2**63 - 1),
    context_bytes=st.binary(max_size=20),
    after_bytes=st.sampled_from([b"", b"", b"\x01\x02"]),
    at_packed=st.integers(0, 2**63 - 1),
    schema_version=st.integers(0, 2**31 - 1),
    traceparent=st.sampled_from(["", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]),
)


def long_way(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("ce-", "x-", 1): value for name, value in headers.items()}


@given(st.one_of(ORDINARY, events()))
def test_both_ways_write_the_same(event: Event) -> None:
    hash = event_hash(event)
    headers = to_headers(event, hash)
    assert long_way(headers) == to_headers(event, hash, prefix="x-")
    assert from_headers(headers, event.payload) == (event, hash)


NAMES = ["id", "source", "type", "subject", "time", "skseq", "skprev", "skhlc", "skver", "skhash", "skctx", "skafter"]
ODD = [
    *("", "0", "00", "01", "-1", "+1", " 1", "1 ", "1_0", "１", "٣", "1.0", "%31", '"1"', "x", "é", "\ud800", "\n"),
    *("9" * 19, "9" * 90, "9223372036854775807", "9223372036854775808", "2147483647", "2147483648"),
    *("ab" * 32, "AB" * 32, "a b " * 16, "ab" * 31, "=", "AA", "AAA=", "AA==", "AB==", "A A A=", "AAA=\n"),
    *("/synckit/a/b", "/synckit/a/b/c", "/synckit//b", "/other/a/b", "/synckit/a%2Fb/c", "/synckit/" + "a" * 3000),
    *("2020-01-01T00:00:00Z", "yesterday"),
]


@given(
    event=ORDINARY,
    changes=st.dictionaries(st.sampled_from([*NAMES, "specversion", "skmeta", "traceparent"]), st.sampled_from(ODD)),
    gone=st.sets(st.sampled_from([*NAMES, "specversion"]), max_size=1),
)
@example(
    event=Event("1", "t", "a.b", "x", b"1", b"", "a@b", 12, 3, b"", b"", 5), changes={"skseq": "1", "skprev": "23"},
    gone=set(),
)  # fmt: skip
@example(
    event=Event("1", "t", "a.b", "x", b"1", b"", "a@b", 12, 3, b"", b"", 5), changes={"skseq": "01"}, gone={"time"}
)
def test_both_ways_read_the_same_or_refuse_for_the_same_reason(
    event: Event, changes: dict[str, str], gone: set[str]
) -> None:
    """Headers that somebody changed: what the short way does not take, the long way decides."""
    headers = to_headers(event, event_hash(event)) | {f"ce-{name}": value for name, value in changes.items()}
    for name in gone:
        headers.pop(f"ce-{name}", None)
    read: list[object] = []
    for each, prefix in ((headers, "ce-"), (long_way(headers), "x-")):
        try:
            read.append(from_headers(each, event.payload, prefix=prefix))
        except FrameMalformed as error:
            read.append(str(error))
    assert read[0] == read[1]
