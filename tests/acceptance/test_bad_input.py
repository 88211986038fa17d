"""Bad input, end to end through a node: an error or quarantine, nothing lost, nothing blocks, the process lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import pytest

from synckit_connectors.memory import MemoryBroker
from synckit_streams import (
    Draft,
    Event,
    Invalid,
    PayloadUndecodable,
    Stored,
    SyncKitError,
    SyncNode,
    TooLarge,
    VersionVector,
)
from synckit_streams.model.codec import event_hash
from synckit_streams.ports.connector import Message
from synckit_streams.ports.telemetry import Received
from synckit_streams.runtime.envelope import FRAME_HEADER, to_messages
from synckit_streams.sync.protocol import AlarmKind
from tests.acceptance.kit import Make, Recorder, announce, crafted, draft, drafts, ids, inject, message_of, same

FRAME = {FRAME_HEADER: "1"}
DEEP = b"[" * 10_000 + b"]" * 10_000


def frame(*events: Event) -> Message:
    """The events packed together."""
    hashed = [(event, event_hash(event)) for event in events]
    return to_messages(hashed, packing="batch", round_id="r", bytes_max=8_000_000)[0].message


def changed(message: Message, *, body: bytes | None = None, **headers: str) -> Message:
    """It, with another body or other headers (`ce_id` is `ce-id`; an empty one is left out)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kept = {name: value for name, value in {**message.headers, **named}.items() if value}
    return msgspec.structs.replace(message, body=message.body if body is None else body, headers=kept)


GHOST = crafted("T", "ghost@1", 1, payload=b'{"n":1}')


def in_topic(topic: str, make: Callable[[Event], Message]) -> Message:
    return make(msgspec.structs.replace(GHOST, topic=topic))


BAD: dict[str, Callable[[Event], Message]] = {
    "a truncated frame": lambda event: changed(frame(event), body=frame(event).body[:-7]),
    "a frame with a flipped bit": lambda event: changed(
        frame(event), body=frame(event).body.replace(b'"n":1', b'"n":0')
    ),
    "a frame of 100 MB": lambda event: Message("1", "k", FRAME, b"\xdd" + b"\x00" * 100_000_000),
    "a frame 10,000 levels deep": lambda event: Message("1", "k", FRAME, b"\x91" * 10_000),
    "a frame with a negative counter": lambda event: frame(msgspec.structs.replace(event, seq=-1)),
    "a frame with a counter of 2^64 - 1": lambda event: frame(msgspec.structs.replace(event, seq=2**64 - 1)),
    "a negative counter": lambda event: changed(message_of(event), ce_skseq="-1"),
    "a counter of 2^64": lambda event: changed(message_of(event), ce_skseq=str(2**64)),
    "a flipped bit": lambda event: changed(message_of(event), body=b'{"n":0}'),
    "a missing header": lambda event: changed(message_of(event), ce_skhash=""),
    "no header at all": lambda event: Message("1", "k", {}, event.payload),
    "an empty body": lambda event: changed(message_of(event), body=b""),
    "nothing": lambda event: Message("", "", {}, b""),
    "random bytes": lambda event: Message("1", "k", {"x": "y"}, bytes(range(256)) * 20),
    "metadata 10,000 levels deep": lambda event: frame(
        msgspec.structs.replace(event, metadata_json=b'{"a":' + DEEP[:8_000] + b"}")
    ),
    "a context that covers the event itself": lambda event: message_of(
        msgspec.structs.replace(event, context_bytes=VersionVector({event.origin: event.seq}).to_bytes())
    ),
    "a context that is none": lambda event: message_of(msgspec.structs.replace(event, context_bytes=b"\x91\xc1")),
    "an event of another topic": lambda event: message_of(msgspec.structs.replace(event, topic="elsewhere")),
}


REFUSED = {"a context that covers the event itself", "a context that is none", "metadata 10,000 levels deep"}
"""These are whole, and known by name."""


@pytest.mark.parametrize("what", list(BAD))
async def test_what_cannot_be_taken_is_set_aside_and_the_rest_goes_on(
    make: Make, memory_url: str, topic: str, what: str
) -> None:
    """Between two good messages of one batch, and as the last thing in the log."""
    recorder = Recorder()
    node = await make("till-1", memory_url, observer=recorder)
    bad = in_topic(topic, BAD[what])
    good = [crafted(topic, "office@1", seq, payload=b'{"n":%d}' % seq) for seq in (1, 2)]
    started = time.monotonic()
    await inject(memory_url, topic, message_of(good[0]), bad, message_of(good[1]), bad)
    result = await node.sync()
    assert await ids(node, topic) == [event.id for event in good]
    assert result.events_pulled == 2
    aside = await node.store.quarantine(after=0, limit=10)
    # What is refused by name is set aside once, however often it comes.
    refused = not result.complete
    assert [each.place for each in aside] == ([2] if refused else [2, 4])
    assert refused == (what in REFUSED)
    assert all(each.reason and len(each.raw) < 9_000_000 for each in aside)
    assert AlarmKind.QUARANTINED in recorder.alarms()
    # It is not said to be here, and it does not come up again.
    await node.append(draft(topic))
    await node.sync()
    assert len(await node.store.quarantine(after=0, limit=10)) == len(aside)
    assert await ids(node, topic) == [*(event.id for event in good), (await ids(node, topic))[-1]]
    assert time.monotonic() - started < 10


