"""What a bridge keeps at hand: what came and is in the log, with its hash; bounded, and never a key's former event."""

from __future__ import annotations

from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Event, Stored
from synckit_streams.model.exchange import Arrival
from synckit_streams.runtime.recent import EVENT_BYTES, Recent
from tests.acceptance.kit import crafted

ORIGIN = "till-1@a"


def arrival(seq: int) -> Arrival:
    event = crafted("t", ORIGIN, seq)
    return Arrival(event, event_hash(event), None)


def stored(arrivals: list[Arrival]) -> list[Stored]:
    return [Stored(each.event, 1, "log") for each in arrivals if isinstance(each.event, Event)]


def numbers(recent: Recent, first: int, last: int, *, limit: int = 100) -> list[int]:
    return [event.seq for event, _ in recent.page("t", ORIGIN, (first, last), limit=limit)]


def test_what_came_is_there_with_its_hash_up_to_the_first_gap() -> None:
    recent = Recent()
    arrivals = [arrival(seq) for seq in (1, 2, 3, 5)]
    recent.add(arrivals, stored(arrivals))
    assert recent.page("t", ORIGIN, (1, 1), limit=9) == [(arrivals[0].event, arrivals[0].hash)]
    assert numbers(recent, 1, 9) == [1, 2, 3]
    assert numbers(recent, 1, 9, limit=2) == [1, 2]
    assert numbers(recent, 4, 9) == []
    assert recent.page("other", ORIGIN, (1, 9), limit=9) == []


def test_what_did_not_enter_the_log_is_not_there() -> None:
    """It may be held, known already, or have lost its key."""
    recent = Recent()
    arrivals = [arrival(1), arrival(2)]
    recent.add(arrivals, stored(arrivals[1:]))
    assert numbers(recent, 1, 2) == []
    assert numbers(recent, 2, 2) == [2]


def test_of_a_key_that_was_given_twice_nothing_is_kept() -> None:
    recent = Recent()
    recent.add([first := arrival(1)], stored([first]))
    recent.clear()
    assert numbers(recent, 1, 1) == []


def test_only_so_much_is_kept_and_the_last_stays() -> None:
    recent = Recent(bytes_max=20 * EVENT_BYTES)
    for seq in range(1, 200):
        recent.add([each := arrival(seq)], stored([each]))
        assert numbers(recent, seq, seq) == [seq]
    assert numbers(recent, 100, 100) == []
    kept = [seq for seq in range(1, 200) if numbers(recent, seq, seq)]
    assert 5 <= len(kept) <= 20
