"""The replica, step by step: what it publishes, when, and what it says of itself. No broker, no disk, no clock."""

from __future__ import annotations

from itertools import pairwise

import pytest

from synckit_streams.errors import Invalid
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import AppendResult
from synckit_streams.model.seen import Seen
from synckit_streams.sync import protocol
from synckit_streams.sync.announcing import ANNOUNCE_MS, HEARTBEATS
from synckit_streams.sync.protocol import AlarmKind, Persist, Publish, digest_bytes, digest_from_bytes
from tests.sync.script import (
    LEASE_MS,
    LINK,
    MINE,
    SPREAD_MS,
    THEIRS,
    TOPIC,
    Script,
    alarms,
    event_of,
    of_kind,
    published,
    span,
    summary_of,
)


def joined(seen: Seen | None = None, *, end: int = 1) -> Script:
    """A replica that has read the log to its end."""
    script = Script(seen)
    script.join(end=end, at=end - 1 if end > 1 else None)
    return script


class TestUnsent:
    """An own event is unsent until it was read back from the log."""

    def test_a_write_is_published_and_done_when_it_was_read_back(self) -> None:
        script = joined()
        (publish,) = of_kind(script.write(3), Publish)
        assert publish == Publish(LINK, TOPIC, span(MINE, (1, 3)), False)
        assert not script.standing.complete
        assert script.sent(span(MINE, (1, 3)), barrier=3) == []
        assert not script.standing.complete
        assert published(script.read(3, (MINE, 1, 3))) == []
        assert script.standing.complete
        assert published(script.tick(3_600_000)) == []

    def test_what_was_read_past_and_not_found_is_sent_again(self) -> None:
        """The broker had acknowledged it, and said where it would be."""
        script = joined()
        script.write(3)
        script.sent(span(MINE, (1, 3)), barrier=3)
        script.read(3, (MINE, 1, 1))
        assert script.standing.missing == span(MINE, (2, 3))
        (again,) = of_kind([*script.tick(dice=0.9), *script.tick(50)], Publish)
        assert (again.events, again.again) == (span(MINE, (2, 3)), True)
        script.sent(again.events, barrier=5)
        script.read(5, (MINE, 2, 3))
        assert script.standing.complete

    def test_also_when_the_reader_was_there_before_the_broker_answered(self) -> None:
        """The answer comes late: the place that it names was passed long ago."""
        script = joined()
        script.write()
        script.read(9)
        script.sent(span(MINE, (1, 1)), barrier=4)
        assert published([*script.tick(dice=0.9), *script.tick(50)]) == [{MINE: ((1, 1),)}]

    def test_before_the_place_was_passed_nothing_is_sent_again(self) -> None:
        """It may still come."""
        script = joined()
        script.write()
        script.sent(span(MINE, (1, 1)), barrier=10)
        script.read(9)
        assert published([*script.tick(60_000), *script.tick(60_000)]) == []
        assert not script.standing.complete

    def test_a_broker_that_loses_everything_is_asked_ever_more_rarely(self) -> None:
        """The longest wait doubles with each loss, up to a limit."""
        script = joined()
        script.write()
        script.sent(span(MINE, (1, 1)), barrier=0)
        times = [0]
        while script.now_ms < 60_000:
            for publish in of_kind(script.tick(10, dice=0.5), Publish):
                times.append(script.now_ms)
                script.sent(publish.events, barrier=0)
        waits = [later - earlier for earlier, later in pairwise(times)]
        expected = [25, 50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000]
        assert all(0 <= wait - least <= 30 for wait, least in zip(waits, expected, strict=False)), waits
        assert len(waits) >= len(expected)

    def test_what_failed_goes_with_the_next_tick(self) -> None:
        """Not at once: whoever failed just now fails again."""
        script = joined()
        script.write()
        assert published(script.failed(span(MINE, (1, 1)))) == []
        assert published(script.tick(10)) == [{MINE: ((1, 1),)}]

    def test_while_a_publication_is_under_way_the_next_one_gathers(self) -> None:
        """A node that writes faster than the broker answers has one line, not a thousand."""
        script = joined()
        assert published(script.write()) == [{MINE: ((1, 1),)}]
        assert published([*script.write(), *script.write(2), *script.tick(1)]) == []
        assert published(script.sent(span(MINE, (1, 1)), barrier=1)) == [{MINE: ((2, 4),)}]

    def test_nothing_is_published_before_the_log_was_read(self) -> None:
        """Only then it is known what is unsent: some of it is in the log already."""
        script = Script(span(MINE, (1, 5)))
        assert published(script.join(end=4)) == []
        assert published(script.read(2, (MINE, 1, 2))) == []
        assert published(script.write()) == []
        assert published(script.read(3, (MINE, 5, 5))) == [{MINE: ((3, 4), (6, 6))}]

    def test_places_that_the_store_remembers_count(self) -> None:
        """A node that was closed does not send again what it has read back in an earlier life."""
        script = Script(span(MINE, (1, 5)))
        assert published(script.join(end=4, at=3, runs=[(MINE, 1, range(1, 4))])) == [{MINE: ((4, 5),)}]

    def test_what_was_on_its_way_when_the_link_was_lost_is_unsent(self) -> None:
        """The next join publishes it, unless the log has it by then."""
        script = joined()
        script.write(2)
        script.sent(span(MINE, (1, 1)), barrier=1)
        script.leave()
        assert not script.standing.complete
        script.join(end=2)
        assert published(script.read(1, (MINE, 1, 1))) == [{MINE: ((2, 2),)}]

    def test_what_others_wrote_is_not_ours_to_send(self) -> None:
        """A node does not publish what it has of a peer because it is not in the log; that is owed, if anything."""
        script = Script(span(THEIRS, (1, 5)))
        script.join()
        assert published([*script.tick(10), *script.tick(10_000)]) == []

    def test_an_earlier_incarnation_s_events_are_ours(self) -> None:
        """And what was issued again after a number had been used twice."""
        script = Script(Seen({"till-1@a": ((1, 1),), "till-1@b": ((1, 2),), "till-1@b~12345678": ((1, 1),)}))
        assert published(script.join()) == [
            {"till-1@a": ((1, 1),), "till-1@b": ((1, 2),), "till-1@b~12345678": ((1, 1),)}
        ]

    def test_what_the_broker_refuses_is_not_tried_before_the_next_join(self) -> None:
        """It is said, and never counted as sent."""
        script = joined()
        script.write(3)
        script.sent(span(MINE, (1, 1), (3, 3)), barrier=2)
        assert alarms(script.refused(span(MINE, (2, 2)))) == [AlarmKind.REFUSED]
        script.read(1, (MINE, 1, 1))
        script.read(2, (MINE, 3, 3))
        assert published(script.tick(600_000)) == []
        assert script.standing.missing == span(MINE, (2, 2))
        script.leave()
        assert published(script.join(at=2)) == [{MINE: ((2, 2),)}]

    def test_muted_it_reads_and_publishes_nothing(self) -> None:
        """Not even a digest; what is unsent goes out when it may speak again."""
        script = Script(span(MINE, (1, 2)))
        assert script.replica.step(protocol.Mute(LINK, True)) == []
        script.join()
        script.hear(Seen())
        assert script.tick(3_600_000) == []
        assert not script.standing.complete
        assert published(script.replica.step(protocol.Mute(LINK, False))) == [{MINE: ((1, 2),)}]


