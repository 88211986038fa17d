"""A replica on a stage: whoever writes the test is its disk, its broker, its peers and its clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from synckit_streams.model.clock import Key
from synckit_streams.model.codec import DIGEST_MODULUS
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.model.exchange import AppendResult, Bounds, PlaceRun, Summary
from synckit_streams.model.seen import Interval, Intervals, Seen
from synckit_streams.sync import protocol
from synckit_streams.sync.channel import Channel
from synckit_streams.sync.protocol import Digest, Effect, Standing
from synckit_streams.sync.replica import Replica, checksum

LINK, TOPIC, NODE = "memory://x", "orders", "till-1"
MINE = "till-1@a"
THEIRS = "till-2@b"
LEASE_MS, SPREAD_MS = 90_000, 1_000

EffectT = TypeVar("EffectT", bound=Effect)


def span(origin: str, *intervals: Interval) -> Seen:
    """The events of one origin."""
    return Seen({origin: intervals})


def summary_of(
    seen: Seen,
    *,
    held: Iterable[tuple[str, int]] = (),
    wanted: Iterable[tuple[str, int]] = (),
    refused: Iterable[tuple[str, int]] = (),
    voids: Iterable[tuple[str, int]] = (),
    twist: int = 0,
) -> Summary:
    """What a store would say; the hash of an event is its number, plus `twist` for another content."""
    sums = {
        origin: sum((first + last) * (last - first + 1) // 2 for first, last in intervals) + twist
        for origin, intervals in seen.ranges.items()
    }
    return Summary(
        seen,
        {origin: total % DIGEST_MODULUS for origin, total in sums.items()},
        tuple(Key(TOPIC, *dot) for dot in held),
        tuple(Key(TOPIC, *dot) for dot in wanted),
        {Key(TOPIC, *dot): "no" for dot in refused},
        frozenset(Key(TOPIC, *dot) for dot in voids),
    )


class Script:
    """One replica with one topic over one link; each method gives the effects that it led to."""

    def __init__(self, seen: Seen | None = None, *, takes: bool = True) -> None:
        self.replica = Replica(NODE, [TOPIC], resolver=("lww", 1), lease_ms=LEASE_MS, spread_ms=SPREAD_MS, takes=takes)
        self.seen = seen or Seen()
        self.now_ms = 0
        self.end = 1
        self.replica.step(protocol.Opened({TOPIC: summary_of(self.seen)}))
        self.tick()

    @property
    def channel(self) -> Channel:
        found = self.replica.channel(LINK, TOPIC)
        assert found is not None
        return found

    @property
    def standing(self) -> Standing:
        return self.replica.standing(TOPIC)

    # --- the disk ----------------------------------------------------------------------------------------------------

    def holds(self, seen: Seen, **more: Any) -> list[Effect]:
        """The disk holds these now, whoever wrote them."""
        self.seen = seen
        return self.replica.step(protocol.Persisted(AppendResult(summaries={TOPIC: summary_of(seen, **more)}), None))

    def write(self, times: int = 1) -> list[Effect]:
        """Local events, numbered on."""
        first = self.seen.mark(MINE) + 1
        drafts = [Draft(topic=TOPIC, type="t", aggregate_id="o-1")] * times
        (persist,) = self.replica.step(protocol.Write(drafts))
        assert isinstance(persist, protocol.Persist)
        assert persist.drafts == drafts
        self.seen = self.seen.union(span(MINE, (first, first + times - 1)))
        events = [event_of(MINE, seq) for seq in range(first, first + times)]
        result = AppendResult(
            appended=tuple(Stored(event, event.seq, "log") for event in events),
            fresh=times,
            summaries={TOPIC: summary_of(self.seen)},
        )
        return self.replica.step(protocol.Persisted(result, protocol.Write(drafts)))

    # --- the broker --------------------------------------------------------------------------------------------------

    def join(
        self,
        *,
        identity: str = "log-1",
        first: int = 1,
        end: int | None = None,
        at: int | None = None,
        of: str = "log-1",
        witness: bool | None = True,
        runs: Sequence[tuple[str, int, Sequence[int]]] = (),
    ) -> list[Effect]:
        """The link is up: the log is `first` to `end`, and the store's reader stood at `at` in the log `of`."""
        self.end = self.end if end is None else end
        stored = {} if at is None else {0: Offset(of, at)}
        known = [(0, PlaceRun(protocol.reader_name(LINK, TOPIC, 0), TOPIC, *run)) for run in runs]
        bounds = {0: Bounds(identity, first, self.end)}
        given = protocol.Joined(LINK, TOPIC, bounds, stored, {0: witness}, known)
        effects = self.replica.step(given)
        for persist in of_kind(effects, protocol.Persist):
            effects += self.replica.step(protocol.Persisted(AppendResult(), persist.cause))
        return effects

    def leave(self) -> list[Effect]:
        return self.replica.step(protocol.Left(LINK))

    def read(self, position: int, *runs: tuple[str, int, int], **more: Any) -> list[Effect]:
        """Everything up to a position was read and is durable; runs of (origin, first, last) lay there."""
        reader = protocol.reader_name(LINK, TOPIC, 0)
        given = protocol.Received(LINK, TOPIC, 0, (), Offset("log-1", position))
        (persist,) = self.replica.step(given)
        assert isinstance(persist, protocol.Persist)
        assert persist.offsets == {reader: given.offset}
        places = []
        for origin, first, last in runs:
            self.seen = self.seen.union(span(origin, (first, last)))
            at = range(position - (last - first), position + 1)
            places.append(PlaceRun(reader, TOPIC, origin, first, at))
        self.end = max(self.end, position + 1)
        result = AppendResult(runs=tuple(places), summaries={TOPIC: summary_of(self.seen, **more)})
        return self.replica.step(protocol.Persisted(result, given))

    def sent(self, events: Seen, barrier: int) -> list[Effect]:
        self.end = max(self.end, barrier + 1)
        return self.replica.step(protocol.Sent(LINK, TOPIC, events, {0: barrier}))

    def failed(self, events: Seen) -> list[Effect]:
        return self.replica.step(protocol.Failed(LINK, TOPIC, events))

    def refused(self, events: Seen) -> list[Effect]:
        return self.replica.step(protocol.Refused(LINK, TOPIC, events))

    def looked(self, end: int | None = None) -> list[Effect]:
        end = self.end if end is None else end
        return self.replica.step(protocol.Looked(LINK, TOPIC, {0: Bounds("log-1", 1, end)}))

    # --- the peers ---------------------------------------------------------------------------------------------------

    def hear(
        self,
        seen: Seen,
        *,
        node: str = "till-2",
        place: int | None = 1,
        identity: str = "log-1",
        age_ms: int = 0,
        twist: int = 0,
        whole: bool = True,
        refused: Sequence[tuple[str, int]] = (),
        voids: Sequence[tuple[str, int]] = (),
        resolver: tuple[str, int] = ("lww", 1),
        takes: bool = True,
    ) -> list[Effect]:
        """A digest of a peer, whose reader has `place` as its next position."""
        total = checksum(summary_of(seen, twist=twist))
        digest = Digest(
            version=protocol.DIGEST_VERSION,
            node=node,
            topic=TOPIC,
            number=1,
            seen=seen.to_wire(),
            whole=whole,
            checksum=total.to_bytes(32, "big"),
            places={} if place is None else {0: (identity, place)},
            refused=list(refused),
            voids=list(voids),
            held=0,
            resolver=resolver,
            takes=takes,
        )
        return self.replica.step(protocol.Heard(LINK, digest, seen, age_ms))

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, pass_ms: int = 0, *, dice: float = 0.5, hurry: bool = False) -> list[Effect]:
        self.now_ms += pass_ms
        return self.replica.step(protocol.Tick(self.now_ms, dice, hurry))

    def repair(self, *, dice: float = 0.5) -> list[Effect]:
        """Let everything pass that lies between noticing a debt and paying it, with nobody else about."""
        effects = self.tick(dice=dice)
        effects += self.tick(SPREAD_MS, dice=dice)
        if of_kind(effects, protocol.Look):
            effects += self.looked()
        return effects


def of_kind(effects: Iterable[Effect], kind: type[EffectT]) -> list[EffectT]:
    """The effects of one kind."""
    return [effect for effect in effects if isinstance(effect, kind)]


def published(effects: Iterable[Effect]) -> list[Mapping[str, Intervals]]:
    """What is to be published."""
    return [dict(effect.events.ranges) for effect in of_kind(effects, protocol.Publish)]


def alarms(effects: Iterable[Effect]) -> list[str]:
    """The kinds of alarm."""
    return [effect.kind for effect in of_kind(effects, protocol.Alarm)]


def event_of(origin: str, seq: int) -> Event:
    """Any event."""
    return Event(f"{origin}:{seq}", TOPIC, "t", "o-1", b"{}", b"", origin, seq, seq - 1, b"", b"", seq << 16)
