"""`complete` is a proof: false for each of its conditions alone, with exactly what is missing; true after healing."""

from __future__ import annotations

import pytest

from synckit_connectors.memory import MemoryBroker
from synckit_streams import Dot, SyncResult, VersionVector
from synckit_streams.model.codec import PAYLOAD_BYTES_MAX
from synckit_streams.model.seen import Seen
from synckit_streams.ports.connector import Message
from synckit_streams.sync.protocol import DIGEST_VERSION, Digest, digest_bytes
from synckit_streams.testing.brokers import NatsServer
from tests.acceptance.kit import Make, announce, crafted, draft, drafts, eventually, ids, inject, message_of, same


def only(result: SyncResult, topic: str, reason: str) -> bool:
    """Whether the result says so, and nothing else."""
    return (
        not result.complete and len(result.reasons) == 1 and topic in result.reasons[0] and reason in result.reasons[0]
    )


async def test_an_event_of_a_live_peer_that_was_withheld_is_missing(
    make: Make, memory: MemoryBroker, memory_name: str, topic: str
) -> None:
    """Exactly that one; the peer sends it again when it meets the digest, and then nothing is missing."""
    one = await make("till-1", f"memory://{memory_name}")
    other = await make("till-2", f"memory://{memory_name}?client=till-2")
    stored = await one.append_many(drafts(topic, 10))
    withheld = stored[6].event
    fault = memory.drop(lambda _, message: message.partition_key == withheld.aggregate_id, reader="till-2")
    assert (await one.sync()).complete
    result = await other.sync()
    assert fault.hits
    assert only(result, topic, "till-1 holds 1 event")
    assert result.missing == {withheld.origin: ((7, 7),)}
    assert result.missing_by_topic == {topic: {withheld.origin: ((7, 7),)}}
    fault.stop()
    assert (await one.sync()).complete
    result = await other.sync()
    assert (result.complete, result.missing, result.events_pulled) == (True, {}, 1)
    assert await same(topic, one, other)


async def test_an_event_that_was_deleted_from_the_broker_is_missing(make: Make, nats_url: str, topic: str) -> None:
    """The same over a real server, where somebody deletes messages by hand: one in the middle, and the last one."""
    import nats

    one, other = await make("till-1", nats_url), await make("till-2", nats_url)
    stored = await one.append_many(drafts(topic, 10))
    await one.sync()
    client = await nats.connect(nats_url)
    for position in (4, 10):
        assert await client.jetstream().delete_msg(f"sk-{topic}", position)
    await client.close()
    result = await other.sync()
    assert only(result, topic, "till-1 holds 2 events")
    assert result.missing == {stored[0].event.origin: ((4, 4), (10, 10))}
    await one.sync()
    assert (await other.sync()).complete
    assert await same(topic, one, other)