class TestOwed:
    """An event is owed to a peer only if it is not in the current log at or past the peer's place."""

    def full(self) -> Script:
        """Has ten events of a dead node, read at positions 1 to 10."""
        script = joined()
        script.read(10, (THEIRS, 1, 10))
        return script

    def test_a_reader_that_lags_is_owed_nothing(self) -> None:
        """It will come across what is in front of it: sending that again would only make it lag more."""
        script = self.full()
        script.hear(span(THEIRS, (1, 3)), node="till-3", place=4)
        assert published(script.repair()) == []

    def test_what_it_has_passed_without_taking_it_is_owed(self) -> None:
        """It was lost on the way to him, and he says that he does not have it."""
        script = self.full()
        script.hear(span(THEIRS, (1, 3), (6, 10)), node="till-3", place=11)
        assert published(script.repair()) == [{THEIRS: ((4, 5),)}]

    def test_just_at_its_place_is_in_front_of_it(self) -> None:
        """The place is the next position that it reads."""
        script = self.full()
        script.hear(span(THEIRS, (1, 4)), node="till-3", place=5)
        assert published(script.repair()) == []
        script.hear(span(THEIRS, (1, 4)), node="till-3", place=6)
        assert published(script.repair()) == [{THEIRS: ((5, 5),)}]

    @pytest.mark.parametrize(("place", "identity"), [(None, ""), (11, "log-0"), (900, "log-1")])
    def test_who_has_no_place_in_this_log_begins_at_its_beginning(self, place: int | None, identity: str) -> None:
        """No place at all, a place in another log, or one beyond the end of this: what is in the log is not owed."""
        script = self.full()
        script.hear(Seen(), node="till-3", place=place, identity=identity)
        assert published(script.repair()) == []

    def test_what_is_in_no_log_is_owed_to_everybody(self) -> None:
        """For example after the log was made anew: the store still has it."""
        script = Script(span(THEIRS, (1, 10)))
        script.join(identity="log-2", of="log-1", at=10, end=1)
        script.hear(Seen(), node="till-3", place=11, identity="log-1")
        assert published(script.repair()) == [{THEIRS: ((1, 10),)}]

    def test_a_dead_node_s_digest_is_not_fed_for_ever(self) -> None:
        """What was published for it lies in front of it then; it never says anything new, and that is the end of it."""
        script = self.full()
        script.hear(span(THEIRS, (1, 9)), node="dead", place=11, age_ms=10 * LEASE_MS)
        (owed,) = of_kind(script.repair(), Publish)
        script.sent(owed.events, barrier=11)
        script.read(11, (THEIRS, 10, 10))
        for _ in range(20):
            assert published(script.repair()) == []

    def test_a_refused_event_is_not_offered_again(self) -> None:
        """It would refuse it again."""
        script = self.full()
        script.hear(span(THEIRS, (1, 9)), node="till-3", place=11, refused=[(THEIRS, 10)])
        assert published(script.repair()) == []

    def test_who_takes_nothing_is_owed_nothing(self) -> None:
        """A node that only pushes lacks everything, and is content."""
        script = self.full()
        script.hear(Seen(), node="sensor", place=11, takes=False)
        assert published(script.repair()) == []

    def test_what_was_trimmed_is_owed_and_not_unsent(self) -> None:
        """Retention makes nobody publish his history again, until somebody says that he lacks it."""
        script = Script(span(MINE, (1, 10)))
        script.join(first=8, end=11, at=10, runs=[(MINE, 1, range(1, 11))])
        assert published([*script.tick(), *script.tick(60_000)]) == []
        assert script.standing.complete
        script.hear(Seen(), node="till-3", place=1)
        assert published(script.repair()) == [{MINE: ((1, 7),)}]

    @pytest.mark.parametrize("dice", [0.0, 0.25, 0.999])
    def test_it_waits_at_random_before_it_sends(self, dice: float) -> None:
        """So that of many who could, one does. Then it looks where the log ends, and reads to there."""
        script = self.full()
        script.hear(Seen(), node="till-3", place=11)
        effects = script.tick(dice=dice)
        wait_ms = int(dice * SPREAD_MS)
        if wait_ms:
            assert of_kind(effects, protocol.Look) == []
            assert of_kind(script.tick(wait_ms - 1), protocol.Look) == []
            effects = script.tick(1)
        assert of_kind(effects, protocol.Look) == [protocol.Look(LINK, TOPIC)]
        assert published(effects) == []
        assert published(script.looked(end=13)) == []
        assert published(script.read(11)) == []
        assert published(script.read(12)) == [{THEIRS: ((1, 10),)}]

    def test_what_somebody_else_has_sent_meanwhile_is_not_sent(self) -> None:
        """It is computed anew when the wait is over and the reader has come to the end that the log has then."""
        script = self.full()
        script.hear(span(THEIRS, (1, 8)), node="till-3", place=11)
        script.tick()
        script.tick(SPREAD_MS)
        script.looked(end=12)
        assert published(script.read(11, (THEIRS, 9, 9))) == [{THEIRS: ((10, 10),)}]

    def test_what_the_peer_has_by_then_is_not_sent(self) -> None:
        """A newer digest of his came."""
        script = self.full()
        script.hear(span(THEIRS, (1, 8)), node="till-3", place=11)
        script.tick()
        script.hear(span(THEIRS, (1, 10)), node="till-3", place=13)
        assert published([*script.tick(SPREAD_MS), *script.looked()]) == []
        assert script.repair() == []

    def test_what_is_on_its_way_is_not_owed_as_well(self) -> None:
        """Neither what was just written, nor what was just sent for somebody."""
        script = self.full()
        script.write()
        script.hear(span(THEIRS, (1, 9)), node="till-3", place=11)
        assert published(script.repair()) == [{THEIRS: ((10, 10),)}]
        assert published(script.repair()) == []

    def test_several_peers_are_paid_together(self) -> None:
        """The log is everybody's."""
        script = self.full()
        script.hear(span(THEIRS, (1, 8)), node="till-3", place=11)
        script.hear(span(THEIRS, (3, 10)), node="till-4", place=11)
        assert published(script.repair()) == [{THEIRS: ((1, 2), (9, 10))}]


