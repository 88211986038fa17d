"""A replica over two links that passes on what comes by one to the other: what it sends where, when, and how often."""

from __future__ import annotations

import pytest

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Offset, Stored
from synckit_streams.model.exchange import AppendResult, Bounds, PlaceRun, Reuse
from synckit_streams.model.seen import Seen
from synckit_streams.sync import protocol
from synckit_streams.sync.protocol import Announce, Digest, Effect, Look, Persist, Publish
from synckit_streams.sync.replica import Replica
from tests.sync.script import LEASE_MS, SPREAD_MS, THEIRS, TOPIC, event_of, of_kind, span, summary_of

A, B, C = "memory://a", "memory://b", "memory://c"
NODE = "hub-2"


class Stage:
    """A bridge, its brokers and its peers; every log is one partition, and its identity is the link's name."""

    def __init__(self, *links: str, seen: Seen | None = None, passes_on: bool = True) -> None:
        self.replica = Replica(
            NODE,
            [TOPIC],
            resolver=("lww", 1),
            lease_ms=LEASE_MS,
            spread_ms=SPREAD_MS,
            links=links,
            passes_on=passes_on,
        )
        self.seen = seen or Seen()
        self.now_ms = 0
        self.ends = dict.fromkeys(links, 1)
        self.replica.step(protocol.Opened({TOPIC: summary_of(self.seen)}))
        for link in links:
            self.join(link)

    def join(self, link: str, *, identity: str = "", runs: tuple[tuple[str, int, range], ...] = ()) -> list[Effect]:
        known = [(0, PlaceRun(protocol.reader_name(link, TOPIC, 0), TOPIC, *run)) for run in runs]
        bounds = {0: Bounds(identity or link, 1, self.ends[link])}
        return self.replica.step(protocol.Joined(link, TOPIC, bounds, {}, {}, known))

    def read(self, link: str, origin: str, first: int, last: int) -> list[Effect]:
        """Events of one origin were read in one log, from its end on."""
        start = self.ends[link]
        self.ends[link] = start + last - first + 1
        reader = protocol.reader_name(link, TOPIC, 0)
        given = protocol.Received(link, TOPIC, 0, (), Offset(link, self.ends[link] - 1))
        self.replica.step(given)
        fresh = span(origin, (first, last)).minus(self.seen)
        self.seen = self.seen.union(span(origin, (first, last)))
        run = PlaceRun(reader, TOPIC, origin, first, range(start, self.ends[link]))
        stored = tuple(Stored(event_of(*dot), 0, "") for dot in fresh)
        result = AppendResult(runs=(run,), stored=stored, summaries={TOPIC: summary_of(self.seen)})
        return self.replica.step(protocol.Persisted(result, given))

    def tick(self, pass_ms: int = 0, *, dice: float = 0.5) -> list[Effect]:
        self.now_ms += pass_ms
        return self.replica.step(protocol.Tick(self.now_ms, dice, False))

    def known(self) -> None:
        """Everybody knows of it."""
        self.tick()
        self.tick(SPREAD_MS)

    def hear(self, link: str, node: str, *bridges: str) -> list[Effect]:
        digest = Digest(
            version=protocol.DIGEST_VERSION,
            node=node,
            topic=TOPIC,
            number=1,
            seen=self.seen.to_wire(),
            whole=True,
            checksum=bytes(32),
            places={0: (link, self.ends[link])},
            refused=[],
            voids=[],
            held=0,
            resolver=("lww", 1),
            bridges=list(bridges),
        )
        return self.replica.step(protocol.Heard(link, digest, self.seen, 0))

    def wait(self, pass_ms: int, *, dice: float = 0.5) -> list[tuple[str, Seen]]:
        """What is published within a time, by somebody who looks every quarter of a second and finds nothing new."""
        found = list[tuple[str, Seen]]()
        for _ in range(0, pass_ms, 250):
            effects = self.tick(250, dice=dice)
            for look in of_kind(effects, Look):
                bounds = {0: Bounds(look.link, 1, self.ends[look.link])}
                effects += self.replica.step(protocol.Looked(look.link, TOPIC, bounds))
            found += sent(effects)
        return found


def sent(effects: list[Effect]) -> list[tuple[str, Seen]]:
    return [(each.link, each.events) for each in of_kind(effects, Publish)]


def test_what_comes_by_one_goes_out_by_the_others_at_once_and_not_back() -> None:
    stage = Stage(A, B, C)
    stage.known()
    assert sent(stage.read(A, THEIRS, 1, 3)) == [(B, span(THEIRS, (1, 3))), (C, span(THEIRS, (1, 3)))]
    assert stage.wait(60_000) == []


def test_without_passing_on_only_ones_own_goes_out() -> None:
    stage = Stage(A, B, passes_on=False)
    stage.known()
    assert sent(stage.read(A, THEIRS, 1, 3)) == []
    assert stage.wait(10_000) == []