async def test_a_damaged_frame_heals(make: Make, memory: MemoryBroker, memory_url: str, topic: str) -> None:
    """What was damaged on the way is not in the reader's summary, so its owner sends it again."""
    one, other = await make("till-1", memory_url, packing="batch"), await make("till-2", memory_url)
    await one.append_many(drafts(topic, 50))
    await one.sync()
    (whole,) = memory.messages(topic)
    memory.rewind(topic, 0)
    await inject(memory_url, topic, changed(whole, body=whole.body.replace(b'{"n":7}', b'{"n":8}')))
    result = await other.sync()
    assert (result.events_pulled, result.complete) == (49, False)
    for node in (one, other):
        await node.sync()
    assert (await other.sync()).complete
    assert await same(topic, one, other)


@pytest.mark.parametrize(
    ("payload", "value"),
    [(b'{"a":1,"a":2}', {"a": 2}), (b'{"b":1e3,"a":1}', {"a": 1, "b": 1000.0}), (DEEP, None), (b"NaN", None),
     (b'{"a":NaN}', None), (b"", None), (b"\xff\xfe", None), (b'{"a":', None), (b'"\\ud800"', None)],
    ids=["duplicate keys", "order and numbers", "10,000 deep", "NaN", "NaN inside", "empty", "no UTF-8", "cut", "half"],
)  # fmt: skip
async def test_a_payload_that_is_whole_is_kept_byte_for_byte(
    make: Make, memory_url: str, topic: str, payload: bytes, value: object
) -> None:
    """Whatever it holds: it releases what waits for it, travels on unchanged, and is shown as undecodable."""
    node, other = await make("till-1", memory_url), await make("till-2", memory_url)
    odd = crafted(topic, "office@1", 1, aggregate_id="o-1", payload=payload)
    after = VersionVector({"office@1": 1}).to_bytes()
    more = {"payload": b'{"n":2}', "prev": 1, "context_bytes": after, "at_packed": 9 << 16}
    then = crafted(topic, "office@1", 2, aggregate_id="o-1", **more)
    await inject(memory_url, topic, message_of(then), message_of(odd))
    for each in (node, other):
        assert (await each.sync()).complete
        assert [event.payload for event in await each.aggregate(topic, "o-1")] == [payload, b'{"n":2}']
    assert await same(topic, node, other)
    (event, _) = await node.aggregate(topic, "o-1")
    if value is not None:
        assert event.data == value
    else:
        with pytest.raises(PayloadUndecodable):
            _ = event.data
    assert (await node.resolve(topic, "o-1")).data == {"n": 2}


def nested(levels: int) -> object:
    deep: object = 1
    for _ in range(levels):
        deep = [deep]
    return deep


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"data": float("nan")}, Invalid),
        ({"data": {"a": [float("inf")]}}, Invalid),
        ({"data": nested(10_000)}, Invalid),
        ({"data": object()}, Invalid),
        ({"data": "\ud800"}, Invalid),
        ({"data": "x" * 1_000_001}, TooLarge),
        ({"metadata": {"a": "x" * 20_000}}, TooLarge),
        ({"metadata": {"a": float("nan")}}, Invalid),
        ({"metadata": ["a"]}, Invalid),
        ({"aggregate_id": ""}, Invalid),
        ({"aggregate_id": "a\0b"}, Invalid),
        ({"aggregate_id": "x" * 10_001}, TooLarge),
        ({"type": ""}, Invalid),
        ({"id": ""}, Invalid),
        ({"schema_version": -1}, Invalid),
        ({"schema_version": 2**64}, Invalid),
        ({"context": {"till-1@a": 1}}, Invalid),
        ({"context": VersionVector({"nobody@1": 1})}, SyncKitError),
        ({"after": (("T", "nobody@1", 1),)}, SyncKitError),
        ({"after": (("T", "nobody@1", -1),)}, Invalid),
    ],
)
async def test_a_draft_that_cannot_be_written_is_an_error(
    make: Make, topic: str, fields: dict[str, object], error: type[SyncKitError]
) -> None:
    """Its own: nothing is written, and those who share the commit are not disturbed."""
    node = await make("till-1", None)
    named = {"topic": topic, "type": "t", "aggregate_id": "o-1"} | fields
    with pytest.raises(error):
        await node.append(Draft(**named))  # type: ignore[arg-type]
    assert await ids(node, topic) == []
    await node.append(draft(topic))


@pytest.mark.parametrize("counter", [-1, 2**63, 2**64])
def test_a_counter_beyond_its_range_cannot_even_be_made(counter: int) -> None:
    """In a context that a caller makes."""
    with pytest.raises(Invalid):
        VersionVector({"till-1@a": counter})