class TestJoin:
    """A broker's memory is never trusted: at each join the last message read is looked at again."""

    def test_the_first_join_keeps_the_log_s_identity(self) -> None:
        """Also of an empty log: another one later is then noticed."""
        (persist,) = of_kind(Script().join(), Persist)
        assert {reader: (offset.log, offset.position) for reader, offset in persist.offsets.items()} == {
            f"{LINK}|{TOPIC}|0": ("log-1", 0)
        }

    @pytest.mark.parametrize(
        ("alarm", "log"),
        [
            (AlarmKind.RECREATED, {"identity": "log-2", "end": 1}),
            (AlarmKind.RECREATED, {"identity": "log-2", "end": 40}),
            (AlarmKind.REWOUND, {"end": 6}),
            (AlarmKind.REWOUND, {"end": 40, "witness": False}),
            (AlarmKind.REWOUND, {"end": 40, "witness": None}),
        ],
    )
    def test_a_log_that_is_another_one_is_read_from_its_beginning(self, alarm: str, log: dict[str, object]) -> None:
        """Made anew, put back, or put back and then written past where we stood. Places in it are void."""
        script = Script(span(MINE, (1, 10)))
        effects = script.join(at=10, runs=[(MINE, 1, range(1, 11))], **log)  # type: ignore[arg-type]
        assert alarm in alarms(effects)
        (persist,) = of_kind(effects, Persist)
        reader = f"{LINK}|{TOPIC}|0"
        assert persist.forget == [reader]
        assert persist.offsets[reader].position == 0
        # Told first: once the new place is on the disk, nobody would tell it any more.
        assert alarms(effects[: effects.index(persist)]) == [alarm]
        assert script.channel.position == {0: 0}
        if script.end > 1:
            assert published(effects) == []
            # Half of it is still there; the rest is sent again.
            effects = script.read(script.end - 1, (MINE, 1, 5))
        assert published(effects) == [{MINE: ((6, 10) if script.end > 1 else (1, 10),)}]

    def test_what_was_trimmed_unread_is_said(self) -> None:
        """And asked of the peers: our digest shows what we lack."""
        script = Script()
        assert alarms(script.join(first=20, end=31, at=10)) == [AlarmKind.TRIMMED]
        script.read(30)
        assert of_kind(script.tick(ANNOUNCE_MS), protocol.Announce)

    @pytest.mark.parametrize("at", [None, 0, 4])
    def test_an_empty_log_is_read_to_its_end_at_once(self, at: int | None) -> None:
        """Also one whose messages have all been trimmed, whoever had read them."""
        script = Script()
        script.join(first=9, end=9, at=at)
        assert script.channel.caught_up
        assert script.standing.complete

    def test_a_log_that_is_the_same_is_read_on(self) -> None:
        """Nothing is forgotten, nothing is alarming."""
        script = Script()
        effects = script.join(end=15, at=10)
        assert effects == []
        assert script.channel.position == {0: 10}
        assert not script.channel.caught_up


