"""What several writers did to one aggregate, with what each of them had really read: the oracle for causality.

Contexts are version vectors in the events and plain sets of dots here. A history is drawn as steps (write, learn from
somebody, read now and write later), so whatever the vectors say can be compared with who knew what.
"""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

from synckit_streams.model.clock import Dot, HybridTime, VersionVector
from synckit_streams.model.event import Event

WRITERS = ("ann@1", "bob@2", "cyd@3")
TOPIC, AGGREGATE = "orders", "o-1"


class History(NamedTuple):
    """Events of one aggregate, and for each the dots that its writer had read."""

    events: list[Event]
    read: dict[Dot, frozenset[Dot]]

    def maximal(self) -> set[Dot]:
        """The events after which nobody wrote, by the transitive closure of who had read what."""
        before = {dot: set(read) for dot, read in self.read.items()}
        for middle in before:
            for dot in before:
                if middle in before[dot]:
                    before[dot] |= before[middle]
        return {dot for dot in before if not any(dot in others for others in before.values())}

    def descends(self, dot: Dot, from_: Dot) -> bool:
        """Whether one event knew of another, directly or through others."""
        return dot == from_ or any(self.descends(cause, from_) for cause in self.read[dot])


def event(
    origin: str, seq: int, *, read: frozenset[Dot], at: HybridTime, data: bytes = b"{}", id: str = "", prev: int = 0
) -> Event:
    """An event as its writer's store would make it."""
    context: dict[str, int] = {}
    for dot in read:
        context[dot.origin] = max(dot.seq, context.get(dot.origin, 0))
    return Event(
        id=id or f"{origin}:{seq}",
        topic=TOPIC,
        type="order.changed",
        aggregate_id=AGGREGATE,
        payload=data,
        metadata_json=b"",
        origin=origin,
        seq=seq,
        prev=prev,
        context_bytes=VersionVector(context).to_bytes(),
        after_bytes=b"",
        at_packed=at.packed,
    )


PAYLOADS = st.sampled_from([b'{"qty":1}', b'{"qty":-3,"name":"x"}', b'{"tags":["a","b"],"name":"y"}', b'{"tags":"b"}'])


@st.composite
def histories(draw: st.DrawFn, *, twins: bool = False) -> History:
    """Up to three writers and a dozen events.

    Args:
        draw: Hypothesis'.
        twins: Whether two writers may write the same fact under one id, unknown to each other.
    """
    known: dict[str, set[Dot]] = {writer: set() for writer in WRITERS}
    reads: dict[str, frozenset[Dot]] = {}
    clocks = dict.fromkeys(WRITERS, 0)
    found: dict[Dot, Event] = {}
    read: dict[Dot, frozenset[Dot]] = {}
    for _ in range(draw(st.integers(1, 14))):
        writer = draw(st.sampled_from(WRITERS))
        # The first step always writes, so that there is something to look at.
        match draw(st.sampled_from(["write", "write", "learn", "read", "write-what-was-read"])) if found else "write":
            case "learn":  # a store takes events with their causes, and an origin's in order
                known[writer] |= known[draw(st.sampled_from(WRITERS))]
            case "read":
                reads[writer] = frozenset(known[writer])
            case step:
                knew = reads.get(writer, frozenset()) if step == "write-what-was-read" else frozenset(known[writer])
                seq = max((dot.seq for dot in known[writer] if dot.origin == writer), default=0) + 1
                wall = draw(st.integers(0, 3))
                clocks[writer] = max(wall << 16, clocks[writer], *(found[dot].at_packed for dot in knew), 0) + 1
                data, id = draw(PAYLOADS), ""
                if twins and draw(st.booleans()):
                    there = [each for each in found.values() if each.dot not in known[writer]]
                    mine = {found[dot].id for dot in known[writer]}
                    there = [each for each in there if each.id not in mine]
                    if there:
                        twin = draw(st.sampled_from(there))
                        data, id = twin.payload, twin.id
                at = HybridTime.from_packed(clocks[writer])
                made = event(writer, seq, read=knew, at=at, data=data, id=id, prev=seq - 1)
                found[made.dot], read[made.dot] = made, knew
                known[writer].add(made.dot)
    return History(list(found.values()), read)
