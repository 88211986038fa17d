"""Our own messages, read back: known byte for byte, and only then."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import pytest

from synckit_connectors.memory import memory_broker
from synckit_streams import Draft, SyncNode
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Event
from synckit_streams.model.exchange import PlaceRun
from synckit_streams.ports.connector import Delivery, Message
from synckit_streams.runtime.echoes import Echoes
from synckit_streams.runtime.envelope import Parcel, to_messages
from synckit_streams.runtime.intake import Intake

EVENTS = [Event(f"id-{n}", "t", "made", f"a{n % 3}", b"{}", b"", "a@1", n, 0, b"", b"", n << 16) for n in range(1, 9)]


def parcels(packing: str, events: Sequence[Event] = EVENTS) -> list[Parcel]:
    found = [(event, event_hash(event)) for event in events]
    return to_messages(found, packing=packing, round_id="00", bytes_max=1_000_000)


def took(intake: Intake, message: Message, position: int) -> None:
    intake.add(Delivery(message, 0, position))


@pytest.mark.parametrize(("packing", "positions"), [("event", [*range(5, 13)]), ("batch", [5] * 8)])
def test_what_comes_back_unchanged_is_not_decoded(packing: str, positions: list[int]) -> None:
    echoes = Echoes()
    intake = Intake("link", "t", 0, echoes)
    for at, parcel in enumerate(parcels(packing), 5):
        echoes.expect(parcel)
        copy = Message(parcel.message.id, "", dict(parcel.message.headers), bytes(bytearray(parcel.message.body)))
        took(intake, copy, at)
    assert not intake.arrivals
    assert intake.events == 8
    (run,) = intake.echoes()  # neighbours are one run
    assert run[:4] == ("link|t|0", "t", "a@1", 1)
    assert [*run.positions] == positions


def test_what_does_not_follow_begins_a_run_of_its_own() -> None:
    """A gap in the numbers, and one in the positions."""
    echoes = Echoes()
    intake = Intake("link", "t", 0, echoes)
    messages = [parcel.message for parcel in parcels("event")]
    for parcel in parcels("event"):
        echoes.expect(parcel)
    for number, position in ((1, 1), (2, 2), (4, 3), (5, 9), (3, 10)):
        took(intake, messages[number - 1], position)
    assert [(run.first, [*run.positions]) for run in intake.echoes()] == [(1, [1, 2]), (4, [3]), (5, [9]), (3, [10])]


@pytest.mark.parametrize("what", ["body", "header", "topic", "twice", "id"])
def test_what_is_not_quite_ours_goes_the_long_way(what: str) -> None:
    """An id can be used by anybody; the long way finds out what the message is worth."""
    echoes = Echoes()
    intake = Intake("link", "other" if what == "topic" else "t", 0, echoes)
    (parcel,) = parcels("event", EVENTS[:1])
    message = parcel.message
    echoes.expect(parcel)
    if what == "body":
        message = Message(message.id, "", message.headers, b'{"changed":1}')
    elif what == "header":
        message = Message(message.id, "", {**message.headers, "ce-type": "another"}, message.body)
    elif what == "id":
        message = Message("", "", message.headers, message.body)
    elif what == "twice":
        took(intake, message, 1)
    took(intake, message, 2)
    assert len(intake.echoes()) == (what == "twice")
    (arrival,) = intake.arrivals
    assert (arrival.reason == "") is (what in ("twice", "id"))


def test_only_so_much_is_remembered() -> None:
    """The oldest is given up; an id that is sent again while it is known is known once."""
    echoes = Echoes(bytes_max=3 * 2_000 + 10)
    sent = parcels("event")
    for parcel in sent:
        echoes.expect(parcel)
        echoes.expect(parcel)
    known = [parcel.first.seq for parcel in sent if echoes.take(parcel.message, "t") is not None]
    assert known == [6, 7, 8]
    assert echoes._bytes == 0


@pytest.mark.parametrize("packing", ["event", "batch"])
async def test_the_store_knows_where_its_events_lie(packing: str) -> None:
    """After a sync, and after one in which the broker stored everything twice: the later place counts."""
    name = uuid.uuid4().hex
    async with SyncNode("a", store="memory:", connectors=[f"memory://{name}"], topics=["t"], packing=packing) as node:
        stored = await node.append_many([Draft("t", "made", f"x{n}") for n in range(5)])
        await node.sync()
        origin = stored[0].event.origin
        runs = await node.store.runs(f"memory://{name}|t|0")
        assert where(runs) == {(origin, n): n if packing == "event" else 1 for n in range(1, 6)}
        with_faults = memory_broker(name)
        with_faults.duplicate()
        await node.append(Draft("t", "made", "y"))
        result = await node.sync()
        assert (result.events_pushed, result.complete) == (1, True)
        ends = (await node._links[0].connector.bounds("t"))[0].end
        assert where(await node.store.runs(f"memory://{name}|t|0"))[origin, 6] == ends - 1


def where(runs: Sequence[PlaceRun]) -> dict[tuple[str, int], int]:
    return {(run.origin, run.first + at): position for run in runs for at, position in enumerate(run.positions)}