class TestStanding:
    """`complete` is false for each condition alone, and says why."""

    def complete(self) -> Script:
        script = joined()
        script.read(3, (THEIRS, 1, 3))
        script.hear(span(THEIRS, (1, 3)))
        assert script.standing == protocol.Standing(True, Seen(), ())
        return script

    def only(self, script: Script, reason: str, missing: Seen) -> None:
        standing = script.standing
        assert (standing.complete, standing.missing) == (False, missing)
        (said,) = standing.reasons
        assert reason in said

    def test_no_connector(self) -> None:
        self.only(Script(), "no connector", Seen())

    def test_the_log_is_not_read_to_the_end_that_was_captured(self) -> None:
        script = Script()
        script.join(end=5)
        self.only(script, "not been read to its end", Seen())
        script.read(3)
        self.only(script, "not been read to its end", Seen())
        script.read(4)
        assert script.standing.complete

    def test_a_local_event_is_not_acknowledged(self) -> None:
        script = self.complete()
        script.write(2)
        self.only(script, "2 local events", span(MINE, (1, 2)))

    def test_a_live_peer_holds_more(self) -> None:
        script = self.complete()
        script.hear(span(THEIRS, (1, 5)))
        self.only(script, "till-2 holds 2 events", span(THEIRS, (4, 5)))
        script.tick(LEASE_MS + 1)
        assert script.standing.complete

    def test_an_old_digest_is_not_a_live_peer(self) -> None:
        script = self.complete()
        script.hear(span("dead@x", (1, 5)), node="dead", age_ms=LEASE_MS + 1)
        assert script.standing.complete

    def test_a_copy_of_this_store_holds_more(self) -> None:
        """It has our name, and so only one of the two digests is kept: what it says of more events is worth hearing."""
        script = self.complete()
        script.hear(span(THEIRS, (1, 4)), node="till-1")
        self.only(script, "another store runs under this name", span(THEIRS, (4, 4)))
        script.hear(span(THEIRS, (1, 2)), node="till-1")
        assert script.standing.complete
        script.hear(span(THEIRS, (1, 4)), node="till-1")
        script.tick(LEASE_MS + 1)
        assert script.standing.complete

    def test_something_is_held(self) -> None:
        script = self.complete()
        script.holds(script.seen, held=[("x@1", 2)], wanted=[("x@1", 1)])
        self.only(script, "1 event waiting for a cause", span("x@1", (1, 1)))

    def test_something_was_refused(self) -> None:
        script = self.complete()
        script.holds(script.seen, refused=[("x@1", 2)])
        self.only(script, "1 event refused", span("x@1", (2, 2)))

    def test_the_same_keys_with_another_checksum(self) -> None:
        script = self.complete()
        assert alarms(script.hear(span(THEIRS, (1, 3)), twist=1)) == [AlarmKind.DIGEST_MISMATCH]
        self.only(script, "other content", Seen())
        assert alarms(script.hear(span(THEIRS, (1, 3)), twist=1)) == []

    def test_a_rounded_digest_with_another_checksum(self) -> None:
        script = self.complete()
        script.hear(span(THEIRS, (1, 2)), whole=False)
        self.only(script, "more than its digest can say", Seen())

    def test_a_node_that_takes_nothing_misses_nothing_of_others(self) -> None:
        script = Script(takes=False)
        script.join()
        script.hear(span(THEIRS, (1, 3)))
        assert script.standing.complete
        script.write()
        assert not script.standing.complete

    def test_every_reason_is_given(self) -> None:
        script = self.complete()
        script.write()
        script.hear(span(THEIRS, (1, 4)))
        script.holds(script.seen, held=[("x@1", 2)], wanted=[("x@1", 1)], refused=[("y@1", 7)])
        assert len(script.standing.reasons) == 4
        assert script.standing.missing == Seen({MINE: ((1, 1),), THEIRS: ((4, 4),), "x@1": ((1, 1),), "y@1": ((7, 7),)})


