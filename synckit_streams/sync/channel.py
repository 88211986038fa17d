"""One topic over one link: what was read there, what must still go out, and what the peers have said.

A plain record with the pure questions that can be asked of it. `Replica` changes it; nobody else does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from synckit_streams.model.exchange import Bounds, PlaceRun, Summary
from synckit_streams.model.seen import Seen
from synckit_streams.sync.places import Places
from synckit_streams.sync.protocol import Digest


class Peer(NamedTuple):
    """What one node last said, and when that was by our monotonic clock (`said_ms`)."""

    digest: Digest
    seen: Seen
    said_ms: int


def overlap(one: Seen, other: Seen) -> bool:
    """Whether there is an event in both."""
    return bool(one) and bool(other) and len(one.minus(other)) < len(one)


class Stage(Enum):
    """How far the repair of what is owed has come: wait, look where the log ends, read to there, then publish."""

    IDLE = 0
    WAITING = 1
    LOOKING = 2
    READING = 3


class Flight(NamedTuple):
    """Events on their way: published, and not read back. `barrier` is None until the broker has answered."""

    events: Seen
    barrier: Mapping[int, int] | None


_NOTHING = Seen()

RETIRED_MS = 7 * 24 * 3600 * 1000
"""A node that was silent for so long is not waited for before a log is trimmed."""


class Channel:
    """See the module's text."""

    def __init__(self, link: str, topic: str) -> None:
        self.link = link
        self.topic = topic
        self.joined = False
        self.muted = False
        self.identity: dict[int, str] = {}
        self.first: dict[int, int] = {}
        self.position: dict[int, int] = {}
        self.target: dict[int, int] = {}
        self.places = Places()
        self.unsent = Seen()
        self.sent_before = Seen()
        self.lost = Seen()
        """Published, and not where the broker said; unsent again when `resend_ms` has come."""
        self.losses = 0
        """How often in a row that happened to the same events."""
        self._tried_again = Seen()
        self.resend_ms: int | None = None
        self.flights: list[Flight] = []
        self.others = Seen()
        """Written by another process that shares the store, which sees to it; ours when `others_ms` has come."""
        self.others_ms: int | None = None
        self.stuck = Seen()
        self.peers: dict[str, Peer] = {}
        self._level: dict[str, tuple[Seen, Seen]] = {}
        """Per peer, of which summaries, its own and ours, it is known that it lacks nothing."""
        self.namesake: Peer | None = None
        """The last digest under our own name: our own, or of a copy of this store that is at work elsewhere."""
        self.disputes: dict[str, Seen] = {}
        """Peers that hold the same keys with other content, and the events of ours that may tell them why."""
        self.disputed_ms: dict[str, int] = {}
        self.reserve = Seen()
        """What somebody else was to send first, when the present wait began."""
        self.left_ms = -(10**12)
        """When the link was last left."""
        self.bridges: tuple[str, ...] = ()
        """From which other logs the peers know that something is passed on to this one."""
        self.introduced_ms: int | None = None
        """Since when the peers can know that this node passes on what comes from elsewhere."""
        self.loaded = False
        self.stage = Stage.IDLE
        self.due_ms = 0
        self.look: dict[int, int] = {}
        self.known: Seen | None = None
        """What was held here when it was last learned where others, which share the store, have read it."""
        self.said: object = None
        self.said_ms = -(10**12)
        self.goal = Seen()
        """What the present meeting has to see in the log: own events, and what it repairs."""
        self.patience_ms = 0
        """How much longer the present meeting may wait at random."""
        self.told = True
        """Whether the present meeting has announced what it came to."""

    @property
    def log(self) -> str:
        """Which log this is, by its first partition; "" before it was found."""
        return self.identity[min(self.identity)] if self.identity else ""

    @property
    def caught_up(self) -> bool:
        """Whether everything has been read up to the end that was last captured."""
        return self.joined and self._read_to(self.target)

    @property
    def seen_all(self) -> bool:
        """Whether everything has been read up to the end that the last look found."""
        return self._read_to(self.look)

    def _read_to(self, ends: Mapping[int, int]) -> bool:
        return all(self._next(at) >= end for at, end in ends.items())

    def _next(self, partition: int) -> int:
        """The next position to be read. What was trimmed before we came is not waited for."""
        return max(self.position.get(partition, 0) + 1, self.first.get(partition, 1))

    @property
    def flying(self) -> Seen:
        """Everything on its way."""
        flying = Seen()
        for flight in self.flights:
            flying = flying.union(flight.events)
        return flying

    @property
    def waits(self) -> bool:
        """Whether there is anything that somebody has to read back."""
        return bool(self.unsent or self.flights or self.lost or self.others)

    @property
    def sending(self) -> bool:
        """Whether the broker has still to answer for something."""
        return any(flight.barrier is None for flight in self.flights)

    def begin(self, goal: Seen, patience_ms: int) -> None:
        """A meeting begins, and does not wait for what was to be tried again later."""
        self.find_again()
        self.goal, self.patience_ms, self.told = goal, patience_ms, False

    @property
    def out(self) -> Seen:
        """What is on its way, or waits for another try."""
        return self.flying.union(self.stuck).union(self.lost).union(self.others)

    @property
    def waiting(self) -> Seen:
        """What has still to be read back."""
        return self.unsent.union(self.out)

    def capture(self, bounds: Mapping[int, Bounds]) -> None:
        """Remember where the logs begin and end now."""
        for partition, (identity, first, end) in bounds.items():
            self.identity[partition] = identity
            self.first[partition] = first
            self.target[partition] = end

    def read(self, partition: int, position: int, runs: tuple[PlaceRun, ...]) -> None:
        """A batch was read and is durable."""
        self.position[partition] = max(position, self.position.get(partition, 0))
        here = [run for run in runs if run.topic == self.topic]
        for run in here:
            self.places.add(run.origin, run.first, run.positions, partition)
        if self.waits:
            self._come_back(here)

    def learn(self, runs: Sequence[tuple[int, PlaceRun]]) -> None:
        """Another process has read these."""
        for partition, run in runs:
            self.places.add(run.origin, run.first, run.positions, partition)
        if self.waits:
            before = len(self.others)
            self._come_back([run for _, run in runs if run.topic == self.topic])
            if len(self.others) < before:
                self.others_ms = None  # he is at work

    def leave_to_others(self, ours: Seen, before: Seen) -> None:
        """Of what is unsent, what this process has not written is first of all another one's to send.

        Args:
            ours: What this process has written, or taken over.
            before: What was left to others already.
        """
        others = self.unsent.minus(ours)
        self.unsent, self.others = self.unsent.minus(others), others
        if others.minus(before):
            self.others_ms = None

    def take_over(self) -> None:
        """The others do not send it."""
        self.unsent, self.others, self.others_ms = self.unsent.union(self.others), Seen(), None

    def _come_back(self, runs: Sequence[PlaceRun]) -> None:
        """These were read: they are not on their way any more; and what the reader has passed by was lost."""
        found = Seen()
        for run in runs:
            found = found.with_ranges({run.origin: ((run.first, run.first + len(run.positions) - 1),)})
        if found:
            self.unsent = self.unsent.minus(found)
            self.lost = self.lost.minus(found)
            self.others = self.others.minus(found)
        left: list[Flight] = []
        for events, barrier in self.flights:
            rest = events.minus(found) if found else events
            if not rest:
                continue
            if barrier is not None and self._passed(barrier):
                # We have read past the place where the broker said they lie, and they were not there.
                if overlap(rest, self._tried_again):
                    self.losses, self._tried_again = self.losses + 1, Seen()
                elif not self.lost:
                    self.losses = 1
                self.lost = self.lost.union(rest)
            else:
                left.append(Flight(rest, barrier))
        self.flights = left

    def _passed(self, barrier: Mapping[int, int]) -> bool:
        return all(self.position.get(at, 0) >= end for at, end in barrier.items())

    def find_again(self) -> None:
        """What was lost is unsent."""
        self._tried_again = self.lost
        self.unsent, self.lost, self.resend_ms = self.unsent.union(self.lost), Seen(), None

    def lift_off(self, events: Seen) -> bool:
        """Take events on their way, unsent or not; gives whether some of them were before."""
        self.unsent = self.unsent.minus(events)
        self.flights.append(Flight(events, None))
        again = overlap(events, self.sent_before)
        self.sent_before = self.sent_before.union(events)
        return again

    def landed(self, events: Seen, barrier: Mapping[int, int] | None) -> None:
        """The broker answered for some of what is on its way; None means that it failed."""
        left: list[Flight] = []
        known = Seen()
        for flight in self.flights:
            if flight.barrier is not None:
                left.append(flight)
                continue
            rest = flight.events.minus(events)
            known = known.union(flight.events.minus(rest))
            if rest:
                left.append(Flight(rest, None))
        if barrier is None:
            self.unsent = self.unsent.union(known)
        elif known:
            left.append(Flight(known, barrier))
        self.flights = left
        if barrier is not None:
            self._come_back(())  # the reader may have been there already

    def stick(self, events: Seen) -> None:
        """The broker will not take these."""
        self.flights = [
            Flight(rest, flight.barrier) for flight in self.flights if (rest := flight.events.minus(events))
        ]
        self.stuck = self.stuck.union(events)

    def ground(self) -> None:
        """The link is gone: nothing is on its way any more, and what the broker refused may be tried again."""
        self.stuck = Seen()
        for flight in self.flights:
            self.unsent = self.unsent.union(flight.events)
        self.flights = []
        self.find_again()

    def find_unsent(self, due: Seen) -> None:
        """Of the events that this node sends every one that was not read in the current log, and is not on its way.

        What was trimmed since is not unsent: it would be published again at each join, for ever. It is owed to whoever
        says that he lacks it.
        """
        self.unsent = due.minus(self.places.at_or_past(due, {})).minus(self.out)

    def find_more(self, due: Seen, *, at_once: bool) -> None:
        """These are new here, and may have come by this log; with `at_once` the present meeting waits for them."""
        fresh = due.minus(self.places.at_or_past(due, {})).minus(self.out)
        if fresh:
            self.unsent = self.unsent.union(fresh)
            if at_once:
                self.goal = self.goal.union(fresh)

    def next_positions(self) -> dict[int, tuple[str, int]]:
        """The reader's place: per partition the broker's identity and the next position."""
        return {at: (identity, self.position.get(at, 0) + 1) for at, identity in self.identity.items()}

    def read_by_all(self, now_ms: int) -> dict[int, int]:
        """Per partition, the first position that somebody has still to read; nothing if nobody else has read anything.

        Whoever was silent for `RETIRED_MS` does not count. A peer whose place is in another log has read nothing here.
        """
        peers = [each for each in self.peers.values() if each.digest.takes and now_ms - each.said_ms <= RETIRED_MS]
        if not peers or not self.joined:
            return {}
        found: dict[int, int] = {}
        for partition, identity in self.identity.items():
            places = [peer.digest.places.get(partition, ("", 0)) for peer in peers]
            least = min(position if of == identity else 0 for of, position in places)
            least = min(least, self._next(partition))
            if least > self.first.get(partition, 1):
                found[partition] = least
        return found

    def owed_to(self, peer: Peer, summary: Summary) -> Seen:
        """What a peer lacks and will not come across: not in the current log at or past its place.

        Without the last condition a reader that merely lags looks like one that lost data, and everybody sends again
        what is already in its queue.
        """
        if not peer.digest.takes:
            return Seen()
        node = peer.digest.node
        disputed = self.disputes.get(node, _NOTHING)
        known = self._level.get(node)
        if not disputed and known is not None and known[0] is peer.seen and known[1] is summary.seen:
            return _NOTHING  # most of the time nothing has changed since the last tick
        lacks = summary.seen.minus(peer.seen).union(disputed)
        if not lacks:
            self._level[node] = (peer.seen, summary.seen)
            return lacks
        lacks = lacks.minus(Seen.of(peer.digest.refused))
        threshold = dict(self.first)
        for partition, (identity, position) in peer.digest.places.items():
            # A place beyond the end is one in a log that was put back since (or nonsense): it says nothing of this one.
            end = max(self._next(partition), self.target.get(partition, 0), self.look.get(partition, 0))
            if self.identity.get(partition) == identity and position <= end:
                threshold[partition] = max(position, threshold.get(partition, 0))
        return lacks.minus(self.places.at_or_past(lacks, threshold)).minus(self.out).minus(self.unsent)

    def dispute(self, node: str, summary: Summary, now_ms: int, lease_ms: int) -> None:
        """A peer holds the same keys with other content: a key was used twice, and it knows of one event only.

        Which one, its digest does not say. Whoever knows of both shows it all that is under such origins, now and then.
        """
        if now_ms - self.disputed_ms.get(node, -lease_ms) < lease_ms:
            return
        self.disputed_ms[node] = now_ms
        ranges = summary.seen.ranges
        reused = {origin.rpartition("~")[0] for origin in ranges if "~" in origin}
        self.disputes[node] = Seen({origin: ranges[origin] for origin in sorted(reused) if origin in ranges})

    def owed(self, summary: Summary) -> Seen:
        """What is owed to anybody."""
        owed = Seen()
        for peer in self.peers.values():
            owed = owed.union(self.owed_to(peer, summary))
        return owed
