"""What a store holds, gathered for `synckit status` and `synckit doctor` by reading alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import msgspec

from synckit_streams.cli.access import file_of
from synckit_streams.cli.terminal import progress
from synckit_streams.errors import FrameMalformed, SyncKitError
from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import Raised
from synckit_streams.model.seen import Seen, count
from synckit_streams.ports.connector import Connector
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.link import link_name
from synckit_streams.runtime.ownership import node_of_store
from synckit_streams.runtime.registry import connector_for
from synckit_streams.runtime.visitor import Visitor
from synckit_streams.sync.conflict import conflict_of
from synckit_streams.sync.protocol import digest_from_bytes
from synckit_streams.sync.replica import checksum

PAGE_EVENTS = 1_000
BROKER_S = 10.0
CONFLICTS_NAMED_MAX = 5


class TopicStatus(msgspec.Struct, frozen=True):
    """What a store holds of one topic.

    Args:
        events: How many events are in the log, twins included.
        aggregates: How many things they are about.
        conflicts: How many of those have more than one head.
        conflicting: Some of them.
        held: Events that wait for a cause.
        refused: Events that will never be taken.
        gaps: How many events are missing below the highest one seen of each origin.
        origins: For each writer, how many of its events are here.
        digest: 64 hex digits; equal on two nodes if they hold the same.
    """

    events: int
    aggregates: int
    conflicts: int
    conflicting: tuple[str, ...]
    held: int
    refused: int
    gaps: int
    origins: dict[str, int]
    digest: str


class AlarmStatus(msgspec.Struct, frozen=True):
    """Something that must not be passed over in silence.

    Args:
        kind: See `docs/how-to/observe.md`.
        topic: About which topic.
        evidence: What was seen, the last time.
        times: How often.
        first: When first, in UTC.
        last: When last.
    """

    kind: str
    topic: str
    evidence: str
    times: int
    first: str
    last: str


class PeerStatus(msgspec.Struct, frozen=True):
    """What another node last said of a topic, and how it compares.

    Args:
        node: Which.
        age_s: How long ago, by the broker's clock.
        lacks: How many of our events it had not seen.
        ahead: How many of its events are not here.
        equal: Whether it held exactly what is here.
    """

    node: str
    age_s: float
    lacks: int
    ahead: int
    equal: bool


class GroupStatus(msgspec.Struct, frozen=True):
    """How far a consumer group has come on a topic.

    Args:
        waiting: Messages that no member has got yet.
        pending: Messages that a member has, and has not acknowledged.
    """

    waiting: int
    pending: int


class BrokerStatus(msgspec.Struct, frozen=True):
    """What the broker says.

    Args:
        connector: Its URL, without credentials.
        reachable: Whether it answered.
        error: Why not.
        behind: For each topic that was synced over it, how many messages have not been read yet.
        peers: For each of them, the other nodes.
        groups: With a group's name: for each topic in the store, how far the group has come there.
    """

    connector: str
    reachable: bool
    error: str
    behind: dict[str, int]
    peers: dict[str, tuple[PeerStatus, ...]]
    groups: dict[str, GroupStatus]


class Status(msgspec.Struct, frozen=True):
    """Everything.

    Args:
        node: The node id; "" if no node has opened the store yet.
        origin: Under what it last numbered its events.
        store: Identity of the log.
        where: Its path, or its URL without user and password.
        size_bytes: How much room it takes; 0 if nobody can say.
        running: Process id of the node that has it open just now, if it says so.
        topics: By name.
        quarantined: Arrivals that were set aside.
        alarms: What was raised, the last one first: one of each kind and topic, and how often.
        offsets: Where each reader and projection stands.
        broker: With --connector.
    """

    node: str
    origin: str
    store: str
    where: str
    size_bytes: int
    running: int | None
    topics: dict[str, TopicStatus]
    quarantined: int
    alarms: tuple[AlarmStatus, ...]
    offsets: dict[str, int]
    broker: BrokerStatus | None


async def gather(store: EventStore, url: str, connector: str | None, *, group: str = "", quiet: bool) -> Status:
    """Look at everything.

    Args:
        store: Open for reading.
        url: Of the store.
        connector: URL of the broker to ask as well.
        group: Name of a consumer group to ask it about.
        quiet: Show no progress.
    """
    node = node_of_store(store)
    offsets = await store.offsets()
    topics: dict[str, TopicStatus] = {}
    seen: dict[str, tuple[Seen, str]] = {}
    end = (await store.end()).position
    with progress("reading the log", end, quiet=quiet) as bar:
        for topic in await store.topics():
            heads = await heads_by_aggregate(store, topic, bar.to)
            topics[topic], held = await _topic(store, topic, heads)
            seen[topic] = (held, topics[topic].digest)
    return Status(
        node=node,
        origin=store.origin,
        store=store.id,
        where=store.name,
        size_bytes=await store.size_bytes(),
        running=await _running(url),
        topics=topics,
        quarantined=await _quarantined(store),
        alarms=tuple([_alarm(each) for each in await store.alarms()]),
        offsets={who: at.position for who, at in offsets.items()},
        broker=await _broker(connector, node, offsets, seen, group) if connector else None,
    )


def _alarm(raised: Raised) -> AlarmStatus:
    first, last = (_time(at_ms) for at_ms in (raised.first_ms, raised.last_ms))
    return AlarmStatus(raised.kind, raised.topic, raised.evidence, raised.times, first, last)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def _running(url: str) -> int | None:
    path = file_of(url)
    visitor = await Visitor.knock(path) if path is not None else None
    if visitor is None:
        return None
    async with visitor:
        with suppress(SyncKitError):
            return (await visitor.about()).process
    return None


async def _quarantined(store: EventStore) -> int:
    total = after = 0
    while page := await store.quarantine(after=after, limit=PAGE_EVENTS):
        after = page[-1].position
        total += len(page)
    return total


Heads = dict[str, list[tuple[str, int]]]


async def heads_by_aggregate(store: EventStore, topic: str, advance: Callable[[float], None]) -> Heads:
    """For each aggregate its heads, from one pass over the log, in which a cause stands before what it caused.

    Only where a cause was declared lost and came all the same may an aggregate have one too many.
    """
    heads: Heads = {}
    after: Offset | None = None
    while page := await store.log(topic, after=after, limit=PAGE_EVENTS):
        for stored in page:
            event = stored.event
            known = heads.get(event.aggregate_id)
            if known is None:
                heads[event.aggregate_id] = [(event.origin, event.seq)]
            else:
                context: Mapping[str, int] = event.context if event.context_bytes else {}
                known[:] = [head for head in known if context.get(head[0], 0) < head[1]]
                known.append((event.origin, event.seq))
        after = page[-1].offset
        advance(after.position)
    return heads


async def _topic(store: EventStore, topic: str, heads: Heads) -> tuple[TopicStatus, Seen]:
    conflicting = [
        aggregate_id
        for aggregate_id in sorted(name for name, found in heads.items() if len(found) > 1)
        if len(conflict_of(topic, aggregate_id, await store.aggregate(topic, aggregate_id)).heads) > 1
    ]
    summary = await store.summary(topic)
    status = TopicStatus(
        events=len(summary.seen),
        aggregates=len(heads),
        conflicts=len(conflicting),
        conflicting=tuple(conflicting[:CONFLICTS_NAMED_MAX]),
        held=len(summary.held),
        refused=len(summary.refused),
        gaps=len(summary.seen.gaps()),
        origins={origin: count(intervals) for origin, intervals in sorted(summary.seen.ranges.items())},
        digest=f"{checksum(summary):064x}",
    )
    return status, summary.seen


async def _broker(
    url: str, node: str, offsets: Mapping[str, Offset], topics: Mapping[str, tuple[Seen, str]], group: str
) -> BrokerStatus:
    connector = connector_for(url)
    name = link_name(connector, url)
    # Asking for a topic makes its log where there is none: ask only for those that were synced there.
    places: dict[str, dict[int, Offset]] = {}
    for reader, offset in offsets.items():
        if reader.startswith(name + "|"):
            topic, _, partition = reader[len(name) + 1 :].rpartition("|")
            places.setdefault(topic, {})[int(partition)] = offset
    behind: dict[str, int] = {}
    peers: dict[str, tuple[PeerStatus, ...]] = {}
    groups: dict[str, GroupStatus] = {}
    error = ""
    try:
        async with asyncio.timeout(BROKER_S):
            await connector.open()
            for topic, read in places.items():
                behind[topic] = await _behind(connector, topic, read)
                if group:
                    progress = await connector.progress(topic, group=group)
                    groups[topic] = GroupStatus(progress.waiting, progress.pending)
                if topic in topics:
                    peers[topic] = await _peers(connector, topic, node, *topics[topic])
    except SyncKitError as failure:
        error = f"{failure.code} {failure.message}"
    except TimeoutError:
        error = f"no answer within {BROKER_S:g} s"
    finally:
        await connector.close()
    return BrokerStatus(name, not error, error, behind, peers, groups)


async def _behind(connector: Connector, topic: str, read: Mapping[int, Offset]) -> int:
    bounds = await connector.bounds(topic)
    lag = 0
    for partition, log in bounds.items():
        place = read.get(partition)
        position = place.position if place is not None and place.log == log.identity else 0
        lag += max(0, log.end - 1 - max(position, log.first - 1))
    return lag


async def _peers(connector: Connector, topic: str, node: str, seen: Seen, digest: str) -> tuple[PeerStatus, ...]:
    found: dict[str, PeerStatus] = {}
    async with connector.listen(topic) as announced:
        async for name, body, age_s in announced:
            if not name:
                break
            if name == node or not body:
                found.pop(name, None)
                continue
            try:
                said, theirs = digest_from_bytes(body)
            except FrameMalformed:
                continue
            equal = said.checksum.hex() == digest and (not said.whole or theirs == seen)
            lacks = 0 if equal else len(seen.minus(theirs))
            found[name] = PeerStatus(name, round(age_s, 1), lacks, len(theirs.minus(seen)), equal)
    return tuple(found[name] for name in sorted(found))