class TestMeeting:
    """A meeting ends when what was there at its beginning is done, and has two seconds of patience."""

    def meet(self, script: Script) -> list[protocol.Effect]:
        return script.replica.step(protocol.Meet(LINK))

    def settled(self, script: Script) -> bool:
        return script.replica.settled(LINK, TOPIC)

    def test_it_ends_when_all_is_read_sent_read_back_and_said(self) -> None:
        script = Script(span(MINE, (1, 2)))
        assert not self.settled(script)
        script.join(end=4)
        self.meet(script)
        script.tick(hurry=True)
        assert not self.settled(script)
        script.read(3)
        script.tick(hurry=True)
        assert not self.settled(script)
        script.sent(span(MINE, (1, 2)), barrier=5)
        assert of_kind(script.tick(hurry=True), protocol.Announce) == []
        script.read(5, (MINE, 1, 2))
        assert not self.settled(script)
        (announce,) = of_kind(script.tick(hurry=True), protocol.Announce)
        assert announce.digest.seen == {MINE: [1, 2]}
        assert announce.digest.places == {0: ("log-1", 6)}
        assert self.settled(script)

    def test_what_is_written_meanwhile_is_not_waited_for(self) -> None:
        """Here or elsewhere: it is sent and read, and the meeting ends."""
        script = joined()
        self.meet(script)
        script.write()
        script.read(1, (THEIRS, 1, 1))
        assert len(of_kind(script.tick(hurry=True), protocol.Announce)) == 1
        assert self.settled(script)
        script.read(2, (THEIRS, 2, 2))
        # It announces once, not at each batch that comes before somebody has noticed that it is over.
        assert of_kind(script.tick(hurry=True), protocol.Announce) == []
        assert self.settled(script)

    def test_it_pays_what_it_owes(self) -> None:
        script = joined()
        script.read(3, (THEIRS, 1, 3))
        self.meet(script)
        script.hear(span(THEIRS, (1, 2)), node="till-3", place=4)
        script.tick(hurry=True, dice=0.9)
        assert not self.settled(script)
        script.tick(900, hurry=True)
        (owed,) = of_kind(script.looked(), Publish)
        script.sent(owed.events, barrier=4)
        script.read(4, (THEIRS, 3, 3))
        script.tick(hurry=True)
        assert self.settled(script)

    def test_it_waits_for_the_broker_to_take_what_it_owes(self) -> None:
        """Also when it has nothing new to say: who left at once would take the repair back, at each meeting anew."""
        script = joined()
        script.read(3, (THEIRS, 1, 3))
        self.meet(script)
        script.hear(span(THEIRS, (1, 2)), node="till-3", place=4)
        script.tick(ANNOUNCE_MS)  # it has said all that there is to be said
        script.tick(SPREAD_MS, hurry=True)
        (owed,) = of_kind([*script.tick(SPREAD_MS, hurry=True), *script.looked()], Publish)
        script.tick(hurry=True)
        assert not self.settled(script)
        script.sent(owed.events, barrier=4)
        script.tick(hurry=True)
        assert not self.settled(script)
        script.read(4, (THEIRS, 3, 3))
        script.tick(hurry=True)
        assert self.settled(script)

    def test_its_random_waits_are_two_seconds_in_all(self) -> None:
        """Then it ends, with its debts; what a peer loses again and again cannot hold it up."""
        script = joined()
        script.read(3, (THEIRS, 1, 3))
        self.meet(script)
        position = 3
        while not self.settled(script):
            script.hear(span(THEIRS, (1, 2)), node="till-3", place=position + 1)
            effects = script.tick(100, hurry=True, dice=0.999)
            if of_kind(effects, protocol.Look):
                for owed in of_kind(script.looked(), Publish):
                    position += 1
                    script.sent(owed.events, barrier=position)
                    script.read(position, (THEIRS, 3, 3))
            assert script.now_ms <= 2 * SPREAD_MS + 500
        assert position > 3

    def test_a_broker_that_loses_everything_cannot_hold_it_up_either(self) -> None:
        script = joined()
        script.write()
        script.sent(span(MINE, (1, 1)), barrier=0)
        effects = self.meet(script)
        assert published(effects) == [{MINE: ((1, 1),)}]
        while not self.settled(script):
            for publish in of_kind(effects, Publish):
                script.sent(publish.events, barrier=0)
            effects = script.tick(20, hurry=True, dice=0.999)
            assert script.now_ms <= 2 * SPREAD_MS + 500
        assert script.standing.missing == span(MINE, (1, 1))

    def test_muted_it_ends_when_all_is_read(self) -> None:
        script = Script(span(MINE, (1, 1)))
        script.replica.step(protocol.Mute(LINK, True))
        script.join(end=3)
        self.meet(script)
        assert not self.settled(script)
        script.read(2)
        assert self.settled(script)


