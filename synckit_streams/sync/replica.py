"""One replica of the event set, as a state machine with no I/O. All inputs go through one door: `step`.

Theory of operation. Local writes are persisted, then published. What is read from a log is persisted, held if it is
early, and its place remembered. An own event is *unsent* until it was read back from the log; what was published and is
passed over by the reader was lost, and is sent again. Peers announce digests: what one of them lacks and will not come
across is owed to it, and is published after a random wait, if by then nobody else has. What loss, `held_max` or a lying
broker cost us, the next digests bring back.

A *bridge* is at several logs at once, and what others wrote it sends like its own: what is in the store and was not
read in a log is unsent there. What came from a log has a place in it, so nothing goes round in circles. Beside other
bridges the first one sends, and the others are in reserve (`precedence`).

There is no clock, no dice and no I/O here: time and chance come in with `Tick`, and everything that must be durable
goes out as a `Persist`. If carrying out an effect fails, the replica is thrown away and a new one is told `Opened`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.exchange import Summary
from synckit_streams.model.seen import Seen
from synckit_streams.sync import protocol
from synckit_streams.sync.alarms import alarms_of
from synckit_streams.sync.announcing import Herald, Report
from synckit_streams.sync.channel import Channel, Peer, Stage, overlap
from synckit_streams.sync.joining import take_up
from synckit_streams.sync.misplaced import misplaced
from synckit_streams.sync.places import Places
from synckit_streams.sync.precedence import reserved, to_pass_on
from synckit_streams.sync.protocol import Alarm, AlarmKind, Effect, Standing
from synckit_streams.sync.sharing import Sharing
from synckit_streams.sync.standing import Judge, checksum, checksum_bytes
from synckit_streams.sync.voids import Voids

LEASE_MS = 90_000
"""For how long a digest makes its node count as live."""
SPREAD_MS = 1_000
"""Longest random wait before publishing what is owed to a peer. A meeting waits for twice that in all."""

RESEND_MS = 50
"""Longest random wait before publishing what was lost once; it doubles with each loss."""
RESEND_MS_MAX = 10_000


class Replica:
    """See the module's text.

    Args:
        node: The node id.
        topics: Which topics it replicates.
        resolver: Name and version of the conflict resolver.
        lease_ms: See `LEASE_MS`.
        spread_ms: See `SPREAD_MS`.
        takes: False if it keeps only what it wrote itself; what its peers hold is then not missing here.
        outlets: Of the topics, those of which it keeps only what it wrote itself.
        formerly: Node ids under which its log was written before. What they wrote is its own to send.
        links: Of a node that meets over all of its connectors at once: their names.
        passes_on: Whether what came by one link goes out by the others.
        shared: Whether other processes write under the same origin, and send what they write.
    """

    def __init__(
        self,
        node: str,
        topics: Sequence[str],
        *,
        resolver: tuple[str, int],
        lease_ms: int = LEASE_MS,
        spread_ms: int = SPREAD_MS,
        takes: bool = True,
        outlets: Iterable[str] = (),
        formerly: Iterable[str] = (),
        links: Sequence[str] = (),
        passes_on: bool = False,
        shared: bool = False,
    ) -> None:
        self.node = node
        self.nodes = frozenset([node, *formerly])
        self.topics = tuple(topics)
        self._resolver = resolver
        self._lease_ms = lease_ms
        self._spread_ms = spread_ms
        self._takes = takes
        self._outlets = frozenset(outlets)
        self._links = tuple(links)
        self._passes_on = passes_on
        self._sharing = Sharing() if shared else None
        self._summaries: dict[str, Summary] = {topic: Summary(Seen(), {}) for topic in topics}
        self._channels: dict[tuple[str, str], Channel] = {}
        self._voids = Voids(node, self._links, lease_ms, self.live)
        self._alarmed: set[tuple[str, ...]] = set()
        self._herald = Herald(node, resolver, lease_ms=lease_ms, spread_ms=spread_ms, passes_on=passes_on)
        self._now_ms = 0
        self._steps: dict[type, Callable[..., list[Effect]]] = {
            protocol.Opened: self._opened,
            protocol.Write: self._write,
            protocol.Persisted: self._persisted,
            protocol.Joined: self._joined,
            protocol.Left: self._left,
            protocol.Meet: self._meet,
            protocol.Forgot: self._forgot,
            protocol.Received: self._received,
            protocol.Learned: self._learned,
            protocol.Sent: self._sent,
            protocol.Failed: self._failed,
            protocol.Refused: self._refused,
            protocol.Heard: self._heard,
            protocol.Looked: self._looked,
            protocol.Tick: self._tick,
            protocol.Mute: self._mute,
        }

    def step(self, given: protocol.Input) -> list[Effect]:
        """The one door: what happened goes in, what to do comes out, in order."""
        return self._steps[type(given)](given)

    def widen(self, outlets: Sequence[str]) -> None:
        """More topics of which it keeps only what it wrote itself."""
        self.topics += tuple(outlets)
        self._outlets |= frozenset(outlets)
        self._summaries |= {topic: Summary(Seen(), {}) for topic in outlets}

    # --- questions ---------------------------------------------------------------------------------------------------

    def summary(self, topic: str) -> Summary:
        """What this replica holds of a topic."""
        return self._summaries[topic]

    def channel(self, link: str, topic: str) -> Channel | None:
        """What is known of a topic over a link; for reading only."""
        return self._channels.get((link, topic))

    def settled(self, link: str, topic: str) -> bool:
        """Whether a meeting has nothing left to do: all read, all sent and read back, nothing owed, all said.

        "All" is what was there when it began: while somebody goes on writing, here or elsewhere, it ends all the same.
        """
        channel = self._channels.get((link, topic))
        return channel is not None and self._idle(channel) and (channel.told or channel.muted)

    def idle(self, link: str, topic: str) -> bool:
        """Whether a meeting has only to say what it came to, as far as this link goes."""
        channel = self._channels.get((link, topic))
        return channel is not None and self._idle(channel)

    def _idle(self, channel: Channel) -> bool:
        """Whether the present meeting has only to say what it came to."""
        if not channel.caught_up:
            return False
        if channel.muted:
            return True
        if channel.stage in (Stage.LOOKING, Stage.READING):
            return False
        if overlap(channel.unsent.union(channel.flying).union(channel.others), channel.goal):
            return False
        if channel.patience_ms <= 0:
            return True
        if overlap(channel.lost, channel.goal):
            return False
        return channel.stage is Stage.IDLE and not self._owed(channel)

    def needs_places(self, link: str, topic: str) -> bool:
        """Whether `Joined` must bring what the store knows of places; later joins of one life need not."""
        channel = self._channels.get((link, topic))
        return channel is None or not channel.loaded

    def read_by_all(self, link: str, topic: str) -> dict[int, int]:
        """Per partition of a log, the first position that some node has still to read; see `Channel.read_by_all`."""
        channel = self._channels.get((link, topic))
        return {} if channel is None else channel.read_by_all(self._now_ms)

    def live(self, peer: Peer) -> bool:
        """Whether a peer's digest is fresh enough for it to count as live."""
        return self._now_ms - peer.said_ms <= self._lease_ms

    def standing(self, topic: str) -> Standing:
        """How far the topic is from complete."""
        takes = self._takes and topic not in self._outlets
        judge = Judge(self.node, self._links, takes, self.live, self._written_here, self._passes_on)
        return judge.standing(topic, self._summaries[topic], self._joined_channels(topic))

    def _joined_channels(self, topic: str) -> list[Channel]:
        return [each for (_, of), each in self._channels.items() if of == topic and each.joined]

    # --- writing and reading -----------------------------------------------------------------------------------------

    def _opened(self, given: protocol.Opened) -> list[Effect]:
        self._summaries.update(given.summaries)
        effects: list[Effect] = []
        for channel in self._channels.values():
            if channel.joined:
                self._find_unsent(channel)
                effects += self._flow(channel)
        return effects

    def _find_unsent(self, channel: Channel) -> None:
        if self._sharing is None:
            channel.find_unsent(self._due(channel.topic))
        else:
            self._sharing.find_unsent(channel, self._due(channel.topic))

    def _learned(self, given: protocol.Learned) -> list[Effect]:
        channel = self._channels.get((given.link, given.topic))
        if channel is None:
            return []
        channel.learn(given.runs)
        return self._flow(channel)

    def _write(self, given: protocol.Write) -> list[Effect]:
        return [protocol.Persist(drafts=given.drafts, cause=given)]

    def _received(self, given: protocol.Received) -> list[Effect]:
        # The offset commits with the events: what is acknowledged is on the disk, and what is not comes again.
        reader = protocol.reader_name(given.link, given.topic, given.partition)
        offsets = {} if given.offset is None else {reader: given.offset}
        return [protocol.Persist(received=given.arrivals, echoes=given.echoes, offsets=offsets, cause=given)]

    def _persisted(self, given: protocol.Persisted) -> list[Effect]:
        result, cause = given
        effects: list[Effect] = []
        for topic, summary in result.summaries.items():
            known = self._summaries.get(topic)
            # Results of one group commit may be handed out in any order; what is seen only grows.
            if known is None or len(summary.seen) >= len(known.seen):
                self._summaries[topic] = summary
        behind = False
        if isinstance(cause, protocol.Received):
            channel = self._channels.get((cause.link, cause.topic))
            if channel is not None:
                behind = not channel.caught_up
                channel.read(cause.partition, cause.offset.position if cause.offset else 0, result.runs)
                effects += self._repair(channel)
        effects += alarms_of(result, cause.topic if isinstance(cause, protocol.Received) else "")
        effects += misplaced(result.reused, cause, self._channels.values())
        if self._sharing is not None:
            self._sharing.wrote(result.appended)
        come = to_pass_on(result) if self._passes_on and result.stored else {}
        for channel in self._channels.values():
            if channel.topic in come and channel.joined:
                # What was in one log when the meeting began is to be in the others when it ends.
                channel.find_more(come[channel.topic], at_once=behind)
            if result.fresh and channel.joined:
                appended = [stored.event for stored in result.appended]
                fresh = Seen.of((each.origin, each.seq) for each in appended if each.topic == channel.topic)
                channel.unsent = channel.unsent.union(fresh)
            if result.reused and channel.joined:
                # An event of ours that was issued again under a new key is unsent like any other of our own.
                self._find_unsent(channel)
            effects += self._flow(channel)
        return effects

    def _flow(self, channel: Channel) -> list[Effect]:
        """Publish what is unsent, once the reader has caught up (before that we cannot know what is).

        While a publication is under way the next one gathers: a node that writes faster than the broker answers would
        otherwise have thousands of them in line, an event each.
        """
        if channel.muted or not channel.unsent or not channel.caught_up or channel.sending:
            return []
        events = channel.unsent.minus(self._held_back(channel))
        return [self._publish(channel, events)] if events else []

    @staticmethod
    def _publish(channel: Channel, events: Seen, *, again: bool = False) -> protocol.Publish:
        return protocol.Publish(channel.link, channel.topic, events, channel.lift_off(events) or again)

    def _held_back(self, channel: Channel) -> Seen:
        """Of what is unsent, what is not sent just now: others go first, or may not know of us yet."""
        if not self._passes_on:
            return Seen()
        foreign = channel.unsent.minus(self._written_here(channel.unsent))
        since = channel.introduced_ms
        # Half of what those in reserve wait at least: the first one's first events are there before they look.
        if not foreign or since is None or self._now_ms - since < self._spread_ms // 2:
            return foreign
        return self._reserved(channel, foreign)

    def _reserved(self, channel: Channel, foreign: Seen) -> Seen:
        live = filter(self.live, channel.peers.values())
        elsewhere = [each for (_, of), each in self._channels.items() if of == channel.topic and each is not channel]
        return reserved(self.node, foreign, live, elsewhere)

    def _in_reserve(self, channel: Channel) -> Seen:
        """Of what is unsent, what is sent in the end if nobody else does."""
        if not self._passes_on or channel.introduced_ms is None:
            return Seen()
        foreign = channel.unsent.minus(self._written_here(channel.unsent))
        return self._reserved(channel, foreign) if foreign else foreign

    # --- links -------------------------------------------------------------------------------------------------------

    def _joined(self, given: protocol.Joined) -> list[Effect]:
        channel = self._channels.setdefault((given.link, given.topic), Channel(given.link, given.topic))
        channel.capture(given.bounds)
        channel.loaded = True
        for partition, run in given.runs:
            channel.places.add(run.origin, run.first, run.positions, partition)
        alarms, forget, offsets = take_up(channel, given)
        effects: list[Effect] = [*alarms]
        channel.joined = True
        channel.ground()
        self._find_unsent(channel)
        if offsets:
            # Behind the alarms: if it fails they are raised once more, and if its caller is cancelled they were raised.
            effects.append(protocol.Persist(forget=forget, offsets=offsets, cause=given))
        return effects + self._flow(channel)

    def _left(self, given: protocol.Left) -> list[Effect]:
        for channel in self._channels.values():
            if channel.link == given.link:
                channel.left_ms = self._now_ms if channel.joined else channel.left_ms
                channel.joined = False
                channel.stage = Stage.IDLE
                channel.ground()
        return []

    def _forgot(self, given: protocol.Forgot) -> list[Effect]:
        channel = self._channels.get((given.link, given.topic))
        if channel is not None:
            channel.places = Places()
            channel.loaded = False
        return []

    def _meet(self, given: protocol.Meet) -> list[Effect]:
        effects: list[Effect] = []
        for channel in self._channels.values():
            if channel.link == given.link:
                channel.begin(self._due(channel.topic), 2 * self._spread_ms)
                effects += self._flow(channel)
        return effects

    def _due(self, topic: str) -> Seen:
        """What this node sees to that it is in every log: all that it wrote, and if it is a bridge all that it has."""
        seen = self._summaries[topic].seen
        return seen if self._passes_on else self._written_here(seen)

    def _written_here(self, seen: Seen) -> Seen:
        return Seen({origin: ranges for origin, ranges in seen.ranges.items() if node_of(origin) in self.nodes})

    def _mute(self, given: protocol.Mute) -> list[Effect]:
        effects: list[Effect] = []
        for topic in self.topics:
            channel = self._channels.setdefault((given.link, topic), Channel(given.link, topic))
            channel.muted = given.on
            effects += self._flow(channel)
        return effects

    def _sent(self, given: protocol.Sent) -> list[Effect]:
        channel = self._channels[given.link, given.topic]
        channel.landed(given.events, given.barrier)
        return self._flow(channel)

    def _failed(self, given: protocol.Failed) -> list[Effect]:
        # Not at once: whoever failed just now fails again. The next tick, read or write takes them along.
        self._channels[given.link, given.topic].landed(given.events, None)
        return []

    def _refused(self, given: protocol.Refused) -> list[Effect]:
        self._channels[given.link, given.topic].stick(given.events)
        return [Alarm(AlarmKind.REFUSED, given.topic, f"{given.link} does not take {given.events}")]

    # --- peers -------------------------------------------------------------------------------------------------------

    def _heard(self, given: protocol.Heard) -> list[Effect]:
        digest = given.digest
        if digest.topic not in self._summaries:
            return []
        channel = self._channels.setdefault((given.link, digest.topic), Channel(given.link, digest.topic))
        peer = Peer(digest, given.seen, self._now_ms - given.age_ms)
        if digest.node == self.node:
            channel.namesake = peer
            return []
        channel.peers[digest.node] = peer
        effects: list[Effect] = []
        summary = self._summaries[digest.topic]
        if given.seen == summary.seen and digest.whole and digest.checksum != checksum_bytes(summary):
            evidence = f"{digest.node} holds the same keys with another checksum"
            effects += self._once(AlarmKind.DIGEST_MISMATCH, digest.topic, evidence)
            channel.dispute(digest.node, summary, self._now_ms, self._lease_ms)
        else:
            channel.disputes.pop(digest.node, None)
        if self.live(peer) and tuple(digest.resolver) != self._resolver:
            evidence = f"{digest.node} resolves by {digest.resolver}, this node by {self._resolver}"
            effects += self._once(AlarmKind.RESOLVER_DIFFERS, digest.topic, evidence)
        voids = [Key(digest.topic, *dot) for dot in digest.voids]
        voids = [key for key in voids if key in summary.wanted]
        if voids:
            effects.append(protocol.Persist(voids=voids))
        return effects

    def _once(self, kind: AlarmKind, topic: str, evidence: str) -> list[Effect]:
        if (kind, topic, evidence) in self._alarmed:
            return []
        self._alarmed.add((kind, topic, evidence))
        return [Alarm(kind, topic, evidence)]

    def _looked(self, given: protocol.Looked) -> list[Effect]:
        channel = self._channels[given.link, given.topic]
        channel.known = given.known
        channel.look = {partition: bounds.end for partition, bounds in given.bounds.items()}
        if channel.stage is Stage.LOOKING:
            channel.stage = Stage.READING
        return self._repair(channel)

    def _owed(self, channel: Channel) -> Seen:
        """What peers lack and will not come across."""
        owed = channel.owed(self._summaries[channel.topic])
        if not owed or self._sharing is None:
            return owed
        return owed.minus(self._sharing.left_to_others(channel, self._written_here(owed)))

    def _repair(self, channel: Channel) -> list[Effect]:
        """The wait is over and the reader is at the end: publish what is still owed."""
        if channel.stage is not Stage.READING or not channel.seen_all:
            return []
        channel.stage = Stage.IDLE
        owed = self._owed(channel)
        if self._sharing is not None and channel.known is not None:
            owed = owed.minus(owed.minus(channel.known))  # of what came since we do not know who has read it where
        channel.disputes.clear()
        # Only what the wait was for: what came during it has somebody on it just now.
        late = channel.unsent.minus(channel.unsent.minus(channel.reserve))
        channel.reserve = Seen()
        if not owed and not late:
            return []
        # Whose meeting ended here would take it back before the broker has it, at this meeting and at each later one.
        channel.goal = channel.goal.union(owed)
        return [self._publish(channel, owed.union(late), again=bool(owed))]

    # --- time --------------------------------------------------------------------------------------------------------

    def _tick(self, given: protocol.Tick) -> list[Effect]:
        self._now_ms = given.now_ms
        effects: list[Effect] = []
        for channel in self._channels.values():
            if not channel.joined:
                continue
            self._try_again(channel, given)
            if self._sharing is not None and channel.caught_up:
                self._sharing.take_over(channel, given, self._spread_ms)
            effects += self._flow(channel)
            if channel.caught_up and not channel.muted:
                effects += self._settle_debts(channel, given)
                idle = given.hurry and self._idle(channel)
                effects += self._herald.announce(self._report(channel), self._now_ms, hurry=given.hurry, idle=idle)
        for topic in self.topics:
            effects += self._voids.declare(topic, self._summaries[topic], self._joined_channels(topic), self._now_ms)
        return effects

    def _try_again(self, channel: Channel, given: protocol.Tick) -> None:
        """Publish what was lost again, but not at once and not for ever: it may be the broker that loses everything."""
        if not channel.lost or (given.hurry and channel.patience_ms <= 0):
            return
        if channel.resend_ms is None:
            longest = min(RESEND_MS_MAX, RESEND_MS << max(0, min(channel.losses - 1, 20)))
            channel.resend_ms = given.now_ms + self._draw(channel, longest, given)
        if given.now_ms >= channel.resend_ms:
            channel.find_again()

    def _settle_debts(self, channel: Channel, given: protocol.Tick) -> list[Effect]:
        if channel.stage is Stage.IDLE:
            reserve = self._in_reserve(channel)
            if not reserve and not self._owed(channel):
                return []
            if given.hurry and channel.patience_ms <= 0 and not overlap(reserve, channel.goal):
                return []
            channel.stage, channel.reserve = Stage.WAITING, reserve
            # Whoever is first gets a start.
            least_ms = self._spread_ms if reserve else 0
            channel.due_ms = given.now_ms + self._draw(channel, self._spread_ms, given, least_ms=least_ms)
        if channel.stage is not Stage.WAITING or given.now_ms < channel.due_ms:
            return []
        # Look where the log ends *now*: a peer may have published it while we waited.
        channel.stage = Stage.LOOKING
        return [protocol.Look(channel.link, channel.topic)]

    def _draw(self, channel: Channel, wait_ms_max: int, given: protocol.Tick, *, least_ms: int = 0) -> int:
        """A random wait; a meeting takes it out of its patience, and a short one costs something too."""
        wait_ms = least_ms + int(given.dice * wait_ms_max)
        if given.hurry:
            wait_ms = min(wait_ms, channel.patience_ms)
            channel.patience_ms -= max(wait_ms, self._spread_ms // 10)
        return wait_ms

    def _report(self, channel: Channel) -> Report:
        topic = channel.topic
        others = [each for (_, of), each in self._channels.items() if of == topic and each is not channel]
        # Whether what is lacking here will not come by another link by itself.
        takes = self._takes and topic not in self._outlets
        takes = takes and all(each.caught_up for each in self._joined_channels(topic))
        return Report(channel, self._summaries[topic], others, takes)


__all__ = ["LEASE_MS", "SPREAD_MS", "Replica", "checksum"]
