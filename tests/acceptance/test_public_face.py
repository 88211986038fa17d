"""The public face, promise by promise, over the broker in memory and over a real NATS JetStream server."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryBroker
from synckit_streams import (
    AdditiveMerge,
    ConfigError,
    ConnectorNotFound,
    Draft,
    FirstWriteWins,
    IdReused,
    Invalid,
    LastWriteWins,
    MissingDependency,
    StoreClosed,
    StoreInUse,
    StoreNotFound,
    SyncKitError,
    SyncNode,
    SyncResult,
    Timeout,
    TooLarge,
    Unavailable,
)
from synckit_streams.testing.brokers import NatsServer
from tests.acceptance.kit import Make, draft, drafts, ids, same


def nobody_listens() -> str:
    """A URL at which connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"nats://127.0.0.1:{taken.getsockname()[1]}"


# --- without a broker ------------------------------------------------------------------------------------------------


async def test_opening_appending_and_reading_need_no_broker(make: Make, topic: str) -> None:
    """A till works while the line is down; it does not even try to connect."""
    node = await make("till-7", nobody_listens())
    stored = await node.append(draft(topic, "o-1", {"total": 5}))
    more = await node.append_many(drafts(topic, 3))
    assert [each.event.id async for each in node.log(topic)] == [each.event.id for each in [stored, *more]]
    assert [event.data for event in await node.aggregate(topic, "o-1")] == [{"total": 5}, {"n": 1}]
    assert (await node.resolve(topic, "o-1")).data == {"n": 1}
    assert re.fullmatch(r"[0-9a-f]{64}", await node.digest(topic))


async def test_a_node_without_connectors_is_local_only(make: Make) -> None:
    """It takes any topic, reads and resolves, and says what is missing when it is asked to sync."""
    node = await make("till-7", None, topics=[])
    await node.append(draft("anything", "o-1", 1))
    assert [each.event.topic async for each in node.log()] == ["anything"]
    for call in (node.sync(), node.push(), node.pull(), node.start_auto_sync()):
        with pytest.raises(ConfigError, match="connector"):
            await call


async def test_what_was_appended_is_there_after_the_next_open(tmp_path: Path, topic: str) -> None:
    """Durable, under the same identity after a clean close."""
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'till.db'}", "topics": [topic]}
    async with SyncNode("till-7", **settings) as node:
        first = await node.append(draft(topic))
        digest = await node.digest(topic)
    async with SyncNode("till-7", **settings) as node:
        assert await ids(node, topic) == [first.event.id]
        assert await node.digest(topic) == digest
        second = await node.append(draft(topic))
    assert second.event.origin == first.event.origin


async def test_what_a_store_wrote_as_another_node_is_sent_too(tmp_path: Path, url: str, topic: str) -> None:
    """Records are imported, and then the till gets its name: nobody else has them, and a sync is not complete before
    they are on the broker."""
    settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path / 'till.db'}", "topics": [topic]}
    async with SyncNode("import", **settings) as node:
        await node.append_many(drafts(topic, 5))
    for pushed in (5, 0):
        async with SyncNode("till-7", connectors=[url], **settings) as node:
            result = await node.sync()
            assert (result.complete, result.events_pushed) == (True, pushed)
    async with SyncNode("till-8", store="memory:", connectors=[url], topics=[topic]) as other:
        assert (await other.sync()).events_pulled == 5


async def test_append_many_is_one_commit(make: Make, topic: str) -> None:
    """All of them, or none: one bad draft keeps the others out."""
    node = await make("till-7", None)
    with pytest.raises(TooLarge):
        await node.append_many([*drafts(topic, 5), draft(topic, data="x" * 1_000_001)])
    assert await ids(node, topic) == []
    assert await node.append_many([]) == []
    stored = await node.append_many(drafts(topic, 5))
    assert [each.position for each in stored] == [1, 2, 3, 4, 5]


async def test_append_many_takes_whatever_gives_drafts(make: Make, topic: str) -> None:
    """A generator gives its drafts once; a node that counted them first would write nothing and wait for ever."""
    node = await make("till-7", None)
    async with asyncio.timeout(5):
        stored = await node.append_many(each for each in drafts(topic, 3))  # type: ignore[arg-type]
        assert [each.event.aggregate_id for each in stored] == ["o-0", "o-1", "o-2"]
        with pytest.raises(Invalid, match="several drafts"):
            await node.append_many(None)  # type: ignore[arg-type]
        assert len(await node.append_many(drafts(topic, 1))) == 1


