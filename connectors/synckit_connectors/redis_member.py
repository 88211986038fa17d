"""Groups of the Redis connector: a member of a consumer group, what it holds, and what it gives back.

Redis keeps for each message that a group delivered, and that nobody has acknowledged, with whom it is, since when, and
how often it was delivered. What follows from that:

- A message that is given back, or that a member leaves behind, goes to the consumer `NOBODY` and counts as idle for a
  day: so whoever asks next claims it, by the same command by which it claims what a dead member had.
- A member has a name of its own, drawn at random, and tells the server nothing about messages that are not pending
  under this name: they are with another member, or of a log that has been put back since.
- Before a member's name is taken away its messages are handed on, in one script: the server would forget them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from synckit_connectors.redis_line import RETRY_PAUSE_S, Line
from synckit_connectors.redis_readers import READ_FIRST, Waiting, next_count
from synckit_connectors.redis_wire import ACK_WAIT_S_MAX, message, position, stream_of
from synckit_streams.errors import ConnectorError, Unavailable
from synckit_streams.ports.connector import BATCHES_HELD_MAX, Delivery, Message
from synckit_streams.ports.reading import stop

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("synckit_connectors.redis_streams")

T = TypeVar("T")

NOBODY = b"nobody"
"""The consumer that has what nobody has."""
ABANDONED_MS = int(2 * ACK_WAIT_S_MAX * 1000)
"""For how long what was given back counts as idle."""
CLAIM_COUNT = 100
"""How many of others' messages are claimed at a time, at most, unless a batch may be larger."""
POLL_S = 0.5
"""For how long a member waits at the server, until it looks for what comes again."""
LEAVE_S = 2.0
"""For giving up what a member has. What it could not give up comes again after `ack_wait_s`."""
SETTLED_AT_ONCE = 4_000
"""Messages in one command. A script can unpack about 8,000."""

# Make the stream if it is not there, as LOOK does, and the group. Gives the stream's identity.
JOIN = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[2], ARGV[3], 'MKSTREAM')
  redis.call('SET', KEYS[2], ARGV[1])
else
  redis.call('SET', KEYS[2], ARGV[1], 'NX')
  local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[2], ARGV[3])
  if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
end
return redis.call('GET', KEYS[2])
"""
# Of the messages in ARGV[3], …, which ascend, those that are pending under the name ARGV[2].
_MINE = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[FIRST], ARGV[#ARGV], 2147483647, ARGV[2])
if pending.err then
  if string.find(pending.err, 'NOGROUP') then return 0 end
  return pending
end
local asked, mine = {}, {}
for at = FIRST, #ARGV do asked[ARGV[at]] = true end
for _, each in ipairs(pending) do
  if asked[each[1]] then mine[#mine + 1] = each[1] end
end
if #mine == 0 then return 0 end
"""
ACK = f"local FIRST = 3\n{_MINE}\nreturn redis.call('XACK', KEYS[1], ARGV[1], unpack(mine))"
# To the name ARGV[3], as if it had them for ARGV[4] milliseconds already. JUSTID: that is no delivery.
PASS = f"""
local FIRST = 5
{_MINE}
local idle = {{'IDLE', ARGV[4], 'JUSTID'}}
for at = 1, 3 do mine[#mine + 1] = idle[at] end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(mine))
return #mine - 3
"""
# Everything that is pending under a name, to another, and away with the name.
LEAVE = """
local from = '-'
while true do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], from, '+', 1000, ARGV[2])
  if pending.err or #pending == 0 then break end
  local ids = {}
  for _, each in ipairs(pending) do ids[#ids + 1] = each[1] end
  from = '(' .. ids[#ids]
  local idle = {'IDLE', ARGV[4], 'JUSTID'}
  for at = 1, 3 do ids[#ids + 1] = idle[at] end
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, unpack(ids))
end
redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
"""
# What is idle for too long, from a cursor on, and how often each was delivered. The server takes away by itself what is
# pending and was trimmed.
CLAIM = """
if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[6] then
  return redis.error_reply('NOGROUP this is another stream')
end
local found = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
local entries, times, counts = found[2], {}, {}
if #entries > 0 then
  local first, last = entries[1][1], entries[#entries][1]
  for _, each in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], first, last, 2147483647, ARGV[2])) do
    times[each[1]] = each[4]
  end
  for at, each in ipairs(entries) do counts[at] = times[each[1]] or 1 end
end
return {found[1], entries, counts}
"""
# The names of those who are gone. In one script, so that none of them gets something in between.
SWEEP = """
for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local found = {}
  for at = 1, #each, 2 do found[each[at]] = each[at + 1] end
  if found.pending == 0 and found.idle > tonumber(ARGV[4]) and found.name ~= ARGV[2] and found.name ~= ARGV[3] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], found.name)
  end
end
"""
# Up to where a group was delivered to, the first that is pending, and how many are.
PROGRESS = """
for _, each in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local found = {}
  for at = 1, #each, 2 do found[each[at]] = each[at + 1] end
  if found.name == ARGV[1] then
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
    return {found['last-delivered-id'], pending[2] or '', pending[1]}
  end
end
return false
"""

