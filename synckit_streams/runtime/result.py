"""What a sync did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from synckit_streams.errors import ConnectorError, Timeout, Unavailable
from synckit_streams.model.seen import Intervals, Seen
from synckit_streams.sync.protocol import Standing


class SyncResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one `sync()` did, and how far the node is from complete.

    Args:
        events_pushed: Events that a broker acknowledged for the first time; a bridge counts each once a broker.
        events_pulled: Events of other nodes that entered the log.
        conflicts_resolved: Aggregates in which an event from elsewhere met one that it did not know.
        duration_s: From beginning to end.
        complete: A proof, not a hope: every local event is acknowledged, the log was read to its end, every live peer's
            events are here, and nothing is held or refused. Of a bridge: with every one of its connectors.
        missing: For each origin, closed ranges of the numbers that are missing, over all topics. Events that others
            hold and this node lacks, and own events that no connector has acknowledged.
        missing_by_topic: The same, per topic.
        reasons: Why it is not complete, in words.
        errors: What went wrong on the way and did not stop it: connectors that were named before the one over which it
            was, and could not be used, or any of a bridge; projections that failed.
    """

    events_pushed: int
    events_pulled: int
    conflicts_resolved: int
    duration_s: float
    complete: bool
    missing: Mapping[str, Intervals]
    missing_by_topic: Mapping[str, Mapping[str, Intervals]]
    reasons: tuple[str, ...]
    errors: tuple[Exception, ...] = ()


def gather(
    standings: Mapping[str, Standing],
    *,
    pushed: int,
    pulled: int,
    conflicts: int,
    duration_s: float,
    errors: tuple[Exception, ...],
) -> SyncResult:
    """One result from the topics' standings."""
    missing = Seen()
    for standing in standings.values():
        missing = missing.union(standing.missing)
    return SyncResult(
        events_pushed=pushed,
        events_pulled=pulled,
        conflicts_resolved=conflicts,
        duration_s=duration_s,
        complete=all(standing.complete for standing in standings.values()),
        missing=dict(missing.ranges),
        missing_by_topic={
            topic: dict(standing.missing.ranges) for topic, standing in standings.items() if standing.missing
        },
        reasons=tuple(f"{topic}: {reason}" for topic, standing in standings.items() for reason in standing.reasons),
        errors=errors,
    )


def nobody_reached(failures: Sequence[ConnectorError]) -> ConnectorError:
    """The one error of a meeting that came about over no connector."""
    if len(failures) == 1 or not all(isinstance(each, Unavailable | Timeout) for each in failures):
        # What somebody has to put right stands before what passes by itself.
        return next((each for each in failures if not isinstance(each, Unavailable | Timeout)), failures[0])
    return Unavailable("no connector was reached: " + "; ".join(each.message for each in failures))