async def test_an_id_makes_an_append_idempotent(make: Make, topic: str) -> None:
    """The same id with the same content is the same event; with other content it is an error, and changes nothing."""
    node = await make("till-7", None)
    first = await node.append(draft(topic, data={"total": 5}, id="order-1"))
    assert await node.append(draft(topic, data={"total": 5}, id="order-1")) == first
    with pytest.raises(IdReused):
        await node.append(draft(topic, data={"total": 6}, id="order-1"))
    assert await ids(node, topic) == ["order-1"]


async def test_the_log_goes_on_from_an_offset(make: Make, topic: str) -> None:
    """`stored.offset` of the last one read is where to go on; another store's offset is refused."""
    node = await make("till-7", None, topics=[topic, "other"])
    stored = await node.append_many([draft(topic), draft("other"), draft(topic)])
    assert [each.position async for each in node.log(after=stored[0].offset)] == [2, 3]
    assert [each.position async for each in node.log(topic, after=stored[0].offset)] == [3]
    assert [each async for each in node.log(topic, after=stored[2].offset)] == []
    with pytest.raises(Invalid, match="the `offset` of the last event"):
        [each async for each in node.log(topic, after=2)]  # type: ignore[arg-type]
    other = await make("till-8", None)
    with pytest.raises(Invalid, match="offset"):
        [each async for each in other.log(topic, after=stored[0].offset)]


async def test_a_topic_that_is_not_replicated_is_refused(make: Make) -> None:
    """An event there would never be sent."""
    node = await make("till-7", None, topics=["orders"])
    with pytest.raises(Invalid, match="orders"):
        await node.append(draft("order"))


async def test_a_node_that_is_not_open_says_so(tmp_path: Path, topic: str) -> None:
    """Before `open` and after `close`."""
    node = SyncNode("till-7", store=f"sqlite:///{tmp_path / 'till.db'}", topics=[topic])
    with pytest.raises(StoreClosed):
        await node.append(draft(topic))
    async with node:
        await node.append(draft(topic))
    with pytest.raises(StoreClosed):
        await node.digest(topic)
    await node.close()


# --- one sync --------------------------------------------------------------------------------------------------------


async def test_one_sync_is_a_whole_meeting(make: Make, url: str, topic: str) -> None:
    """It publishes what is unsent and reads everything, its own publications too, before it returns."""
    one, other = await make("till-1", url), await make("till-2", url)
    await one.append_many(drafts(topic, 20))
    await other.append_many(drafts(topic, 10, start=100))
    first = await one.sync()
    assert (first.events_pushed, first.events_pulled, first.complete, first.missing) == (20, 0, True, {})
    second = await other.sync()
    assert (second.events_pushed, second.events_pulled, second.complete, second.missing) == (10, 20, True, {})
    third = await one.sync()
    assert (third.events_pushed, third.events_pulled, third.complete, third.errors) == (0, 10, True, ())
    assert third.duration_s > 0
    assert await same(topic, one, other)
    assert sorted(await ids(one, topic)) == sorted(await ids(other, topic))
    quiet = await other.sync()
    assert (quiet.events_pushed, quiet.events_pulled, quiet.conflicts_resolved, quiet.complete) == (0, 0, 0, True)


async def test_a_sync_ends_while_others_go_on_writing(make: Make, url: str, topic: str) -> None:
    """It reads to the end that it found when it began, and its own node's writers do not hold it up either."""
    one, other = await make("till-1", url), await make("till-2", url)
    await one.start_auto_sync()
    stop = asyncio.Event()

    async def write(node: SyncNode) -> None:
        while not stop.is_set():
            await node.append(draft(topic))

    writers = [asyncio.create_task(write(node)) for node in (one, other)]
    try:
        async with asyncio.timeout(10):
            for _ in range(3):
                await other.sync()
    finally:
        stop.set()
        await asyncio.gather(*writers)