# Whether nothing is pending, and nothing lies behind what was delivered. That a group is gone is told to whoever reads.
SETTLED = """
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then return 0 end
for _, each in ipairs(groups) do
  local found = {}
  for at = 1, #each, 2 do found[each[at]] = each[at + 1] end
  if found.name == ARGV[1] then
    local next = redis.call('XRANGE', KEYS[1], '(' .. found['last-delivered-id'], '+', 'COUNT', 1)
    return (found.pending == 0 and #next == 0) and 1 or 0
  end
end
return 0
"""


class Source:
    """The log of a topic of ours, as its groups see it."""

    def __init__(self, line: Line, topic: str, start: int) -> None:
        self.line = line
        self.topic = topic
        self.stream = stream_of(topic)
        self.identity = b""
        self._start = max(start, 0)

    @property
    def keys(self) -> list[str]:
        """The stream's, and that of its identity."""
        return [self.stream, f"{self.stream}:id"]

    async def join(self, group: bytes) -> None:
        """Make the group if it is not there."""
        start, identity = f"0-{self._start}", secrets.token_hex(16)
        keys = self.keys
        made: Any = await self.line.ask(lambda client: client.eval(JOIN, len(keys), *keys, identity, group, start))
        self.identity = made

    def position(self, id: bytes) -> int:
        """Of an entry's id."""
        return position(id, self.topic)

    def id(self, position: int) -> bytes:
        """Of the entry at a position."""
        return b"0-%d" % position

    def message(self, id: bytes, fields: dict[bytes, bytes]) -> Message:
        """What an entry says."""
        return message(fields)