def test_a_bridge_that_nobody_knows_of_introduces_itself_and_listens() -> None:
    stage = Stage(A, B)
    (first, second) = of_kind(stage.tick(), Announce)
    assert ((first.link, first.digest.bridges), (second.link, second.digest.bridges)) == ((A, [B]), (B, [A]))
    assert sent(stage.read(A, THEIRS, 1, 1)) == []
    assert stage.wait(SPREAD_MS // 2)[:1] == [(B, span(THEIRS, (1, 1)))]


def test_what_was_here_before_it_was_a_bridge_is_passed_on() -> None:
    stage = Stage(A, B, seen=span(THEIRS, (1, 2)))
    assert sorted(stage.wait(SPREAD_MS)) == [(A, span(THEIRS, (1, 2))), (B, span(THEIRS, (1, 2)))]


def test_of_two_bridges_the_one_with_the_least_name_is_first() -> None:
    """The other one is in reserve: it sends what is still not there after one to two seconds."""
    stage = Stage(A, B)
    stage.known()
    stage.hear(B, "hub-1", A)
    assert sent(stage.read(A, THEIRS, 1, 1)) == []
    assert stage.wait(SPREAD_MS) == []
    assert stage.wait(SPREAD_MS) == [(B, span(THEIRS, (1, 1)))]


def test_in_reserve_it_sends_nothing_that_the_first_one_has_sent() -> None:
    stage = Stage(A, B)
    stage.known()
    stage.hear(B, "hub-1", A)
    stage.read(A, THEIRS, 1, 1)
    stage.read(B, THEIRS, 1, 1)
    assert stage.wait(10 * SPREAD_MS) == []


def test_what_came_during_the_wait_has_a_wait_of_its_own() -> None:
    stage = Stage(A, B)
    stage.known()
    stage.hear(B, "hub-1", A)
    stage.read(A, THEIRS, 1, 1)
    assert stage.wait(SPREAD_MS) == []
    stage.read(A, THEIRS, 2, 2)
    assert stage.wait(SPREAD_MS)[0] == (B, span(THEIRS, (1, 1)))


@pytest.mark.parametrize(
    ("node", "bridges"),
    [("hub-3", (A,)), ("hub-1", ()), ("hub-1", (C,))],
    ids=["behind us", "no bridge", "between other logs"],
)
def test_who_is_not_before_us_is_not_waited_for(node: str, bridges: tuple[str, ...]) -> None:
    stage = Stage(A, B)
    stage.known()
    stage.hear(B, node, *bridges)
    assert sent(stage.read(A, THEIRS, 1, 1)) == [(B, span(THEIRS, (1, 1)))]


def test_when_its_lease_is_over_nobody_waits_for_the_first_one() -> None:
    stage = Stage(A, B)
    stage.known()
    stage.hear(B, "hub-1", A)
    stage.wait(LEASE_MS + 1_000)
    assert sent(stage.read(A, THEIRS, 1, 1)) == [(B, span(THEIRS, (1, 1)))]


def test_a_writer_who_is_there_himself_is_first() -> None:
    stage = Stage(A, B)
    stage.known()
    stage.hear(B, "till-2")
    assert sent(stage.read(A, THEIRS, 1, 1)) == []
    assert stage.wait(2 * SPREAD_MS) == [(B, span(THEIRS, (1, 1)))]


def test_while_another_log_is_being_read_nothing_is_owed_to_it() -> None:
    """What lies before it in the one, nobody is to publish in the other one."""
    stage = Stage(A, B)
    stage.ends[B] = 10
    stage.join(B)
    (announce,) = of_kind(stage.tick(), Announce)
    assert (announce.link, announce.digest.takes) == (A, False)
    stage.ends[B] = 1
    stage.read(B, THEIRS, 1, 9)
    digests = {each.link: each.digest.takes for each in of_kind(stage.tick(2_000), Announce)}
    assert digests == {A: True, B: True}


def test_it_is_complete_when_every_link_has_everything() -> None:
    stage = Stage(A, B)
    stage.known()
    assert stage.replica.standing(TOPIC).complete
    stage.read(A, THEIRS, 1, 1)
    standing = stage.replica.standing(TOPIC)
    assert (standing.complete, standing.reasons) == (False, (f"1 event not passed on to {B}",))
    assert standing.missing == span(THEIRS, (1, 1))
    stage.read(B, THEIRS, 1, 1)
    assert stage.replica.standing(TOPIC).complete
    stage.replica.step(protocol.Left(B))
    assert stage.replica.standing(TOPIC).reasons == (f"{B} was not reached",)


def test_a_log_made_anew_gets_everything_and_the_other_one_nothing() -> None:
    stage = Stage(A, B)
    stage.known()
    stage.read(A, THEIRS, 1, 3)
    stage.read(B, THEIRS, 1, 3)
    stage.replica.step(protocol.Left(B))
    stage.ends[B] = 1
    given = protocol.Joined(B, TOPIC, {0: Bounds("another", 1, 1)}, {0: Offset(B, 3)}, {0: None}, [])
    assert sent(stage.replica.step(given)) == [(B, span(THEIRS, (1, 3)))]


def test_a_key_that_went_to_another_event_is_sent_where_its_former_one_lies() -> None:
    """And the store is told, so that it is so after a restart, too."""
    stage = Stage(A, B)
    stage.known()
    stage.read(A, THEIRS, 1, 3)
    stage.read(B, THEIRS, 1, 3)
    given = protocol.Received(A, TOPIC, 0, (), Offset(A, 4))
    run = PlaceRun(protocol.reader_name(A, TOPIC, 0), TOPIC, THEIRS, 2, range(4, 5))
    reuse = Reuse(Key(TOPIC, THEIRS, 2), bytes(32), event_of(f"{THEIRS}~0", 1))
    result = AppendResult(runs=(run,), reused=(reuse,), summaries={TOPIC: summary_of(stage.seen)})
    effects = stage.replica.step(protocol.Persisted(result, given))
    (persist,) = of_kind(effects, Persist)
    reader = protocol.reader_name(B, TOPIC, 0)
    assert persist.echoes == [PlaceRun(reader, TOPIC, THEIRS, 2, range(1))]
    assert sent(effects) == [(B, span(THEIRS, (2, 2)))]