HEARTBEAT_MS = LEASE_MS // HEARTBEATS


class TestDigests:
    """What a node tells its peers, and how often."""

    def test_it_announces_what_is_new_once_a_second(self) -> None:
        script = joined()
        assert len(of_kind(script.tick(), protocol.Announce)) == 1
        assert of_kind(script.tick(5_000), protocol.Announce) == []
        script.read(1, (THEIRS, 1, 1))
        assert len(of_kind(script.tick(ANNOUNCE_MS), protocol.Announce)) == 1
        script.read(2, (THEIRS, 2, 2))
        assert of_kind(script.tick(ANNOUNCE_MS - 1), protocol.Announce) == []
        assert len(of_kind(script.tick(1), protocol.Announce)) == 1

    def test_it_shows_that_it_is_alive(self) -> None:
        """With nothing new, a few times in each lease."""
        script = joined()
        script.tick()
        assert of_kind(script.tick(HEARTBEAT_MS - 1), protocol.Announce) == []
        assert len(of_kind(script.tick(1), protocol.Announce)) == 1
        assert HEARTBEATS >= 3

    def test_it_says_nothing_before_it_has_read_the_log(self) -> None:
        """Everybody would think that it lacks what is in front of it."""
        script = Script()
        script.join(end=9)
        assert of_kind(script.tick(HEARTBEAT_MS), protocol.Announce) == []

    def test_a_summary_of_very_many_intervals_is_rounded_down(self) -> None:
        """It claims less, never more, and says so; peers read it."""
        seen = Seen({f"n{origin}@1": tuple((at, at) for at in range(1, 400, 2)) for origin in range(40)})
        script = Script(seen)
        script.join()
        (announce,) = of_kind(script.tick(), protocol.Announce)
        digest, said = digest_from_bytes(digest_bytes(announce.digest))
        assert not digest.whole
        assert seen.covers(said)
        assert said.intervals_count() == protocol.DIGEST_INTERVALS_MAX

    def test_very_many_refused_and_void_events_do_not_make_it_too_large(self) -> None:
        """Peers would not read it at all."""
        script = joined()
        many = [("x" * 200, seq) for seq in range(1, 30_000, 2)]
        script.holds(Seen(), refused=many, voids=many)
        (announce,) = of_kind(script.tick(), protocol.Announce)
        digest, _ = digest_from_bytes(digest_bytes(announce.digest))
        assert digest.refused == digest.voids == many[: protocol.DIGEST_DOTS_MAX]

    def test_its_own_digest_leads_to_nothing(self) -> None:
        """Nothing is owed to whoever stands behind it: that may be this very node, as it was a moment ago."""
        script = joined(span(MINE, (1, 2)))
        script.read(2, (MINE, 1, 2))
        assert script.hear(Seen(), node="till-1", place=3) == []
        assert published(script.repair()) == []
        assert script.standing.complete

    def test_a_peer_that_resolves_by_another_rule_is_an_alarm_once(self) -> None:
        script = joined()
        assert alarms(script.hear(Seen(), resolver=("lww", 2))) == [AlarmKind.RESOLVER_DIFFERS]
        assert alarms(script.hear(Seen(), resolver=("lww", 2))) == []
        assert alarms(script.hear(Seen(), resolver=("fww", 1))) == [AlarmKind.RESOLVER_DIFFERS]
        assert alarms(script.hear(Seen(), node="dead", resolver=("old", 1), age_ms=LEASE_MS + 1)) == []


