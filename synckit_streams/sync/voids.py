"""What is declared void: others wait for it, and its only copy was on a disk that was put back.

It releases what waits, and does not enter `Seen`: a late original is still taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from synckit_streams.model.clock import Key
from synckit_streams.model.codec import node_of
from synckit_streams.model.exchange import Summary
from synckit_streams.sync import protocol
from synckit_streams.sync.channel import Channel, Peer
from synckit_streams.sync.protocol import Alarm, AlarmKind, Effect


class Voids:
    """See the module's text.

    Args:
        node: The node id.
        links: Of a node that meets over all of its connectors at once: their names.
        lease_ms: For how long something must have been wanted.
        live: Whether a peer's digest is fresh enough.
    """

    def __init__(self, node: str, links: Sequence[str], lease_ms: int, live: Callable[[Peer], bool]) -> None:
        self._node = node
        self._links = links
        self._lease_ms = lease_ms
        self._live = live
        self._wanted_since: dict[Key, int] = {}

    def declare(self, topic: str, summary: Summary, ready: Sequence[Channel], now_ms: int) -> list[Effect]:
        """What nobody holds any more.

        Args:
            topic: Of which topic.
            summary: What the replica holds of it.
            ready: The links over which its log is being read.
            now_ms: By the monotonic clock.
        """
        for key in [key for key in self._wanted_since if key.topic == topic and key not in summary.wanted]:
            del self._wanted_since[key]
        if not summary.wanted or not ready or not all(each.caught_up for each in ready):
            return []
        if not {each.link for each in ready}.issuperset(self._links):  # it may be in a log that was not reached
            return []
        live = [peer for channel in ready for peer in channel.peers.values() if self._live(peer)]
        lost: list[Key] = []
        for key in summary.wanted:
            since = self._wanted_since.setdefault(key, now_ms)
            if now_ms - since < self._lease_ms or any(key.dot in peer.seen for peer in live):
                continue
            owner = node_of(key.origin)
            if owner == self._node or all(peer.digest.node != owner for peer in live):
                lost.append(key)
        if not lost:
            return []
        alarms = [Alarm(AlarmKind.VOID, topic, f"{key.origin}:{key.seq} is held by nobody any more") for key in lost]
        return [protocol.Persist(voids=lost), *alarms]
