"""Who of several is to send an event first over a link. Everybody works it out alike, from what the peers have said.

An event is first of all its writer's to send: while he is at this log himself, nobody needs to be quicker. What comes
from elsewhere is sent by bridges, which are at several logs at once. Of those who have it before them in another log
that they share, the one with the least name sends it, and the others are in *reserve*: they wait, look whether it is
there by then, and send only what is not. So two bridges beside each other send each event once, at once, and one is
enough for it to arrive.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from synckit_streams.model.codec import node_of
from synckit_streams.model.exchange import AppendResult
from synckit_streams.model.seen import Seen
from synckit_streams.sync.channel import Channel, Peer


def reserved(node: str, foreign: Seen, live: Iterable[Peer], elsewhere: Iterable[Channel]) -> Seen:
    """What others are to send before us.

    Args:
        node: Who asks.
        foreign: Events that others wrote, and that are not in the log.
        live: The peers that have been heard at this log of late.
        elsewhere: The same topic over our other links.
    """
    peers = list(live)
    present = {peer.digest.node for peer in peers}
    theirs = Seen({origin: ranges for origin, ranges in foreign.ranges.items() if node_of(origin) in present})
    ahead = {log for peer in peers if peer.digest.node < node for log in peer.digest.bridges}
    for channel in elsewhere:
        if channel.log in ahead:
            theirs = theirs.union(channel.places.at_or_past(foreign, {}))
    return theirs


def to_pass_on(result: AppendResult) -> dict[str, Seen]:
    """What a bridge has been brought, per topic."""
    seen: dict[str, Seen] = {}
    events = (stored.event for stored in result.stored)
    # Most of a batch is of one origin, in order.
    for (topic, origin), together in groupby(events, lambda event: (event.topic, event.origin)):
        numbers = [event.seq for event in together]
        even = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        run = Seen({origin: ((numbers[0], numbers[-1]),)}) if even else Seen.of((origin, seq) for seq in numbers)
        seen[topic] = seen.get(topic, Seen()).union(run)
    return seen