class TestVoids:
    """A key that nobody holds any more is declared void, so that its successors are not held for ever."""

    def waiting(self) -> Script:
        """An event waits for number 1 of a machine whose disk was put back."""
        script = joined()
        script.holds(Seen(), held=[("lost@1", 2)], wanted=[("lost@1", 1)])
        script.tick()
        return script

    def test_after_the_owner_s_lease(self) -> None:
        script = self.waiting()
        assert of_kind(script.tick(LEASE_MS - 1), Persist) == []
        effects = script.tick(1)
        assert [persist.voids for persist in of_kind(effects, Persist)] == [[Key(TOPIC, "lost@1", 1)]]
        assert alarms(effects) == [AlarmKind.VOID]

    def test_not_while_a_live_peer_has_it(self) -> None:
        script = self.waiting()
        for _ in range(10):
            script.hear(span("lost@1", (1, 1)))
            assert of_kind(script.tick(LEASE_MS), Persist) == []

    def test_not_by_others_while_its_owner_lives(self) -> None:
        """Its later incarnation will say so itself."""
        script = self.waiting()
        for _ in range(10):
            script.hear(Seen(), node="lost")
            assert of_kind(script.tick(LEASE_MS), Persist) == []

    def test_by_its_owner_s_later_incarnation(self) -> None:
        script = joined()
        script.holds(Seen(), held=[("x@1", 2)], wanted=[("till-1@old", 1)])
        script.tick()
        script.hear(Seen())
        assert of_kind(script.tick(LEASE_MS), Persist)

    def test_when_a_peer_has_declared_it(self) -> None:
        script = self.waiting()
        (persist,) = of_kind(script.hear(Seen(), voids=[("lost@1", 1), ("other@1", 1)]), Persist)
        assert persist.voids == [Key(TOPIC, "lost@1", 1)]

    def test_what_came_meanwhile_is_forgotten(self) -> None:
        """And would have to be missed for a whole lease again."""
        script = self.waiting()
        script.tick(LEASE_MS - 1)
        script.holds(span("lost@1", (1, 2)))
        assert of_kind(script.tick(1), Persist) == []
        script.holds(span("lost@1", (1, 3)), held=[("lost@1", 5)], wanted=[("lost@1", 1)])
        script.tick()
        assert of_kind(script.tick(LEASE_MS - 1), Persist) == []


