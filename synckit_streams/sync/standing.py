"""How far a topic is from complete, by everything that a replica has heard: the conditions one by one, and in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import NamedTuple

from synckit_streams.model.codec import DIGEST_MODULUS, HASH_BYTES
from synckit_streams.model.exchange import Summary
from synckit_streams.model.seen import Seen
from synckit_streams.sync.channel import Channel, Peer
from synckit_streams.sync.protocol import Standing


def checksum(summary: Summary) -> int:
    """The sum of the hashes of every event of a topic, modulo 2^256: equal on two replicas iff they hold the same."""
    return sum(summary.sums.values()) % DIGEST_MODULUS


def checksum_bytes(summary: Summary) -> bytes:
    """As a digest carries it."""
    return checksum(summary).to_bytes(HASH_BYTES, "big")


class Judge(NamedTuple):
    """What of a replica decides.

    Args:
        node: The node id.
        links: Of a node that meets over all of its connectors at once: their names. Each of them is asked.
        takes: False if what its peers hold is not missing here.
        live: Whether a peer's digest is fresh enough.
        written_here: Of some events, those that this node wrote.
        passes_on: Whether also what others wrote is to be in every log.
    """

    node: str
    links: Sequence[str]
    takes: bool
    live: Callable[[Peer], bool]
    written_here: Callable[[Seen], Seen]
    passes_on: bool

    def standing(self, topic: str, summary: Summary, channels: Sequence[Channel]) -> Standing:
        """Of a topic, by the links over which its log is being read."""
        missing, reasons = Seen(), list[str]()
        if not channels:
            reasons.append("no connector has been reached")
        elif away := [link for link in self.links if all(channel.link != link for channel in channels)]:
            reasons.append(f"{' and '.join(away)} {'was' if len(away) == 1 else 'were'} not reached")
        if any(not channel.caught_up for channel in channels):
            reasons.append("the log has not been read to its end")
        for lacking, reason in (*self._unsent(channels), *self._unread(summary, channels)):
            missing = missing.union(lacking)
            reasons.append(reason)
        if summary.held:
            missing = missing.union(Seen.of((key.origin, key.seq) for key in summary.wanted if key.topic == topic))
            reasons.append(f"{events(summary.held)} waiting for a cause")
        if summary.refused:
            missing = missing.union(Seen.of((key.origin, key.seq) for key in summary.refused))
            reasons.append(f"{events(summary.refused)} refused")
        # A peer may be heard over two links.
        return Standing(not reasons, missing, tuple(dict.fromkeys(reasons)))

    def _unsent(self, channels: Sequence[Channel]) -> Iterable[tuple[Seen, str]]:
        """What has still to be read back."""
        if not self.links:
            # Local events count as acknowledged when one connector's log holds them.
            own = self.written_here(min((each.waiting for each in channels), key=len, default=Seen()))
            if own:
                yield own, f"{events(own, 'local event')} not acknowledged by any connector"
            return
        for channel in channels:
            own = self.written_here(channel.waiting)
            if own:
                yield own, f"{events(own, 'local event')} not acknowledged by {channel.link}"
            others = channel.waiting.minus(own) if self.passes_on else Seen()
            if others:
                yield others, f"{events(others)} not passed on to {channel.link}"

    def _unread(self, summary: Summary, channels: Sequence[Channel]) -> Iterable[tuple[Seen, str]]:
        """What somebody says that he has."""
        if not self.takes:
            return
        for channel in channels:
            for peer in channel.peers.values():
                if not self.live(peer):
                    continue
                lacking = peer.seen.minus(summary.seen)
                if lacking:
                    yield lacking, f"{peer.digest.node} holds {events(lacking)} not here"
                elif checksum_bytes(summary) == peer.digest.checksum:
                    continue
                elif peer.seen == summary.seen:
                    yield lacking, f"{peer.digest.node} holds the same keys with other content"
                elif not peer.digest.whole:
                    yield lacking, f"{peer.digest.node} holds more than its digest can say"
            if channel.namesake is not None and self.live(channel.namesake):
                lacking = channel.namesake.seen.minus(summary.seen)
                if lacking:
                    yield (
                        lacking,
                        f"{self.node} holds {events(lacking)} not here: another store runs under this name, or this "
                        "one was put back",
                    )


def events(found: Sized, noun: str = "event") -> str:
    """How many, in words."""
    return f"{len(found)} {noun}{'s' * (len(found) != 1)}"