async def test_push_publishes_and_pull_does_not(make: Make, url: str, topic: str) -> None:
    """`pull` leaves what is unsent where it is."""
    one, other = await make("till-1", url), await make("till-2", url)
    await one.append(draft(topic))
    assert (await one.push()).events_pushed == 1
    await other.append(draft(topic))
    pulled = await other.pull()
    assert (pulled.events_pulled, pulled.events_pushed) == (1, 0)
    assert not pulled.complete
    assert list(pulled.missing.values()) == [((1, 1),)]
    assert (await one.sync()).events_pulled == 0
    assert (await other.push()).events_pushed == 1
    assert (await one.sync()).events_pulled == 1


async def test_three_nodes_that_are_never_open_together_converge(tmp_path: Path, url: str, topic: str) -> None:
    """Within three syncs each: the broker has met them all."""
    await _never_together(tmp_path, url, topic)


async def test_also_when_the_server_is_killed_between(tmp_path: Path, nats_server: NatsServer, topic: str) -> None:
    """kill -9 and a restart before every single sync."""

    async def kill() -> None:
        nats_server.kill()
        await asyncio.to_thread(nats_server.start)

    await _never_together(tmp_path, nats_server.url, topic, kill)


async def _never_together(tmp_path: Path, url: str, topic: str, between: Any = None) -> None:
    names = ["till-1", "till-2", "till-3"]
    digests: dict[str, str] = {}
    written: set[str] = set()
    for meeting in range(3):
        for name in names:
            settings: dict[str, Any] = {"store": f"sqlite:///{tmp_path / name}.db", "topics": [topic]}
            async with SyncNode(name, connectors=[url], **settings) as node:
                if meeting == 0:
                    written |= {each.event.id for each in await node.append_many(drafts(topic, 10))}
                if between is not None:
                    await between()
                await node.sync()
                digests[name] = await node.digest(topic)
                if meeting == 2:
                    assert sorted(await ids(node, topic)) == sorted(written)
    assert len(set(digests.values())) == 1


async def test_conflicting_changes_have_one_winner_everywhere(make: Make, url: str, topic: str) -> None:
    """Two nodes change one aggregate while offline; both keep both changes, and answer alike."""
    one, other = await make("till-1", url), await make("till-2", url)
    await one.append(draft(topic, "o-1", {"total": 1}))
    await one.sync()
    await other.sync()
    await one.append(draft(topic, "o-1", {"total": 2}))
    await other.append(draft(topic, "o-1", {"total": 3}))
    await other.append(draft(topic, "o-2", {"total": 9}))
    results = [await one.sync(), await other.sync(), await one.sync()]
    assert sum(result.conflicts_resolved for result in results) >= 1
    answers = [await node.resolve(topic, "o-1") for node in (one, other)]
    assert answers[0] == answers[1]
    assert len(answers[0].heads) == 2
    assert answers[0].winner is not None
    assert answers[0].data == answers[0].winner.data
    assert answers[0].reasons
    assert await same(topic, one, other)
    # Nothing that did not conflict is thrown away, and reading what was resolved settles it.
    assert (await one.resolve(topic, "o-2")).data == {"total": 9}
    await one.append(draft(topic, "o-1", {"total": 4}, context=answers[0].context))
    await one.sync()
    await other.sync()
    settled = [await node.resolve(topic, "o-1") for node in (one, other)]
    assert [(len(each.heads), each.data) for each in settled] == [(1, {"total": 4})] * 2


@pytest.mark.parametrize(
    ("resolver", "expected"),
    [(LastWriteWins(), {"qty": 3}), (FirstWriteWins(), {"qty": 5}), (AdditiveMerge({"qty": "sum"}), {"qty": 8})],
    ids=["last", "first", "additive"],
)
async def test_resolve_always_asks_the_resolver(make: Make, topic: str, resolver: Any, expected: object) -> None:
    """Whichever the node was given, and also where there is nothing to decide."""
    node = await make("till-7", None, resolver=resolver)
    read = (await node.resolve(topic, "o-1")).context
    await node.append(draft(topic, "o-1", {"qty": 5}, context=read))
    await node.append(draft(topic, "o-1", {"qty": 3}, context=read))
    answer = await node.resolve(topic, "o-1")
    assert answer.data == expected
    nothing = await node.resolve(topic, "o-9")
    assert (nothing.winner, nothing.data, nothing.heads) == (None, None, ())


