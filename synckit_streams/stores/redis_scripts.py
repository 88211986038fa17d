"""What a Redis store asks of its server in one piece: scripts, which run alone and as a whole.

The keys are always the same four, in this order: the *rows*, a hash; the *order* of their keys, a sorted set (not of the
log's rows: those are numbered, and found by counting); the *head*, a hash; and the *claim*, a string that ends by itself.

The fence. The head names the last commit, under a name that no other one ever had. Whoever commits says which one he
saw last; if that is not the last one, or if somebody else has the claim, nothing is written. So a command that arrives
late, a process that slept through the end of its claim, and a server that was put back are one case.
"""

from __future__ import annotations

from hashlib import sha1
from typing import NamedTuple


class Script(NamedTuple):
    """A script, and the name under which the server keeps it."""

    text: str
    sha: str


def _script(text: str) -> Script:
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


_FENCE = """
local holder = redis.call('GET', KEYS[4])
if holder and holder ~= ARGV[1] then return {'taken', holder, redis.call('PTTL', KEYS[4])} end
"""
_AS_LEFT = """
local head = redis.call('HGET', KEYS[3], 'head') or ''
if head ~= ARGV[3] then return {'moved', head} end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
"""

# ARGV: our claim and for how many ms; a new head; the mark of a store. Asked again with the same new head it answers
# what it answered before, so that it may be asked again when its answer was lost.
TAKE = _script(
    _FENCE
    + """
local head, clean, server = unpack(redis.call('HMGET', KEYS[3], 'head', 'clean', 'server'))
if head == ARGV[3] then
  head = redis.call('HGET', KEYS[3], 'before')
else
  redis.call('HSET', KEYS[3], 'head', ARGV[3], 'before', head or '', 'mark', ARGV[4])
  redis.call('HDEL', KEYS[3], 'clean', 'server')
end
redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[2])
return {'ours', head or '', clean or '', server or ''}
"""
)

# ARGV: our claim and for how many ms; the head as we left it.
RENEW = _script(_FENCE + _AS_LEFT + "return {'ours', head}")

# ARGV: our claim; "", the head as we left it; what says that it was left clean, and by which server. None is left by
# whoever is not sure.
RELEASE = _script(
    _FENCE
    + """
if ARGV[4] ~= '' and redis.call('HGET', KEYS[3], 'head') == ARGV[3] then
  redis.call('HSET', KEYS[3], 'clean', ARGV[4], 'server', ARGV[5])
end
if holder then redis.call('DEL', KEYS[4]) end
return {'ours', ''}
"""
)

ROWS_AT_ONCE = 2000
"""So many arguments a script gives to one command: Lua's stack has 8000 places."""

# ARGV: our claim and for how many ms; the head as we left it, the new one; the channel; the last position (0 for none);
# how many rows of the log, how many others, how many deleted of each; then these rows, as keys and values, and the keys
# that go.
COMMIT = _script(
    f"local most = {ROWS_AT_ONCE}"
    + _FENCE
    + _AS_LEFT
    + """
local log, others = tonumber(ARGV[7]), tonumber(ARGV[8])
local gone_log, gone = tonumber(ARGV[9]), tonumber(ARGV[10])
local function in_parts(first, last, call)
  for at = first, last, most do call(at, math.min(at + most - 1, last)) end
end
local at = 11
in_parts(at, at + 2 * (log + others) - 1, function(first, last)
  redis.call('HSET', KEYS[1], unpack(ARGV, first, last))
end)
at = at + 2 * log
in_parts(at, at + 2 * others - 1, function(first, last)
  local members, count = {}, 0
  for place = first, last, 2 do
    members[count + 1], members[count + 2] = '0', ARGV[place]
    count = count + 2
  end
  redis.call('ZADD', KEYS[2], unpack(members))
end)
at = at + 2 * others
in_parts(at, at + gone_log + gone - 1, function(first, last) redis.call('HDEL', KEYS[1], unpack(ARGV, first, last)) end)
at = at + gone_log
in_parts(at, at + gone - 1, function(first, last) redis.call('ZREM', KEYS[2], unpack(ARGV, first, last)) end)
redis.call('HSET', KEYS[3], 'head', ARGV[4])
if ARGV[6] ~= '0' then redis.call('HSET', KEYS[3], 'last', ARGV[6]) end
redis.call('PUBLISH', ARGV[5], '')
return {'ours', ''}
"""
)

# ARGV: start, end, how many, how many bytes, whether the last ones are wanted. Gives keys and values in turn.
PAGE = _script(
    """
local found
if ARGV[5] == '1' then
  found = redis.call('ZRANGE', KEYS[2], '(' .. ARGV[2], '[' .. ARGV[1], 'BYLEX', 'REV', 'LIMIT', 0, ARGV[3])
else
  found = redis.call('ZRANGE', KEYS[2], '[' .. ARGV[1], '(' .. ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])
end
local rows, size, most = {}, 0, tonumber(ARGV[4])
for at, key in ipairs(found) do
  if size >= most then break end
  local value = redis.call('HGET', KEYS[1], key)
  rows[2 * at - 1], rows[2 * at] = key, value
  size = size + (value and #value or 0)
end
return rows
"""
)

# The same of the log. ARGV: its letter; the first and the last position; how many, how many bytes, whether the last
# ones are wanted.
PAGE_OF_LOG = _script(
    """
local first = tonumber(ARGV[2])
local last = math.min(tonumber(ARGV[3]), tonumber(redis.call('HGET', KEYS[3], 'last') or 0))
local wanted, most = 2 * tonumber(ARGV[4]), tonumber(ARGV[5])
local step = 1
if ARGV[6] == '1' then first, last, step = last, first, -1 end
local rows, count, size = {}, 0, 0
for position = first, last, step do
  if count >= wanted or size >= most then break end
  local key = ARGV[1] .. struct.pack('>I8', position)
  local value = redis.call('HGET', KEYS[1], key)
  if value then
    rows[count + 1], rows[count + 2] = key, value
    count, size = count + 2, size + #value
  end
end
return rows
"""
)

# ARGV: start and end of each range. Gives for each its keys, and their values.
PAGES = _script(
    f"local most = {ROWS_AT_ONCE}"
    + """
local rows = {}
for range = 1, #ARGV, 2 do
  local found = redis.call('ZRANGE', KEYS[2], '[' .. ARGV[range], '(' .. ARGV[range + 1], 'BYLEX')
  local values = {}
  for at = 1, #found, most do
    local part = redis.call('HMGET', KEYS[1], unpack(found, at, math.min(at + most - 1, #found)))
    for number, value in ipairs(part) do values[at + number - 1] = value end
  end
  rows[range], rows[range + 1] = found, values
end
return rows
"""
)
