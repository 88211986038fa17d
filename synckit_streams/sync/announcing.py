"""What a replica says of itself at each log, and when: digests, rarely, and at once when somebody must know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from synckit_streams.model.clock import Key
from synckit_streams.model.exchange import Summary
from synckit_streams.sync import protocol
from synckit_streams.sync.channel import Channel
from synckit_streams.sync.protocol import Effect
from synckit_streams.sync.standing import checksum, checksum_bytes

HEARTBEATS = 3
"""How many digests there are within a lease, also when there is nothing new to say."""
ANNOUNCE_MS = 1_000
"""Least time between two digests of one topic."""


class Report(NamedTuple):
    """What is to be said at one log.

    Args:
        channel: Of the log.
        summary: What the replica holds of the topic.
        others: The same topic over its other links.
        takes: Whether what is lacking here will not come by another link by itself.
    """

    channel: Channel
    summary: Summary
    others: Sequence[Channel]
    takes: bool


class Herald:
    """See the module's text.

    Args:
        node: The node id.
        resolver: Name and version of the conflict resolver.
        lease_ms: For how long a digest makes its node count as live.
        spread_ms: Longest random wait before publishing what is owed.
        passes_on: Whether what came by one link goes out by the others.
    """

    def __init__(self, node: str, resolver: tuple[str, int], *, lease_ms: int, spread_ms: int, passes_on: bool) -> None:
        self._node = node
        self._resolver = resolver
        self._lease_ms = lease_ms
        self._spread_ms = spread_ms
        self._passes_on = passes_on
        self._number = 0

    def announce(self, report: Report, now_ms: int, *, hurry: bool, idle: bool) -> list[Effect]:
        """The digest, if it is time for one.

        Args:
            report: What there is to say.
            now_ms: By the monotonic clock.
            hurry: Whether somebody waits for a meeting to end.
            idle: Whether nothing is left to do for it but to say what it came to.
        """
        channel = report.channel
        bridges = self._bridges(report, now_ms)
        saying = self._saying(report, bridges)
        since = now_ms - channel.said_ms
        # Who waits for a meeting to end announces once, when there is nothing else to do; not at every batch.
        last = idle and not channel.told
        channel.told = idle if hurry else channel.told
        unknown = self._passes_on and (channel.introduced_ms is None or since > self._lease_ms)
        # Who passes on what must be known at once; all else may gather for a while.
        news = bridges != channel.bridges or (saying != channel.said and (last or since >= ANNOUNCE_MS))
        if not (unknown or news or since >= self._lease_ms // HEARTBEATS):
            return []
        channel.bridges = bridges
        channel.said, channel.said_ms = saying, now_ms
        if unknown:
            channel.introduced_ms = now_ms
        return [protocol.Announce(channel.link, self._digest(report, bridges))]

    @staticmethod
    def _saying(report: Report, bridges: tuple[str, ...]) -> object:
        """What a digest would say, to know whether it says anything new."""
        channel, summary, _, takes = report
        places = tuple(channel.next_positions().items())
        return (checksum(summary), places, len(summary.held), len(summary.refused), (bridges, takes))

    def _bridges(self, report: Report, now_ms: int) -> tuple[str, ...]:
        """The logs from which something is passed on to this one."""
        if not self._passes_on:
            return ()
        # One meeting ends and the next one begins: the others need not take over for that.
        since_ms = now_ms - 2 * self._spread_ms
        return tuple(each.log for each in report.others if each.joined or each.left_ms > since_ms)

    def _digest(self, report: Report, bridges: tuple[str, ...]) -> protocol.Digest:
        channel, summary, _, takes = report
        seen = summary.seen.rounded(protocol.DIGEST_INTERVALS_MAX)
        self._number += 1
        return protocol.Digest(
            version=protocol.DIGEST_VERSION,
            node=self._node,
            topic=channel.topic,
            number=self._number,
            seen=seen.to_wire(),
            whole=seen is summary.seen,
            checksum=checksum_bytes(summary),
            places=channel.next_positions(),
            refused=_some(summary.refused),
            voids=_some(summary.voids),
            held=len(summary.held),
            resolver=self._resolver,
            takes=takes,
            bridges=list(bridges),
        )


def _some(keys: Iterable[Key]) -> list[tuple[str, int]]:
    """The first dots of some keys, in sorted order: a digest is bounded, and what it leaves out costs bandwidth."""
    return [(key.origin, key.seq) for key in sorted(keys)[: protocol.DIGEST_DOTS_MAX]]