async def test_digests_are_equal_if_and_only_if_the_events_are(make: Make, memory_url: str, topic: str) -> None:
    """The order of arrival is none of it; a single event more is."""
    one, other, third = [await make(f"till-{number}", memory_url) for number in (1, 2, 3)]
    assert await same(topic, one, other, third)
    await one.append(draft(topic, "o-1", 1))
    await other.append(draft(topic, "o-2", 2))
    assert not await same(topic, one, other)
    await one.sync()
    await other.sync()
    await one.sync()
    assert await ids(one, topic) == list(reversed(await ids(other, topic)))
    assert await same(topic, one, other)
    assert not await same(topic, one, third)


async def test_listeners_hear_every_sync_until_they_leave(
    make: Make, memory_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Functions and coroutine functions; one that raises is logged, and disturbs nobody."""
    node = await make("till-7", memory_url)
    heard: list[SyncResult] = []
    heard_later: list[SyncResult] = []

    async def listen(result: SyncResult) -> None:
        heard_later.append(result)

    def raises(result: SyncResult) -> None:
        raise RuntimeError("a defect of the listener's")

    node.subscribe(raises)
    unsubscribe = node.subscribe(heard.append)
    node.subscribe(listen)
    first = await node.sync()
    unsubscribe()
    unsubscribe()
    second = await node.pull()
    assert heard == [first]
    assert heard_later == [first, second]
    assert "a defect of the listener's" in caplog.text


# --- nobody there ----------------------------------------------------------------------------------------------------


async def test_a_refused_connection_is_said_within_three_seconds(make: Make, topic: str) -> None:
    """Unavailable and retryable, never a success; the events stay where they are."""
    node = await make("till-7", nobody_listens())
    await node.append(draft(topic))
    for call in (node.sync, node.push, node.pull):
        started = time.monotonic()
        with pytest.raises(Unavailable) as raised:
            await call()
        assert time.monotonic() - started < 3
        assert raised.value.retryable
    assert len(await ids(node, topic)) == 1


async def test_also_when_the_server_went_away_after_a_sync(make: Make, nats_server: NatsServer, topic: str) -> None:
    """The old connection is not waited for; when the server is back, so is everything."""
    node = await make("till-7", nats_server.url)
    await node.sync()
    await node.append(draft(topic))
    nats_server.kill()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await node.sync()
        assert time.monotonic() - started < 3
    await asyncio.to_thread(nats_server.start)
    result = await node.sync()
    assert (result.events_pushed, result.complete) == (1, True)


async def test_a_failed_sync_keeps_the_log_of_a_broker_in_memory(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """What was published before the broker went down is there when it is up again."""
    one, other = await make("till-1", memory_url), await make("till-2", memory_url)
    await one.append(draft(topic))
    await one.sync()
    memory.down = True
    for node in (one, other):
        with pytest.raises(Unavailable):
            await node.sync()
    memory.down = False
    assert (await other.sync()).events_pulled == 1


# --- time ------------------------------------------------------------------------------------------------------------


async def test_the_timeout_limits_an_operation_and_never_the_whole(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """A sync that goes on for longer than `timeout_s`, but goes on, ends well."""
    node = await make("till-7", memory_url)
    await node.append_many(drafts(topic, 8_000))
    memory.delay_s = 0.15
    started = time.monotonic()
    result = await node.sync(timeout_s=1.0)
    assert time.monotonic() - started > 1.0
    assert (result.events_pushed, result.complete) == (8_000, True)


@pytest.mark.parametrize("hangs", ["join", "read"])
async def test_no_progress_for_so_long_is_a_timeout(
    make: Make, memory: MemoryBroker, memory_name: str, topic: str, hangs: str
) -> None:
    """A broker that does not answer at all, and one that does not deliver: retryable, and the node stays usable."""
    node = await make("till-7", f"memory://{memory_name}?client=till-7")
    await node.append(draft(topic))
    if hangs == "join":
        memory.delay_s = 30.0
    else:
        memory.drop(reader="till-7")
    started = time.monotonic()
    with pytest.raises(Timeout) as raised:
        await node.sync(timeout_s=0.3)
    assert 0.3 <= time.monotonic() - started < 3
    assert raised.value.retryable
    memory.heal()
    await node.append(draft(topic))
    assert (await node.sync()).complete


# --- settings --------------------------------------------------------------------------------------------------------


def follower(**changes: Any) -> Any:
    """A projection that follows everything and does nothing, but for what is wrong with it."""

    async def nothing(*_: object) -> None:
        return None

    members: dict[str, Any] = {"name": "p", "topics": (), "types": (), "resolved": False}
    return type("Follower", (), {"apply": nothing, "reset": nothing, **members, **changes})()


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"node_id": ""}, ConfigError, "node id"),
        ({"node_id": "two words"}, ConfigError, "white space"),
        ({"node_id": "n@1"}, ConfigError, "@"),
        ({"node_id": "n" * 65}, ConfigError, "64"),
        ({"push_only": True, "pull_only": True}, ConfigError, "push_only and pull_only"),
        ({"packing": "zip"}, ConfigError, "batch"),
        ({"topics": "orders"}, ConfigError, "list"),
        ({"connectors": "memory://x"}, ConfigError, "list"),
        ({"topics": [""]}, ConfigError, "topic"),
        ({"topics": ["x" * 101]}, ConfigError, "100"),
        ({"topics": [], "connectors": ["memory://x"]}, ConfigError, "topics"),
        ({"connectors": ["memory://x", "memory://x"]}, ConfigError, "twice"),
        ({"connectors": ["carrier-pigeon://x"]}, ConnectorNotFound, "memory, nats"),
        ({"connectors": ["https://x"]}, ConnectorNotFound, "later release"),
        ({"connectors": ["localhost"]}, ConfigError, "scheme"),
        ({"connectors": ["nats://"]}, ConfigError, "nats://HOST:PORT"),
        ({"store": "file:x"}, StoreNotFound, "memory, postgres, postgresql, redis, rediss, rocksdb, sqlite"),
        ({"connectors": ["nats://[::1"]}, ConfigError, "cannot be read"),
        ({"connectors": ["memory://[x"]}, ConfigError, "cannot be read"),
        ({"store": "till.db"}, ConfigError, "scheme"),
        ({"store": "sqlite://"}, ConfigError, "sqlite:///"),
        ({"resolver": object()}, ConfigError, "resolver"),
        ({"resolver": LastWriteWins}, ConfigError, "write LastWriteWins("),
        ({"observer": object()}, ConfigError, "observe"),
        ({"store": None}, ConfigError, "store"),
        ({"connectors": [None]}, ConfigError, "connector"),
        ({"topics": None}, ConfigError, "list"),
        ({"held_max": 0}, ConfigError, "held_max"),
        ({"held_max": 10.5}, ConfigError, "held_max"),
        ({"clock_leap_ms_max": -1}, ConfigError, "clock_leap_ms_max"),
        ({"lease_s": 0}, ConfigError, "lease_s"),
        ({"lease_s": float("nan")}, ConfigError, "lease_s"),
        ({"projections": [object()]}, ConfigError, "it lacks name"),
        ({"projections": [follower(name="")]}, ConfigError, "name"),
        ({"projections": [follower(), follower()]}, ConfigError, "share a name"),
        ({"projections": [follower(topics="orders")]}, ConfigError, "topics is a list"),
        ({"projections": follower()}, ConfigError, "list"),
    ],
)
def test_a_wrong_setting_is_a_clear_error_at_construction(
    settings: dict[str, Any], error: type[SyncKitError], says: str
) -> None:
    """Not at the first sync: the class says what kind, the text and its hint what to do."""
    arguments: dict[str, Any] = {"node_id": "till-7", "store": "memory:", "topics": ["orders"]} | settings
    with pytest.raises(error) as raised:
        SyncNode(**arguments)
    assert says in str(raised.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), None, "30", True])
async def test_a_time_that_is_none_is_refused(make: Make, memory_url: str, seconds: Any) -> None:
    """At the call: not in the log of a background task, and not as a sync that never gives up."""
    node = await make("till-7", memory_url)
    for call in (node.sync, node.push, node.pull, node.start_auto_sync):
        with pytest.raises(ConfigError, match="timeout_s"):
            await call(timeout_s=seconds)
    with pytest.raises(ConfigError, match="interval_s"):
        await node.start_auto_sync(interval_s=seconds)
    assert (await node.sync()).complete


async def test_what_is_no_draft_and_what_cannot_be_called_is_refused(make: Make, topic: str) -> None:
    """With what to write instead; nothing of the call is written."""
    node = await make("till-7", None)
    wrong: Any = {"topic": topic, "type": "t", "aggregate_id": "o-1"}
    several: Any = draft(topic)
    for call, says in (
        (node.append(wrong), "not a Draft"),
        (node.append_many([draft(topic), wrong]), "not a Draft"),
        (node.append_many(several), "append_many"),
    ):
        with pytest.raises(Invalid, match=says):
            await call
    assert await ids(node, topic) == []
    with pytest.raises(ConfigError, match="called"):
        node.subscribe(wrong)


def test_two_nodes_cannot_have_one_store(tmp_path: Path) -> None:
    """Refused when the second one is made, with a hint, however the path is spelt; free when the first is gone."""
    url = f"sqlite:///{tmp_path / 'till.db'}"
    first = SyncNode("till-7", store=url)
    for again in (url, f"sqlite:///{tmp_path}/./till.db"):
        with pytest.raises(StoreInUse, match="path of its own"):
            SyncNode("till-8", store=again)
    del first
    gc.collect()
    SyncNode("till-8", store=url)


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is on a machine where only the core was installed."""
    for name in [name for name in sys.modules if name == "nats" or name.startswith("nats.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(MissingDependency, match=re.escape("pip install 'synckit-streams[nats]'")):
        SyncNode("till-7", store="memory:", connectors=["nats://127.0.0.1:4222"], topics=["orders"])


async def test_push_only_sends_and_takes_nothing(make: Make, memory: MemoryBroker, memory_url: str, topic: str) -> None:
    """Its peers get what it writes; it keeps nothing of theirs, and they do not send it again and again."""
    sensor, office = await make("sensor", memory_url, push_only=True), await make("office", memory_url)
    await sensor.append(draft(topic, "o-1", 1))
    await office.append(draft(topic, "o-2", 2))
    for _ in range(3):
        assert (await sensor.sync()).complete
        assert (await office.sync()).complete
    assert len(await ids(sensor, topic)) == 1
    assert len(await ids(office, topic)) == 2
    assert len(memory.messages(topic)) == 2


async def test_what_push_only_passed_over_comes_when_the_setting_is_gone(
    tmp_path: Path, make: Make, memory_url: str, topic: str
) -> None:
    """The reader is past it, so it is asked of the peers."""
    office = await make("office", memory_url)
    await office.append(draft(topic))
    await office.sync()
    settings: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path / 'sensor.db'}",
        "topics": [topic],
        "connectors": [memory_url],
    }
    async with SyncNode("sensor", push_only=True, **settings) as sensor:
        await sensor.sync()
    async with SyncNode("sensor", **settings) as sensor:
        result = await sensor.sync()
        assert not result.complete
        assert list(result.missing.values()) == [((1, 1),)]
        await office.sync()
        assert (await sensor.sync()).complete
        assert len(await ids(sensor, topic)) == 1


async def test_pull_only_takes_and_publishes_nothing(
    make: Make, memory: MemoryBroker, memory_url: str, topic: str
) -> None:
    """Not an event, not a digest; what is written there all the same is said to be unsent."""
    office, screen = await make("office", memory_url), await make("screen", memory_url, pull_only=True)
    await office.append(draft(topic))
    await office.sync()
    result = await screen.sync()
    assert (result.events_pulled, result.complete) == (1, True)
    await screen.append(draft(topic))
    result = await screen.sync()
    assert not result.complete
    assert "not acknowledged" in result.reasons[0]
    assert (await office.sync()).events_pulled == 0
    assert len(memory.messages(topic)) == 1


async def test_a_draft_may_name_what_it_has_read(make: Make, topic: str) -> None:
    """Who read, was overtaken, and saves: both changes stand, and that is a conflict."""
    node = await make("till-7", None)
    first = await node.append(draft(topic, "o-1", {"price": 1}))
    read = (await node.resolve(topic, "o-1")).context
    await node.append(draft(topic, "o-1", {"price": 2}))
    saved = await node.append(Draft(topic=topic, type="t", aggregate_id="o-1", data={"price": 3}, context=read))
    assert saved.event.context.covers(first.event.dot)
    assert len((await node.resolve(topic, "o-1")).heads) == 2