class Member(Waiting):
    """See `ports.connector.Member`."""

    def __init__(self, line: Line, source: Source, group: str, batch_max: int) -> None:
        super().__init__(line, source.stream)
        self._source = source
        self._group = group.encode()
        self._name = secrets.token_hex(8).encode()
        self._batch_max = max(batch_max, 1)
        self._count = min(READ_FIRST, self._batch_max)
        self._claim_count = READ_FIRST
        self._wait_ms = max(int(line.options.ack_wait_s * 1000), 1)
        self._held: set[int] = set()
        """What is with this member, as far as it knows."""
        self._ready: deque[list[Delivery]] = deque()
        """Claimed, and not yet taken."""
        self._parked: dict[int, float] = {}
        """What was given back for later, and when it comes again."""
        self._keeper: asyncio.Task[None] | None = None
        self._poked = asyncio.Event()
        self._room = asyncio.Event()
        self._cursor = b"0-0"
        self._claim_at = 0.0
        self._sweep_at = 0.0
        self._turn = False
        """Whether something new comes before the next that comes again: poison must not keep everything else away."""
        self._last: tuple[bytes, Message] | None = None
        self._client_id = 0
        self._blocked = False
        self._leaving: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Make the group if it is not there."""
        await self._source.join(self._group)

    # --- reading -----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Member:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.wait_for(lambda: self.lasting(self._read))
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def connected(self, client: Redis) -> None:
        """Look whether it is still the same log, and what the lost connection had got for us."""
        self._client_id = 0
        with suppress(Exception):  # not everybody may ask; then leaving takes a little longer
            self._client_id = await client.client_id()
        try:
            if self._last is not None:
                await self._check(client)
            await self._compare(client)
        except Exception as raised:
            raise self._told(raised) from raised

    async def _read(self, client: Redis) -> list[Delivery] | None:
        if self.ended:
            return []
        if self._ready:
            return self._ready.popleft()
        try:
            return await self._next(client)
        except Exception as raised:
            raise self._told(raised) from raised

    def _told(self, raised: Exception) -> Exception:
        said = str(raised)
        if said.startswith("NOGROUP") or "no such key" in said:
            return self._lost("was deleted or made anew, or its group was")
        return raised

    async def _next(self, client: Redis) -> list[Delivery] | None:
        now = asyncio.get_running_loop().time()
        new_first, self._turn = self._turn, False
        if now >= self._claim_at and not new_first:
            await self._claim(client, now)
            if self._ready:
                self._turn = True
                return self._ready.popleft()
        room = BATCHES_HELD_MAX * self._batch_max - len(self._held)
        if room <= 0:
            self._room.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._room.wait()
                    return None
            await self._compare(client)  # others may have some of it by now
            return None
        block_s = 0.0 if new_first else max(self._claim_at - now, 0.001)
        entries = await self._wait_for_entries(client, min(self._count, room), block_s)
        if not entries:
            if not new_first and self._last is not None:
                await self._check(client)
            return None
        batch = self._batch((id, fields, 1) for id, fields in entries)
        self._count = next_count(self._count, self._batch_max, batch)
        self._last = entries[-1][0], batch[-1].message
        return batch

    async def _wait_for_entries(self, client: Redis, count: int, block_s: float) -> Any:
        """What came meanwhile, of the log that it was at the end of that."""
        block = ["BLOCK", math.ceil(block_s * 1000)] if block_s else []
        streams = ("STREAMS", self.stream, ">")
        async with client.pipeline(transaction=False) as pipe:
            pipe.execute_command("XREADGROUP", "GROUP", self._group, self._name, "COUNT", count, *block, *streams)
            for key in self._source.keys[1:]:
                pipe.get(key)
            self._blocked = bool(block)
            try:
                found, *identity = await pipe.execute(raise_on_error=False)
            finally:
                self._blocked = False
        for answer in (found, *identity):
            if isinstance(answer, Exception):
                raise answer
        if identity and identity[0] != self._source.identity:
            raise self._lost("was deleted and made anew")
        return found[0][1] if found else None

    async def _claim(self, client: Redis, now: float) -> None:
        """What comes again: the next of what somebody has had for too long, and of what nobody has."""
        if now >= self._sweep_at:
            self._sweep_at = now + self.line.options.ack_wait_s
            idle_ms = max(self._wait_ms, int(4 * POLL_S * 1000))  # whoever lives asks more often
            await client.eval(SWEEP, 1, self.stream, self._group, self._name, NOBODY, idle_ms)
        keys = self._source.keys
        while True:
            asked = (self._group, self._name, self._wait_ms, self._cursor, self._claim_count, self._source.identity)
            self._cursor, entries, counts = await client.eval(CLAIM, len(keys), *keys, *asked)
            if entries:
                break
            if self._cursor == b"0-0":
                self._claim_at = now + POLL_S
                return
        pairs = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
        again = zip((id for id, _ in entries), pairs, counts, strict=True)
        batch = self._batch(again)
        self._claim_count = next_count(self._claim_count, max(CLAIM_COUNT, self._batch_max), batch)
        self._ready.extend(_parts(batch, self._batch_max))

    def _batch(self, entries: Iterable[tuple[bytes, dict[bytes, bytes], int]]) -> list[Delivery]:
        source = self._source
        batch = [
            Delivery(source.message(id, fields), 0, source.position(id), attempt) for id, fields, attempt in entries
        ]
        for each in batch:
            self._held.add(each.position)
            self._parked.pop(each.position, None)
        return batch

    async def _compare(self, client: Redis) -> None:
        """What we have with what the server says that we have."""
        pending: Any = await client.xpending_range(self.stream, self._group, "-", "+", 2**31 - 1, self._name)
        ours = {self._source.position(each["message_id"]) for each in pending}
        self._held &= ours
        if lost := ours - self._held - self._parked.keys():
            await self._pass(lost, NOBODY, ABANDONED_MS)  # an answer that never came

    async def _check(self, client: Redis) -> None:
        """Whether the last message that we read is still the last but those that came after it."""
        assert self._last is not None
        id, last = self._last
        found: Any = await client.xrange(self.stream, id, id)
        if found and self._source.message(*found[0]) != last:
            raise self._lost(f"was put back: {id.decode()} is another message now")
        if not found:
            given = (await client.xinfo_stream(self.stream))["last-generated-id"]
            if _order(given) < _order(id):
                raise self._lost(f"was put back: it ends at {given.decode()}, {id.decode()} was read")

    def _lost(self, what: str) -> Unavailable:
        return Unavailable(f"stream {self.stream} {what}", hint="look at the bounds, and join again")

    # --- the verbs ---------------------------------------------------------------------------------------------------

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.ack`."""
        positions = [each.position for each in deliveries]
        await self._settle(positions, ACK)
        self._forget(positions)

    async def term(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.term`."""
        await self.ack(deliveries)

    async def nack(self, deliveries: Sequence[Delivery], delay_s: float = 0.0) -> None:
        """See `Member.nack`."""
        positions = [each.position for each in deliveries]
        if delay_s <= 0:
            await self._pass(positions, NOBODY, ABANDONED_MS)
            self._forget(positions)
            await self._hurry()
            return
        due = asyncio.get_running_loop().time() + delay_s
        parked = [each for each in positions if each in self._held]
        self._forget(parked)
        self._parked.update(dict.fromkeys(parked, due))
        self._poked.set()
        if self._keeper is None or self._keeper.done():
            self._keeper = asyncio.create_task(self._keep())

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.extend`."""
        await self._pass([each.position for each in deliveries], self._name, 0)

    async def settled(self) -> bool:
        """See `Member.settled`."""
        return bool(await self.line.ask(lambda client: client.eval(SETTLED, 1, self.stream, self._group)))

    async def _pass(self, positions: Iterable[int], name: bytes, idle_ms: int) -> None:
        await self._settle(positions, PASS, name, str(idle_ms).encode())

    async def _settle(self, positions: Iterable[int], script: str, *given: bytes) -> None:
        for some in _parts(sorted(set(positions)), SETTLED_AT_ONCE):
            asked = (self._group, self._name, *given, *map(self._source.id, some))
            await self.line.ask(partial(_eval, script, self.stream, asked))

    def _forget(self, positions: Iterable[int]) -> None:
        self._held.difference_update(positions)
        self._room.set()

    async def _hurry(self) -> None:
        """There is something that comes again: the reader is not to wait for something new."""
        self._claim_at = 0.0
        self._room.set()
        if self._blocked and (waiting := self._client_id):
            with suppress(ConnectorError):  # then it waits a little longer
                await self.line.ask(lambda client: client.client_unblock(waiting))

    async def _keep(self) -> None:
        """Hold what was given back for later, so that nobody claims it too early; then let go of it."""
        loop = asyncio.get_running_loop()
        extend_at = 0.0
        while self._parked:
            now = loop.time()
            due = [each for each, due_at in self._parked.items() if due_at <= now]
            try:
                if due:
                    await self._pass(due, NOBODY, ABANDONED_MS)
                    for each in due:
                        self._parked.pop(each, None)
                    await self._hurry()
                if now >= extend_at or self._poked.is_set():
                    self._poked.clear()
                    await self._pass(self._parked, self._name, 0)
                    extend_at = now + self._wait_ms / 3000
            except ConnectorError as error:  # the server is away: what is due stays so
                log.debug("%s: what was given back waits: %s", self.stream, error.message)
                await asyncio.sleep(RETRY_PAUSE_S)
            pause_s = min([extend_at, *self._parked.values()]) - loop.time()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(pause_s, 0.001)):
                    await self._poked.wait()

    # --- leaving -----------------------------------------------------------------------------------------------------

    async def end(self) -> None:
        """Give up what there is, so that others get it at once; also if whoever waits for that is cancelled."""
        self.ended = True
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
        await asyncio.shield(self._leaving)

    async def _leave(self) -> None:
        self._room.set()
        if self._keeper is not None:
            await stop(self._keeper)
        client = self.line.connect()  # the reader's own may be in use
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._stop_reading(client)
                await client.eval(LEAVE, 1, self.stream, self._group, self._name, NOBODY, ABANDONED_MS)
        except Exception as raised:  # noqa: BLE001 - whatever it is, what we have comes again after `ack_wait_s`
            log.debug("%s: a member leaves without a word: %s", self.stream, raised)
        finally:
            task, self._waiting = self._waiting, None
            if task is not None:
                await stop(task)
            with suppress(Exception):  # it may be broken already
                await client.aclose()
            await self.disconnect()

    async def _stop_reading(self, client: Redis) -> None:
        """Let what was begun come to its end, since it may bring messages: cut off, they would be with nobody."""
        reading = self._waiting
        if reading is None:
            return
        if self._blocked and self._client_id:
            with suppress(Exception):  # then it waits a little longer
                await client.client_unblock(self._client_id)
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()  # nobody waits for it any more


async def _eval(script: str, stream: str, asked: Sequence[bytes], client: Redis) -> None:
    await client.eval(script, 1, stream, *asked)


def _parts(things: list[T], size: int) -> list[list[T]]:
    return [things[at : at + size] for at in range(0, len(things), size)]


def _order(id: bytes) -> tuple[int, int]:
    time, _, number = id.partition(b"-")
    return int(time), int(number)