async def test_an_id_used_on_two_nodes_loses_nothing(make: Make, memory_url: str, topic: str) -> None:
    """With other content it is an alarm, and both are there; with the same content it is one fact."""
    recorder = Recorder()
    one, other = await make("till-1", memory_url, observer=recorder), await make("till-2", memory_url)
    for node, total in ((one, 1), (other, 2)):
        await node.append(draft(topic, "o-1", {"total": total}, id="order-1"))
        await node.append(draft(topic, "o-2", {"total": 3}, id="order-2"))
    await other.sync()
    await one.sync()
    await other.sync()
    assert await same(topic, one, other)
    for node in (one, other):
        assert sorted(event.data["total"] for event in await node.aggregate(topic, "o-1")) == [1, 2]
        assert len((await node.resolve(topic, "o-1")).heads) == 2
        assert [event.data["total"] for event in await node.aggregate(topic, "o-2")] == [3]
        assert sorted(await ids(node, topic)) == ["order-1", "order-2"]
    assert AlarmKind.TWINS in recorder.alarms()


async def test_a_number_used_twice_loses_nothing(make: Make, memory_url: str, topic: str) -> None:
    """Two clones of one running machine write under the same numbers while offline. All converge, and say so."""
    recorders = [Recorder() for _ in range(3)]
    first = await make("till-1", memory_url, observer=recorders[0])
    clone = await make("till-1", memory_url, observer=recorders[1], store="memory:")
    third = await make("till-3", memory_url, observer=recorders[2])
    before = await first.append(draft(topic, "o-0", "before"))
    _as_cloned(clone, before.event.origin)
    expected = {"before"}
    for number in range(5):
        for node, who in ((first, "first"), (clone, "clone")):
            if number or node is clone:
                stored = await node.append(draft(topic, f"o-{number}", f"{who} {number}"))
                expected.add(f"{who} {number}")
                assert stored.event.origin == before.event.origin
    for _ in range(4):
        for node in (first, clone, third):
            await node.sync()
    assert await same(topic, first, clone, third)
    for node in (first, clone, third):
        assert {stored.event.data async for stored in node.log(topic)} == expected
        assert len(await ids(node, topic)) == len(set(await ids(node, topic))) == len(expected)
        assert (await node.sync()).complete
    assert AlarmKind.DOT_REUSED in set[str]().union(*(recorder.alarms() for recorder in recorders))
    later = [await node.append(draft(topic, "o-9", node.node_id)) for node in (first, clone)]
    assert later[0].event.dot != later[1].event.dot


def _as_cloned(node: SyncNode, origin: str) -> None:
    """Make a store go on under another one's origin, as the copy of a running virtual machine does."""
    node.store._ledger.origin = node.store._origin = origin  # type: ignore[attr-defined]


@pytest.mark.parametrize("ahead_ms", [3_600_000, 200 * 365 * 86_400_000])
async def test_a_clock_that_is_ahead_is_stored_and_reported(
    make: Make, memory_url: str, topic: str, ahead_ms: int
) -> None:
    """By an hour, or by centuries: no receiver judges it; what is written after it is later, nothing else is."""
    recorder = Recorder()
    node = await make("till-1", memory_url, observer=recorder)
    at = (time.time_ns() // 1_000_000 + ahead_ms) << 16
    await inject(memory_url, topic, message_of(crafted(topic, "office@1", 1, aggregate_id="o-1", at_packed=at)))
    assert (await node.sync()).complete
    (skew,) = [received.skew_ms for received in recorder.of(Received) if received.stored]
    assert abs(skew - ahead_ms) < 60_000
    answer = await node.append(draft(topic, "o-1", "after it"))
    beside = await node.append(draft(topic, "o-2", "beside it"))
    assert answer.event.at_packed > at
    assert (await node.resolve(topic, "o-1")).data == "after it"
    assert beside.event.at_packed > answer.event.at_packed  # the node's own last write is before its next one


async def test_a_clock_at_its_end_does_not_stop_anybody(make: Make, memory_url: str, topic: str) -> None:
    """The greatest time there is: what cannot be later is refused by name, and everything else goes on."""
    node = await make("till-1", memory_url)
    end = crafted(topic, "office@1", 1, aggregate_id="o-1", at_packed=2**63 - 1)
    await inject(memory_url, topic, message_of(end))
    await node.sync()
    answer = await asyncio.gather(node.append(draft(topic, "o-1")), return_exceptions=True)
    assert isinstance(answer[0], Stored | SyncKitError)
    await node.append(draft(topic, "o-2"))
    assert (await node.sync()).events_pushed >= 1


MALFORMED: Sequence[bytes] = [
    b"\x00",
    b"\xff" * 100,
    b"[]",
    b"\x9c" + b"\xc0" * 12,
    b"\x91" * 5_000,
    b"x" * (600 * 1024),
]


@pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_digest_that_is_none_is_passed_over(
    make: Make, memory_url: str, topic: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged, and the meeting goes on; the other peers' digests count."""
    node, other = await make("till-1", memory_url), await make("till-2", memory_url)
    await announce(memory_url, topic, "ghost", body)
    await node.append(draft(topic))
    assert (await node.sync()).complete
    assert "ghost" in caplog.text
    assert (await other.sync()).complete
    assert await same(topic, node, other)