async def test_an_own_event_that_the_broker_lost_is_missing(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """Acknowledged and never stored: the node did not read it back, and says so; nothing is lost when it heals."""
    one, other = await make("till-1", memory_url), await make("till-2", memory_url)
    stored = await one.append_many(drafts(topic, 10))
    fault = memory.drop(lambda _, message: message.partition_key == stored[2].event.aggregate_id)
    result = await one.sync()
    assert only(result, topic, "1 local event not acknowledged")
    assert result.missing == {stored[0].event.origin: ((3, 3),)}
    assert 1 < fault.hits < 30
    fault.stop()
    result = await one.sync()
    assert (result.complete, result.missing) == (True, {})
    await other.sync()
    assert await same(topic, one, other)


async def test_an_own_event_that_the_broker_refuses_is_missing(make: Make, memory_name: str, topic: str) -> None:
    """Too large for this broker: the others pass, and the node says which one does not."""
    node = await make("till-1", f"memory://{memory_name}?bytes_max=10000")
    await node.append_many([draft(topic, f"o-{number}", "x" * (20_000 if number == 3 else 10)) for number in range(8)])
    result = await node.sync()
    assert only(result, topic, "not acknowledged")
    assert list(result.missing.values()) == [((4, 4),)]


async def test_an_event_that_waits_for_its_cause_is_not_here_yet(make: Make, memory_url: str, topic: str) -> None:
    """The cause is what is missing; when it comes, both are here."""
    node = await make("till-1", memory_url)
    cause = crafted(topic, "ghost@1", 1, aggregate_id="o-1")
    answer = crafted(topic, "ghost@2", 1, aggregate_id="o-1", context_bytes=VersionVector({"ghost@1": 1}).to_bytes())
    await inject(memory_url, topic, message_of(answer))
    result = await node.sync()
    assert only(result, topic, "1 event waiting for a cause")
    assert result.missing == {"ghost@1": ((1, 1),)}
    assert await ids(node, topic) == []
    await inject(memory_url, topic, message_of(cause))
    result = await node.sync()
    assert (result.complete, result.missing, result.events_pulled) == (True, {}, 2)
    assert await ids(node, topic) == [cause.id, answer.id]


async def test_an_event_that_was_refused_is_missing(make: Make, memory_url: str, topic: str) -> None:
    """Intact, but above a limit of the protocol: set aside, and never said to be here."""
    node = await make("till-1", memory_url)
    large = crafted(topic, "ghost@1", 1, payload=b"1" * (PAYLOAD_BYTES_MAX + 1))
    await inject(memory_url, topic, message_of(large))
    result = await node.sync()
    assert only(result, topic, "1 event refused")
    assert result.missing == {"ghost@1": ((1, 1),)}
    assert await ids(node, topic) == []


def digest_of(topic: str, node: str, seen: Seen, *, checksum: int = 0, whole: bool = True) -> bytes:
    """What a peer could say."""
    return digest_bytes(
        Digest(
            version=DIGEST_VERSION,
            node=node,
            topic=topic,
            number=1,
            seen=seen.to_wire(),
            whole=whole,
            checksum=checksum.to_bytes(32, "big"),
            places={},
            refused=[],
            voids=[],
            held=0,
            resolver=("last-write-wins", 1),
        )
    )


async def test_what_a_live_peer_says_it_holds_is_missing_here(make: Make, memory_url: str, topic: str) -> None:
    """By its digest alone; and no longer when its lease is over, for nobody can give it to us."""
    node = await make("till-1", memory_url, lease_s=0.5)
    seen = Seen.of([*(Dot("ghost@1", seq) for seq in (1, 2, 3, 7)), Dot("ghost@2", 1)])
    await announce(memory_url, topic, "ghost", digest_of(topic, "ghost", seen))
    result = await node.sync()
    assert only(result, topic, "ghost holds 5 events")
    assert result.missing == {"ghost@1": ((1, 3), (7, 7)), "ghost@2": ((1, 1),)}

    async def complete() -> bool:
        return (await node.sync()).complete

    await eventually(complete)


@pytest.mark.parametrize("whole", [True, False])
async def test_an_unequal_checksum_is_never_passed_over(make: Make, memory_url: str, topic: str, whole: bool) -> None:
    """A peer with the same keys and another content, or with more than its rounded digest can say."""
    node = await make("till-1", memory_url)
    stored = await node.append(draft(topic))
    await node.sync()
    digest = digest_of(topic, "ghost", Seen.of([stored.event.dot]), checksum=7, whole=whole)
    await announce(memory_url, topic, "ghost", digest)
    result = await node.sync()
    assert only(result, topic, "the same keys with other content")
    right = digest_of(topic, "ghost", Seen.of([stored.event.dot]), checksum=int(await node.digest(topic), 16))
    await announce(memory_url, topic, "ghost", right)
    assert (await node.sync()).complete


async def test_what_is_no_event_does_not_make_it_incomplete(make: Make, memory_url: str, topic: str) -> None:
    """Nobody lacks an event because somebody sent garbage."""
    node = await make("till-1", memory_url)
    await inject(memory_url, topic, Message("1", "k", {}, b"hello"))
    assert (await node.sync()).complete


async def test_a_sync_that_reached_nobody_is_never_complete(make: Make, nats_server: NatsServer, topic: str) -> None:
    """It raises; there is no result that could be read as a success."""
    node = await make("till-1", nats_server.url)
    results: list[SyncResult] = []
    node.subscribe(results.append)
    nats_server.kill()
    with pytest.raises(Exception, match="SK401"):
        await node.sync()
    assert results == []
