"""What the ledger decides with, and the parts of its mirror, against sets and loops."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.errors import FrameMalformed, Invalid
from synckit_streams.model.clock import COUNTER_MAX, Key, VersionVector, keys_bytes
from synckit_streams.model.codec import DIGEST_MODULUS, event_hash
from synckit_streams.model.event import Event, Stored
from synckit_streams.model.exchange import PlaceRun
from synckit_streams.model.seen import Seen
from synckit_streams.sync.arrivals import runs_of
from synckit_streams.sync.changes import Changes, Row
from synckit_streams.sync.ledger import AGGREGATES_CACHED, Known, Ledger, Stream
from synckit_streams.sync.turn import reissued
from synckit_streams.sync.waiting import Waiting


def ledger(*topics: str) -> Ledger:
    return Ledger(log="log", topics=topics or ("t",), held_max=9, dice=os.urandom, draw_origin=lambda: "n@new")


def event(seq: int, *, prev: int = 0, context: VersionVector | bytes = b"", after: tuple[Key, ...] = ()) -> Event:
    raw = context if isinstance(context, bytes) else context.to_bytes()
    return Event(f"id-{seq}", "t", "x", "a", b"1", b"", "p@1", seq, prev, raw, keys_bytes(after), 1 << 20)


# --- streams ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), unique=True))
def test_a_stream_is_the_set_of_its_numbers_in_whatever_order_they_came(numbers: list[int]) -> None:
    """Membership, last, the intervals, and the sum of the hashes."""
    stream = Stream()
    hashes = {seq: event_hash(event(seq)) for seq in numbers}
    for seq in numbers:
        stream.add(seq, hashes[seq])
    assert [seq for seq in range(42) if seq in stream] == sorted(numbers)
    assert stream.last == max(numbers, default=0)
    assert stream.intervals == Seen.of(("p@1", seq) for seq in numbers).ranges.get("p@1", ())
    assert stream.total == sum(int.from_bytes(each, "big") for each in hashes.values()) % DIGEST_MODULUS


@given(st.sets(st.integers(1, 20)), st.integers(0, 5))
def test_extending_a_stream_is_adding_the_next_numbers(numbers: set[int], times: int) -> None:
    one, other = Stream(), Stream()
    for seq in numbers:
        one.add(seq, b"\xff" * 32)
        other.add(seq, b"\xff" * 32)
    hashes = [bytes([at]) * 32 for at in range(times)]
    one.extend(hashes)
    for hash in hashes:
        other.add(other.last + 1, hash)
    assert (one.ranges, one.total) == (other.ranges, other.total)


def test_replacing_one_event_of_a_stream_changes_the_sum_by_their_difference() -> None:
    stream, expected = Stream(), Stream()
    stream.add(1, b"\xff" * 32)
    stream.replace(b"\xff" * 32, b"\x01" * 32)
    expected.add(1, b"\x01" * 32)
    assert stream.total == expected.total


# --- readiness --------------------------------------------------------------------------------------------------------


def test_the_first_missing_cause_is_named() -> None:
    """`prev`, then the context, then `after`; void ones and foreign topics are not missing."""
    mine = ledger("t")
    assert mine.missing(event(1)) is None
    assert mine.missing(event(3, prev=2)) == Key("t", "p@1", 2)
    assert mine.missing(event(3, context=VersionVector({"q@1": 5}))) == Key("t", "q@1", 5)
    assert mine.missing(event(3, after=(Key("t", "q@1", 1),))) == Key("t", "q@1", 1)
    assert mine.missing(event(3, after=(Key("foreign", "q@1", 1),))) is None
    mine.voids = {Key("t", "p@1", 2), Key("t", "q@1", 5)}
    assert mine.missing(event(3, prev=2, context=VersionVector({"q@1": 5}))) is None
    mine.stream("t", "q@1").add(4, b"\0" * 32)
    assert mine.missing(event(3, context=VersionVector({"q@1": 3}))) == Key("t", "q@1", 3), "5 there is not 3 there"


@pytest.mark.parametrize("raw", [b"\xff", b"\x90", b"\x91\x92\xa1a\x00", b"\x92\x92\xa1b\x01\x92\xa1a\x01"])
def test_a_context_that_is_not_canonical_is_an_error(raw: bytes) -> None:
    """Cut off, empty, with a zero, unsorted: two writings of one context would be two hashes."""
    with pytest.raises(FrameMalformed):
        ledger().missing(event(1, context=raw))


def test_an_event_that_waits_for_itself_is_an_error() -> None:
    with pytest.raises(Invalid):
        ledger().missing(event(2, context=VersionVector({"p@1": 2})))


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, COUNTER_MAX), max_size=4))
def test_whatever_a_vector_names_is_waited_for(counters: dict[str, int]) -> None:
    context = VersionVector({f"q{name}": seq for name, seq in counters.items()})
    missing = ledger().missing(event(1, context=context))
    assert (missing is None) == (not counters)
    assert missing is None or context[missing.origin] == missing.seq


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_uuid7_of_the_time_and_ascend_whatever_the_clock_does() -> None:
    """Also when more than 4096 fall into one millisecond, and when the clock goes back."""
    mine = ledger()
    ids = [*mine.new_ids(3, 1_000), *mine.new_ids(10_000, 1_700_000_000_000), *mine.new_ids(2, 5), *mine.new_ids(0, 9)]
    assert ids == sorted(set(ids))
    assert len(ids) == 10_005
    for text in (ids[0], ids[3], ids[-1]):
        found = uuid.UUID(text)
        assert (str(found), found.version, found.variant) == (text, 7, uuid.RFC_4122)
    assert int(ids[3].replace("-", "")[:12], 16) == 1_700_000_000_000


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_waiters_are_filed_under_one_cause_and_filed_anew() -> None:
    waiting = Waiting()
    one, two = event(2, prev=1), event(3, prev=1)
    cause, later = Key("t", "p@1", 1), Key("t", "q@1", 7)
    waiting.add(one, b"1", cause)
    waiting.add(two, b"2", cause)
    assert waiting.of_topic("t") == ((one.key, two.key), (cause,))
    assert waiting.of_topic("u") == ((), ())
    assert waiting.waiters(later) == []
    assert waiting.waiters(cause) == [(b"1", one), (b"2", two)]
    waiting.drop(b"1")
    waiting.add(two, b"2", later)
    assert (len(waiting), b"1" in waiting, b"2" in waiting) == (1, False, True)
    assert waiting.of_topic("t") == ((two.key,), (later,))


# --- changes ----------------------------------------------------------------------------------------------------------


def test_changes_answer_as_the_log_will_be() -> None:
    """Rows that are new, moved, or taken away again."""
    changes = Changes(10)
    rows = [Row(position, event(position), bytes([position]), False) for position in (11, 12, 13)]
    changes.rows.extend(rows[:2])
    assert changes.under(Key("t", "p@1", 12)) is rows[1]
    assert changes.under(Key("t", "p@1", 13)) is None
    changes.rows.append(rows[2])
    assert changes.under(Key("t", "p@1", 13)) is rows[2]
    stored = [Stored(event(position), position, "log") for position in (3, 4, 11, 12, 13)]
    old, new = Row(3, reissued(event(3), b"\xab" * 32), b"r", True), Row(12, event(99), b"n", False)
    changes.put(old)
    changes.put(new)
    changes.remove(4)
    changes.remove(11)
    assert changes.under(Key("t", "p@1~abababab", 1)) is old
    assert changes.under(Key("t", "p@1", 99)) is new
    found = changes.current(stored)
    assert [(each.position, each.event.seq, each.twin) for each in found] == [
        (3, 1, True), (12, 99, False), (13, 13, False),
    ]  # fmt: skip
    assert changes.removed == [4]
    assert [row.position for row in changes.rows] == [12, 13]


# --- places -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 30)), min_size=1))
def test_runs_of_places_say_for_each_number_where_it_was_read_last(found: list[tuple[int, int]]) -> None:
    """No run goes over a gap, and no two of them overlap."""
    runs: list[PlaceRun] = runs_of("r", "t", "p@1", [seq for seq, _ in found], [position for _, position in found])
    said = {run.first + at: position for run in runs for at, position in enumerate(run.positions)}
    expected: dict[int, int] = {}
    for seq, position in found:
        expected[seq] = max(position, expected.get(seq, 0))
    assert said == expected
    assert all(one.first + len(one.positions) <= other.first for one, other in pairwise(runs))


# --- the mirror's bound -----------------------------------------------------------------------------------------------


def test_the_mirror_lets_go_of_what_it_need_not_keep() -> None:
    """A node that writes a million aggregates does not remember them all; the oldest go."""
    mine = ledger()
    for number in range(AGGREGATES_CACHED + 5):
        mine.aggregates["t", str(number)] = Known({}, 0)
    changes = Changes(0)
    changes.unsure.add(("t", "77"))
    mine.settle(changes)
    assert len(mine.aggregates) == AGGREGATES_CACHED
    assert ("t", "3") not in mine.aggregates
    assert ("t", "77") not in mine.aggregates


@pytest.mark.parametrize("draw", [lambda: "n@a", lambda: "n@b"])
def test_an_origin_is_drawn_once_and_only_when_it_is_needed(draw: Callable[[], str]) -> None:
    drawn: list[str] = []

    def origin() -> str:
        drawn.append(draw())
        return drawn[-1]

    mine = Ledger(log="log", topics=("t",), held_max=9, dice=os.urandom, draw_origin=origin)
    assert (mine.origin, drawn) == ("", [])
    assert mine.own_origin() == mine.own_origin() == draw()
    assert len(drawn) == 1
