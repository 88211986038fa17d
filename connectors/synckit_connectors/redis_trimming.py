"""Trimming a stream of ours: by what everybody has, and, as an alarm, by what a hard cap took from somebody."""

from __future__ import annotations

import asyncio
import logging

from synckit_connectors.redis_line import Line
from synckit_connectors.redis_wire import stream_of

log = logging.getLogger("synckit_connectors.redis_streams")

ALARM_EVERY_S = 60.0
"""Least time between two warnings about one stream."""

# What each group still needs: its first pending message, or the one after the last that was delivered. Numbers in a
# script are exact up to 2^53; an id with a time before the number is behind all of ours.
_NEEDED = """
local function needed(stream)
  local found = {}
  for _, each in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for at = 1, #each, 2 do group[each[at]] = each[at + 1] end
    local id, next = group['last-delivered-id'], 1
    if group.pending > 0 then id, next = redis.call('XPENDING', stream, group.name)[2], 0 end
    local time, number = string.match(id, '(%d+)-(%d+)')
    if time == '0' then found[#found + 1] = {group.name, tonumber(number) + next} end
  end
  return found
end
"""
TRIM = f"""
{_NEEDED}
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local least = tonumber(ARGV[1])
for _, each in ipairs(needed(KEYS[1])) do least = math.min(least, each[2]) end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', string.format('0-%.0f', least))
"""
# Where the stream begins, and what each group needs.
STANDING = f"""
{_NEEDED}
if redis.call('EXISTS', KEYS[1]) == 0 then return {{0, {{}}}} end
local info, first = redis.call('XINFO', 'STREAM', KEYS[1]), 0
for at = 1, #info, 2 do
  if info[at] == 'first-entry' and info[at + 1] then first = tonumber(string.match(info[at + 1][1], '-(%d+)')) end
end
return {{first, needed(KEYS[1])}}
"""


class Trimming:
    """What is taken away from the streams of one connector."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._kept: dict[str, int] = {}
        """From where on the replicas need a topic, as they last said."""
        self._warned: dict[str, float] = {}

    async def trim(self, topic: str, below: int) -> None:
        """Take away what lies below a position and below what every group needs."""
        self._kept[topic] = below
        await self._line.ask(lambda client: client.eval(TRIM, 1, stream_of(topic), str(max(below, 0))))

    async def alarm(self, topic: str) -> None:
        """Say so if the cap has taken what a group has not acknowledged, or what the replicas still need."""
        first, needed = await self._line.ask(lambda client: client.eval(STANDING, 1, stream_of(topic)))
        lacks = [(f"group {name.decode(errors='replace')!r}", first - least) for name, least in needed if least < first]
        if (least := self._kept.get(topic, first)) < first:
            lacks.append(("some replica", first - least))
        now = asyncio.get_running_loop().time()
        if lacks and now >= self._warned.get(topic, 0.0):
            self._warned[topic] = now + ALARM_EVERY_S
            log.warning(
                "%s on %s is cut to max_length=%d: gone before it was acknowledged, %s",
                stream_of(topic),
                self._line.address,
                self._line.options.max_length,
                ", ".join(f"{count} messages for {whom}" for whom, count in lacks),
            )