class TestPersisted:
    """What the disk did, told in whatever order."""

    def test_an_older_summary_does_not_replace_a_newer_one(self) -> None:
        """The results of one group commit may be handed out in any order."""
        script = joined()
        script.holds(span(THEIRS, (1, 5)))
        script.replica.step(protocol.Persisted(AppendResult(summaries={TOPIC: summary_of(span(THEIRS, (1, 3)))}), None))
        assert script.replica.summary(TOPIC).seen == span(THEIRS, (1, 5))

    def test_after_losing_track_the_disk_says_what_is_unsent(self) -> None:
        """A caller was cancelled while the store was writing: what it wrote is found and sent."""
        script = joined()
        script.write()
        effects = script.replica.step(protocol.Opened({TOPIC: summary_of(span(MINE, (1, 3)))}))
        effects += script.sent(span(MINE, (1, 1)), barrier=1)
        assert published(effects) == [{MINE: ((2, 3),)}]

    def test_what_an_operator_must_hear_of_is_an_alarm(self) -> None:
        script = joined()
        result = AppendResult(
            quarantined=("hash",), dropped=(Key(TOPIC, "x@1", 1),), twins=((Key(TOPIC, "x@1", 2), "id-1"),)
        )
        given = protocol.Received(LINK, TOPIC, 0, (), Offset("log-1", 1))
        effects = script.replica.step(protocol.Persisted(result, given))
        assert set(alarms(effects)) == {AlarmKind.QUARANTINED, AlarmKind.HELD_FULL, AlarmKind.TWINS}
        assert {alarm.topic for alarm in of_kind(effects, protocol.Alarm)} == {TOPIC}


def test_a_replica_knows_no_time_but_the_one_it_is_told() -> None:
    """The same inputs give the same effects: a simulation replays."""

    def play() -> list[object]:
        script = joined()
        effects: list[object] = [*script.write(3)]
        effects += script.sent(span(MINE, (1, 3)), barrier=2)
        effects += script.read(2, (MINE, 1, 1))
        effects += script.hear(Seen(), node="till-3", place=3)
        for step in range(30):
            effects += script.tick(100, dice=step / 30)
        return effects

    assert play() == play()
    assert any(isinstance(effect, Publish) for effect in play())


def test_events_of_the_script_are_like_real_ones() -> None:
    """The stage itself: an event with a number out of range could not even be summarised."""
    assert event_of(MINE, 3).prev == 2
    with pytest.raises(Invalid):
        Seen.of([(MINE, 0)])
